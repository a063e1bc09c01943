"""Write registry.yaml: the block of one model, computed from its folder, and the file replaced whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from pydantic import ValidationError

from icll_zoo import catalogue, files, hub
from icll_zoo.cards import stale
from icll_zoo.catalogue import NAME, Block, CatalogueEntry
from icll_zoo.errors import InputError, printable
from icll_zoo.model_config import Config, PluginFacts, fault_lines, read_config
from icll_zoo.registry import SCRIPT
from icll_zoo.weights import FILES, LAYOUT, describe, load_model
from icll_zoo.zoo import Zoo

TRAINING = ("best_step", "hash", "seconds", "seed", "steps", "tokens")  # what a block repeats of config.json
MEASURED = ("value", "low", "high", "n", "seeds")
HEADER = "# Trained weights, one block a model; names and keys sorted. `icll-zoo registry add` writes it.\n"


# -- a block -----------------------------------------------------------------------------------------------------------


def block_of(folder: Path, zoo: Zoo) -> dict[str, Any]:
    """What a folder's block says of it, but for where it lies and its status; everything is counted or read there.

    The model is loaded and its fingerprint verified. Raises InputError for what a catalogue cannot hold: a model of a
    script, without a licence, or whose metrics were not measured.
    """
    config = read_config(folder, zoo)
    if config.script is not None or config.architecture.startswith(f"{SCRIPT}:"):
        raise InputError(f"{config.architecture!r} was registered by a script, so nobody else could load it")
    entry = zoo.entry("model", config.architecture, config.distribution)
    if entry.license is None:
        raise InputError(f"{config.architecture!r} has no licence", hint="its plugin gives one as it registers it")
    if config.data.dataset is None:
        raise InputError(f"config.json of {str(folder)!r} names no dataset")
    metrics = measured_in(config)
    if not metrics:
        raise InputError(
            f"no metric of {str(folder)!r} was measured", hint=f"`icll-zoo card {folder} --evaluate` measures them"
        )
    counted = describe(load_model(f"local-dir:{folder}", zoo=zoo))
    sizes = counted["state_bytes"] or {}
    state = {f"bytes_{length}": size for length, size in sizes.items()}
    return {
        "architecture": config.architecture,
        "version": config.version,
        "plugins": {name: since(facts) for name, facts in sorted(config.plugins.items())},
        "files": file_facts(folder),
        "parameters": counted["parameters"],
        "state": state if state and None not in state.values() else None,
        "data": {"dataset": config.data.dataset, "options": dict(sorted(config.data.options.items()))},
        "training": {key: config.training[key] for key in TRAINING if key in config.training},
        "metrics": metrics,
        "license": entry.license,
        "paper": entry.paper,
    }


def measured_in(config: Config) -> dict[str, dict[str, Any]]:
    """The metrics with an interval, in the form of a block."""
    return {
        name: {key: metric[key] for key in MEASURED}
        for name, metric in sorted(config.metrics.items())
        if isinstance(metric, Mapping) and all(key in metric for key in MEASURED)
    }


def file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and bytes of every file of a saved model. InputError for one that is missing or does not belong."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    # What git and the Hub's clients put beside the files.
    found = {name for name in found if not name.startswith((".cache/", ".git/")) and name != ".gitattributes"}
    if odd := sorted(found - set(LAYOUT)):
        raise InputError(f"{str(folder)!r} holds {printable(repr(odd[0]), 120)}, which is no part of a saved model")
    facts = {}
    for name in sorted({*found, *FILES}):
        path = folder / name
        if path.is_symlink():
            raise InputError(f"{name} in {str(folder)!r} is a symbolic link")
        size = files.regular_file(path, name)
        facts[name] = {"bytes": size, "sha256": files.sha256_of(path)}
    return facts


def since(facts: PluginFacts) -> str:
    """A specifier for the releases from the one that saved the model on; empty, any release, if that is not known."""
    try:
        return f">={Version(facts.version).public}"
    except InvalidVersion:
        return ""


# -- where it lies -----------------------------------------------------------------------------------------------------


@contextmanager
def located(source: str, catalogue_file: Path, *, allow_floating: bool) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of a source, and where its block says that it lies: `path`, or `repo` and `revision`.

    source: local-dir:PATH of a folder below the catalogue's, or hf-hub:org/name@revision.
    Raises InputError for a revision that floats unless that is allowed, and for a place that a block cannot name.
    """
    scheme, _, rest = source.partition(":")
    if not rest or scheme not in ("local-dir", "hf-hub"):
        raise InputError(
            f"{printable(repr(source), 120)} is no source", hint="local-dir:PATH, or hf-hub:org/name@COMMIT"
        )
    if scheme == "local-dir":
        top, folder = catalogue_file.resolve().parent, Path(rest).resolve()
        if not folder.is_dir():
            raise InputError(f"no folder {rest!r}")
        if not folder.is_relative_to(top) or folder == top:
            raise InputError(
                f"{rest!r} does not lie below {str(top)!r}, where the catalogue is", hint="move it there, to cards/NAME"
            )
        yield folder, {"path": folder.relative_to(top).as_posix()}
        return
    repo, revision = hub.parse(rest)
    if not hub.COMMIT.match(revision) and not allow_floating:
        raise InputError(
            f"revision {revision!r} of {repo!r} may move", hint="name the commit, or pin it with --allow-floating"
        )
    commit = hub.resolve(repo, revision)
    held = hub.listing(repo, commit)
    names = [name for name in LAYOUT if name in held or name in FILES]
    with copied(hub.fetch(repo, commit, names), names) as folder:
        yield folder, {"repo": repo, "revision": commit}


