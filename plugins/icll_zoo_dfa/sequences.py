"""Strings of a batch of languages, walked all together and laid out as sequences of token ids.

All strings of all languages advance at once, the longest first, so that step i touches exactly the strings that are
longer than i. The state after every token is kept: each metric that needs the truth is then one gather.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icll_zoo_dfa.automata import LENGTHS, SHIFT, SIZES, SYMBOLS, TARGET, Automata, counter
from icll_zoo_dfa.bounds import Bounds
from icll_zoo_dfa.language import LETTERS, VOCABULARY
from icll_zoo_dfa.philox import in_range, philox, split_words

SEPARATOR_ID = len(LETTERS) + 1
# What the walk knows after a token, in one integer: the row of the state's edges in the table from bit 32 on, and below
# bit 16 the state, the token and, in the lowest five bits, the state's degree.
ROW, STATE, TOKEN = 32, 10, 5
DEGREE = (1 << TOKEN) - 1
UPPER_HALF = 0xFFFF0000


@dataclass(frozen=True)
class Sequences:
    """Strings joined by separators, one row a language.

    ids: (b, l) uint8, 0 behind the end. state: (b, l) int16, the state after each token; a separator leads back to
    the start, 0. length: (b,) int64, tokens before the padding.
    """

    ids: Tensor
    state: Tensor
    length: Tensor

    def text(self, index: int) -> str:
        return "".join(VOCABULARY[i] for i in self.ids[index, : self.length[index]].tolist())


def draw_sequences(automata: Automata, bounds: Bounds, seed: int, candidates: Tensor) -> Sequences:
    """The one sequence of each candidate, whose automata are given: numbers and lengths of strings are uniform
    between their bounds, and so is the next symbol over the edges of the current state (to within 2^-16).
    """
    d, n, b = automata.edges.shape
    key, (low, high) = split_words(seed), counter(candidates)
    strings = torch.arange(bounds.strings_max)
    places = torch.arange(1 + -(-bounds.strings_max // 4))
    streams = torch.tensor([SIZES] + [LENGTHS] * (len(places) - 1))
    words = philox((low[:, None], high[:, None], (places - 1).clamp_(min=0), streams), key)
    number = bounds.strings_min + in_range(words[:, :1, 2], bounds.strings_max - bounds.strings_min + 1)
    lengths = words[:, 1:].flatten(1)[:, : bounds.strings_max]
    lengths = bounds.length_min + in_range(lengths, bounds.length_max - bounds.length_min + 1)
    lengths *= strings < number
    ends = (lengths + 1).cumsum(1) - 1  # where the separator after each string stands
    total = (lengths.sum(1) + number[:, 0] - 1).clamp(min=1)
    width = int(total.max())
    # What stands for separators that no string follows is overwritten by the walk, or is padding.
    noted = torch.zeros(b, width, dtype=torch.int16)
    separator = (strings < number - 1).to(torch.int16) * (SEPARATOR_ID << TOKEN)
    noted.scatter_(1, ends.clamp(max=width - 1), separator)

    # Every string: its language, its place there, where it goes; the longest first.
    flat = lengths.flatten()
    by_length = torch.from_numpy(np.argsort(flat.neg().to(torch.int16).numpy(), kind="stable"))
    longer = (flat.numel() - flat.bincount().cumsum(0)).tolist()[:-1]
    order = by_length[: longer[0]]
    language = order // bounds.strings_max
    place = (order - language * bounds.strings_max) << 16
    at = (ends - lengths + torch.arange(0, b * width, width)[:, None]).flatten().index_select(0, order)
    current = (torch.arange(0, b * n * d, n * d) << ROW | automata.degree[0]).index_select(0, language)
    low, high = low.index_select(0, language), high.index_select(0, language)

    # All the randomness at once: a counter gives a string four words, hence eight draws of 16 bits.
    counts = longer[::8]
    words = philox(
        (
            torch.cat([low[:count] for count in counts]),
            torch.cat([high[:count] for count in counts]),
            torch.cat([place[:count] | i for i, count in enumerate(counts)]),
            SYMBOLS,
        ),
        key,
    ).split(counts)
    table = walk_table(automata)
    for i, count in enumerate(longer):
        half = words[i // 8][:count, i // 2 % 4]
        half = (half << 16 if i % 2 == 0 else half) & UPPER_HALF
        # Bits above 32 of row * 2^32 + degree * half, where half is a draw times 2^16, are the row plus the edge, which
        # is uniform over the degree; what else `current` holds is below 2^16 and cannot carry.
        current, at = current[:count], at[:count]
        edge = (current & DEGREE).mul_(half).add_(current).bitwise_right_shift_(ROW)
        current = table.index_select(0, edge)
        noted.view(-1).scatter_(0, at, current.to(torch.int16))
        at += 1
    ids = (noted >> TOKEN).bitwise_and_(DEGREE).to(torch.uint8)
    return Sequences(ids, noted.bitwise_right_shift_(STATE).bitwise_and_(TARGET), total)


def walk_table(automata: Automata) -> Tensor:
    """(b * n * d,): for every edge of every state, what the walk knows on taking it."""
    d, n, b = automata.edges.shape
    target = automata.target
    degree = automata.degree.expand(d, n, b).gather(1, target)
    token = ((automata.edges & ~TARGET) >> (SHIFT - TOKEN)) + (1 << TOKEN)
    row = torch.arange(0, b * n * d, n * d) << ROW
    table = (target * ((d << ROW) + (1 << STATE))).add_(token).add_(degree).add_(row)
    return table.transpose(0, 1).reshape(n * d, b).T.reshape(-1)
