"""The numbers behind a picture: a table as CSV, as Parquet where pyarrow is installed, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icll_zoo import write_table

Columns = Mapping[str, Sequence[Any]]
"""A table by its columns, all of one length; None is a missing value."""


def write(path: Path, columns: Columns) -> list[Path]:
    """Write `path` with the suffix .csv, and beside it .parquet where pyarrow is there; returns the files written.

    The folder is made if it is not there. Raises as `icll_zoo.write_table`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_table(path.with_name(path.name.removesuffix(".csv")), columns)


def rows(columns: Columns) -> list[dict[str, Any]]:
    """The table row by row, as JSON has it."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def text(columns: Columns, digits: int = 3) -> str:
    """The table for a terminal: numbers to the right with so many digits, words to the left, a dash where none is."""
    shown = {name: [cell(value, digits) for value in column] for name, column in columns.items()}
    padded = []
    for name, column in shown.items():
        width = max(map(len, [name, *column]))
        right = any(isinstance(value, int | float) for value in columns[name])
        padded.append([value.rjust(width) if right else value.ljust(width) for value in [name, *column]])
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def cell(value: Any, digits: int) -> str:
    """One value as text; a float with a fixed number of digits."""
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
