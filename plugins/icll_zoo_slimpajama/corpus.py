"""Reading a prepared corpus: the shards of a split as one long stream of ids, mapped and never loaded.

Shards are opened when they are first needed and only so many at a time. A batch of rows that lie in one shard is one
fancy index into a view of all its windows; a row across two shards is put together from its parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from icll_zoo import InputError, Split, parse_json, read_text
from icll_zoo_slimpajama import layout

OPEN = 256
"""Shards of a split that are open at once; each takes a file descriptor."""


class Corpus:
    """A folder that `icll-zoo prepare-text` has made. manifest: its sha256, if it must be a certain one.

    Raises InputError for a folder that is none, is not finished, or whose files are not of the size they had.
    """

    def __init__(self, folder: str, manifest: str = "") -> None:
        self.folder = Path(folder)
        path = self.folder / layout.MANIFEST
        if (self.folder / layout.PLAN).exists() and not path.exists():
            hint = "run the same `icll-zoo prepare-text` again: it goes on"
            raise InputError(f"the preparation of {folder!r} is not finished", hint=hint)
        text = read_text(path, "manifest of a corpus")
        found = layout.sha256_of(path)
        if manifest and found != manifest:
            raise InputError(f"the manifest of {folder!r} has sha256 {found}, not {manifest} (data.manifest)")
        about = parse_json(text, f"manifest {str(path)!r}")
        if not isinstance(about, dict) or about.get("schema") != layout.SCHEMA:
            raise InputError(f"{str(path)!r} is of another schema than {layout.SCHEMA}", hint="prepare the text again")
        self.about: dict[str, Any] = about
        for name, key in ((layout.SHARDS, "shards_sha256"), (layout.VOCABULARY, "vocabulary_sha256")):
            if layout.sha256_of(self.folder / name) != about[key]:
                raise InputError(f"{str(self.folder / name)!r} is not the file that the manifest names")
        self.dtype = np.dtype(about["tokenizer"]["type"])
        self.end_id: int = about["tokenizer"]["end"][1]
        self.pad_id: int = about["tokenizer"]["pad"][1]
        with (self.folder / layout.SHARDS).open(encoding="utf-8") as file:
            self.shards = [line for line in map(json.loads, file) if line["damage"] is None]

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple(json.loads((self.folder / layout.VOCABULARY).read_text(encoding="utf-8")))

    def stream(self, split: Split) -> Stream:
        """The ids of a split."""
        paths = []
        for shard in self.shards:
            name = f"{split}.tokens"
            if name not in shard["files"]:
                continue
            path = self.folder / "shards" / shard["shard"] / name
            facts = shard["files"]
            for part in (name, f"{split}.documents.npy"):
                file = path.with_name(part)
                if not file.is_file() or file.stat().st_size != facts[part]["bytes"]:
                    hint = "`icll-zoo prepare-text --verify` with the same words makes it again"
                    raise InputError(f"{str(file)!r} is not {facts[part]['bytes']} bytes long", hint=hint)
            paths.append(path)
        return Stream(paths, [shard["files"][f"{split}.tokens"]["bytes"] for shard in self.shards
                              if f"{split}.tokens" in shard["files"]], self.dtype)  # fmt: skip


class Stream:
    """The shards of a split, end to end. offsets: where each begins, and the end of the last."""

    def __init__(self, paths: list[Path], sizes: list[int], dtype: np.dtype) -> None:
        self.paths, self.dtype = paths, dtype
        self.offsets = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64) // dtype.itemsize)]).astype(np.int64)
        self.length = int(self.offsets[-1])
        self.tokens = lru_cache(maxsize=OPEN)(self._tokens)
        self.documents = lru_cache(maxsize=OPEN)(self._documents)

    def _tokens(self, shard: int) -> np.ndarray:
        # A plain array over the map: numpy's own subclass costs more than a short row.
        return np.asarray(np.memmap(self.paths[shard], self.dtype, mode="r"))

    def _documents(self, shard: int) -> dict[str, np.ndarray]:
        table = np.load(self._table_of(shard), mmap_mode="r")
        return {name: np.asarray(table[name]) for name in ("end", "hash", "group")}

    def _table_of(self, shard: int) -> Path:
        path = self.paths[shard]
        return path.with_name(path.name.replace(".tokens", ".documents.npy"))

    def windows(self, starts: np.ndarray, length: int) -> Tensor:
        """(b, length) int64: the ids from each start on; zero where the stream has none."""
        rows = np.empty((len(starts), length), np.int64)
        for shard, chosen, local in self._by_shard(starts):
            tokens = self.tokens(shard)
            fits = (local >= 0) & (local + length <= len(tokens))
            if fits.all():
                rows[chosen] = sliding_window_view(tokens, length)[local]
                continue
            which = np.arange(len(starts))[chosen]
            if fits.any():
                rows[which[fits]] = sliding_window_view(tokens, length)[local[fits]]
            for row in which[~fits]:
                self._across(rows[row], int(starts[row]))
        return torch.from_numpy(rows)

    def _by_shard(self, places: np.ndarray) -> Iterator[tuple[int, Any, np.ndarray]]:
        """Each shard that holds some of the places, which ones, and where they are in it."""
        if len(self.paths) == 1:
            yield 0, slice(None), places
            return
        shards = np.searchsorted(self.offsets, places, side="right") - 1
        order = shards.argsort(kind="stable")
        ordered = shards[order]
        cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        for chosen in np.split(order, cuts):
            shard = max(int(shards[chosen[0]]), 0)
            yield shard, chosen, places[chosen] - self.offsets[shard]

    def _across(self, row: np.ndarray, start: int) -> None:
        """Fill one row, from as many shards as it takes."""
        row[:] = 0
        begin, end = max(start, 0), min(start + len(row), self.length)
        while begin < end:
            shard = int(np.searchsorted(self.offsets, begin, side="right")) - 1
            stop = min(end, int(self.offsets[shard + 1]))
            local = int(self.offsets[shard])
            row[begin - start : stop - start] = self.tokens(shard)[begin - local : stop - local]
            begin = stop

    def documents_at(self, places: np.ndarray, field: str) -> np.ndarray:
        """A field of the document that holds each place of the stream, such as `hash`."""
        found = np.empty(len(places), np.int64)
        for shard, chosen, local in self._by_shard(places):
            table = self.documents(shard)
            found[chosen] = table[field][np.searchsorted(table["end"], local, side="right")]
        return found

    def table(self) -> np.ndarray:
        """All documents, `end` counted from the beginning of the stream."""
        tables = []
        for shard in range(len(self.paths)):
            table = np.load(self._table_of(shard))
            table["end"] += self.offsets[shard]
            tables.append(table)
        return np.concatenate(tables) if tables else np.empty(0, layout.DOCUMENT)
