"""config.json: what a saved model is. Written from a model, and read back without trusting a word of it."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from icll_zoo import files, options, plugins
from icll_zoo.errors import InputError, IntegrityError, UnknownName, printable
from icll_zoo.registry import SCRIPT, Entry
from icll_zoo.run import Part
from icll_zoo.zoo import ModelSpec, PluginWarning, Vocabulary, Zoo

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
VOCABULARY_LIMIT = 2**20  # tokens; a row of the fingerprint has a number for each
LIBRARY = "icll-zoo"
LAYER_LIMIT = options.LIMITS["n_layers"]
KEY_LIMIT = 256  # options of a model or of a layer, and keys of any mapping that is described here


def plain(text: str) -> str:
    """A text that can be shown: no line breaks, no control characters, none that turn the writing direction."""
    if not text.isprintable():
        raise ValueError("a text with characters that cannot be printed")
    return text


def texts(value: Any) -> Any:
    """A list of texts, or what is no list; one fault, and not one for each item that is none."""
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise ValueError("a list whose items are not all texts")
    return value


Short = Annotated[str, Field(max_length=200), AfterValidator(plain)]
# Names are ASCII: in another script there is a letter that looks like each of these.
Distribution = Annotated[str, Field(pattern=r"^[A-Za-z0-9._?-]+$", max_length=200)]
PluginName = Annotated[str, Field(pattern=r"^(?:[A-Za-z0-9._?-]+/)?[A-Za-z0-9_.-]+$", max_length=200)]
Qualified = Annotated[
    str, Field(pattern=r"^(?:[A-Za-z0-9._?-]+/)?[A-Za-z0-9_.-]+:[a-z0-9][a-z0-9_-]*$", max_length=200)
]
Count = Annotated[int, Field(ge=0, lt=2**63)]


FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]


class FileFacts(Part):
    """What a file must be before it is parsed."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class PluginFacts(Part):
    """Where a plugin came from when the model was saved."""

    distribution: Distribution
    version: Short


class Data(Part):
    """What the model was trained on, and the tokens that it knows: texts by id, or null where only ids are known."""

    dataset: Short | None = None
    version: Count | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    vocabulary: Annotated[list[str] | None, BeforeValidator(texts)]
    vocab_size: Annotated[int, Field(ge=1, le=VOCABULARY_LIMIT)]
    pad_id: Count
    separator_id: Count | None


class Config(Part):
    """config.json, schema 1.

    architecture, version, distribution: the registered name, qualified, and the package it came in.
    plugins: every plugin that the architecture or its layers name. script: the file that registered it, if one did.
    model: every option with its value. files: the sha256 and size of the tensors' files.
    """

    schema_number: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)] = Field(alias="schema")
    library: Literal["icll-zoo"]
    architecture: Qualified
    version: Annotated[int, Field(ge=1)]
    distribution: Distribution | None
    plugins: dict[PluginName, PluginFacts]
    script: Short | None = None
    model: dict[str, Any]
    data: Data
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    parameters: Count
    files: dict[FileName, FileFacts]

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.architecture, self.version, self.model, self.distribution)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.data.vocab_size, self.data.vocabulary, self.data.pad_id, self.data.separator_id)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True)


# -- writing ---------------------------------------------------------------------------------------------------------


def describe_model(
    zoo: Zoo,
    model: nn.Module,
    *,
    data: Mapping[str, Any] | None,
    training: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    parameters: int,
) -> Config:
    """The config.json of a model that a zoo built, `files` still empty. Raises InputError for what it cannot hold."""
    spec, vocabulary = spec_of(model)
    entries = [zoo.entry("model", spec.architecture, spec.distribution)]
    entries += [zoo.entry("model", name) for name in spec.mixers()]
    raw = {
        "schema": SCHEMA,
        "library": LIBRARY,
        "architecture": spec.architecture,
        "version": spec.version,
        "distribution": spec.distribution,
        "plugins": {e.plugin: plugin_facts(zoo, e) for e in entries if e.plugin != SCRIPT},
        "script": next((script_name(zoo, e) for e in entries if e.plugin == SCRIPT), None),
        "model": spec.options,
        "data": {
            **(data or {}),
            "vocabulary": None if vocabulary.tokens is None else list(vocabulary.tokens),
            "vocab_size": vocabulary.size,
            "pad_id": vocabulary.pad_id,
            "separator_id": vocabulary.separator_id,
        },
        "training": dict(training or {}),
        "metrics": dict(metrics or {}),
        "parameters": parameters,
        "files": {},
    }
    try:
        text = files.canonical_json(raw)
        size = len(files.pretty_json(raw).encode())
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot save the model's description as JSON: {error}") from error
    if size > files.TEXT_LIMIT - 2**12:  # `files` is still to come
        raise InputError(f"the model's description has {size} bytes, too many for config.json")
    return parse(files.parse_json(text, "the description"), "the model's description")


