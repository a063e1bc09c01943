"""What several verbs need: the zoo with the user's scripts, what their words say, and tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from icll_zoo.errors import InputError, printable
from icll_zoo.zoo import Zoo, default_zoo

if TYPE_CHECKING:
    from icll_zoo.data import Dataset

with_scripts = click.option(
    "--load", multiple=True, metavar="FILE", help="A Python file that registers names of your own."
)
as_json = click.option("--json", "json", is_flag=True, help="Print one JSON object.")


def open_zoo(scripts: Sequence[str] = ()) -> Zoo:
    """The installed plugins, and what the user's scripts register; one warning line for each broken plugin."""
    import warnings

    from icll_zoo.cli import warn

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        zoo = default_zoo()
    for line in caught:
        warn(str(line.message))
    for script in scripts:
        zoo.load_script(script)
    return zoo


def split_words(words: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as nested data, whose first parts must be among `allowed`."""
    from icll_zoo.errors import did_you_mean
    from icll_zoo.run import parse_words

    nested = parse_words(words)
    for key in nested:
        if key not in allowed:
            hint = did_you_mean(key, allowed) or f"keys here begin with {' or '.join(f'{a}.' for a in allowed)}"
            raise InputError(f"unknown key {key!r} on the command line", hint=hint)
    for key in allowed:
        if not isinstance(nested.setdefault(key, {}), dict):
            raise InputError(
                f"{key}={nested[key]!r} on the command line is not an option", hint=f"write {key}.NAME=..."
            )
    return nested


def default_metrics(dataset: Dataset) -> list[str]:
    """The metrics that a dataset names as its own, or those that need no oracle."""
    return list(getattr(dataset, "metrics", ("cross-entropy", "token-accuracy")))


def print_table(columns: list[str], rows: list[list[Any]]) -> None:
    """A table on stdout: texts to the left, numbers to the right."""
    shown = [[text_of(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *shown]) for i in range(len(columns))]
    right = [all(row[i] is None or isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    for line in [columns, *shown]:
        cells = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True))
        print("  ".join(cells).rstrip())


def text_of(value: Any) -> str:
    """A value in a cell: short numbers as they are, others to four places, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        if len(repr(value)) <= 6:
            return repr(value)
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
    return printable(value, 60)
