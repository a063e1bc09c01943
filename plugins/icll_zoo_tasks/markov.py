"""In-context Markov chains (Edelman et al. 2024, arXiv:2402.11004): every sequence from a random chain of its own.

    p(. | c) ~ Dirichlet(alpha, ..., alpha)        for every context c of `order` symbols, independently
    x_t ~ p(. | x_{t-order} ... x_{t-1})

A row of the transition matrix is a function of the sequence's key and the context. A small matrix is made whole; of a
large one the rows that the sequence visits, so that any order costs at most a row a token.

What differs from the paper: any order and any Dirichlet prior of equal parameters; the first `order` symbols are
uniform, and they are not in the loss; three disjoint splits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import Batch, Rows, Split, stream_key
from icll_zoo_tasks.draws import categorical, dirichlet, integers
from icll_zoo_tasks.rows import MOST_SYMBOLS, as_batch, refuse, symbol_names
from icll_zoo_tasks.words import words

FIRST_SYMBOL = 1
ROW, WALK = 1, 2
"""What a key is for: streams that start from different ones have nothing in common."""
MOST_ENTRIES = 1 << 12
"""Of a matrix that is made whole, for a thousand sequences at once: 32 MB."""


class MarkovChains:
    """A chain over `symbols` symbols a sequence.

    order: how many symbols the next one depends on. alpha: of the Dirichlet prior of every row; 1 is uniform over all
    distributions, less gives rows with few probable symbols. length: tokens of a sequence. sequences: of the training
    split; None for an endless stream. held_out: of the validation and of the test split each. seed: fixes them.

    oracle_knows: "matrix" is the truth, the row that the next symbol is really drawn from. "prior" knows only that rows
    are Dirichlet, and counts: the Bayes-optimal learner, (n(c, x) + alpha) / (n(c) + symbols alpha), which no model
    without the matrix can beat on average.
    """

    pad_id = 0
    separator_id = None
    metrics = ("cross-entropy", "tvd", "token-accuracy")

    def __init__(
        self,
        symbols: int = 8,
        order: int = 1,
        alpha: float = 1.0,
        length: int = 128,
        oracle_knows: Literal["matrix", "prior"] = "matrix",
        sequences: int | None = None,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        faults = [
            (symbols < 2, f"data.symbols: {symbols} is less than 2"),
            (symbols > MOST_SYMBOLS, f"data.symbols: {symbols} is more than {MOST_SYMBOLS}"),
            (order < 1, f"data.order: {order} is less than 1"),
            (length < order + 1, f"data.length: {length} is less than the {order + 1} of data.order={order} and one"),
            (not 1e-3 <= alpha <= 1e3, f"data.alpha: {alpha} is not in [0.001, 1000]"),
        ]
        refuse(faults, sequences, held_out, seed, length)
        self.symbols, self.order, self.alpha, self.oracle_knows = symbols, order, alpha, oracle_knows
        self.vocabulary = (".", *symbol_names(symbols))
        self.max_length = length - 1
        self._rows = Rows(self._draw, sequences, held_out, seed)
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`; `extra["key"]` (b,) int64 is what a sequence's matrix is a function of."""
        ids, key, group = self._rows.take(split, k, batch_size, seed)
        return as_batch(ids, torch.arange(self.max_length) >= self.order - 1, group, key=key)

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows the matrix, or the prior alone (`oracle_knows`)."""
        key = batch.extra["key"][:, None]
        x = batch.tokens - FIRST_SYMBOL
        context = stream_key(key, *(shifted(x, i) for i in range(self.order)))
        if self.oracle_knows == "matrix":
            p = self.rows(context)
        else:
            following = F.one_hot(F.pad(x[:, 1:], (0, 1)), self.symbols)
            following[:, : self.order - 1] = 0  # the contexts there hold less than they should
            n = counts_before(context, following)
            p = (n + self.alpha) / (n.sum(-1, keepdim=True) + self.symbols * self.alpha)
        p[:, : self.order - 1] = 1 / self.symbols
        return F.pad(p, (FIRST_SYMBOL, 0)).float()

    def rows(self, context: Tensor) -> Tensor:
        """The rows of the matrix for some contexts: (...) int64 -> (..., symbols) float64.

        context: `stream_key(key, x_{t-1}, ..., x_{t-order})` with symbols from 0 on.
        """
        return dirichlet(stream_key(context, ROW), self.alpha, self.symbols)

    def _draw(self, key: Tensor) -> Tensor:
        random = words(stream_key(key, WALK), self.max_length + 1)
        x = torch.zeros_like(random)
        x[:, : self.order] = integers(random[:, : self.order], self.symbols)
        whole = self.symbols ** (self.order + 1) <= MOST_ENTRIES
        if whole:
            matrix = self.rows(stream_key(key[:, None], *contexts(self.symbols, self.order)))
        rows = torch.arange(len(key))
        for t in range(self.order, x.size(1)):
            before = [x[:, t - 1 - i] for i in range(self.order)]
            if whole:
                weight = matrix[rows, sum(symbol * self.symbols**i for i, symbol in enumerate(before))]
            else:
                weight = self.rows(stream_key(key, *before))
            x[:, t] = categorical(random[:, t], weight)
        return x + FIRST_SYMBOL


def counts_before(context: Tensor, following: Tensor) -> Tensor:
    """(b, l, v): the sum of `following` (b, l, v) over all earlier places with the same context (b, l).

    Sorted by context, with those of one context in their order, the sums are running ones.
    """
    order = context.argsort(dim=1, stable=True)
    ordered = context.gather(1, order)
    moved = order[..., None].expand_as(following)
    before = following.gather(1, moved)
    before = before.cumsum(1) - before
    begins = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    begin = torch.where(begins, torch.arange(context.size(1), device=context.device), 0).cummax(1).values
    before = before - before.gather(1, begin[..., None].expand_as(before))
    return torch.zeros_like(before).scatter_(1, moved, before)


def contexts(symbols: int, order: int) -> list[Tensor]:
    """All contexts of `order` symbols, the last symbol first: `order` tensors (symbols^order,).

    Context c has c // symbols^i % symbols at i places before the last.
    """
    code = torch.arange(symbols**order)
    return [code // symbols**i % symbols for i in range(order)]


def shifted(x: Tensor, by: int) -> Tensor:
    """(b, l): what stood `by` places earlier, 0 at the beginning."""
    return F.pad(x, (by, 0))[:, : x.size(1)]