def spec_of(model: nn.Module) -> tuple[ModelSpec, Vocabulary]:
    """What the zoo wrote on a model when it built it. InputError for a model of another origin."""
    spec, vocabulary = getattr(model, "zoo_spec", None), getattr(model, "zoo_vocabulary", None)
    if not isinstance(spec, ModelSpec) or not isinstance(vocabulary, Vocabulary):
        raise InputError(
            f"a {type(model).__name__} that no zoo created cannot be saved: nobody could build it again",
            hint="register its class and create it with create_model",
        )
    return spec, vocabulary


def plugin_facts(zoo: Zoo, entry: Entry) -> dict[str, str]:
    short = entry.plugin.rpartition("/")[2]
    version = next((p.version for p in zoo.plugins if (p.name, p.distribution) == (short, entry.distribution)), "?")
    return {"distribution": entry.distribution, "version": version}


def script_name(zoo: Zoo, entry: Entry) -> str:
    """The name of the file in which a name of `script:` was registered; "?" for a notebook's cell."""
    try:
        own = Path(inspect.getfile(entry.load())).name
    except (TypeError, OSError):
        own = "?"
    known = [path.name for path in zoo.scripts]
    return printable(own if own in known or not known else known[-1], 200)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_config(folder: Path, zoo: Zoo) -> Config:
    """The config.json of a folder, of a form and with names and options that this zoo knows.

    Raises InputError, with every fault, for anything else.
    """
    path = folder / "config.json"
    where = f"config.json {str(path)!r}"
    raw = files.read_json(path, "config.json")
    if not isinstance(raw, dict) or raw.get("library") != LIBRARY:
        raise InputError(f"{where} is not of a model that icll-zoo saved")
    schema = raw.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(f"{where} has schema {schema}, and this icll-zoo reads {SCHEMA}", hint="use a newer icll-zoo")
    config = parse(raw, where)
    if outdated(config, zoo):
        config = parse(upgraded(raw, zoo), where)
    entry = installed(config, zoo, config.architecture, where)
    if (entry.distribution, entry.version) != (config.distribution, config.version):
        raise InputError(
            f"{where} wants version {config.version} of {config.architecture!r} from distribution "
            f"{printable(repr(config.distribution), 80)}; version {entry.version} from {entry.distribution!r} is here",
            hint="install the plugin's release that matches",
        )
    model = dict(config.model)
    if layers := layers_of(config):
        model["layers"] = [
            {**layer, "mixer": installed(config, zoo, layer["mixer"], where).qualified} for layer in layers
        ]
    resolved = zoo.resolve_model(entry.qualified, model)
    return config.model_copy(update={"model": resolved.options, "architecture": resolved.architecture})


def parse(raw: Any, where: str) -> Config:
    """The form of config.json, and no size in it that no model has. IntegrityError with every fault."""
    check_keys(raw, where)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        faults = [printable(line, 300) for line in fault_lines(error, where)]
        raise IntegrityError(faults[0], faults=faults) from error
    check_limits(config, where)
    check_vocabulary(config.data, where)
    return config


def fault_lines(error: ValidationError, where: str) -> list[str]:
    """Each fault that pydantic found, as a line: which key, where and why."""
    lines = []
    for detail in error.errors(include_input=False, include_url=False):
        key = printable(".".join(str(part)[:80] for part in detail["loc"]), 120)
        if detail["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r} in {where}")
        elif detail["type"] == "missing":
            lines.append(f"missing key {key!r} in {where}")
        else:
            reason = detail["msg"].removeprefix("Value error, ")
            lines.append(f"wrong value for {key!r} in {where}: {reason[0].lower()}{reason[1:]}")
    return lines


def check_keys(raw: Any, where: str) -> None:
    """Refuse more keys than there can be, before each of them is a fault that somebody writes a line about."""
    level = [raw]
    for _ in range(3):  # config.json, `plugins`, a plugin
        if any(len(mapping) > KEY_LIMIT for mapping in level):
            raise IntegrityError(f"{where} has more than {KEY_LIMIT} keys in one mapping")
        level = [
            value
            for mapping in level
            for key, value in mapping.items()
            if isinstance(value, dict) and key not in ("model", "training", "metrics", "options")
        ]


