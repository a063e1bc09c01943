"""What a dataset is: batches of token sequences that are pure functions of their index.

A dataset never iterates. `batch(split, k, batch_size, seed)` gives the k-th batch of an endless stream, whatever
was asked before, so that a run resumes anywhere and any number of workers or ranks sees the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
IGNORED = -100
"""The target of a position that is not in the loss (`torch.nn.functional.cross_entropy` skips it)."""


@dataclass(frozen=True)
class Batch:
    """Sequences of token ids and what is known about them; b rows of length l, padded on the right.

    tokens: (b, l) int64, what the model reads.
    targets: (b, l) int64, the token that follows each position; -100 where it is not in the loss.
    valid: (b, l) bool, false only where `tokens` is padding.
    group: (b,) int64, the language or document of each row; intervals are resampled over groups.
    extra: further tensors of the dataset's own, batch first (the states of an automaton, say).
    """

    tokens: Tensor
    targets: Tensor
    valid: Tensor
    group: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.tokens.size(0)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def first(self, count: int) -> Batch:
        """The first rows, with all their padding."""
        return self._each(lambda tensor: tensor[:count])

    def take(self, rows: Tensor) -> Batch:
        """Some rows, with all their padding. rows: (n,) int64."""
        return self._each(lambda tensor: tensor[rows.to(tensor.device)])

    def uncounted(self) -> Batch:
        """The same rows, none of whose positions counts for anything."""
        return replace(self, targets=torch.full_like(self.targets, IGNORED), valid=torch.zeros_like(self.valid))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            tokens=change(self.tokens),
            targets=change(self.targets),
            valid=change(self.valid),
            group=change(self.group),
            extra={name: change(tensor) for name, tensor in self.extra.items()},
        )


class Dataset(Protocol):
    """What the core asks of a dataset. Its constructor's parameters are its options (`data.*`).

    It may also have `metrics`, the names of those that are measured unless others are asked for, and
    `published(metric, architecture)`, what a paper reports on this very distribution: {predictor: {"value": number,
    "within": how far off it may be, "source": "arXiv:..."}}, quoted on cards beside what is measured.
    """

    vocabulary: Sequence[str]
    pad_id: int
    separator_id: int | None

    def size(self, split: Split) -> int | None:
        """The number of sequences of a split; None for an endless one."""

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """The k-th batch, k >= 0. `seed` fixes the order; None is the order of storage, one pass, no repetition.

        The last batch of a pass over a finite split may be smaller than `batch_size`.
        """

    def oracle(self, batch: Batch) -> Tensor | None:
        """The true next-token probabilities, (b, l, v), rows of padding zero; None where nobody knows them."""


def passes(size: int, batch_size: int) -> int:
    """The number of batches in one pass over `size` sequences; the last one may be smaller."""
    return -(-size // batch_size)


def epoch_indices(
    size: int, k: int, batch_size: int, seed: int | None, lengths: Tensor | None = None, pool: int = 16
) -> Tensor:
    """Which sequences of a finite split make up its k-th batch, (<= batch_size,) int64.

    Every pass visits each sequence once. With a seed, pass e is shuffled by (seed, e) alone; with `lengths` (size,)
    too, runs of `pool` batches are sorted by length before they are cut into batches, and the batches of the pass are
    shuffled again, so that a batch pads little while its company still changes from pass to pass.
    Without a seed the order is that of storage, and k must lie in the only pass.
    """
    count = passes(size, batch_size)
    epoch, position = divmod(k, count)
    if seed is None:
        if epoch:
            raise IndexError(f"batch {k} of a single pass of {count} batches")
        return torch.arange(position * batch_size, min((position + 1) * batch_size, size))
    return epoch_batches(size, epoch, batch_size, seed, lengths, pool)[position]


# A run asks for one batch after the other of the same pass, its validation between them.
# A tensor among the arguments is known by its identity.
@lru_cache(maxsize=8)
def epoch_batches(
    size: int, epoch: int, batch_size: int, seed: int, lengths: Tensor | None, pool: int
) -> tuple[Tensor, ...]:
    """The shuffled batches of one pass, as `epoch_indices` says."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + epoch * 0x85EBCA77 + 1) % 2**63)
    order = torch.randperm(size, generator=generator)
    if lengths is None:
        return torch.split(order, batch_size)
    pieces = [run[lengths[run].argsort(stable=True)] for run in torch.split(order, pool * batch_size)]
    batches = torch.split(torch.cat(pieces), batch_size)
    return tuple(batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())
