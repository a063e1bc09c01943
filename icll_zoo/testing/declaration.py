"""What is said of a name: cheap to list, a signature that is its configuration, presets that build, a licence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import torch

from icll_zoo import options as opts
from icll_zoo.errors import InputError, printable
from icll_zoo.rebuild import skeleton
from icll_zoo.registry import SCRIPT, Entry
from icll_zoo.testing.kit import CheckFailed, NotApplicable, require
from icll_zoo.testing.subject import VOCABULARY, Data, Model, Subject, check
from icll_zoo.zoo import CONTEXT

HEAVY = ("torch", "triton", "transformers", "timm", "tensorflow", "jax")
UNKNOWN = "icll_zoo_no_such_option"
PAPER = re.compile(r"(arXiv:\d{4}\.\d{4,5}|arXiv:[a-z-]+/\d{7}|doi:10\.\S+|https?://\S+|unpublished)\Z")
LIST = """
import json, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in HEAVY:
            frame = sys._getframe(1)
            while frame and ("importlib" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
                frame = frame.f_back
            found[name] = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"
        return None

HEAVY, __file__ = json.loads(sys.argv[1]), "<string>"
found = {}
sys.meta_path.insert(0, Watch())
from icll_zoo.zoo import Zoo
zoo = Zoo.discover(warn=lambda line: None)
names = [entry.qualified for space in ("model", "dataset", "metric") for entry in zoo.list(space)]
print(json.dumps({"found": found, "names": names}))
"""


@check
def check_import_is_light(subject: Subject) -> None:
    """Listing the plugin's names, in a process of its own, imports no deep-learning library."""
    entry = subject.entry
    if entry.plugin == SCRIPT:
        raise NotApplicable("it was registered in a script, which is run whole")
    short = entry.plugin.rpartition("/")[2]
    environment = {**os.environ, "ICLL_ZOO_PLUGINS": f"{entry.distribution}/{short}"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", LIST, json.dumps(HEAVY)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    require(done.returncode == 0, f"listing it ended with {printable(done.stderr.strip()[-300:])}")
    answer = json.loads(done.stdout.splitlines()[-1])
    qualified = f"{short}:{entry.name}"
    require(qualified in answer["names"], f"a fresh process does not list {qualified!r}")
    first = next(iter(answer["found"].items()), None)
    if first:
        raise CheckFailed(
            f"listing plugin {short!r} imports {first[0]}, at {first[1]}; name the class as 'module:Class' instead"
        )


@check
def check_signature_is_config(subject: Subject) -> None:
    """Every option has a name, a default of its own type and a JSON value; a misspelt one is refused.

    With the defaults it can be created, and it is created again from its options as JSON wrote them.
    """
    zoo, name, entry = subject.zoo, subject.name, subject.entry
    for target in subject.targets:
        for option in signature_of(subject, target).values():
            require(option.default is not opts.REQUIRED, f"option {option.name!r} has no default")
            value = opts.check(option, option.default, name)[1]
            require(value is None, f"the default of option {option.name!r} is not of its type: {value}")
    if subject.space == "metric" and not isinstance(entry.load(), type):
        return
    try:
        resolved = resolve(subject, {})
    except InputError as error:
        raise CheckFailed(f"its defaults are refused: {error}") from error
    again = resolve(subject, json.loads(json.dumps(resolved)))
    require(again == resolved, f"options change when JSON writes and reads them: {resolved} became {again}")
    try:
        resolve(subject, {UNKNOWN: 1})
    except InputError:
        pass
    else:
        raise CheckFailed(f"an option that does not exist, {UNKNOWN!r}, is not refused")
    try:
        if isinstance(subject, Model):
            skeleton(zoo, zoo.resolve_model(name), VOCABULARY)
            subject.small()
        elif isinstance(subject, Data):
            zoo.create_dataset(name, **subject.check_options)
        else:
            zoo.create_metric(name)
    except Exception as error:
        raise CheckFailed(f"it cannot be created: {type(error).__name__}: {printable(error, 200)}") from error


def signature_of(subject: Subject, target: Any) -> dict[str, opts.Option]:
    """The options of a class: the parameters that nobody injects. A metric that is a function has none."""
    if subject.space == "metric" and not isinstance(target, type):
        return {}
    try:
        takes = opts.signature(target)
    except InputError as error:
        raise CheckFailed(str(error)) from error
    injected: tuple[str, ...] = ()
    if subject.space == "model":
        from icll_zoo.backbone import INJECTED

        injected = INJECTED if subject.entry.kind == "mixer" else CONTEXT
    return {name: option for name, option in takes.items() if name not in injected}


def resolve(subject: Subject, given: dict[str, Any]) -> dict[str, Any]:
    """Every option with its value."""
    if subject.space == "model":
        return subject.zoo.resolve_model(subject.name, given).options
    stated = {**subject.check_options, **given} if subject.space == "dataset" else given
    return subject.zoo.resolve_options(subject.space, subject.name, stated)


@check
def check_presets_build(model: Model) -> None:
    """Every preset of the name is a model: its options are known and of the right type, and it can be built."""
    zoo, entry = model.zoo, model.entry
    _ = model.spec  # not applicable if even the name itself cannot be built
    presets = [e for e in zoo.list("model") if (e.preset_of, e.plugin) == (entry.name, entry.plugin)]
    if not presets:
        raise NotApplicable("it has no presets")
    for preset in presets:
        try:
            spec = zoo.resolve_model(preset.qualified)
            # On the meta device only: the largest presets would not fit a laptop.
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                zoo.build_model(spec, VOCABULARY)
        except InputError as error:
            raise CheckFailed(f"preset {preset.name!r}: {error}") from error
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise CheckFailed(f"preset {preset.name!r}: {type(error).__name__}: {error}") from error


@check
def check_has_licence_and_paper(subject: Subject) -> None:
    """The registration states the licence as SPDX, and the paper that the thing comes from."""
    require_licence(subject.entry)
    paper = subject.entry.paper
    require(paper is not None, "no paper is stated: register(..., paper='arXiv:2401.12973', or 'unpublished')")
    require(
        bool(PAPER.match(paper or "")),
        f"paper {paper!r} is not of the form arXiv:2401.12973, doi:10..., https://... or 'unpublished'",
    )


@check
def check_has_licence(subject: Subject) -> None:
    """The registration states the licence as SPDX."""
    require_licence(subject.entry)


def require_licence(entry: Entry) -> None:
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    require(bool(entry.license), "no licence is stated: register(..., license='Apache-2.0')")
    try:
        canonicalize_license_expression(entry.license or "")
    except InvalidLicenseExpression as error:
        raise CheckFailed(f"licence {entry.license!r} is not an SPDX expression, such as Apache-2.0") from error
