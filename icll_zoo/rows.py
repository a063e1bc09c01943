"""Sequences that are a pure function of their index, in splits that share none: what generated datasets are made of.

A dataset gives a function from keys to sequences; all else, from the order of batches to the splits, is here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from icll_zoo.data import Split, epoch_indices
from icll_zoo.errors import InputError
from icll_zoo.hashing import stream_key

CODES = {"test": 0, "validation": 1, "train": 2}
ATTEMPTS = 1024
WINDOW = 1024
"""Training sequences drawn at once, at least: what one batch of them costs is mostly the calls."""


class Rows:
    """The sequences of the three splits of a generated dataset.

    draw: keys (b,) int64 -> token ids (b, length), or a tuple of them and more tensors of b rows; a pure function of
    every key alone. sequences: of the training split; None for an endless one. held_out: of the validation and of the
    test split each. scarce, hint: what InputError says where hardly any sequence falls into "{split}".

    Row i is a function of (seed, split, i), in endless training also of the run's seed. It is drawn again until a hash
    of its tokens says that it belongs to the split: 1/16 of all sequences test, 1/16 validate, the rest train. So no
    sequence is in two splits. What is drawn comes as often as before given its split: where a task has few different
    sequences, an oracle that knows how they are drawn does not know which of them a split lacks.
    """

    def __init__(
        self,
        draw: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
        sequences: int | None,
        held_out: int,
        seed: int,
        scarce: str = "the options of data allow hardly any sequence in the {split} split",
        hint: str = "longer sequences, more symbols",
    ) -> None:
        self.draw, self.seed, self.scarce, self.hint = draw, seed, scarce, hint
        self.sizes: dict[str, int | None] = {"train": sequences, "validation": held_out, "test": held_out}
        self._stored: dict[str, tuple[Tensor, ...]] = {}
        self._last: tuple[tuple[int, int, int], tuple[Tensor, ...]] | None = None

    def size(self, split: Split) -> int | None:
        return self.sizes[split]

    def take(self, split: Split, k: int, batch_size: int, seed: int | None) -> tuple[Tensor, ...]:
        """Batch k: what `draw` gave, then the keys (b,) that it was given, and the rows' numbers (b,)."""
        size = self.sizes[split]
        if size is None:
            batches = -(-WINDOW // batch_size)
            window, position = divmod(k, batches)
            count = batches * batch_size
            wanted = (seed or 0, window * count, count)
            if self._last is None or self._last[0] != wanted:  # the last window asked for serves the next batch too
                self._last = wanted, self._drawn(split, seed or 0, torch.arange(count) + window * count)
            index = torch.arange(position * batch_size, (position + 1) * batch_size)
            return *(part[index] for part in self._last[1]), index + window * count
        if split not in self._stored:
            self._stored[split] = self._drawn(split, 0, torch.arange(size))
        index = epoch_indices(size, k, batch_size, seed)
        return *(part[index] for part in self._stored[split]), index

    def _drawn(self, split: str, order: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Some rows of a split, and the keys they were drawn by."""
        # One sequence in sixteen is held out: so many attempts at once are about what it takes.
        tries = 1 if split == "train" else 16
        found: tuple[Tensor, ...] = ()
        pending = torch.arange(len(rows))
        for start in range(0, ATTEMPTS, tries):
            left = []
            for part in torch.split(pending, max(1, WINDOW // tries)):
                attempt = torch.arange(start, start + tries)
                key = stream_key(self.seed, CODES[split], order, rows[part, None], attempt).flatten()
                drawn = self.draw(key)
                made = (*drawn, key) if isinstance(drawn, tuple) else (drawn, key)
                good = (split_codes(made[0]) == CODES[split]).view(-1, tries)
                some = good.any(1)
                first = (good.long().argmax(1) + torch.arange(0, len(key), tries))[some]
                found = found or tuple(new.new_zeros(len(rows), *new.shape[1:]) for new in made)
                for into, new in zip(found, made, strict=True):
                    into[part[some]] = new[first]
                left.append(part[~some])
            pending = torch.cat(left)
            if not pending.numel():
                return found
        raise InputError(self.scarce.format(split=split), hint=self.hint)


def split_codes(ids: Tensor) -> Tensor:
    """(b,) int64: by a hash of each row's tokens, 0 for test, 1 for validation, 2 for training."""
    place = torch.arange(ids.size(1))
    return (stream_key(stream_key(place, ids).sum(1)) & 15).clamp(max=2)
