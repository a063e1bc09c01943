"""The descriptions of a sweep, from a YAML file, a Python file or a list: plain data, one mapping a run.

A YAML file is a list of descriptions, or parts of which every combination is a run:

    base: {architecture: transformer, dataset: dfa, steps: 1000}
    runs: [{model.n_layers: 2}, {model.n_layers: 4, optimizer.lr: 1e-3}]     each laid upon the base; default: one
    grid: {model.d_model: [32, 64], optimizer.lr: [1e-3, 2e-3]}              every combination of the values
    seeds: [0, 1, 2]                                                         or a number of them

A Python file has a list `runs` of `Run` or mappings, or a function `runs()` that yields them; what it registers by the
decorators is there for its runs.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from icll_zoo import files
from icll_zoo.errors import InputError, did_you_mean, printable
from icll_zoo.run import Run, merge, unfold
from icll_zoo.zoo import Zoo

PARTS = ("base", "runs", "grid", "seeds")
MOST = 100_000
"""Runs of one sweep: more is a slip in a grid."""


def read(source: str | Path | Iterable[Run | Mapping[str, Any]], zoo: Zoo) -> list[dict[str, Any]]:
    """The descriptions, not yet checked. Raises InputError with every fault of the file's form."""
    if isinstance(source, str | Path):
        path = Path(source)
        where = f"sweep {str(path)!r}"
        if path.suffix in (".yaml", ".yml"):
            items: Iterable[Any] = from_yaml(files.read_yaml(path, "sweep"), where)
        elif path.suffix == ".py":
            items = from_python(path, where, zoo)
        else:
            raise InputError(f"{where} is neither a YAML nor a Python file", hint="its name ends in .yaml or .py")
    else:
        where, items = "the sweep", source
    found: list[dict[str, Any]] = []
    faults: list[str] = []
    for number, item in enumerate(items, 1):
        if number > MOST:
            raise InputError(f"{where} has more than {MOST} runs")
        place = f"run {number} of {where}"
        try:
            found.append(plain(item, place))
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults[0], hint="a run is a mapping of a description's keys, as for train", faults=faults)
    if not found:
        raise InputError(f"{where} has no runs")
    return found


def plain(item: Any, where: str) -> dict[str, Any]:
    """One run as nested plain data. InputError for what is no description, or says `output`."""
    if isinstance(item, Run):
        item = item.model_dump(exclude_unset=True)
    if not isinstance(item, Mapping) or not all(isinstance(key, str) for key in item):
        raise InputError(f"{where} is not a mapping of keys to values but {printable(repr(item), 80)}")
    nested = unfold(item, where)
    if "output" in nested:
        raise InputError(f"{where} says output, and each run of a sweep gets a folder of its own (leave it out)")
    return nested


def from_python(path: Path, where: str, zoo: Zoo) -> Iterable[Any]:
    """What the name `runs` in a Python file gives."""
    if path not in zoo.scripts:
        zoo.load_script(path)
    runs = getattr(sys.modules[f"icll_zoo_script_{path.stem}"], "runs", None)
    try:
        # A list at once, so that a generator that raises does it here and with the file's name.
        return list(runs() if callable(runs) else runs)  # type: ignore[arg-type]
    except Exception as error:
        if runs is None:
            raise InputError(
                f"{where} has no name `runs`", hint="a list of runs, or a function that yields them"
            ) from None
        raise InputError(f"`runs` of {where} failed: {type(error).__name__}: {error}") from error


def from_yaml(value: Any, where: str) -> Iterable[Any]:
    """The runs of a YAML sweep. InputError with all that is wrong with its parts."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise InputError(f"{where} is neither a list of runs nor a mapping with {', '.join(PARTS)}")
    faults, hint = [], ""
    for key in value:
        if key not in PARTS:
            faults.append(f"unknown key {key!r} in {where}")
            hint = (
                hint or did_you_mean(key, PARTS) or "a single run goes to `icll-zoo train`; a sweep has base and grid"
            )
    base: Any = value.get("base", {})
    runs: Any = value.get("runs", [{}])
    grid: Any = value.get("grid", {})
    seeds: Any = value.get("seeds")
    if not isinstance(base, dict):
        faults.append(f"base in {where} is not a mapping of keys to values")
    if not isinstance(runs, list) or not runs:
        faults.append(f"runs in {where} is not a list of runs")
    if not isinstance(grid, dict):
        faults.append(f"grid in {where} is not a mapping of dotted keys to lists")
    else:
        faults += [
            f"{key!r} of the grid in {where} is not a list of values"
            for key, values in grid.items()
            if not isinstance(values, list) or not values
        ]
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        seeds = list(range(seeds))
    if seeds is not None and (not isinstance(seeds, list) or not seeds):
        faults.append(f"seeds in {where} is neither a number of seeds nor a list of them")
    if faults:
        raise InputError(faults[0], hint=hint, faults=faults)
    return product(base, runs, {**grid, **({"seed": seeds} if seeds is not None else {})}, where)


def product(base: dict[str, Any], runs: list[Any], grid: dict[str, list[Any]], where: str) -> Iterator[Any]:
    """Every run with every combination of the grid, the last key varying fastest."""
    under = unfold(base, f"base of {where}")
    for number, run in enumerate(runs, 1):
        place = f"run {number} of {where}"
        upon = merge(under, plain(run, place))
        for values in itertools.product(*grid.values()):
            yield merge(upon, unfold(dict(zip(grid, values, strict=True)), f"grid of {where}"))


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested data by dotted keys; an empty mapping is left out, as it says nothing."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def lookup(description: Mapping[str, Any], key: str) -> Any:
    """What a resolved description says of a key as the user writes it; None if it has no such key."""
    first, _, rest = key.partition(".")
    if key in ("architecture", "dataset"):
        name: str = description["model" if key == "architecture" else "data"][key]
        return name
    below: Any = description.get(first)
    if first in ("model", "data"):
        below = below["options"]
    for part in rest.split(".") if rest else []:
        below = below.get(part) if isinstance(below, Mapping) else None
    return below


def varied_keys(all_given: list[dict[str, Any]]) -> list[str]:
    """The dotted keys, in the order of the file, in which the runs do not all say the same."""
    flattened = [flat(given) for given in all_given]
    keys = dict.fromkeys(key for given in flattened for key in given)
    return [key for key in keys if any(given.get(key, keys) != flattened[0].get(key, keys) for given in flattened)]
