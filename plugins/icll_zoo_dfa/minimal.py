"""The canonical minimal form of a batch of automata, and the split that it belongs to.

Two languages are equal exactly if their canonical forms are: the states that differ in what may follow, numbered
breadth-first from the start in the order of symbols. Since every state accepts, minimising is merging the states with
equal symbols and, by those symbols, equal successors (Moore's partition refinement).
"""

from __future__ import annotations

import torch
from torch import Tensor

from icll_zoo import logical_shift, splitmix64
from icll_zoo_dfa.automata import NO_EDGE, TARGET, Automata

EDGE_BITS = 15  # an edge with its target's block fits, and NO_EDGE too: four of them in an int64
HELD_OUT = {0: "test", 1: "validation"}
"""What the upper four bits of a language's hash decide; all other languages are for training."""


def blocks(automata: Automata) -> Tensor:
    """(n, b): for every state the first state that is equivalent to it."""
    n, b = automata.degree.shape
    found = torch.zeros(n, b, dtype=torch.int64)
    live = torch.arange(b)
    symbol, target, none = automata.edges & ~TARGET, automata.target, automata.edges == NO_EDGE
    while live.numel():
        current = found.gather(1, live.expand(n, -1))
        refined = first_equal(
            [
                (s | current.gather(0, t)).masked_fill_(missing, NO_EDGE)
                for s, t, missing in zip(symbol, target, none, strict=True)
            ]
        )
        # Refinement never merges, so a partition that stays the same has reached its end. Most languages are there
        # after two rounds: only the others go on.
        changed = (refined != current).any(0)
        found.scatter_(1, live.expand(n, -1), refined)
        rest = changed.nonzero()[:, 0]
        live, rest = live[rest], rest.expand(*symbol.shape[:2], -1)
        symbol, target, none = symbol.gather(2, rest), target.gather(2, rest), none.gather(2, rest)
    return found


def first_equal(columns: list[Tensor]) -> Tensor:
    """(n, b): for every state the first state of its column whose signature, a tuple over `columns`, is the same."""
    n = columns[0].size(0)
    signature = torch.zeros_like(columns[0])
    first = signature
    for start in range(0, len(columns), 3):
        for column in columns[start : start + 3]:
            signature = (signature << EDGE_BITS) | column
        first = torch.zeros_like(signature)
        for j in range(n - 1, -1, -1):
            first.masked_fill_(signature == signature[j], j)
        signature = first
    return first


def canonical(automata: Automata) -> Tensor:
    """The canonical minimal forms, (b, n * d) int16: by state and symbol the edges, -1 where there is none."""
    d, n, b = automata.edges.shape
    block = blocks(automata)
    number = torch.full((n, b), -1)
    number[0] = 0  # state 0 is the first of its block
    order = torch.zeros(n + 1, b, dtype=torch.int64)
    found = torch.ones(1, b, dtype=torch.int64)
    table = torch.full((n, d, b), -1, dtype=torch.int64)
    for p in range(n):
        here = order[p : p + 1]
        for e in range(d):
            edge = automata.edges[e].gather(0, here)
            exists = (edge != NO_EDGE) & (found > p)
            target = block.gather(0, edge & TARGET)
            known = number.gather(0, target)
            new = exists & (known < 0)
            named = torch.where(new, found, known)
            number.scatter_(0, target, named)
            order.scatter_(0, torch.where(new, found, n), target)  # row n collects what is not new
            found += new
            table[p, e] = torch.where(exists, edge & ~TARGET | named, -1)
    return table.view(n * d, b).T.to(torch.int16).contiguous()


def language_hash(table: Tensor, n_edges: int) -> Tensor:
    """64 bits of every canonical form, (b,) int64: a sum over edges (state, symbol, target), so padding is nothing.

    table: (b, n * d); n_edges: d.
    """
    state = torch.arange(table.size(1)) // n_edges
    mixed = splitmix64((table.long() & 0x7FFF) | (state << 15)).masked_fill_(table < 0, 0)
    return splitmix64(mixed.sum(1))


def split_code(hashes: Tensor) -> Tensor:
    """(b,) int64: 0 for test, 1 for validation, 2 for training."""
    return logical_shift(hashes, 60).clamp(max=2)