def check_limits(config: Config, where: str) -> None:
    """Refuse sizes that no model has, before anything is built or even compared."""
    layers = config.model.get("layers")
    if layers is not None and not (
        isinstance(layers, list)
        and all(isinstance(layer, dict) and isinstance(layer.get("mixer"), str) for layer in layers)
    ):
        raise IntegrityError(f"wrong value in {where}: layers is not a list of mappings that name a mixer")
    if layers and len(layers) > LAYER_LIMIT:
        raise IntegrityError(f"{where} lists {len(layers)} layers, more than {LAYER_LIMIT}")
    for given in (config.model, *layers_of(config)):
        if len(given) > KEY_LIMIT or any(len(key) > 200 for key in given):
            raise IntegrityError(f"{where} has more than {KEY_LIMIT} options in one mapping, or absurdly long ones")
    if fault := options.oversized(config.model):
        raise IntegrityError(f"wrong value in {where}: {fault}")


def check_vocabulary(data: Data, where: str) -> None:
    if data.vocabulary is not None and len(data.vocabulary) != data.vocab_size:
        raise IntegrityError(f"{where} lists {len(data.vocabulary)} tokens and says there are {data.vocab_size}")
    if data.vocabulary is not None and len(set(data.vocabulary)) < len(data.vocabulary):
        raise IntegrityError(f"{where} lists a token twice")
    for name in ("pad_id", "separator_id"):
        if (value := getattr(data, name)) is not None and value >= data.vocab_size:
            raise IntegrityError(f"{where} has {name} {value} in a vocabulary of {data.vocab_size}")


def layers_of(config: Config) -> list[dict[str, Any]]:
    """The layers that it lists one by one; each names its mixer."""
    return config.model.get("layers") or []


def outdated(config: Config, zoo: Zoo) -> bool:
    """Whether a plugin should be asked for today's form: a name that is not known here, or an older version."""
    try:
        for layer in layers_of(config):
            lookup(config, zoo, layer["mixer"])
        return lookup(config, zoo, config.architecture).version != config.version
    except UnknownName:
        return True


def upgraded(raw: dict[str, Any], zoo: Zoo) -> dict[str, Any]:
    """The first answer to `upgrade_config`, or `raw` itself; a plugin that raises is passed over with a warning."""
    for plugin, ask in plugins.each(zoo.plugins, "upgrade_config"):
        try:
            answer = ask(config=copy.deepcopy(raw))
        except Exception as error:  # noqa: BLE001  one bad plugin hurts nobody
            reason = f"{type(error).__name__}: {error}"
            line = f"plugin {plugin.name!r} ({plugin.distribution}) failed in upgrade_config: {reason}"
            warnings.warn(printable(line), PluginWarning, stacklevel=2)
            continue
        if isinstance(answer, dict):
            return answer
    return raw


def lookup(config: Config, zoo: Zoo, name: str) -> Entry:
    """The entry of a name in it; the distribution beside it decides where two plugins here share the short name."""
    facts = config.plugins.get(name.rpartition(":")[0])
    return zoo.entry("model", name, facts.distribution if facts is not None else None)


def installed(config: Config, zoo: Zoo, name: str, where: str) -> Entry:
    """As `lookup`. InputError naming the plugin, or the script, that is missing, or is not the one that saved it."""
    plugin = name.rpartition(":")[0]
    facts = config.plugins.get(plugin)
    needs = f"{where} needs {printable(repr(name), 120)}"
    try:
        entry = lookup(config, zoo, name)
    except UnknownName as error:
        if plugin == SCRIPT:
            script = printable(repr(config.script or "?"), 120)
            raise InputError(
                f"{needs}, registered in the script {script}", hint="give that file with --load FILE"
            ) from error
        here = [p for p in zoo.plugins if p.name == plugin.rpartition("/")[2]]
        if facts is None or any(p.status == "loaded" for p in here):
            raise
        status = f"{here[0].status}: {here[0].error}" if here else "not installed"
        of = printable(f"{facts.distribution!r} {facts.version!r}", 120)
        raise InputError(
            f"{needs} of plugin {printable(repr(plugin), 80)}, distribution {of}, which is {printable(status, 120)}",
            hint="`icll-zoo plugins` shows what is installed",
        ) from error
    if facts is not None and facts.distribution != entry.distribution:
        raise InputError(
            f"{needs} of distribution {printable(repr(facts.distribution), 80)}, and the plugin of that name here is "
            f"of {entry.distribution!r}"
        )
    return entry
