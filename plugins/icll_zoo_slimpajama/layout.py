"""How a prepared corpus lies in its folder, and how parts of it appear there whole or not at all.

manifest.json    what it is made of, written last: source, revision, tokenizer, counts by split and by subset
shards.jsonl     a line a source file: its sha256, what was left out, and the sha256 of what was made of it
quarantine.jsonl every record that was left out and every file that was: file, line, reason
tokenizer.json   as given          vocabulary.json   the text of every id
shards/00000/    train.tokens (ids, little-endian), train.documents.npy (a row a document), and so on by split
plan.json scan/ duplicates/ logs/   how far the preparation is; training reads none of them
source/          with --keep-source, the files of a corpus on the Hub
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1
PLAN, MANIFEST, SHARDS, QUARANTINE = "plan.json", "manifest.json", "shards.jsonl", "quarantine.jsonl"
TOKENIZER, VOCABULARY = "tokenizer.json", "vocabulary.json"
SPLITS = ("train", "validation", "test")
DOCUMENT = np.dtype([("end", "<i8"), ("bytes", "<i8"), ("hash", "<i8"), ("group", "<i8")])
"""A document of a split of a shard. end: where it ends among the ids, behind its closing token. bytes: of its text in
UTF-8. hash: 63 bits of its text's digest. group: the same of what is held out as a whole with it, or its hash."""
SCANNED = np.dtype([("high", "<u8"), ("low", "<u8"), ("split", "u1")])
"""A record of a source file that is kept: its text's digest, and the number of its split."""


def name_of(index: int) -> str:
    """The name of the index-th shard."""
    return f"{index:05d}"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file or nothing: another name first, then rename, each made to survive a power loss."""
    partial = path.with_name(f".{path.name}.{own()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` once it is filled; if somebody was faster, theirs stays."""
    partial = path.with_name(f".{path.name}.{own()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        try:
            partial.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def own() -> str:
    """A name that no other living process has, on any machine that shares the folder."""
    return f"{socket.gethostname()}-{os.getpid()}"


def sync(folder: Path) -> None:
    """Make the names in a folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(output: Path) -> None:
    """Remove what killed processes left behind."""
    for folder in (".", "scan", "shards", "duplicates", "source"):
        for left in (output / folder).glob(".*.partial"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


class HashedFile:
    """A file being written, with the sha256 and the number of its bytes; synced when it is closed."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.hash, self.bytes = hashlib.sha256(), 0

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.hash.update(content)
        self.bytes += len(content)

    def close(self) -> dict[str, Any]:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"bytes": self.bytes, "sha256": self.hash.hexdigest()}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> bytes:
    """A file of JSON for people to read; the same bytes for the same value."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def to_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def save_array(path: Path, array: np.ndarray, write: Callable[[Path, bytes], Any] = write_whole) -> None:
    """An .npy file, whole or not at all."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write(path, buffer.getvalue())