@contextmanager
def copied(cached: Path, names: Iterable[str]) -> Iterator[Path]:
    """A folder of the Hub's cache, which holds links to files that were verified, as one of files."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            (Path(scratch) / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(cached / name, Path(scratch) / name)
        yield Path(scratch)


def add(
    source: str, name: str, catalogue_file: Path, zoo: Zoo, *, replace: bool = False, allow_floating: bool = False
) -> tuple[CatalogueEntry, list[str]]:
    """Put the block of a model into a catalogue file; the new entry, and how it differs from the one it replaces.

    Raises InputError, and writes nothing, for a name that is there unless `replace`, an illegal name, a card that is
    stale, and whatever `block_of` and `located` refuse.
    """
    with located(source, catalogue_file, allow_floating=allow_floating) as (folder, place):
        made = block_of(folder, zoo)
        check_name(name, made["architecture"], zoo)
        if lines := stale(folder, zoo):
            raise InputError(f"the card of {source!r} is stale: {lines[0]}", hint="`icll-zoo card FOLDER` mends it")
    with locked(catalogue_file):
        entries = catalogue.read(catalogue_file) if catalogue_file.exists() else {}
        old = entries.get(name)
        if old is not None and not replace:
            raise InputError(f"{name!r} is in {str(catalogue_file)!r} already", hint="--replace writes it anew")
        status = old.status if old is not None else "active"
        try:
            block = Block.model_validate({**made, **place, "status": status})
        except ValidationError as error:
            faults = fault_lines(error, f"the block of {name!r}")
            raise InputError(faults[0], faults=faults) from error
        entry = CatalogueEntry(**dict(block), name=name, owner="", source=catalogue_file)
        changes = [] if old is None else differences(as_data(old), as_data(entry))
        if changes or old is None:
            write(catalogue_file, {**{key: as_data(e) for key, e in entries.items()}, name: as_data(entry)})
    return entry, changes


def check_name(name: str, architecture: str, zoo: Zoo) -> None:
    """Raise InputError unless a name is an architecture or preset, as the model is built, a dot and a label."""
    stem = name.partition(".")[0]
    if len(name) > 130 or not NAME.match(name):
        raise InputError(f"illegal name {printable(name, 80)!r}: an architecture, a dot and a label")
    if zoo.resolve_model(stem).architecture != architecture:
        raise InputError(f"{name!r} begins with {stem!r}, and the model is {architecture!r}")


# -- the file ----------------------------------------------------------------------------------------------------------


def as_data(block: Block) -> dict[str, Any]:
    """A block as plain data, without what it does not say."""
    return {key: value for key, value in block.model_dump().items() if value is not None}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """How plain data differ, a line for each leaf: "metrics.accuracy.value: 0.93 -> 0.94"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
            for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {shown(old)} -> {shown(new)}"]


def shown(value: Any) -> str:
    return "nothing" if value is None else printable(files.canonical_json(value), 100)


@contextmanager
def locked(catalogue_file: Path) -> Iterator[None]:
    """Hold the catalogue's folder, so that two who add at once do not lose each other's block."""
    with files.disk_faults("catalogue", catalogue_file):
        handle = os.open(catalogue_file.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write(catalogue_file: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the file by these blocks, sorted, below the comments at its top.

    Raises InputError for comments further down, which would be lost, and unless the text reads back as what it is of.
    """
    target = catalogue_file.resolve()
    text = header_of(target) + dump({"models": models})
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / target.name
        copy.write_text(text, encoding="utf-8")
        if {name: as_data(entry) for name, entry in catalogue.read(copy).items()} != dict(models):
            raise InputError(f"cannot write {str(catalogue_file)!r}: it would not be read back as it is")
    with files.disk_faults("catalogue", catalogue_file):
        files.write_atomic(target, text)


def header_of(path: Path) -> str:
    """The comments and empty lines at the top of a catalogue file."""
    if not path.exists():
        return HEADER
    lines = files.read_text(path, "catalogue").splitlines(keepends=True)
    count = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    for place, line in enumerate(lines[count:], count + 1):
        if line.lstrip().startswith("#"):
            raise InputError(f"the comment in line {place} of {str(path)!r} would be lost", hint="move it to the top")
    return "".join(lines[:count])


def dump(data: Any) -> str:
    """YAML with sorted keys, the innermost mappings on one line."""
    import re

    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # the strict reader allows none
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # What the strict reader takes for a number, though YAML 1.1 does not, is quoted.
        number = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?", value)
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if number else None)

    def mapping(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.MappingNode:
        node = dumper.represent_mapping("tag:yaml.org,2002:map", value)
        nested = (child for v in value.values() for child in (v if isinstance(v, list) else [v]))
        node.flow_style = not any(isinstance(child, dict | list) for child in nested)
        return node

    Dumper.add_representer(str, text)
    Dumper.add_representer(dict, mapping)
    return yaml.dump(data, Dumper=Dumper, sort_keys=True, default_flow_style=None, width=118, allow_unicode=True)
