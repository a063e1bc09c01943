"""What the verbs read from a command line: predictors, a dataset, its options."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from icll_zoo import InputError, as_json, check_device, default_metrics, split_words, with_scripts

if TYPE_CHECKING:
    from icll_zoo import Dataset, Metric, Predictor, Zoo

SPLITS = ("train", "validation", "test")
KEY = re.compile(r"[A-Za-z_][\w.]*=")
"""What begins an option; a path may hold an equals sign too, behind `local-dir:`."""


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every verb: --device, --load and --json."""
    device = click.option("--device", default="cpu", show_default=True, help="Where the model runs.")
    return device(with_scripts(as_json(command)))


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every verb that goes over a split; `common` ones too."""
    for option in (
        common,
        click.option("--limit", type=click.IntRange(1), help="Only so many sequences; of an endless split, always."),
        click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True),
        click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True),
    ):
        command = option(command)
    return command


def read_words(words: Sequence[str], least: int, usage: str) -> tuple[list[str], str, dict[str, Any]]:
    """NAME... DATASET [data.KEY=VALUE]... as names, the dataset's name and its options.

    Raises InputError for fewer than `least` names, a name given twice, or a key that is not of the dataset.
    """
    given = [word for word in words if not KEY.match(word)]
    if len(given) <= least:
        raise InputError("too few names on the command line", hint=usage)
    *names, dataset = given
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{twice[0]!r} is given twice")
    return names, dataset, data_options([word for word in words if KEY.match(word)])


def data_options(words: Sequence[str]) -> dict[str, Any]:
    """The options in `data.KEY=VALUE` words."""
    found: dict[str, Any] = split_words(words, ("data",))["data"]
    return found


def open_all(zoo: Zoo, names: Sequence[str], dataset: Dataset, device: str) -> dict[str, Predictor]:
    """Each predictor by its name. InputError as `icll_zoo.open_predictor`, and for a device that is not here."""
    from icll_zoo import open_predictor

    check_device(device, "--device ")
    return {name: open_predictor(name, dataset, device=device, zoo=zoo) for name in names}


def choose_metrics(zoo: Zoo, asked: str | None, dataset: Dataset) -> dict[str, Metric]:
    """The metrics asked for, or those that the dataset names: without an oracle, those that need none."""
    if asked:
        return {name: zoo.create_metric(name) for name in asked.split(",")}
    metrics = {name: zoo.create_metric(name) for name in default_metrics(dataset)}
    return metrics if has_oracle(dataset) else {n: m for n, m in metrics.items() if not m.needs_oracle}


def has_oracle(dataset: Dataset) -> bool:
    split = next((split for split in ("test", "validation", "train") if dataset.size(split) != 0), "test")
    return dataset.oracle(dataset.batch(split, 0, 1, 0 if dataset.size(split) is None else None)) is not None


def total(dataset: Dataset, split: Any, limit: int | None) -> int:
    """How many sequences `icll_zoo.stored_batches` gives; 0 where it will refuse."""
    return min((size for size in (dataset.size(split), limit) if size is not None), default=0)


@contextmanager
def reporting(what: str, total: int, every: float = 5.0) -> Iterator[Callable[[int], None]]:
    """A function to be told how much has been done; now and then it says so on stderr, with the time left."""
    began = shown = time.perf_counter()

    def report(done: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        if now - shown >= every:
            shown = now
            left = (now - began) / done * (total - done)
            print(f"{what}  {done}/{total}  {left:.0f} s left", file=sys.stderr, flush=True)

    yield report


def short(names: Sequence[str]) -> list[str]:
    """Names for a picture: of a path only its last parts, as many as tell them apart."""
    parts = [re.split(r"[/\\]", name.removeprefix("local-dir:").rstrip("/\\")) for name in names]
    # The folder of a run's model is called `model` always.
    tails = [2 if part[-1] == "model" and len(part) > 1 else 1 for part in parts]
    for more in range(max(map(len, parts))):
        shown = ["/".join(part[-tail - more :]) for part, tail in zip(parts, tails, strict=True)]
        if len(set(shown)) == len(shown):
            return shown
    return list(names)
