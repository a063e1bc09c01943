"""Dyck languages of bounded depth: well-nested brackets of several kinds (Hewitt et al. 2020, arXiv:2010.07515; Yao et
al. 2021, arXiv:2105.11115).

    ( [ ] { } ) [ ] ( (        depth 0: opens; at the bound: closes; else opens with probability p, the kind uniform

A closing bracket is always the one that the innermost open bracket asks for.

What differs: a sequence is the beginning of an endless text of such words, cut at `length`, without a token for the end
of a word (Hewitt et al. end words at random, at depth 0), so that all sequences are equally long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icll_zoo import Batch, Rows, Split
from icll_zoo_tasks.draws import uniform
from icll_zoo_tasks.rows import as_batch, refuse
from icll_zoo_tasks.words import words

FIRST_OPEN = 1
BRACKETS = ("()", "[]", "{}", "<>")
MOST_KINDS, DEEPEST = 256, 1024


class Dyck:
    """Nested brackets: the opening ones have ids 1 ... kinds, the closing ones follow in the same order.

    kinds: of brackets. depth: how many may be open at once. open: the probability of an opening bracket where both may
    come. length: tokens of a sequence. sequences: of the training split; None for an endless stream. held_out: of the
    validation and of the test split each. seed: fixes the sequences.
    """

    pad_id = 0
    separator_id = None
    metrics = ("accuracy", "tvd", "cross-entropy")

    def __init__(
        self,
        kinds: int = 2,
        depth: int = 4,
        open: float = 0.5,
        length: int = 128,
        sequences: int | None = None,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        faults = [
            (kinds < 1, f"data.kinds: {kinds} is less than 1"),
            (kinds > MOST_KINDS, f"data.kinds: {kinds} is more than {MOST_KINDS}"),
            (depth < 1, f"data.depth: {depth} is less than 1"),
            (depth > DEEPEST, f"data.depth: {depth} is more than {DEEPEST}"),
            (not 0 < open < 1, f"data.open: {open} is not in (0, 1)"),
            (length < 2, f"data.length: {length} is less than 2"),
        ]
        refuse(faults, sequences, held_out, seed, length)
        self.kinds, self.depth, self.open = kinds, depth, open
        named = BRACKETS[:kinds] if kinds <= len(BRACKETS) else ()
        opening = [pair[0] for pair in named] or [f"({i}" for i in range(kinds)]
        closing = [pair[1] for pair in named] or [f"){i}" for i in range(kinds)]
        self.vocabulary = (".", *opening, *closing)
        self.max_length = length - 1
        self._rows = Rows(self._draw, sequences, held_out, seed)
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`."""
        ids, _, group = self._rows.take(split, k, batch_size, seed)
        return as_batch(ids, True, group)

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows which brackets are open."""
        b, length = batch.tokens.shape
        ids = torch.arange(len(self.vocabulary), device=batch.tokens.device)
        truth = torch.zeros(b, length, len(ids), device=ids.device)
        stack = Stack(b, self.depth, ids.device)
        is_opening = (ids >= FIRST_OPEN) & (ids < FIRST_OPEN + self.kinds)
        for t, token in enumerate(batch.tokens.unbind(1)):
            stack.read(token, self.kinds)
            opens = self._opens(stack.depth)[:, None]
            closing = ids == (stack.innermost() + self.kinds)[:, None]
            truth[:, t] = opens * is_opening / self.kinds + (1 - opens) * closing
        return truth

    def _opens(self, depth: Tensor) -> Tensor:
        """The probability that the next bracket opens, (b,) float32."""
        return torch.where(depth == 0, 1.0, torch.where(depth == self.depth, 0.0, self.open))

    def _draw(self, key: Tensor) -> Tensor:
        b, length = len(key), self.max_length + 1
        random = uniform(words(key, 2 * length)).view(b, length, 2)
        kind = (random[..., 1] * self.kinds).long() + FIRST_OPEN
        ids = torch.zeros(b, length, dtype=torch.int64)
        stack = Stack(b, self.depth, key.device)
        for t in range(length):
            opens = random[:, t, 0] < self._opens(stack.depth)
            ids[:, t] = torch.where(opens, kind[:, t], stack.innermost() + self.kinds)
            stack.read(ids[:, t], self.kinds)
        return ids


class Stack:
    """The open brackets of b texts. depth: (b,) int64, how many there are."""

    def __init__(self, b: int, deepest: int, device: torch.device) -> None:
        self.depth = torch.zeros(b, dtype=torch.int64, device=device)
        self.held = torch.zeros(b, deepest, dtype=torch.int64, device=device)

    def innermost(self) -> Tensor:
        """(b,) the id of the last bracket that is open; of no use where none is."""
        return self.held.gather(1, (self.depth - 1).clamp(min=0)[:, None])[:, 0]

    def read(self, token: Tensor, kinds: int) -> None:
        opens = token < FIRST_OPEN + kinds
        place = torch.where(opens, self.depth, 0)[:, None]  # what closes writes back what is there
        self.held.scatter_(1, place, torch.where(opens[:, None], token[:, None], self.held.gather(1, place)))
        self.depth += torch.where(opens, 1, -1)
