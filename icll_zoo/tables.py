"""Tables on the disk: as CSV always, and as Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icll_zoo import files

Columns = Mapping[str, Sequence[Any]]
"""A table by its columns, all of one length; None is a missing value."""


def write_table(path: Path, columns: Columns) -> list[Path]:
    """Write PATH.csv, and beside it PATH.parquet where pyarrow is there, each whole or not at all; returns their paths.

    Numbers keep all their digits, and the same table gives the same bytes. Raises ValueError for columns of different
    lengths, EnvironmentFault for what the disk refuses.
    """
    held = {name: [cell(value) for value in column] for name, column in columns.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(held)
    writer.writerows(zip(*held.values(), strict=True))
    written = [path.with_name(f"{path.name}.csv")]
    with files.disk_faults("table", path):
        files.write_atomic(written[0], text.getvalue())
        if importlib.util.find_spec("pyarrow") is not None:
            written.append(path.with_name(f"{path.name}.parquet"))
            files.write_atomic(written[1], parquet(held))
    return written


def cell(value: Any) -> Any:
    """A value as a table holds it: lists and mappings as JSON."""
    return files.canonical_json(value) if isinstance(value, list | dict) else value


def parquet(held: Mapping[str, list[Any]]) -> bytes:
    """The bytes of a Parquet file; a column of mixed types becomes text."""
    import pyarrow
    import pyarrow.parquet

    arrays = {}
    for name, values in held.items():
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        elif kinds == {int, float}:
            values = [value if value is None else float(value) for value in values]
        arrays[name] = pyarrow.array(values)
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), out)
    return out.getvalue()
