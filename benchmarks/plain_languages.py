"""The plain Python that `languages.py` is measured against: random languages, their texts, and scores on them.

published: the paper's reference implementation (arXiv:2401.12973) rewritten from its description: one language at a
    time, `numpy.random.Generator.choice` for every symbol, minimised by the greatest fixpoint of a relation of states
    (by `pythomata`, as there, if it can be imported), every prefix walked from the start for its oracle and accuracy.
lean: the same distribution and scores, with what Python can save: one draw a string, partition refinement, states
    walked once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from icll_zoo_dfa.bounds import Bounds
from icll_zoo_dfa.language import LETTERS, SEPARATOR, VOCABULARY, Language

try:
    from pythomata import SimpleDFA
except ImportError:
    SimpleDFA = None

BOUNDS = Bounds()
IDS = {symbol: i for i, symbol in enumerate(VOCABULARY)}
MINIMISER = f"pythomata {metadata.version('pythomata')}" if SimpleDFA else "our own fixpoint"
Delta = dict[int, dict[str, int]]


@dataclass(frozen=True)
class Drawn:
    """A peer's languages: transitions as drawn, start and transitions after minimising, texts, and padded ids."""

    raw: list[Delta]
    minimal: list[tuple[int, Delta]]
    texts: list[str]
    ids: Tensor


def published(count: int, seed: int = 0, minimised: bool = True) -> Drawn:
    """The reference way, in its order of draws."""
    rng = np.random.default_rng(seed)
    raw, minimal, texts, own = [], [], [], []
    for _ in range(count):
        n = rng.integers(BOUNDS.states_min, BOUNDS.states_max + 1)
        size = rng.integers(BOUNDS.symbols_min, BOUNDS.symbols_max + 1)
        alphabet = rng.choice(list(LETTERS), size=size, replace=False)
        sampler = np.random.default_rng(rng.integers(0, 2**32))
        delta = {}
        for state in range(n):
            degree = sampler.integers(BOUNDS.degree_min, BOUNDS.degree_max + 1)
            symbols = sampler.choice(alphabet, size=degree, replace=False)
            others = [other for other in range(n) if other != state]
            delta[state] = dict(zip(symbols, sampler.choice(others, size=degree, replace=False), strict=True))
        own.append(np.random.default_rng(sampler.integers(0, 2**32)))
        raw.append(delta)
        minimal.append(minimise(delta, set(alphabet)) if minimised else (0, delta))
    for i in rng.permutation(count):
        start, delta = minimal[i]
        strings = []
        for _ in range(rng.integers(BOUNDS.strings_min, BOUNDS.strings_max + 1)):
            state, string = start, ""
            for _ in range(rng.integers(BOUNDS.length_min, BOUNDS.length_max + 1)):
                symbol = own[i].choice(list(delta[state].keys()))
                string += symbol
                state = delta[state][symbol]
            strings.append(string)
        texts.append((i, SEPARATOR.join(strings)))
    texts = [text for _, text in sorted(texts)]
    return Drawn(raw, minimal, texts, padded([" ".join(text).split() for text in texts]))


