"""Parity and modular counting (parity: Hahn 2020, arXiv:1906.06755; both as tasks of generalisation: Deletang et al.
2022, arXiv:2207.02098): the sum of some digits modulo m, asked for at the end.

    1 0 0 1 1 => 1        parity: modulus 2, digits 0 and 1. The number of digits is uniform between two bounds.

With two digits and a larger modulus it counts the ones; with as many digits as the modulus it adds. Only the answer is
in the loss.

What differs: the answer is the next token (there it is a label of the sequence).
"""

from __future__ import annotations

import torch
from torch import Tensor

from icll_zoo import Batch, Rows, Split
from icll_zoo_tasks.draws import integers
from icll_zoo_tasks.rows import LONGEST, MOST_SYMBOLS, as_batch, refuse
from icll_zoo_tasks.words import words

ARROW_ID, FIRST_DIGIT = 1, 2


class ModularCounting:
    """Digits, and their sum modulo `modulus`.

    digits: how many different ones, from 0 on. length_min, length_max: of the digits of a sequence. sequences: of the
    training split; None for an endless stream. held_out: of the validation and of the test split each. seed: fixes
    the sequences. There are few short ones, and each is in one split.
    """

    pad_id = 0
    separator_id = None
    metrics = ("token-accuracy", "cross-entropy")

    def __init__(
        self,
        modulus: int = 5,
        digits: int = 2,
        length_min: int = 1,
        length_max: int = 40,
        sequences: int | None = None,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        faults = [
            (modulus < 2, f"data.modulus: {modulus} is less than 2"),
            (modulus > MOST_SYMBOLS, f"data.modulus: {modulus} is more than {MOST_SYMBOLS}"),
            (digits < 2, f"data.digits: {digits} is less than 2"),
            (digits > MOST_SYMBOLS, f"data.digits: {digits} is more than {MOST_SYMBOLS}"),
            (length_min < 1, f"data.length_min: {length_min} is less than 1"),
            (length_max < length_min, f"data.length_max: {length_max} is less than data.length_min={length_min}"),
            (length_max > LONGEST - 2, f"data.length_max: {length_max} is more than {LONGEST - 2}"),
        ]
        refuse(faults, sequences, held_out, seed)
        self.modulus, self.digits, self.length_min, self.length_max = modulus, digits, length_min, length_max
        self.vocabulary = (".", "=>", *(str(i) for i in range(max(modulus, digits))))
        self.max_length = length_max + 1
        self._rows = Rows(self._draw, sequences, held_out, seed)
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`."""
        ids, _, group = self._rows.take(split, k, batch_size, seed)
        return as_batch(ids, ids[:, :-1] == ARROW_ID, group)

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows how sequences are drawn.

        Digits are uniform; the arrow comes after any number of them that is left; behind it the sum is certain.
        """
        ids = torch.arange(len(self.vocabulary), device=batch.tokens.device)
        came = 1 + torch.arange(batch.tokens.size(1), device=ids.device)
        ends = torch.where(came < self.length_min, 0.0, 1 / (self.length_max - came + 1).clamp(min=1))[:, None]
        is_digit = (ids >= FIRST_DIGIT) & (ids < FIRST_DIGIT + self.digits)
        before = torch.where(ids == ARROW_ID, ends, (1 - ends) * is_digit / self.digits)
        answer = (batch.tokens - FIRST_DIGIT).clamp(min=0).cumsum(1) % self.modulus + FIRST_DIGIT
        truth = torch.where((batch.tokens == ARROW_ID)[..., None], (ids == answer[..., None]).float(), before)
        return truth * batch.valid[..., None]

    def _draw(self, key: Tensor) -> Tensor:
        most = self.length_max
        random = words(key, most + 1)
        count = self.length_min + integers(random[:, most:], most - self.length_min + 1)
        place = torch.arange(most + 2)
        digit = integers(random[:, :most], self.digits) * (place[:most] < count)
        answer = digit.sum(1, keepdim=True) % self.modulus + FIRST_DIGIT
        digit = torch.nn.functional.pad(digit + FIRST_DIGIT, (0, 2))
        after = torch.where(place == count, ARROW_ID, answer * (place == count + 1))
        return torch.where(place < count, digit, after)


def parity(
    length_min: int = 1, length_max: int = 40, sequences: int | None = None, held_out: int = 500, seed: int = 0
) -> ModularCounting:
    """Whether the number of ones is odd: `ModularCounting` with modulus 2 and two digits."""
    return ModularCounting(2, 2, length_min, length_max, sequences, held_out, seed)
