"""A Zoo is a set of plugins and the names they registered; it creates anything by name.

Creating a model has two steps that training and loading share: `resolve_model` turns a name and some options into a
`ModelSpec` with every option written out, and `build_model` turns that into a module.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from icll_zoo import options as opts
from icll_zoo import plugins
from icll_zoo.errors import InputError, UnknownName, did_you_mean, printable
from icll_zoo.registry import SCRIPT, Entry, Kind, Registry, Space, entries_of

if TYPE_CHECKING:
    from torch import nn

    from icll_zoo.data import Dataset

Thing = TypeVar("Thing", bound=Callable[..., Any])


class PluginWarning(UserWarning):
    """A plugin could not be loaded, or two of them share a name. The rest works."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model must know of its dataset's tokens: their number, their texts and the two special ids."""

    size: int = 20
    tokens: Sequence[str] | None = None
    pad_id: int = 0
    separator_id: int | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> Vocabulary:
        tokens = list(dataset.vocabulary)
        return cls(len(tokens), tokens, dataset.pad_id, dataset.separator_id)


@dataclass(frozen=True)
class ModelSpec:
    """A model described completely: the qualified architecture, its version, and every option with its value."""

    architecture: str
    version: int
    options: dict[str, Any] = field(default_factory=dict)
    distribution: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def mixers(self) -> list[str]:
        """The qualified names of the mixers that its layers name, if it lists layers."""
        return [layer["mixer"] for layer in self.options.get("layers") or []]