def lean(count: int, seed: int = 0) -> Drawn:
    """The same distribution by fewer calls."""
    rng = np.random.default_rng(seed)
    raw, minimal, texts = [], [], []
    for _ in range(count):
        n = int(rng.integers(BOUNDS.states_min, BOUNDS.states_max + 1))
        alphabet = rng.permutation(len(LETTERS))[: rng.integers(BOUNDS.symbols_min, BOUNDS.symbols_max + 1)].tolist()
        degrees = rng.integers(BOUNDS.degree_min, BOUNDS.degree_max + 1, n).tolist()
        draws = iter(rng.random(2 * sum(degrees)).tolist())
        delta = {}
        for state, degree in enumerate(degrees):
            symbols, targets = alphabet.copy(), [other for other in range(n) if other != state]
            delta[state] = {
                LETTERS[symbols.pop(int(next(draws) * len(symbols)))]: targets.pop(int(next(draws) * len(targets)))
                for _ in range(degree)
            }
        language = Language(0, delta).canonical()
        raw.append(delta)
        minimal.append((0, language.delta))
        edges, strings = [list(leads.items()) for leads in language.delta.values()], []
        number = rng.integers(BOUNDS.strings_min, BOUNDS.strings_max + 1)
        for length in rng.integers(BOUNDS.length_min, BOUNDS.length_max + 1, number).tolist():
            state, string = 0, []
            for draw in rng.random(length).tolist():
                symbol, state = edges[state][int(draw * len(edges[state]))]
                string.append(symbol)
            strings.append("".join(string))
        texts.append(SEPARATOR.join(strings))
    return Drawn(raw, minimal, texts, padded(texts))


def padded(texts: Sequence[Sequence[str]]) -> Tensor:
    """Token ids, (b, l), of texts, symbol by symbol."""
    return pad_sequence([torch.tensor([IDS[symbol] for symbol in text]) for text in texts], batch_first=True)


def minimise(delta: Delta, alphabet: set[str]) -> tuple[int, Delta]:
    """Start and transitions of the minimal automaton without the states that no string reaches."""
    if SimpleDFA is not None:
        found = SimpleDFA(set(delta), alphabet, 0, set(delta), delta).minimize().trim()
        return found.initial_state, found.transition_function
    sink = len(delta)
    full = {state: {a: leads.get(a, sink) for a in alphabet} for state, leads in delta.items()}
    full[sink] = dict.fromkeys(alphabet, sink)
    related = {(s, t) for s in full for t in full if (s == sink) == (t == sink)}
    while True:
        kept = {(s, t) for s, t in related if all((full[s][a], full[t][a]) in related for a in alphabet)}
        if kept == related:
            break
        related = kept
    block = {s: min(t for t in full if (s, t) in related) for s in full}
    found, left = {}, [block[0]]
    while left:
        state = left.pop()
        if state not in found:
            found[state] = {symbol: block[target] for symbol, target in delta[state].items()}
            left += found[state].values()
    return block[0], found


def published_scores(text: str, delta: Delta, probabilities: Any) -> tuple[int, float]:
    """Legal greedy predictions and total variation distances of a sequence. Words are symbols joined by spaces, and
    each is split and walked from the start."""

    def walk(word: str) -> int | None:
        state: int | None = 0
        for symbol in word.split():
            if symbol not in delta[state]:
                return None
            state = delta[state][symbol]
        return state

    rows, prefix, right = [], "", 0
    for symbol, most in zip(text, probabilities.argmax(1), strict=False):
        prefix = "" if symbol == SEPARATOR else prefix + symbol
        row = np.zeros(len(VOCABULARY))
        possible = list(delta[walk(" ".join(list(prefix)))].keys())
        for other in possible:
            row[IDS[other]] = 1 / len(possible)
        rows.append(row)
        right += walk(" ".join(list(prefix + VOCABULARY[most]))) is not None
    return right, float(np.abs(probabilities[: len(rows)] - np.array(rows)).sum()) / 2


def lean_scores(text: str, delta: Delta, probabilities: Any) -> tuple[int, float]:
    """The same, the states walked once and each state's row made once."""
    table = np.zeros((len(delta), len(VOCABULARY)))
    for state, leads in delta.items():
        table[state, [IDS[symbol] for symbol in leads]] = 1 / len(leads)
    states, state = [], 0
    for symbol in text:
        state = 0 if symbol == SEPARATOR else delta[state][symbol]
        states.append(state)
    truth, probabilities = table[states], probabilities[: len(states)]
    right = truth[np.arange(len(states)), probabilities.argmax(1)] > 0
    return int(right.sum()), float(np.abs(probabilities - truth).sum()) / 2
