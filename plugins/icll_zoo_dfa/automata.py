"""Random automata, a whole batch at a time.

Candidate k is a pure function of (seed, k): every word of randomness comes from `philox` with the seed as its key and
a counter of (k, place, stream). Everything is laid out states first, (states, b), so that each step is one contiguous
operation for all candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icll_zoo_dfa.bounds import Bounds
from icll_zoo_dfa.language import LETTERS, Language
from icll_zoo_dfa.philox import LOW, in_range, philox, split_words

SIZES, ALPHABET, EDGES, LENGTHS, SYMBOLS = range(5)
"""The streams, the last word of a counter: what the randomness is for."""
SHIFT = 6
"""An edge is one integer, symbol << 6 | target, so that edges sort by symbol; NO_EDGE sorts behind all of them."""
TARGET = (1 << SHIFT) - 1
NO_EDGE = 1 << 14


@dataclass(frozen=True)
class Automata:
    """b automata of at most n states with at most d edges a state; state 0 is the start and every state accepts.

    edges: (d, n, b) int64, sorted by symbol within a state; NO_EDGE where a state has fewer.
    degree: (n, b) int64, 0 for states that an automaton does not have.
    """

    edges: Tensor
    degree: Tensor

    @property
    def symbol(self) -> Tensor:
        """(d, n, b), in 0 ... 17 where there is an edge."""
        return self.edges >> SHIFT

    @property
    def target(self) -> Tensor:
        """(d, n, b); 0 where there is no edge."""
        return self.edges & TARGET

    def __len__(self) -> int:
        return self.degree.size(1)

    def __getitem__(self, index: Tensor) -> Automata:
        return Automata(self.edges[..., index], self.degree[:, index])

    def language(self, index: int) -> Language:
        """One of them as an object of its own."""
        delta: dict[int, dict[str, int]] = {}
        for state, column in enumerate(self.edges[..., index].T.tolist()):
            kept = [edge for edge in column if edge != NO_EDGE]
            if kept:
                delta[state] = {LETTERS[edge >> SHIFT]: edge & TARGET for edge in kept}
        return Language(0, delta)

    def next_probability(self) -> Tensor:
        """(b, n, v) float32: the true distribution of the next token in each state; separators and padding get 0."""
        d, n, b = self.edges.shape
        uniform = (1 / self.degree.clamp(min=1)).float().expand(d, n, b)
        table = torch.zeros(n, b, len(LETTERS) + 2)
        missing = self.edges == NO_EDGE
        ids = (self.symbol + 1).masked_fill_(missing, 0)
        table.scatter_(2, ids.permute(1, 2, 0), uniform.masked_fill(missing, 0).permute(1, 2, 0))
        table[..., 0] = 0
        return table.transpose(0, 1)


def counter(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The first two words of a counter: the candidate's number, in 64 bits."""
    return candidates & LOW, (candidates >> 32) & LOW


def draw_automata(bounds: Bounds, seed: int, candidates: Tensor) -> Automata:
    """The automata of some candidates, (b,) int64.

    States and symbols are uniform between their bounds; the alphabet is a uniform choice of letters; a state has a
    uniform number of edges, with distinct symbols of the alphabet, to distinct other states (arXiv:2401.12973,
    section 3 and its code). With more edges than there are other states or symbols, the bound is lowered to those.
    """
    key, (low, high) = split_words(seed), counter(candidates)
    sizes = philox((low, high, 0, SIZES), key)
    n = bounds.states_min + in_range(sizes[:, 0], bounds.states_max - bounds.states_min + 1)
    a = bounds.symbols_min + in_range(sizes[:, 1], bounds.symbols_max - bounds.symbols_min + 1)
    # The order of random words is a random order of the letters; the first `a` of them are the alphabet. Each letter's
    # number stands below its word, so that sorting the sums sorts the letters and equal words keep their order.
    blocks = torch.arange(-(-len(LETTERS) // 4))
    words = philox((low[:, None], high[:, None], blocks, ALPHABET), key).flatten(1)[:, : len(LETTERS)]
    words = (words << SHIFT) + torch.arange(len(LETTERS))
    letters = torch.from_numpy(np.sort(words.numpy(), axis=1)).T & TARGET

    states = torch.arange(bounds.states_max)[:, None]
    real = states < n
    per_state = -(-(1 + 2 * bounds.degree_max) // 4)
    places = states[:, None] * 16 + torch.arange(per_state)[:, None]
    words = philox((low, high, places, EDGES), key)  # (n, blocks of a state, b, 4)
    draws = [words[:, i // 4, :, i % 4] for i in range(1 + 2 * bounds.degree_max)]
    most = torch.minimum(n - 1, a).clamp(max=bounds.degree_max)
    degree = bounds.degree_min + in_range(draws[0], most - bounds.degree_min + 1)
    degree *= real

    symbols, targets, columns = [], [], []
    others = states.to(torch.int16)  # sixteen bits hold an edge and are worked on four times as fast
    for e in range(bounds.degree_max):
        # The e-th choice without replacement: a rank among those left, stepped over the earlier ones. Where a state
        # has no e-th edge there may be none left; the draw is then from one and is thrown away.
        symbol = in_range(draws[1 + 2 * e], (a - e).clamp(min=1)).to(torch.int16)
        target = in_range(draws[2 + 2 * e], (n - 1 - e).clamp(min=1)).to(torch.int16)
        symbol = step_over(symbol, symbols)
        target = step_over(target, [others.expand_as(target), *targets])
        symbols.append(symbol)
        targets.append(target)
        letter = letters.gather(0, symbol.clamp(max=len(LETTERS) - 1).long()).to(torch.int16)
        columns.append(((letter << SHIFT) | target).masked_fill_(degree <= e, NO_EDGE))
    return Automata(torch.stack(sort_few(columns)).long(), degree)


def step_over(rank: Tensor, taken: list[Tensor]) -> Tensor:
    """The rank-th integer, from 0, that is not among those taken. All int16, and at most 2^14."""
    for value in sort_few(taken):
        rank = rank - ((value - 1 - rank) >> 15)  # plus one if rank >= value, by the sign
    return rank


def sort_few(columns: list[Tensor]) -> list[Tensor]:
    """A few tensors of one shape, sorted elementwise against each other: a sorting network of minima and maxima."""
    columns = list(columns)
    for end in range(len(columns) - 1, 0, -1):
        for i in range(end):
            low, high = columns[i], columns[i + 1]
            columns[i], columns[i + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return columns
