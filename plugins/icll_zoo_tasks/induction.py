"""Induction head: say again what stood behind the trigger (Fu et al. 2022, arXiv:2212.14052, section 3.1; the circuit:
Olsson et al. 2022, arXiv:2209.11895).

    a c => b d a ... c => b        random letters, the trigger `=>` once among them and once more before the answer

What differs: the answer alone is in the loss unless `data.loss=all`; the validation and the test split always count it
alone; three disjoint splits (in arXiv:2401.12973's code the validation set is the test set).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import Batch, Rows, Split
from icll_zoo_tasks.draws import integers
from icll_zoo_tasks.rows import MOST_SYMBOLS, answer_batch, refuse, symbol_names
from icll_zoo_tasks.words import words

TRIGGER_ID, FIRST_LETTER = 1, 2


class InductionHead:
    """Random letters with one trigger, and the letter behind it asked for at the end.

    length: tokens of a sequence, the trigger at the end and the answer included. vocab_size: a pad, the trigger,
    letters. loss: which tokens training counts. sequences: of the training split; None for an endless stream.
    held_out: of the validation and of the test split each. seed: fixes the sequences.
    """

    pad_id = 0
    separator_id = None
    metrics = ("token-accuracy", "cross-entropy")

    def __init__(
        self,
        length: int = 256,
        vocab_size: int = 16,
        loss: Literal["answer", "all"] = "answer",
        sequences: int | None = None,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        faults = [
            (length < 4, f"data.length: {length} is less than 4: the trigger and a letter, twice"),
            (vocab_size < 4, f"data.vocab_size: {vocab_size} is less than 4: a pad, the trigger and two letters"),
            (vocab_size > MOST_SYMBOLS, f"data.vocab_size: {vocab_size} is more than {MOST_SYMBOLS}"),
        ]
        refuse(faults, sequences, held_out, seed, length)
        self.loss, self.n_letters = loss, vocab_size - FIRST_LETTER
        self.vocabulary = (".", "=>", *symbol_names(self.n_letters))
        self.max_length = length - 1
        self._rows = Rows(self._draw, sequences, held_out, seed)
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`; `extra["following"]` (b, l) is what follows, also where it is not in the loss."""
        ids, _, group = self._rows.take(split, k, batch_size, seed)
        return answer_batch(ids, group, everywhere=split == "train" and self.loss == "all")

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows how sequences are drawn. Nobody can do better.

        Until the trigger comes it may come at any place left for it; letters are uniform; the last trigger and the
        answer are certain.
        """
        size, end = len(self.vocabulary), self.max_length - 1  # the last trigger's place
        ids = torch.arange(size, device=batch.tokens.device)
        seen = (batch.tokens[:, : end - 1] == TRIGGER_ID).cumsum(1) > 0
        left = end - 2 - torch.arange(end - 1, device=ids.device)  # places of the first trigger behind each position
        chance = torch.where(seen, 0.0, 1 / left.clamp(min=1))[..., None]
        truth = F.one_hot(batch.extra["following"], size).float()
        letters = (ids >= FIRST_LETTER) / self.n_letters
        truth[:, : end - 1] = torch.where(ids == TRIGGER_ID, chance, (1 - chance) * letters)
        return truth

    def _draw(self, key: Tensor) -> Tensor:
        n = self.max_length - 1
        random = words(key, n + 1)
        ids = FIRST_LETTER + integers(random[:, :n], self.n_letters)
        place = integers(random[:, n:], n - 1)  # a letter stands behind it
        ids.scatter_(1, place, TRIGGER_ID)
        return torch.cat([ids, torch.full((len(key), 1), TRIGGER_ID), ids.gather(1, place + 1)], 1)
