"""The folder of a run: whose it is, whether it is finished, and that one process at a time works in it.

run.json        the resolved description and its hash
metrics.jsonl   one line a measurement
lock            held while a process trains
checkpoints/    see checkpoint.py
model/          the best model, in the published layout
result.json     written last: the run is finished
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from icll_zoo import files
from icll_zoo.errors import EnvironmentFault, InputError
from icll_zoo.run import Resolved

RUN, LOG, RESULT = "run.json", "metrics.jsonl", "result.json"


def check_folder(resolved: Resolved) -> dict[str, Any] | None:
    """The result if the run in the folder is this one and finished. InputError if the folder holds anything else."""
    folder = resolved.output
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {str(folder)!r} is not a folder")
    if not folder.exists() or not any(path.name != "lock" and not is_leftover(path) for path in folder.iterdir()):
        return None
    if not (folder / RUN).exists():
        raise InputError(f"output folder {str(folder)!r} is not empty and holds no run", hint="choose another output=")
    written = files.read_json(folder / RUN, "description")
    if not isinstance(written, dict) or written.get("hash") != resolved.hash:
        before = written.get("description") if isinstance(written, dict) else None
        place = first_difference(before or {}, resolved.description)
        raise InputError(
            f"output folder {str(folder)!r} holds a run of another description (it differs in {place})",
            hint="choose another output=",
        )
    if not (folder / RESULT).exists():
        return None
    result: dict[str, Any] = files.read_json(folder / RESULT, "result")
    return {**result, "folder": str(folder)}


def is_leftover(path: Path) -> bool:
    """Whether a file is what a kill left of one of ours that was being written; see `files.write_atomic`."""
    return path.name.startswith((f".{RUN}.", f".{RESULT}.")) and path.name.endswith(".tmp")


def first_difference(old: Any, new: Any, path: str = "") -> str:
    """The dotted key at which two descriptions first differ, and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    return f"{path or 'everything'}: {old!r} there, {new!r} here"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder, made if need be. EnvironmentFault if another process does."""
    made = not folder.exists()
    with files.disk_faults("output folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentFault(
                f"another process is training in {str(folder)!r}", hint="wait for it, or choose another output="
            ) from error
        if made:
            files.fsync_directory(folder.parent)
        for path in filter(is_leftover, folder.iterdir()):
            path.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)
