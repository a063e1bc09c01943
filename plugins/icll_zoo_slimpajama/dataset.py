"""Text as token sequences: rows cut out of one long stream for training, documents one by one for evaluation.

    stream     d1 d1 d1 E d2 d2 E d3 d3 d3 d3 d3 E ...        E closes each document
    packed     [d1 d1 d1 E d2] [d2 E d3 d3 d3] ...            row r holds the targets r T + 1 ... (r + 1) T
    documents  [E d1 d1 d1 .] [E d2 d2 . .] [E d3 d3 d3 d3] [d3 . . . .]

Each token is a target once a pass, whatever the length, and nothing depends on how the corpus is cut into shards. Row
r of the shuffled pass e is a function of (seed, e, r): batch k is known without the batches before it, and a rank that
takes every R-th row of batch k sees its part of the same global batch for any number R of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from icll_zoo import IGNORED, SPLITS, Batch, InputError, Split
from icll_zoo_slimpajama.corpus import Corpus, Stream
from icll_zoo_slimpajama.order import rows_of

SAMPLE = Path(__file__).with_name("sample")
"""A corpus of a few made-up documents, for checks."""


@dataclass(frozen=True)
class Held:
    """The rows of an evaluation split. start: of the first target of each (n,). end: behind its last one. first:
    whether it is the first of its document. group: what its interval is taken over. sizes: for each document of the
    stream its end and the bytes of a token, for `bits-per-byte`."""

    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    group: np.ndarray


class Text:
    """A corpus that `icll-zoo prepare-text` has made.

    folder: where it lies. length: tokens of a row, the context. evaluation: how the validation and test splits are
    read: `documents` gives every document rows of its own, the text of one that is longer being continued without
    what came before; `packed` as in training. held_out: at most so many documents (the ones of the smallest hash, a
    random choice that stays the same) or packed rows (evenly spaced) of each of the two.
    document_mask: what follows the end of a document is in no loss, and `extra["document"]` (b, l) numbers the
    documents of a row, for models that look at one at a time. interval: what intervals are taken over, documents or
    the groups that were held out together. manifest: the sha256 of the manifest.json that it must be.
    Raises InputError for a folder that is no such corpus.
    """

    separator_id = None
    metrics = ("perplexity", "bits-per-byte")
    icll_zoo_check_options = {"folder": str(SAMPLE), "length": 48}  # noqa: RUF012  read, never changed

    def __init__(
        self,
        folder: str = "",
        length: int = 1024,
        evaluation: Literal["documents", "packed"] = "documents",
        held_out: int | None = None,
        document_mask: bool = False,
        interval: Literal["document", "group"] = "document",
        manifest: str = "",
    ) -> None:
        if not folder:
            raise InputError("data.folder is not given", hint="a folder that `icll-zoo prepare-text` has made")
        if length < 1 or (held_out is not None and held_out < 1):
            raise InputError(f"data.{'length' if length < 1 else 'held_out'} is less than 1")
        self.corpus = Corpus(folder, manifest)
        self.max_length = self.length = length
        self.evaluation, self.held_out, self.document_mask = evaluation, held_out, document_mask
        self.field = "hash" if interval == "document" else "group"
        self.pad_id, self.end_id = self.corpus.pad_id, self.corpus.end_id
        self.streams = {split: self.corpus.stream(split) for split in SPLITS}
        self._held: dict[str, Held] = {}

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        return self.corpus.vocabulary

    def size(self, split: Split) -> int:
        if split == "train":
            return packed_rows(self.streams[split], self.length)
        return len(self.held(split).start)

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`. On the held-out splits `extra["bytes"]` (b,) float64 says how much text the targets
        of a row are; a token is worth the mean of its document."""
        size = self.size(split)
        if not size:
            raise InputError(f"the {split} split of {str(self.corpus.folder)!r} is empty")
        rows = rows_of(size, k, batch_size, seed).numpy()
        stream = self.streams[split]
        if split == "train":
            start = rows * self.length + 1
            end = np.minimum(start + self.length, stream.length)
            first, group = np.zeros(len(rows), bool), stream.documents_at(start - 1, self.field)
        else:
            held = self.held(split)
            start, end, first, group = (field[rows] for field in (held.start, held.end, held.first, held.group))
        values = stream.windows(start - 1, self.length + 1)
        # What comes before a document is the end of another one, also before the very first.
        values[:, 0].masked_fill_(torch.from_numpy(first), self.end_id)
        tokens, targets = values[:, :-1], values[:, 1:]
        if (end - start == self.length).all():
            valid = torch.ones_like(tokens, dtype=torch.bool)
        else:
            valid = torch.arange(self.length) < torch.from_numpy(end - start)[:, None]
            tokens, targets = tokens.masked_fill(~valid, self.pad_id), targets.masked_fill(~valid, IGNORED)
        extra = {}
        if self.document_mask:
            ended = tokens == self.end_id
            targets = targets.masked_fill(ended, IGNORED)
            extra["document"] = ended.cumsum(1) - ended.long()
        if split != "train":
            extra["bytes"] = self._bytes(split, start, targets)
        return Batch(tokens, targets, valid, torch.from_numpy(group), extra)

    def oracle(self, batch: Batch) -> None:
        return None

    def held(self, split: Split) -> Held:
        """The rows of a held-out split, worked out at first use."""
        if split not in self._held:
            stream = self.streams[split]
            made = self._packed(stream) if self.evaluation == "packed" else self._documents(stream)
            self._held[split] = made
        return self._held[split]

    def _packed(self, stream: Stream) -> Held:
        count = packed_rows(stream, self.length)
        kept = count if self.held_out is None else min(count, self.held_out)
        rows = np.arange(kept, dtype=np.int64) * count // max(kept, 1)
        start = rows * self.length + 1
        group = stream.documents_at(start - 1, self.field)
        return Held(start, np.minimum(start + self.length, stream.length), np.zeros(kept, bool), group)

    def _documents(self, stream: Stream) -> Held:
        table = stream.table()
        ends = table["end"]
        begins = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else ends
        if self.held_out is not None and self.held_out < len(table):
            kept = np.sort(np.argsort(table["hash"], kind="stable")[: self.held_out])
            table, begins, ends = table[kept], begins[kept], ends[kept]
        rows = -(-(ends - begins) // self.length)
        document = np.repeat(np.arange(len(table)), rows)
        number = np.arange(len(document)) - np.repeat(np.cumsum(rows) - rows, rows)
        start = begins[document] + number * self.length
        end = np.minimum(start + self.length, ends[document])
        return Held(start, end, number == 0, np.ascontiguousarray(table[self.field][document]))

    def _bytes(self, split: Split, start: np.ndarray, targets: Tensor) -> Tensor:
        """(b,) float64: the bytes of text behind the targets of each row."""
        ends, worth = self._worth(split)
        places = start[:, None] + np.arange(self.length)
        which = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
        return torch.from_numpy(worth[which]).masked_fill(targets == IGNORED, 0).sum(1)

    def _worth(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Where each document of a split ends, and the bytes of one of its tokens."""
        if split not in self._worths:
            table = self.streams[split].table()
            self._worths[split] = table["end"], table["bytes"] / np.diff(table["end"], prepend=0)
        return self._worths[split]

    @cached_property
    def _worths(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {}


def packed_rows(stream: Stream, length: int) -> int:
    """The rows that hold every token of a stream but its first as a target; the last may be shorter."""
    return max(0, -(-(stream.length - 1) // length))
