"""One language and its text in plain Python, number by number, against the tensors that draw thousands at once."""

from __future__ import annotations

import pytest
import torch

from icll_zoo_dfa.automata import draw_automata
from icll_zoo_dfa.bounds import Bounds
from icll_zoo_dfa.language import LETTERS
from icll_zoo_dfa.sequences import draw_sequences

SIZES, ALPHABET, EDGES, LENGTHS, SYMBOLS = range(5)
MASK = 0xFFFFFFFF


def words(seed: int, candidate: int, place: int, stream: int) -> list[int]:
    """Four words of Philox-4x32-10: the seed is the key, and (candidate, place, stream) the counter."""
    c0, c1, c2, c3 = candidate & MASK, (candidate >> 32) & MASK, place, stream
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def between(word: int, low: int, high: int) -> int:
    return low + (word * (high - low + 1) >> 32)


def plain_draw(bounds: Bounds, seed: int, candidate: int) -> tuple[dict[int, dict[str, int]], str]:
    def many(count: int, stream: int, first: int = 0) -> list[int]:
        return [word for block in range(-(-count // 4)) for word in words(seed, candidate, first + block, stream)]

    sizes = many(3, SIZES)
    n = between(sizes[0], bounds.states_min, bounds.states_max)
    a = between(sizes[1], bounds.symbols_min, bounds.symbols_max)
    shuffled = sorted(zip(many(18, ALPHABET)[:18], range(18), strict=True))
    alphabet = [LETTERS[letter] for _, letter in shuffled[:a]]
    delta = {}
    for state in range(n):
        draws = iter(many(1 + 2 * bounds.degree_max, EDGES, 16 * state))
        degree = between(next(draws), bounds.degree_min, min(bounds.degree_max, n - 1, a))
        symbols, targets, edges = list(alphabet), [t for t in range(n) if t != state], {}
        for _ in range(degree):
            # Alphabets are ranked in the order of the shuffle, targets by number; what is taken is gone.
            symbol = symbols.pop(between(next(draws), 0, len(symbols) - 1))
            edges[symbol] = targets.pop(between(next(draws), 0, len(targets) - 1))
        delta[state] = dict(sorted(edges.items()))
    strings = []
    number = between(sizes[2], bounds.strings_min, bounds.strings_max)
    for string, word in enumerate(many(number, LENGTHS)[:number]):
        state, text = 0, ""
        for i in range(between(word, bounds.length_min, bounds.length_max)):
            word = words(seed, candidate, string << 16 | i // 8, SYMBOLS)[i // 2 % 4]
            half = word & 0xFFFF if i % 2 == 0 else word >> 16
            edges = list(delta[state].items())
            symbol, state = edges[half * len(edges) >> 16]
            text += symbol
        strings.append(text)
    return delta, "|".join(strings)


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
@pytest.mark.parametrize(
    "bounds",
    [Bounds(), Bounds(degree_max=4, strings_max=20, length_max=50), Bounds(2, 5, 1, 18, 1, 4), Bounds(20, 30, 9, 18)],
)
def test_tensors_draw_the_same(bounds: Bounds, seed: int) -> None:
    numbers = torch.tensor([*range(20), 4095, 4096, 2**31, 2**32, 2**62 + 1, -(2**63) + 5])
    automata = draw_automata(bounds, seed, numbers)
    sequences = draw_sequences(automata, bounds, seed, numbers)
    for index, number in enumerate(numbers.tolist()):
        delta, text = plain_draw(bounds, seed, number)
        assert automata.language(index).delta == delta
        assert sequences.text(index) == text
