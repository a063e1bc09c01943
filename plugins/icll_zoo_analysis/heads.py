"""The n-gram head score of every attention head of a model, beside uniform attention and a shuffled control.

A score is a mean over the positions that have a target, of all sequences together; its interval is over languages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo import Accumulator, Batch, Dataset, Split, bootstrap, interval, stored_batches, trace
from icll_zoo_analysis.attention import permuted, previous, share, successors, uniform_share

PATTERN = "blocks.*.mixer:attention"
PREVIOUS = "previous"
PAIRS = 1 << 20
"""Pairs of positions worked on at a time: 4 MB of weights a head."""


@dataclass(frozen=True)
class HeadScore:
    """One head and one measure: "1", "2", ... for the successors of that order, "previous" for the position before.

    score, low, high: the share of attention on the targets, and its 95 % interval over languages. uniform: that of
    uniform attention at the same positions. control: the head's share on the successors of another position's context,
    drawn from the same sequence, and control_uniform that of uniform attention there; None of "previous".
    positions: how many were counted.
    """

    module: str
    layer: int
    head: int
    measure: str
    score: float
    low: float
    high: float
    uniform: float
    control: float | None
    control_uniform: float | None
    positions: int

    @property
    def name(self) -> str:
        """Layer and head, both from 0: "1.3"."""
        return f"{self.layer}.{self.head}"


def head_scores(
    model: nn.Module,
    dataset: Dataset,
    *,
    orders: tuple[int, ...] = (1, 2, 3),
    split: Split = "test",
    batch_size: int = 64,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    pattern: str = PATTERN,
    seed: int = 0,
    report: Callable[[int], Any] = lambda done: None,
) -> list[HeadScore]:
    """The scores of every head of a model on the first sequences of a split, head by head.

    pattern: of modules with attention weights; see `icll_zoo.trace`. seed: of the control and of the bootstrap.
    report: told how many sequences are done. Raises InputError for a model that has no attention weights.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = Accumulator()
    heads: list[tuple[str, int]] = []
    done = 0
    for batch in stored_batches(dataset, split, batch_size, limit):
        for rows in small_batches(batch.to(device)):
            weights = trace(model, rows.tokens, pattern)
            heads = [(name.partition(":")[0], h) for name, tensor in weights.items() for h in range(tensor.size(1))]
            columns = []
            asked = permuted(rows.valid, generator)  # row by row, so that no size of batches shows
            for order in orders:
                columns += measured(weights, successors(rows.tokens, order), rows.valid)
                columns += measured(weights, successors(rows.tokens, order, asked), rows.valid)
            columns += measured(weights, previous(rows.tokens), rows.valid)
            sums.add(rows.group, *(torch.cat(list(part), 1) for part in zip(*columns, strict=True)))
            done += len(rows)
            report(done)
    table, counts = sums.table()
    value, means = bootstrap(table, counts, seed=seed)
    low, high = interval(means)
    found = []
    width = len(heads) + 1  # the columns of one measure: all heads, and uniform attention
    for index, (module, head) in enumerate(heads):
        for place, measure in enumerate([*map(str, orders), PREVIOUS]):
            start = 2 * place * width
            own, even = start + index, start + width - 1
            control = None if measure == PREVIOUS else float(value[own + width])
            control_even = None if measure == PREVIOUS else float(value[even + width])
            found.append(
                HeadScore(
                    module, layer_of(module), head, measure,
                    float(value[own]), float(low[own]), float(high[own]), float(value[even]),
                    control, control_even, int(counts[:, own].sum()),
                )
            )  # fmt: skip
    return found


def measured(weights: dict[str, Tensor], targets: Tensor, valid: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Sums and counts of every head's share, (b, heads) both, and of uniform attention, (b, 1): over the positions
    that have a target."""
    counted = targets.any(-1) & valid
    count = counted.sum(1, keepdim=True).double()
    for tensor in weights.values():
        shares = share(tensor, targets).double().masked_fill(~counted[:, None], 0).sum(-1)
        yield shares, count.expand_as(shares)
    yield uniform_share(targets).double().masked_fill(~counted, 0).sum(1, keepdim=True), count


def small_batches(batch: Batch) -> Iterator[Batch]:
    """A batch in pieces of at most PAIRS pairs of positions, or of one row, each without padding that it can spare."""
    longest = batch.tokens.size(1)
    size = max(1, PAIRS // longest**2)
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        length = int(batch.valid[rows].sum(1).max())
        yield Batch(
            tokens=batch.tokens[rows, :length],
            targets=batch.targets[rows, :length],
            valid=batch.valid[rows, :length],
            group=batch.group[rows],
        )


def layer_of(module: str) -> int:
    """The number in a module's name, "blocks.3.mixer" -> 3; 0 if it has none."""
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)


def ranked(scores: list[HeadScore], measure: str) -> list[HeadScore]:
    """The heads by one measure, the highest first."""
    return sorted((score for score in scores if score.measure == measure), key=lambda score: -score.score)
