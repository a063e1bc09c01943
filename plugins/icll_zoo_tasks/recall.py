"""Associative recall (Akyurek et al. 2024, arXiv:2401.12973, section on other tasks; first in Fu et al. 2022,
arXiv:2212.14052): pairs of a key and its value, many times over, then a key to answer.

    k1 v1 k2 v2 ... kP vP => k v        k is one of the keys; v is what stood behind it

Each sequence has its own random map from all keys to values; keys and values are drawn with replacement. Training
counts every token, as the paper does; the validation and the test split count the answer alone.

What differs from the paper's code: three disjoint splits (there the validation set is the test set); the ids of the
numerals follow their value (there their text).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import Batch, Rows, Split
from icll_zoo_tasks.draws import integers
from icll_zoo_tasks.rows import LONGEST, MOST_SYMBOLS, answer_batch, refuse
from icll_zoo_tasks.words import words

ARROW_ID, FIRST_KEY = 1, 2


class AssociativeRecall:
    """Key-value pairs of a random map, then one query.

    pairs: of a key and its value, before the query. vocab_size: a pad, the arrow, keys, and as many values or one more.
    loss: which tokens training counts: "all", as the paper, or the "answer". sequences: of the training split, 5,000 as
    the paper; None for an endless stream. held_out: of the validation and of the test split each. seed: fixes them.
    """

    pad_id = 0
    separator_id = None
    metrics = ("token-accuracy", "cross-entropy")

    def __init__(
        self,
        pairs: int = 192,
        vocab_size: int = 40,
        loss: Literal["all", "answer"] = "all",
        sequences: int | None = 5000,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        faults = [
            (pairs < 1, f"data.pairs: {pairs} is less than 1"),
            (2 * pairs + 3 > LONGEST, f"data.pairs: {pairs} make more than {LONGEST} tokens"),
            (vocab_size < 4, f"data.vocab_size: {vocab_size} is less than 4: a pad, the arrow, a key and a value"),
            (vocab_size > MOST_SYMBOLS, f"data.vocab_size: {vocab_size} is more than {MOST_SYMBOLS}"),
        ]
        refuse(faults, sequences, held_out, seed)
        self.pairs, self.loss = pairs, loss
        self.n_keys = (vocab_size - FIRST_KEY) // 2
        self.n_values = vocab_size - FIRST_KEY - self.n_keys
        self.vocabulary = (".", "=>", *(str(i) for i in range(vocab_size - FIRST_KEY)))
        self.max_length = 2 * pairs + 2
        self._rows = Rows(self._draw, sequences, held_out, seed)
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`; `extra["following"]` (b, l) is what follows, also where it is not in the loss."""
        ids, _, group = self._rows.take(split, k, batch_size, seed)
        return answer_batch(ids, group, everywhere=split == "train" and self.loss == "all")

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows how sequences are drawn, but no map before it shows.

        The value of a key that came before is certain, of a new one uniform over all values; a key is uniform, and the
        one of the query over those that came. Nobody can do better.
        """
        size, end = len(self.vocabulary), 2 * self.pairs
        ids = torch.arange(size, device=batch.tokens.device)
        is_key = (ids >= FIRST_KEY) & (ids < FIRST_KEY + self.n_keys)
        is_value = ids >= FIRST_KEY + self.n_keys
        keys = batch.tokens[:, 0:end:2]
        came = F.one_hot(keys, size).cumsum(1)
        is_new = came.gather(2, keys[..., None]) == 1
        truth = F.one_hot(batch.extra["following"], size).float()
        truth[:, 0:end:2] = torch.where(is_new, is_value / self.n_values, truth[:, 0:end:2])
        truth[:, 1 : end - 1 : 2] = is_key / self.n_keys
        present = came[:, -1] > 0
        truth[:, end] = present / present.sum(-1, keepdim=True)
        return truth

    def _draw(self, key: Tensor) -> Tensor:
        b, pairs = len(key), self.pairs
        random = words(key, pairs + 2 * self.n_keys)
        keys = integers(random[:, :pairs], self.n_keys)
        value_of = integers(random[:, pairs : pairs + self.n_keys], self.n_values)
        present = torch.zeros(b, self.n_keys, dtype=torch.bool).scatter_(1, keys, True)
        # The largest of random words: uniform over the keys that came, however often each did.
        asked = random[:, pairs + self.n_keys :].masked_fill(~present, torch.iinfo(torch.int64).min).argmax(1)
        keys = torch.cat([keys, asked[:, None]], 1)
        both = torch.stack([FIRST_KEY + keys, FIRST_KEY + self.n_keys + value_of.gather(1, keys)], 2).flatten(1)
        return torch.cat([both[:, :-2], torch.full((b, 1), ARROW_ID), both[:, -2:]], 1)
