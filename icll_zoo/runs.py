"""The run folders that are on this machine: found, listed, compared, and their curves.

Nothing here trains, loads a model or imports torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from icll_zoo import files, tables
from icll_zoo.errors import InputError, printable
from icll_zoo.run_folder import LOG, RESULT, RUN
from icll_zoo.sweeps import descriptions, ledger

LOCKS = Path("/proc/locks")
CURVES = ("loss", "validation_loss")
MOST_CURVES = 20
"""Runs that a picture has room for."""


def find(folders: Iterable[str | Path]) -> list[Path]:
    """The run folders at or below these, by name. InputError for a folder that is not there."""
    found: list[Path] = []
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"no folder {str(folder)!r}")
        for place, below, names in os.walk(folder):
            if RUN in names:
                found.append(Path(place))
                below.clear()
            below[:] = sorted(name for name in below if not name.startswith("."))
    return list(dict.fromkeys(found))


def held_locks() -> set[int]:
    """The inodes of files that a process of this machine holds locked; empty where the system does not say.

    Trying the lock instead would, for an instant, turn away a run that begins.
    """
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return set()
    words = [line.split() for line in lines]
    return {int(w[5].rpartition(":")[2]) for w in words if len(w) > 5 and w[1] == "FLOCK" and w[2] == "ADVISORY"}


def describe(folder: Path, locks: set[int] | None = None) -> dict[str, Any]:
    """A run as a row: what it is, where it stands and what came out. `description` is the resolved one.

    status: finished, running, failed (as the ledger of its sweep says), unfinished, or unreadable. Raises nothing.
    """
    row: dict[str, Any] = {"folder": str(folder), "status": "unreadable"}
    try:
        written = files.read_json(folder / RUN, "description")
        description = written["description"]
        result = files.read_json(folder / RESULT, "result") if (folder / RESULT).exists() else {}
        row |= {
            "architecture": description["model"]["architecture"],
            "dataset": description["data"]["dataset"],
            "seed": description["seed"],
            "step": 0,
            "steps": description["steps"],
        }
        metrics: Mapping[str, Any] = result.get("metrics") or {}
    except (InputError, KeyError, TypeError, AttributeError) as error:
        return {**row, "reason": printable(f"{type(error).__name__}: {error}"), "description": {}}
    last = {} if result else {key: points[-1] for key, points in curves(folder).items()}
    row["step"] = description["steps"] if result else max((step for step, _ in last.values()), default=0)
    row["validation_loss"] = result.get("validation_loss") if result else last.get("validation_loss", (0, None))[1]
    row["train_loss"] = result.get("train_loss") if result else last.get("loss", (0, None))[1]
    row |= {key: value for key, value in metrics.items() if key != "validation_loss"}
    row |= {key: result.get(key) for key in ("best_step", "parameters", "tokens", "seconds")}
    row["reason"] = None
    ending = ledger.last_of_runs(ledger.read(folder.parent.parent)).get(written.get("hash"), {})
    lock = folder / "lock"
    if result:
        row["status"] = "finished"
    elif lock.exists() and lock.stat().st_ino in (held_locks() if locks is None else locks):
        row["status"] = "running"
    elif ending.get("event") == "fail":
        row["status"], row["reason"] = "failed", ending.get("reason")
    else:
        row["status"] = "unfinished"
    return {**row, "hash": written.get("hash"), "description": description}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every measurement in a run's log, by name, without torn lines and what is not finite."""
    found: dict[str, list[tuple[int, float]]] = {}
    try:
        with (folder / LOG).open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                    step = line.pop("step")
                except (ValueError, KeyError, AttributeError, TypeError):
                    continue
                for key, value in line.items():
                    if isinstance(value, int | float) and math.isfinite(value) and isinstance(step, int):
                        found.setdefault(key, []).append((step, float(value)))
    except OSError:
        pass
    return found


def value_of(row: Mapping[str, Any], key: str) -> Any:
    """What a row, or the description behind it, says of a key; None if nothing."""
    if key in row:
        return row[key]
    try:
        return descriptions.lookup(row["description"], key)
    except (KeyError, TypeError, AttributeError):
        return None


