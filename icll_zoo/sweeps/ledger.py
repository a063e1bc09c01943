"""What happened in a sweep, line by line, and what came out of it as one table.

ledger.jsonl is only ever added to: a line for the sweep's beginning, for each start and end of a run, and for its own
end. A kill can tear its last line, which is passed over. What is finished is said by the run folders, not by it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icll_zoo import files, tables

LEDGER, RESULTS = "ledger.jsonl", "results"


class Ledger:
    """The ledger of a sweep's folder, for adding to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER

    def add(self, event: str, **facts: Any) -> None:
        """One line, on the disk when this returns. Raises EnvironmentFault for what the disk refuses."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = files.canonical_json({"at": at, "event": event, **facts}).encode() + b"\n"
        with files.disk_faults("ledger", self.path), self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # torn by a kill: what follows is a line of its own
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def read(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a folder's ledger; none if it has no ledger."""
    try:
        lines = (folder / LEDGER).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found


def threads(events: Sequence[Mapping[str, Any]]) -> int | None:
    """The threads of the runs that do not say: chosen when the sweep first began, since their hashes hold them."""
    return next((event["threads"] for event in events if event["event"] == "sweep" and "threads" in event), None)


def last_of_runs(events: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last event of each run, by its hash."""
    return {event["run"]: event for event in events if "run" in event}


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The rows as results.csv, and as results.parquet where pyarrow is installed."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return tables.write_table(folder / RESULTS, {name: [row.get(name) for row in rows] for name in columns})
