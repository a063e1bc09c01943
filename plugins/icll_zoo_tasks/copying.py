"""Copying (the code of Akyurek et al. 2024, arXiv:2401.12973, branch `cp`; Jelassi et al. 2024, arXiv:2402.01032) and
selective copying (Jing et al. 2017, arXiv:1706.02761; Gu and Dao 2023, arXiv:2312.00752, section 3.1).

    <s> u1 u2 ... un => u1 u2 ... un            with noise:  <s> _ u1 _ _ u2 ... _ un _ => u1 u2 ... un

Only the copy is in the loss. With noise the symbols stand at random places, so that what is copied is chosen by its
content and not by its distance: selective copying.

What differs: the copy is read as it is written, so that every target is the next token (in copying as Arjovsky et al.
2016, arXiv:1511.06464, have it, blanks stand in its place); three disjoint splits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import Batch, Rows, Split
from icll_zoo_tasks.draws import integers
from icll_zoo_tasks.rows import LONGEST, MOST_SYMBOLS, as_batch, refuse, symbol_names
from icll_zoo_tasks.words import choices, words

START_ID, ARROW_ID, BLANK_ID = 1, 2, 3


class Copying:
    """A random text and its copy.

    span: symbols that are copied. noise: blanks among them; 0 is plain copying. vocab_size: a pad, the start, the
    arrow, with noise the blank, and symbols. sequences: of the training split; None for an endless stream.
    held_out: of the validation and of the test split each. seed: fixes the sequences.
    """

    pad_id = 0
    separator_id = None
    metrics = ("token-accuracy", "cross-entropy")

    def __init__(
        self,
        span: int = 300,
        noise: int = 0,
        vocab_size: int = 30,
        sequences: int | None = None,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        self.first_symbol = BLANK_ID + (noise > 0)
        least = self.first_symbol + 1
        faults = [
            (span < 1, f"data.span: {span} is less than 1"),
            (noise < 0, f"data.noise: {noise} is negative"),
            (
                2 * span + noise + 2 > LONGEST,
                f"data.span: {span}, with data.noise={noise}, makes over {LONGEST} tokens",
            ),
            (vocab_size < least, f"data.vocab_size: {vocab_size} is less than {least}: it has no symbol to copy"),
            (vocab_size > MOST_SYMBOLS, f"data.vocab_size: {vocab_size} is more than {MOST_SYMBOLS}"),
        ]
        refuse(faults, sequences, held_out, seed)
        self.span, self.noise, self.n_symbols = span, noise, vocab_size - self.first_symbol
        self.vocabulary = (".", "<s>", "=>", *"_"[: noise > 0], *symbol_names(self.n_symbols))
        self.max_length = 2 * span + noise + 1
        self._rows = Rows(self._draw, sequences, held_out, seed)
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`; `extra["following"]` (b, l) is what follows, also where it is not in the loss."""
        ids, _, group = self._rows.take(split, k, batch_size, seed)
        counted = torch.arange(self.max_length) > self.span + self.noise
        return as_batch(ids, counted, group, following=ids[:, 1:])

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows how sequences are drawn. Nobody can do better.

        The arrow and the copy are certain. A symbol comes in proportion to how many are left of the places left, each
        equally probable.
        """
        size, n = len(self.vocabulary), self.span + self.noise
        ids = torch.arange(size, device=batch.tokens.device)
        came = (batch.tokens[:, :n] >= self.first_symbol).cumsum(1)
        chance = ((self.span - came) / (n - torch.arange(n, device=ids.device)))[..., None]
        truth = F.one_hot(batch.extra["following"], size).float()
        symbols = chance * (ids >= self.first_symbol) / self.n_symbols
        truth[:, :n] = torch.where(ids == BLANK_ID, 1 - chance, symbols) if self.noise else symbols
        return truth

    def _draw(self, key: Tensor) -> Tensor:
        b, n = len(key), self.span + self.noise
        random = words(key, self.span + n)
        copied = self.first_symbol + integers(random[:, : self.span], self.n_symbols)
        place = choices(random[:, self.span :], self.span).sort(dim=1).values
        text = torch.full((b, n), BLANK_ID).scatter_(1, place, copied)
        return torch.cat([torch.full((b, 1), START_ID), text, torch.full((b, 1), ARROW_ID), copied], 1)