def matching(rows: Iterable[dict[str, Any]], wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows that say this of every key: equal, or a text that matches the wildcards."""
    import fnmatch

    for row in rows:
        values = [(value_of(row, key), want) for key, want in wanted.items()]
        if all(v == w or (isinstance(v, str) and fnmatch.fnmatchcase(v, str(w))) for v, w in values):
            yield row


def ordered(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The rows by a key, smallest first, or largest first if it begins with "-"; those that do not say come last.

    InputError for a key of which no row says anything.
    """
    name = key.removeprefix("-")
    known = [row for row in rows if value_of(row, name) is not None]
    if rows and not known:
        raise InputError(
            f"no run here says anything of {name!r}", hint="such as validation_loss, seconds, model.d_model"
        )
    # Numbers and texts do not compare with each other.
    known.sort(key=lambda row: _rank(value_of(row, name)), reverse=key.startswith("-"))
    return known + [row for row in rows if value_of(row, name) is None]


def _rank(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(tables.cell(value)))


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The dotted keys in which the descriptions differ, with the value of each run (None where it has no such key)."""
    flattened = [descriptions.flat(row["description"]) for row in rows]
    keys = descriptions.varied_keys([dict(row["description"]) for row in rows])
    return {key.replace(".options.", "."): [one.get(key) for one in flattened] for key in keys}


def results(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What the runs came to, side by side: every measurement that one of them has."""
    about = ("folder", "architecture", "dataset", "seed", "hash", "description")
    keys = dict.fromkeys(key for row in rows for key in row if key not in about)
    found = {key: [row.get(key) for row in rows] for key in keys}
    return {key: values for key, values in found.items() if any(value is not None for value in values)}


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The curves of the runs as SVG or PNG, whichever the path says. InputError if there is nothing to draw."""
    from icll_zoo.figures import render_figure

    kind = path.suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        raise InputError(f"--plot {str(path)!r} is neither an SVG nor a PNG")
    if len(rows) > MOST_CURVES:
        raise InputError(f"{len(rows)} runs are too many for a picture of at most {MOST_CURVES}", hint="use --where")
    varied = differences(rows)
    data: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in CURVES}
    for index, row in enumerate(rows):
        words = " ".join(f"{key.rpartition('.')[2]}={tables.cell(values[index])}" for key, values in varied.items())
        # What does not fit says nothing: the folder's name does.
        label = printable(words if 0 < len(words) <= 48 else Path(row["folder"]).name, 48)
        if any(label in series for series in data.values()):
            label = f"{label} ({row['folder']})"
        for name, points in curves(Path(row["folder"])).items():
            if name in data:
                data[name][label] = points
    shown = {name: series for name, series in data.items() if series}
    if not shown:
        raise InputError("none of these runs has logged a loss yet")
    drawn = render_figure(draw_curves, shown, "Curves of runs", "svg" if kind == "svg" else "png")
    with files.disk_faults("picture", path):
        files.write_atomic(path, drawn)


def draw_curves(figure: Any, shown: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> None:
    """A panel for each loss, a line for each run; the same color in both."""
    import matplotlib

    from icll_zoo.figures import tidy_axes

    labels = list(dict.fromkeys(label for series in shown.values() for label in series))
    colors: Any = matplotlib.colormaps["tab10" if len(labels) <= 10 else "tab20"]
    figure.set_size_inches(4.2 * len(shown), 3.2 + 0.18 * ((len(labels) + 1) // 2))
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    handles = {}
    for axes, (name, series) in zip(panels, shown.items(), strict=True):
        for label, points in series.items():
            steps, losses = zip(*points, strict=True)
            few = len(points) <= 30
            handles[label] = axes.plot(
                steps, losses, color=colors(labels.index(label)), marker="o" if few else "", markersize=3, linewidth=1.2
            )[0]
        axes.set_title(
            f"{'validation' if name.startswith('validation') else 'training'} loss (nats a token)", fontsize=9
        )
        axes.set_xlabel("updates")
        axes.xaxis.get_major_locator().set_params(integer=True)
        tidy_axes(axes, "both")
    figure.legend(
        [handles[label] for label in labels], labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
