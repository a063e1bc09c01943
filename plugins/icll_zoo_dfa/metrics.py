"""How well next-token predictions fit a language; definitions of arXiv:2401.12973, section 4, and its code.

Each takes probabilities (b, l, v), a batch and the oracle's probabilities, and gives the sum and the count of every
sequence, (b,) both. Nothing is renormalised. `accuracy`, `tvd` and `kl` count every position that is not padding, also
those before a separator, whose next symbol the language still knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from icll_zoo import IGNORED, Batch

Sums = tuple[Tensor, Tensor]
LEAST = 1e-10
"""A target's least probability in a cross-entropy: a learner that excludes what then happens pays 23 nats, not
infinitely many."""
REFERENCE_EPSILON = 1e-7
"""What the reference's code adds inside both logarithms of its KL divergence."""


def metric(direction: str, *, needs_oracle: bool, **more: Any) -> Callable[[Any], Any]:
    """Mark a function with what the core asks of a metric."""

    def mark(function: Any) -> Any:
        function.direction, function.needs_oracle = direction, needs_oracle
        for name, value in more.items():
            setattr(function, name, value)
        return function

    return mark


def legal(probabilities: Tensor, oracle: Tensor) -> Tensor:
    """(b, l) bool: whether the most probable token is one that may follow; a row of zeros predicts nothing."""
    most, token = greedy(probabilities)
    return (oracle.gather(-1, token[..., None])[..., 0] > 0) & (most > 0)


def greedy(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability and its token, the first of equals: what `max(-1)` gives, (b, l) both.

    Tokens come first here, so that each step is one pass over long rows: twice as fast for a small vocabulary.
    """
    v = probabilities.size(-1)
    exact = torch.promote_types(probabilities.dtype, torch.float32)  # holds the ranks below without rounding
    columns = probabilities.detach().flatten(0, -2).T.to(exact, copy=True, memory_format=torch.contiguous_format)
    most = columns.amax(0)
    rank = torch.arange(v, 0, -1, dtype=exact, device=probabilities.device)[:, None]
    # Not a number equals nothing: its token would be v.
    token = (v - columns.eq_(most).mul_(rank).amax(0).long()).clamp_(max=v - 1)
    return most.view(probabilities.shape[:-1]), token.view(probabilities.shape[:-1])


def distance(probabilities: Tensor, oracle: Tensor) -> Tensor:
    """(b, l): total variation distance, half the sum of absolute differences."""
    return (probabilities - oracle).abs_().sum(-1) / 2


def nats(probabilities: Tensor, batch: Batch) -> Tensor:
    """(b, l): minus the logarithm of the target's probability."""
    chosen = probabilities.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
    return -chosen.clamp(min=LEAST).log()


def over(values: Tensor, counted: Tensor) -> Sums:
    """Sums and counts of the counted positions."""
    return values.double().masked_fill(~counted, 0).sum(1), counted.sum(1)


def by_position(values: Tensor, counted: Tensor) -> Sums:
    """The same for every position by itself: a learning curve over the context."""
    return values.double().masked_fill(~counted, 0), counted.long()


@metric("higher", needs_oracle=True)
def accuracy(probabilities: Tensor, batch: Batch, oracle: Tensor) -> Sums:
    """How often the most probable token may follow (greedy accuracy): the definition of the paper's figures."""
    return over(legal(probabilities, oracle), batch.valid)


@metric("higher", needs_oracle=True)
def accuracy_loop(probabilities: Tensor, batch: Batch, oracle: Tensor) -> Sums:
    """The same over positions that no separator follows: what the reference logs while it trains."""
    return over(legal(probabilities, oracle), batch.targets != IGNORED)


@metric("higher", needs_oracle=False)
def token_accuracy(probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> Sums:
    """How often the most probable token is the one that follows; only over positions in the loss."""
    most, token = probabilities.max(-1)
    return over((token == batch.targets) & (most > 0), batch.targets != IGNORED)


@metric("lower", needs_oracle=True)
def tvd(probabilities: Tensor, batch: Batch, oracle: Tensor) -> Sums:
    """Mean total variation distance to the true distribution."""
    return over(distance(probabilities, oracle), batch.valid)


@metric("lower", needs_oracle=True)
def kl(probabilities: Tensor, batch: Batch, oracle: Tensor) -> Sums:
    """Mean Kullback-Leibler divergence of the prediction from the truth, in nats, smoothed as the reference does."""
    truth = oracle.double()
    ratio = (truth + REFERENCE_EPSILON).log() - (probabilities.double() + REFERENCE_EPSILON).log()
    return over((truth * ratio).sum(-1), batch.valid)


@metric("lower", needs_oracle=False, beside_oracle=True)
def cross_entropy(probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> Sums:
    """Mean cross-entropy over the positions in the loss, in nats."""
    return over(nats(probabilities, batch), batch.targets != IGNORED)


@metric("lower", needs_oracle=False, beside_oracle=True, transform="exp")
def perplexity(probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> Sums:
    """The exponential of the mean cross-entropy."""
    return over(nats(probabilities, batch), batch.targets != IGNORED)


@metric("higher", needs_oracle=True)
def accuracy_curve(probabilities: Tensor, batch: Batch, oracle: Tensor) -> Sums:
    """Greedy accuracy by position in the sequence."""
    return by_position(legal(probabilities, oracle), batch.valid)


@metric("lower", needs_oracle=True)
def tvd_curve(probabilities: Tensor, batch: Batch, oracle: Tensor) -> Sums:
    """Total variation distance by position in the sequence."""
    return by_position(distance(probabilities, oracle), batch.valid)


@metric("lower", needs_oracle=False)
def cross_entropy_curve(probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> Sums:
    """Cross-entropy by position in the sequence, in nats."""
    return by_position(nats(probabilities, batch), batch.targets != IGNORED)
