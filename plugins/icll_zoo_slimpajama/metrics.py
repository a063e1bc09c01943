"""What language modelling is measured by, beside the perplexity and the cross-entropy curve of the plugin `dfa`.

Each takes probabilities (b, l, v) and a batch and gives the sum and the count of every sequence, (b,) both; intervals
are taken over `batch.group`, the documents of the dataset `text`. A target's context is its own row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from icll_zoo import IGNORED, Batch

Sums = tuple[Tensor, Tensor]
Value = Callable[[Tensor, Batch, Tensor | None], Sums]


def metric(direction: str, **more: Any) -> Callable[[Any], Any]:
    """Mark a function with what the core asks of a metric; none of these needs an oracle."""

    def mark(function: Any) -> Any:
        function.direction, function.needs_oracle = direction, False
        for name, value in more.items():
            setattr(function, name, value)
        return function

    return mark


def chosen(probabilities: Tensor, batch: Batch) -> Tensor:
    """(b, l): the probability of each target; of no meaning where there is none."""
    return probabilities.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]


def nats(probabilities: Tensor, batch: Batch) -> Tensor:
    """(b, l) float64: minus the logarithm of each target's probability, of zero as of the least normal number."""
    p = chosen(probabilities, batch)
    return -p.double().clamp(min=torch.finfo(torch.float32).tiny).log()


def over(values: Tensor, counted: Tensor) -> Sums:
    return values.double().masked_fill(~counted, 0).sum(1), counted.sum(1)


@metric("lower")
def bits_per_byte(probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> Sums:
    """Bits for a byte of the text in UTF-8: comparable over tokenizers, whose tokens are of different lengths.

    The ends of documents are paid for and no bytes. A batch that does not say how many bytes its rows are
    (`extra["bytes"]`) counts one for each target.
    """
    counted = batch.targets != IGNORED
    total, count = over(nats(probabilities, batch) / math.log(2), counted)
    return total, batch.extra.get("bytes", count)


def following(batch: Batch) -> Tensor:
    """(b, l): the token after each position, its target where it has one; 0 behind a row's end."""
    shifted = torch.zeros_like(batch.tokens)
    shifted[:, :-1] = batch.tokens[:, 1:]
    return torch.where(batch.targets == IGNORED, shifted, batch.targets)


def repeats(batch: Batch, n: int) -> Tensor:
    """(b, l) bool: whether the n tokens that end with the target stand in the row before, in this order.

    A repetition is found exactly, by ranks and not by hashes. False where there are fewer than n tokens.
    """
    rows = torch.cat([batch.tokens[:, :1], following(batch)], 1)
    number, length = rows.shape
    found = torch.zeros(number, length - 1, dtype=torch.bool, device=rows.device)
    if length < n:
        return found
    rank = rows
    for k in range(1, n):
        # The k tokens that end one place before, and the one here.
        pair = rank[:, :-1] * (int(rows.max()) + 1) + rows[:, k:]
        rank = pair.unique(return_inverse=True)[1]
    key = rank + torch.arange(number, device=rows.device)[:, None] * (int(rank.max()) + 1)
    flat = key.flatten()
    order = flat.argsort(stable=True)
    earlier = torch.zeros_like(flat, dtype=torch.bool)
    earlier[order[1:]] = flat[order[1:]] == flat[order[:-1]]
    # Column j of `earlier` is the n-gram that ends at place n - 1 + j of `rows`; target t stands at place t + 1.
    own = earlier.view(number, -1)
    skipped = max(n - 2, 0)
    found[:, skipped:] = own[:, 1:] if n == 1 else own
    return found & (batch.targets != IGNORED)


def ngram_loss(n: int, repeated: bool) -> Value:
    """The mean loss in nats of targets that repeat an earlier n-gram of their row, or of the others."""

    def loss(probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> Sums:
        found = repeats(batch, n)
        counted = found if repeated else ~found & (batch.targets != IGNORED)
        return over(nats(probabilities, batch), counted)

    kind = "that repeat an earlier" if repeated else "that repeat no earlier"
    loss.__doc__ = (
        f"Mean loss, in nats, of the targets {kind} {n}-gram of their row: the {n - 1} tokens before, and it."
    )
    loss.__name__ = loss.__qualname__ = f"{'in_context' if repeated else 'new'}_{n}gram_loss"
    return metric("lower")(loss)


in_context_2gram_loss, new_2gram_loss = ngram_loss(2, True), ngram_loss(2, False)
in_context_3gram_loss, new_3gram_loss = ngram_loss(3, True), ngram_loss(3, False)


@metric("higher")
def induction_score(probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> Sums:
    """Mean probability of the target where an induction head is right (Olsson et al. 2022, arXiv:2209.11895).

    That is where the latest earlier occurrence of the present token was followed by the very target.
    """
    return over(chosen(probabilities, batch), induced(batch))


def induced(batch: Batch) -> Tensor:
    """(b, l) bool: whether the target is what followed the latest earlier occurrence of the token before it."""
    number, length = batch.tokens.shape
    after = following(batch)
    key = batch.tokens + torch.arange(number, device=after.device)[:, None] * (int(batch.tokens.max()) + 1)
    flat, flat_after = key.flatten(), after.flatten()
    order = flat.argsort(stable=True)
    same = flat[order[1:]] == flat[order[:-1]]
    copied = torch.zeros_like(flat, dtype=torch.bool)
    copied[order[1:]] = same & (flat_after[order[1:]] == flat_after[order[:-1]])
    return copied.view(number, length) & (batch.targets != IGNORED)
