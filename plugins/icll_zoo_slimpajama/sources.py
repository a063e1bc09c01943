"""Reading a corpus in SlimPajama's schema, `text` and `meta.redpajama_set_name`, from files that nobody vouches for.

JSON lines (plain, .gz, .zst) and parquet. A record that is whole but has no text is left out by itself and counted;
bytes that are damaged (a broken stream, bad UTF-8, bad JSON) condemn their whole file, since nobody knows what else in
it has changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from icll_zoo import EnvironmentFault, InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
LINE_LIMIT = 512 * 2**20
"""Bytes of one line, unpacked; a longer one is taken for a bomb."""
BLOCK, PACKED = 2**20, 4096
"""Bytes read at once, unpacked and packed: no format turns so few packed ones into more than some 130 MB."""
UNKNOWN = "unknown"
"""The subset of a record that names none."""


@dataclass(frozen=True)
class Record:
    """A document. line: its line in the file, or row of a table, from 1. group: what is held out as a whole, or None.

    text: None for a record that is left out, for the `reason` given.
    """

    line: int
    text: str | None
    subset: str = UNKNOWN
    group: str | None = None
    reason: str = ""


class Damaged(Exception):
    """A file whose bytes are not what its format says. str(error): where and what."""


def find_sources(folder: Path, include: Sequence[str] = ()) -> list[str]:
    """The files of a corpus below a folder, as relative paths with `/`, in order; see `choose`."""
    if folder.is_file():
        raise InputError(f"{str(folder)!r} is a file", hint="give the folder that it lies in")
    if not folder.is_dir():
        raise InputError(f"no folder at {str(folder)!r}")
    paths = (path for path in folder.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    return choose((path.relative_to(folder).as_posix() for path in paths), include, f"below {str(folder)!r}")


def choose(paths: Iterable[str], include: Sequence[str], where: str) -> list[str]:
    """Those paths that are of a corpus, in order; only what one of the patterns matches, if there are any.

    In a pattern `*` stands for any characters, `/` too. Raises InputError if nothing is left, or for a pattern that
    matches nothing.
    """
    names = ((path, path.rpartition("/")[2]) for path in paths)
    found = sorted(path for path, name in names if name.endswith(SUFFIXES) and not name.startswith("."))
    if not found:
        raise InputError(f"no {', '.join(SUFFIXES)} files {where}")
    if not include:
        return found
    for pattern in include:
        if not any(fnmatchcase(path, pattern) for path in found):
            raise InputError(f"{pattern!r} matches none of the {len(found)} files {where}", hint="* stands for / too")
    return [path for path in found if any(fnmatchcase(path, pattern) for pattern in include)]


def records(path: Path, group_by: str | None = None) -> Iterator[Record]:
    """The records of a file in order, those that are left out too.

    group_by: a dotted key, such as `meta.package`. Raises Damaged, possibly after many records: who believes none of
    a file that is damaged reads it to its end first.
    """
    rows = parquet_rows(path, group_by) if path.name.endswith(".parquet") else json_rows(path)
    for line, row in rows:
        yield record_of(line, row, group_by)


def record_of(line: int, row: Any, group_by: str | None) -> Record:
    """What a row of the schema says."""
    if not isinstance(row, dict):
        return Record(line, None, reason="not an object")
    text = row.get("text")
    if not isinstance(text, str):
        return Record(line, None, reason="no text" if text is None else "its text is not a text")
    if not text:
        return Record(line, None, reason="an empty text")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Record(line, None, reason="half of a surrogate pair in its text")
    meta = row.get("meta")
    if isinstance(meta, str):  # some mirrors keep it as JSON in a column
        try:
            meta = json.loads(meta)
        except ValueError:
            meta = None
    subset = meta.get("redpajama_set_name") if isinstance(meta, dict) else None
    group = None
    if group_by is not None:
        value: Any = {**row, "meta": meta}
        for key in group_by.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str | int) or isinstance(value, bool):
            return Record(line, None, reason=f"no {group_by} to group it by")
        group = str(value)
    return Record(line, text, subset if isinstance(subset, str) and subset else UNKNOWN, group)


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The lines of a file of JSON lines; empty ones are passed over."""
    number = 0
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(opened(path, stack))
            while True:
                line = stream.readline(LINE_LIMIT + 1)
                if not line:
                    return
                number += 1
                if len(line) > LINE_LIMIT:
                    raise Damaged(f"line {number} is longer than {LINE_LIMIT} bytes")
                if not line.strip():
                    continue
                yield number, json.loads(line.decode())
    except Damaged:
        raise
    except UnicodeDecodeError as error:
        raise Damaged(f"line {number} is not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"line {number} is not JSON: {error}") from error
    except Exception as error:  # each compression has exceptions of its own
        refuse_disk(path, error)
        raise Damaged(f"unreadable after line {number}: {type(error).__name__}: {error}") from error


def opened(path: Path, stack: ExitStack) -> BinaryIO:
    """A file's bytes, unpacked on the fly."""
    file = stack.enter_context(path.open("rb"))
    if path.name.endswith(".gz"):
        return io.BufferedReader(Unpacked(file, lambda: zlib.decompressobj(31)), BLOCK)
    if path.name.endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise InputError(".zst files need the package zstandard", hint='pip install "icll-zoo[text]"') from error
        return io.BufferedReader(Unpacked(file, lambda: zstandard.ZstdDecompressor().decompressobj()), BLOCK)
    return file


class Unpacked(io.RawIOBase):
    """The bytes of a compressed file, frame after frame. A file that ends within a frame is an error, not an end."""

    def __init__(self, file: BinaryIO, begin: Any) -> None:
        self.file, self.begin = file, begin
        self.frame: Any = None
        self.ready = memoryview(b"")
        self.packed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self.ready:
            if not self.packed:
                self.packed = self.file.read(PACKED)
                if not self.packed:
                    if self.frame is not None:
                        raise EOFError("it ends too early")
                    return 0
            if self.frame is None:
                self.frame = self.begin()
            self.ready = memoryview(self.frame.decompress(self.packed))
            self.packed = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame = None
        count = min(len(into), len(self.ready))
        into[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count


def parquet_rows(path: Path, group_by: str | None) -> Iterator[tuple[int, Any]]:
    """The rows of a parquet file, only the columns that matter."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(".parquet files need the package pyarrow", hint='pip install "icll-zoo[text]"') from error
    number = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            wanted = {"text", "meta", (group_by or "meta").partition(".")[0]}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            if "text" not in columns:
                raise Damaged("it has no column text")
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except Damaged:
        raise
    except Exception as error:  # pyarrow raises its own and the system's
        refuse_disk(path, error)
        reason = " ".join(str(error).split())[:200]
        raise Damaged(f"unreadable after row {number}: {type(error).__name__}: {reason}") from error


def refuse_disk(path: Path, error: Exception) -> None:
    """An EnvironmentFault for what the disk or the network behind it has done: nobody knows the file's bytes then."""
    if isinstance(error, OSError) and error.errno is not None:
        raise EnvironmentFault(f"cannot read {str(path)!r}: {error.strerror}", hint="run the same again") from error


def digest(text: str) -> bytes:
    """16 bytes that stand for a text: what duplicates are found by."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
