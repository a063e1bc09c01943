"""In-context n-gram statistics: every sequence from a random n-gram language whose orders resemble each other, the
hierarchical Dirichlet language model (MacKay and Peto 1995, "A hierarchical Dirichlet language model", Natural Language
Engineering 1(3), http://www.inference.org.uk/mackay/abstracts/lang4.html).

    p()        ~ Dirichlet(c / V, ..., c / V)                            the unigram distribution
    p(. | c_j) ~ Dirichlet(c p(. | c_{j-1}))       for a context of j symbols, around that of its last j - 1
    x_t        ~ p(. | x_{t-n+1} ... x_{t-1})

With independent rows an n-gram language is the Markov chain of order n - 1 (`markov-chains`, as in Edelman et al. 2024,
arXiv:2402.11004), where a shorter context says almost nothing. Here the lower orders are a good guess as long as a
context is new: what back-off, smoothing and several n-gram heads at once are for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import Batch, Rows, Split, stream_key
from icll_zoo_tasks.draws import categorical, dirichlet
from icll_zoo_tasks.markov import FIRST_SYMBOL, MOST_ENTRIES, ROW, WALK, contexts, shifted
from icll_zoo_tasks.rows import MOST_SYMBOLS, as_batch, refuse, symbol_names
from icll_zoo_tasks.words import words


class NgramStatistics:
    """An n-gram language over `symbols` symbols a sequence.

    n: the next symbol depends on the n - 1 before it. concentration: c above; the larger, the more a context resembles
    the shorter one. length: tokens of a sequence, the first of which have shorter contexts. sequences: of the training
    split; None for an endless stream. held_out: of the validation and of the test split each. seed: fixes them.
    """

    pad_id = 0
    separator_id = None
    metrics = ("cross-entropy", "tvd", "token-accuracy")
    icll_zoo_check_options = {"symbols": 4}  # noqa: RUF012  the kit reads it from the class

    def __init__(
        self,
        symbols: int = 8,
        n: int = 3,
        concentration: float = 4.0,
        length: int = 128,
        sequences: int | None = None,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        faults = [
            (symbols < 2, f"data.symbols: {symbols} is less than 2"),
            (symbols > MOST_SYMBOLS, f"data.symbols: {symbols} is more than {MOST_SYMBOLS}"),
            (not 1 <= n <= 16, f"data.n: {n} is not in 1 ... 16"),
            (not 1e-2 <= concentration <= 1e4, f"data.concentration: {concentration} is not in [0.01, 10000]"),
            (length < 2, f"data.length: {length} is less than 2"),
        ]
        refuse(faults, sequences, held_out, seed, length)
        self.symbols, self.n, self.concentration = symbols, n, concentration
        self.vocabulary = (".", *symbol_names(symbols))
        self.max_length = length - 1
        self._rows = Rows(self._draw, sequences, held_out, seed)
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`; `extra["key"]` (b,) int64 is what a sequence's language is a function of."""
        ids, key, group = self._rows.take(split, k, batch_size, seed)
        return as_batch(ids, True, group, key=key)

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows the language's probabilities."""
        x = batch.tokens - FIRST_SYMBOL
        p = self.probabilities(batch.extra["key"][:, None].expand_as(x), [shifted(x, i) for i in range(self.n - 1)])
        # The first positions have a context of all that there is, the distributions of a lower order.
        for t in range(min(self.n - 2, x.size(1))):
            p[:, t] = self.probabilities(batch.extra["key"], [x[:, t - i] for i in range(t + 1)])
        return F.pad(p, (FIRST_SYMBOL, 0)).float()

    def probabilities(self, key: Tensor, before: list[Tensor]) -> Tensor:
        """p(. | context) for keys (...) and the symbols before, the last one first: (..., symbols) float64."""
        p = torch.full((*key.shape, self.symbols), 1 / self.symbols, dtype=torch.float64, device=key.device)
        for j in range(len(before) + 1):
            context = stream_key(key, *before[:j])
            p = dirichlet(stream_key(context, ROW), self.concentration * p, self.symbols)
        return p

    def _draw(self, key: Tensor) -> Tensor:
        random = words(stream_key(key, WALK), self.max_length + 1)
        x = torch.zeros_like(random)
        whole = self.symbols**self.n <= MOST_ENTRIES
        tables = self._tables(key) if whole else []
        rows = torch.arange(len(key))
        for t in range(x.size(1)):
            before = [x[:, t - 1 - i] for i in range(min(self.n - 1, t))]
            if whole:
                context = sum((symbol * self.symbols**i for i, symbol in enumerate(before)), torch.zeros_like(rows))
                weight = tables[len(before)][rows, context]
            else:
                weight = self.probabilities(key, before)
            x[:, t] = categorical(random[:, t], weight)
        return x + FIRST_SYMBOL

    def _tables(self, key: Tensor) -> list[Tensor]:
        """p(. | context) for all contexts of 0, 1 ... n - 1 symbols: (b, symbols^j, symbols) each, see `contexts`."""
        p = torch.full((len(key), 1, self.symbols), 1 / self.symbols, dtype=torch.float64)
        tables = []
        for j in range(self.n):
            context = stream_key(key[:, None], *contexts(self.symbols, j))
            # Without its first symbol, its highest digit, context c is the shorter context c % symbols^(j - 1).
            around = p.repeat(1, self.symbols if j else 1, 1)
            p = dirichlet(stream_key(context, ROW), self.concentration * around, self.symbols)
            tables.append(p)
        return tables