class Zoo:
    """Plugins and their names. `icll_zoo.zoo.default_zoo()` is the one of this process."""

    def __init__(self, found: Sequence[plugins.Plugin] = ()) -> None:
        self.plugins = list(found)
        self.registry = Registry()
        self.scripts: list[Path] = []
        names = [plugin.name for plugin in found]
        for plugin in found:
            self.registry.add(
                plugin.entries
                if names.count(plugin.name) == 1
                else [dataclasses.replace(e, plugin=f"{e.distribution}/{e.plugin}") for e in plugin.entries]
            )

    @classmethod
    def discover(cls, warn: Callable[[str], None] | None = None) -> Zoo:
        """A zoo of every installed plugin. `warn` gets one line for each that could not be loaded."""
        found, lines = plugins.discover()
        for line in lines:
            if warn is None:
                warnings.warn(line, PluginWarning, stacklevel=2)
            else:
                warn(line)
        return cls(found)

    # -- names -------------------------------------------------------------------------------------------------

    def entry(self, space: Space, name: str, distribution: str | None = None) -> Entry:
        """The entry of a bare or qualified name; UnknownName or AmbiguousName with what to say instead."""
        try:
            return self.registry.find(space, name, distribution)
        except UnknownName:
            note = self._owner_note(name)
            if note:
                raise UnknownName(space, name, (), note=note) from None
            raise

    def _owner_note(self, name: str) -> str:
        plugin = name.rpartition(":")[0]
        if plugin == SCRIPT:
            return "it was registered in a script: give that file with --load FILE"
        for found in self.plugins:
            if plugin and plugin == found.name and found.status != "loaded":
                return f"plugin {plugin!r} is {found.status}: {found.error}"
        if plugin and plugin not in {p.name for p in self.plugins}:
            return f"no plugin {plugin!r} is installed"
        return ""

    def list(self, space: Space, pattern: str = "*") -> list[Entry]:
        """The entries of a space whose name matches the wildcard pattern, in natural order."""
        return self.registry.all(space, pattern)

    def register(self, kind: Kind, name: str, target: Callable[..., Any], **about: Any) -> None:
        """Register from a script or notebook, as plugin `script`; the same name again replaces it."""
        if kind == "mixer":
            check_mixer_signature(target, f"mixer {name!r}")
        self.registry.add(entries_of(kind, SCRIPT, SCRIPT, name, target, **about))

    def load_script(self, path: str | Path) -> None:
        """Run a Python file of the user's own, whose decorators register names under `script:`."""
        file = Path(path)
        if not file.is_file():
            raise InputError(f"no script at {str(path)!r}", hint="--load takes a Python file")
        module_name = f"icll_zoo_script_{file.stem}"
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise InputError(f"cannot load {str(path)!r}", hint="--load takes a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            line = next((f.lineno for f in reversed(inspect.trace()) if f.filename == str(file)), None)
            at = f" line {line}" if line else ""
            raise InputError(printable(f"script {str(path)!r}{at} failed: {type(error).__name__}: {error}")) from error
        self.scripts.append(file)

    # -- models ------------------------------------------------------------------------------------------------

    def resolve_model(self, name: str, given: Mapping[str, Any] | None = None) -> ModelSpec:
        """The complete description of a model from its name and the options that differ from the defaults.

        Raises UnknownName, or InputError with every fault of the options.
        """
        entry = self.entry("model", name)
        where = f"model {name!r}"
        hint = f"`icll-zoo show {name}` lists its options"
        merged = {**entry.options, **(given or {})}
        if entry.kind == "mixer":
            resolved = self._resolve_layers(entry, merged, where, hint)
        else:
            takes = {k: v for k, v in opts.signature(entry.load()).items() if k not in CONTEXT}
            resolved = opts.resolve(takes, merged, where, hint)
        opts.json_able(resolved, where)
        if fault := opts.oversized(resolved):
            raise InputError(f"wrong value in {where}: {fault}")
        return ModelSpec(self.preset_root(entry).qualified, entry.version, resolved, entry.distribution)

    def preset_root(self, entry: Entry) -> Entry:
        """The entry that a preset refines (options say the rest), or the entry itself."""
        if entry.preset_of is None:
            return entry
        return self.registry.find("model", f"{entry.plugin}:{entry.preset_of}", entry.distribution)

    def backbone_options(self) -> dict[str, opts.Option]:
        """The backbone's options, by name."""
        from icll_zoo.backbone import BackboneOptions

        return opts.signature(BackboneOptions)

    def mixer_options(self, entry: Entry) -> dict[str, opts.Option]:
        """A mixer's own options: its constructor's parameters but those that the backbone injects."""
        if entry.target is None:
            return {}
        target = entry.load()
        check_mixer_signature(target, f"mixer {entry.qualified!r}")
        from icll_zoo.backbone import INJECTED

        return {name: option for name, option in opts.signature(target).items() if name not in INJECTED}

    def _resolve_layers(self, entry: Entry, given: Mapping[str, Any], where: str, hint: str) -> dict[str, Any]:
        """Give each option to whichever takes it: the backbone, or the mixers of the layers."""
        backbone_takes = self.backbone_options()
        merged = {**entry.backbone, **given}
        if merged.get("layers") is None:
            takes = {**backbone_takes, **self.mixer_options(entry)}
            resolved = opts.resolve(takes, merged, where, hint)
            del resolved["layers"]
            check_bounds(resolved, where)
            return resolved
        inner = {k: v for k, v in merged.items() if k not in backbone_takes}
        resolved = opts.resolve(backbone_takes, {k: v for k, v in merged.items() if k not in inner}, where, hint)
        check_bounds(resolved, where)
        if "n_layers" in given and given["n_layers"] != len(resolved["layers"]):
            raise InputError(f"{where} has n_layers={given['n_layers']} and lists {len(resolved['layers'])} layers")
        layers, taken = [], set()
        for index, layer in enumerate(resolved["layers"]):
            place = f"{where}.layers[{index}]"
            said = {"mixer": layer} if isinstance(layer, str) else dict(layer)
            mixer_name = said.pop("mixer", None)
            if not isinstance(mixer_name, str):
                raise InputError(f"{place} names no mixer", hint='write {"mixer": NAME, ...}')
            mixer = self.entry("model", mixer_name)
            if mixer.kind != "mixer" or mixer.target is None:
                raise InputError(f"{place}: {mixer_name!r} is not a mixer")
            takes = self.mixer_options(mixer)
            ratio, fault = opts.check(
                opts.Option("mlp_ratio", float, None), said.pop("mlp_ratio", resolved["mlp_ratio"]), place
            )
            if fault:
                raise InputError(fault)
            # Of a preset only what is the mixer's own: there is one backbone around all layers.
            preset = {k: v for k, v in mixer.options.items() if k in takes}
            passed = {k: v for k, v in inner.items() if k in takes and k not in said}
            taken |= {k for k in inner if k in takes}
            own = opts.resolve(takes, {**preset, **passed, **said}, place, hint)
            layers.append({"mixer": self.preset_root(mixer).qualified, "mlp_ratio": ratio, **own})
        if not layers:
            raise InputError(f"{where}.layers is empty")
        if lost := [k for k in inner if k not in taken]:
            everything = {*backbone_takes, *(k for layer in layers for k in layer)}
            faults = [f"unknown option {k!r} in {where}: neither the backbone nor any layer takes it" for k in lost]
            raise InputError(faults[0], hint=did_you_mean(lost[0], everything) or hint, faults=faults)
        return {**resolved, "n_layers": len(layers), "layers": layers}

    def build_model(self, spec: ModelSpec, vocabulary: Vocabulary | None = None) -> nn.Module:
        """The module that a complete description stands for, initialised from torch's global generator.

        The module carries `zoo_spec` and `zoo_vocabulary`, which saving writes down.
        """
        vocabulary = vocabulary or Vocabulary()
        entry = self.entry("model", spec.architecture, spec.distribution)
        if entry.version != spec.version:
            raise InputError(
                f"model {spec.architecture!r} is version {spec.version} here and the installed plugin "
                f"{entry.plugin!r} has version {entry.version}",
                hint="install the plugin's release that matches",
            )
        if entry.kind == "mixer":
            model = self._build_backbone(entry, spec, vocabulary)
        else:
            target = entry.load()
            context = {
                "vocab_size": vocabulary.size,
                "vocabulary": vocabulary.tokens,
                "pad_id": vocabulary.pad_id,
                "separator_id": vocabulary.separator_id,
                "max_length": spec.options.get("max_length", 1024),
            }
            names = opts.signature(target)
            model = target(**{**{k: v for k, v in context.items() if k in names}, **spec.options})
        made: Any = model
        made.zoo_spec, made.zoo_vocabulary = spec, vocabulary
        return model

    def _build_backbone(self, entry: Entry, spec: ModelSpec, vocabulary: Vocabulary) -> nn.Module:
        from icll_zoo.backbone import INJECTED, Backbone, BackboneOptions

        known = {f.name for f in dataclasses.fields(BackboneOptions)}
        options = BackboneOptions(**{k: v for k, v in spec.options.items() if k in known})
        if options.layers is None:
            own = {k: v for k, v in spec.options.items() if k not in known}
            layers: list[tuple[Entry, dict[str, Any], float]] = [(entry, own, options.mlp_ratio)] * options.n_layers
        else:
            resolved: list[Any] = options.layers  # each is a mapping with every option by now
            layers = [
                (
                    self.entry("model", layer["mixer"]),
                    {k: v for k, v in layer.items() if k not in ("mixer", "mlp_ratio")},
                    layer["mlp_ratio"],
                )
                for layer in resolved
            ]
        # The mixers come first, in order: with one seed, the first of them equals the same mixer built alone.
        mixers = []
        for index, (mixer, own, _) in enumerate(layers):
            target = mixer.load()
            context = dict(
                zip(
                    INJECTED,
                    (options.d_model, len(layers), index, vocabulary.size, options.max_length),
                    strict=True,
                )
            )
            names = opts.signature(target)
            mixers.append(target(**{k: v for k, v in context.items() if k in names}, **own))
        return Backbone(mixers, [ratio for *_, ratio in layers], vocabulary.size, options)

    def create_model(
        self, name: str, vocab_size: int = 20, *, vocabulary: Vocabulary | None = None, **options: Any
    ) -> nn.Module:
        """A freshly initialised model: `create_model("transformer", n_layers=4)`.

        vocab_size: the number of token ids; `vocabulary` says more (texts, pad and separator ids) where a model asks.
        Raises UnknownName or InputError with all that is wrong with the options.
        """
        return self.build_model(self.resolve_model(name, options), vocabulary or Vocabulary(vocab_size))

    # -- datasets and metrics ----------------------------------------------------------------------------------

    def resolve_options(self, space: Space, name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Every option of a dataset or metric with its value; InputError with all the faults."""
        entry = self.entry(space, name)
        where = f"{space} {name!r}"
        takes = opts.signature(entry.load())
        hint = f"`icll-zoo show {name}` lists its options"
        resolved = opts.resolve(takes, {**entry.options, **(given or {})}, where, hint)
        opts.json_able(resolved, where)
        return resolved

    def create_dataset(self, name: str, **options: Any) -> Dataset:
        """A dataset by name: `create_dataset("dfa", languages=1000)`."""
        made: Dataset = self.entry("dataset", name).load()(**self.resolve_options("dataset", name, options))
        return made

    def create_metric(self, name: str, **options: Any) -> Callable[..., Any]:
        """A metric by name: the registered function itself, or an instance of the registered class."""
        entry = self.entry("metric", name)
        target = entry.load()
        if isinstance(target, type):
            made: Callable[..., Any] = target(**self.resolve_options("metric", name, options))
            return made
        return target


CONTEXT = ("vocab_size", "vocabulary", "pad_id", "separator_id", "max_length")
"""What a whole architecture is handed by name; `max_length` too, unless its options give one."""


def check_bounds(options: Mapping[str, Any], where: str) -> None:
    """Raise InputError for backbone sizes that no model can have."""
    for name in ("d_model", "n_layers", "max_length"):
        if options[name] < 1:
            raise InputError(f"wrong value in {where}.{name}: {options[name]} is not at least 1")
    if not 0 <= options["dropout"] < 1:
        raise InputError(f"wrong value in {where}.dropout: {options['dropout']} is not in [0, 1)")
    if options["mlp_ratio"] < 0 or options["init_std"] < 0:
        raise InputError(f"wrong value in {where}: mlp_ratio and init_std are not negative")
    if options["norm_eps"] is not None and options["norm_eps"] <= 0:
        raise InputError(f"wrong value in {where}.norm_eps: {options['norm_eps']} is not positive")


def check_mixer_signature(target: Callable[..., Any], where: str) -> None:
    """Refuse a mixer whose option has the name of a backbone option: nobody could say which one is meant."""
    from icll_zoo.backbone import INJECTED, BackboneOptions

    outer = {f.name for f in dataclasses.fields(BackboneOptions)} - set(INJECTED)
    if taken := sorted(outer & set(opts.signature(target))):
        raise InputError(f"{where} has an option {taken[0]!r}, which is the backbone's", hint="give it another name")


@functools.cache
def default_zoo() -> Zoo:
    """The zoo of this process, discovered at first use."""
    return Zoo.discover()


def _decorator(kind: Kind) -> Callable[..., Callable[[Thing], Thing]]:
    def register(name: str, **about: Any) -> Callable[[Thing], Thing]:
        def decorate(target: Thing) -> Thing:
            default_zoo().register(kind, name, target, **about)
            return target

        return decorate

    register.__doc__ = (
        f"Register the decorated class or function as {kind} `name` in this process, under `script:`; the keywords "
        "are those of the hooks (version, presets, license, paper)."
    )
    return register


register_mixer = _decorator("mixer")
register_architecture = _decorator("architecture")
register_dataset = _decorator("dataset")
register_metric = _decorator("metric")


def create_model(name: str, vocab_size: int = 20, *, vocabulary: Vocabulary | None = None, **options: Any) -> nn.Module:
    """A freshly initialised model of the default zoo; see `Zoo.create_model`."""
    return default_zoo().create_model(name, vocab_size, vocabulary=vocabulary, **options)


def create_dataset(name: str, **options: Any) -> Dataset:
    """A dataset of the default zoo; see `Zoo.create_dataset`."""
    return default_zoo().create_dataset(name, **options)


def create_metric(name: str, **options: Any) -> Callable[..., Any]:
    """A metric of the default zoo; see `Zoo.create_metric`."""
    return default_zoo().create_metric(name, **options)


def list_models(pattern: str = "*") -> list[str]:
    """The names of architectures, presets included, that match a wildcard pattern: `list_models("*gram*")`."""
    return [entry.name for entry in default_zoo().list("model", pattern)]


def list_datasets(pattern: str = "*") -> list[str]:
    """The names of datasets that match a wildcard pattern."""
    return [entry.name for entry in default_zoo().list("dataset", pattern)]


def list_metrics(pattern: str = "*") -> list[str]:
    """The names of metrics that match a wildcard pattern."""
    return [entry.name for entry in default_zoo().list("metric", pattern)]
