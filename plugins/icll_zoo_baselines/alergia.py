"""State merging after ALERGIA (Carrasco and Oncina 1994, doi:10.1007/3-540-58473-0_144), "alergia".

    the tree of all prefixes read so far, each node with the counts C(c) of what followed it, N their sum
    p and q are compatible if for every c  |C_p(c) / N_p - C_q(c) / N_q| < sqrt(ln(2 / alpha) / 2) (1 / sqrt(N_p) +
    1 / sqrt(N_q)),  and so are the nodes that any c leads to;  compatible nodes become one
    P(c) = (C_p(c) + weight U(c)) / (N_p + weight),  p the node of the open string,  U(c) the share of c in all symbols

Nodes become states in the red-blue order: a child of a state is tried against all states and merged into the one
compatible with it with which it shares most evidence (Lang, Pearlmutter and Price 1998, doi:10.1007/BFb0054059; the
original takes the first), or else becomes a state. Ends of strings are not modelled: strings of these languages may end
anywhere.

The automaton is inferred again at every position, in plain Python: with t symbols read that costs up to t times the
number of states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icll_zoo import InputError


class Automaton:
    """A graph of nodes 0, 1 ... with 0 the start: where each symbol leads, and how often it was read there."""

    def __init__(self, strings: Sequence[Sequence[int]]) -> None:
        """The tree of prefixes of the strings."""
        self.leads: list[dict[int, int]] = [{}]
        self.counts: list[dict[int, int]] = [{}]
        self.total: list[int] = [0]
        for string in strings:
            node = 0
            for symbol in string:
                self.counts[node][symbol] = self.counts[node].get(symbol, 0) + 1
                self.total[node] += 1
                if symbol not in self.leads[node]:
                    self.leads[node][symbol] = len(self.leads)
                    self.leads.append({})
                    self.counts.append({})
                    self.total.append(0)
                node = self.leads[node][symbol]

    def reached(self, string: Sequence[int]) -> int:
        """The node that a string leads to from the start. KeyError if it leads nowhere."""
        node = 0
        for symbol in string:
            node = self.leads[node][symbol]
        return node

    def merge_states(self, bound: float) -> list[int]:
        """Merge compatible nodes until none are left; the nodes that remain. bound: sqrt(ln(2 / alpha) / 2)."""
        states = [0]
        waiting = [(0, symbol) for symbol in self.leads[0]]
        while waiting:
            # The best known first: later nodes are compared with states that have their evidence together.
            source, symbol = max(waiting, key=lambda edge: (self.counts[edge[0]][edge[1]], -edge[0], -edge[1]))
            waiting.remove((source, symbol))
            node = self.leads[source][symbol]
            best, most = None, -1.0
            for state in states:
                shared = self.evidence(state, node, bound)
                if shared > most:
                    best, most = state, shared
            if best is None:
                states.append(node)
                waiting += [(node, symbol) for symbol in self.leads[node]]
                continue
            self.leads[source][symbol] = best
            waiting += self.fold(best, node, set(states))
        return states

    def evidence(self, p: int, q: int, bound: float) -> float:
        """How many observations of q's tree were confirmed by p's; -1 if they are incompatible."""
        shared, pairs = 0, [(p, q)]
        while pairs:
            p, q = pairs.pop()
            n, m = self.total[p], self.total[q]
            if not n or not m:
                continue
            limit = bound * (n**-0.5 + m**-0.5)
            for symbol in self.counts[p].keys() | self.counts[q].keys():
                if abs(self.counts[p].get(symbol, 0) / n - self.counts[q].get(symbol, 0) / m) >= limit:
                    return -1
            for symbol, count in self.counts[q].items():
                if symbol in self.counts[p]:
                    shared += count
                    pairs.append((self.leads[p][symbol], self.leads[q][symbol]))
        return shared

    def fold(self, p: int, q: int, states: set[int]) -> list[tuple[int, int]]:
        """Add the tree of q to p. The edges that now lead from a state to a node that is none, and did not before."""
        new, pairs = [], [(p, q)]
        while pairs:
            p, q = pairs.pop()
            self.total[p] += self.total[q]
            for symbol, count in self.counts[q].items():
                self.counts[p][symbol] = self.counts[p].get(symbol, 0) + count
                if symbol in self.leads[p]:
                    pairs.append((self.leads[p][symbol], self.leads[q][symbol]))
                else:
                    self.leads[p][symbol] = self.leads[q][symbol]
                    if p in states:
                        new.append((p, symbol))
        return new


class AlergiaLearner(nn.Module):
    """An automaton inferred at every position: token ids (b, l) -> next-token probabilities (b, l, v), float64.

    separator_id: the token between strings; None reads each row as one string. pad_id: ends a string too; a row is zero
    until a symbol was read. alpha: in (0, 2), bounds the chance of telling two equal states apart; the larger,
    the fewer are merged. From 2 / sqrt(e) = 1.21 on two nodes with one observation each can differ; below that, most
    is wrong after a few hundred symbols. weight: of the symbols' shares, in observations.
    """

    output = "probabilities"

    def __init__(
        self, vocab_size: int, separator_id: int | None, pad_id: int, alpha: float = 1.3, weight: float = 0.1
    ) -> None:
        super().__init__()
        if not 0 < alpha < 2:
            raise InputError(f"alpha {alpha} is not in (0, 2)")
        if weight <= 0:
            raise InputError(f"weight {weight} is not positive")
        self.vocab_size = vocab_size
        self.ends = {pad_id, separator_id}
        self.bound = math.sqrt(math.log(2 / alpha) / 2)
        self.weight = weight

    def forward(self, tokens: Tensor) -> Tensor:
        rows = [self.read(row) for row in tokens.tolist()]
        return torch.tensor(rows, dtype=torch.float64, device=tokens.device).view(*tokens.shape, self.vocab_size)

    def read(self, tokens: list[int]) -> list[list[float]]:
        """What is predicted after each token of one sequence."""
        strings: list[list[int]] = [[]]
        seen = [0] * self.vocab_size
        automaton = Automaton([])
        out = []
        for token in tokens:
            if token in self.ends:
                strings.append([])  # nothing new was read: the same automaton, from its start
            else:
                strings[-1].append(token)
                seen[token] += 1
                automaton = Automaton(strings)
                automaton.merge_states(self.bound)
            out.append(self.predict(automaton, automaton.reached(strings[-1]), seen))
        return out

    def predict(self, automaton: Automaton, node: int, seen: list[int]) -> list[float]:
        """The probabilities of what follows a node."""
        read, counts, total = sum(seen), automaton.counts[node], automaton.total[node]
        if not read:
            return [0.0] * self.vocab_size
        return [
            (counts.get(symbol, 0) + self.weight * seen[symbol] / read) / (total + self.weight)
            for symbol in range(self.vocab_size)
        ]
