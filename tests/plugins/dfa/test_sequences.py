"""Strings of random languages: in their language, within their bounds, uniform, and with the right states."""

from __future__ import annotations

import hashlib

import pytest
import torch
from uniform import assert_uniform

from icll_zoo_dfa.automata import NO_EDGE, Automata, draw_automata
from icll_zoo_dfa.bounds import Bounds
from icll_zoo_dfa.language import VOCABULARY
from icll_zoo_dfa.sequences import SEPARATOR_ID, Sequences, draw_sequences

STATED = Bounds(degree_max=4, strings_max=20, length_max=50)
KINDS = {
    "default": Bounds(),
    "stated": STATED,
    "short": Bounds(3, 5, 2, 4, 1, 2, 2, 3, 1, 3),
    "one string": Bounds(strings_min=1, strings_max=1, length_min=2, length_max=200),
    "single symbols": Bounds(strings_min=2, strings_max=5, length_min=1, length_max=1),
    "long": Bounds(strings_min=70, strings_max=90, length_min=1, length_max=100),
    "all letters": Bounds(19, 25, 18, 18, 18, 18),
}


def drawn(bounds: Bounds, seed: int, count: int) -> tuple[Automata, Sequences]:
    numbers = torch.arange(count)
    automata = draw_automata(bounds, seed, numbers)
    return automata, draw_sequences(automata, bounds, seed, numbers)


@pytest.mark.parametrize("bounds", KINDS.values(), ids=KINDS)
def test_every_string_is_in_its_language_and_its_states_are_noted(bounds: Bounds) -> None:
    count = 200
    automata, sequences = drawn(bounds, 1, count)
    assert sequences.ids.dtype == torch.uint8
    assert sequences.ids.size(1) == sequences.length.max()
    numbers, lengths = set(), set()
    for index in range(count):
        text, length = sequences.text(index), int(sequences.length[index])
        assert len(text) == length <= bounds.longest
        assert sequences.ids[index, :length].tolist() == [VOCABULARY.index(symbol) for symbol in text]
        assert not sequences.ids[index, length:].any()
        assert not sequences.state[index, length:].any()
        language, words, states = automata.language(index), text.split("|"), []
        numbers.add(len(words))
        for word in words:
            lengths.add(len(word))
            passed = language.states_of(word)
            assert passed is not None
            states += [*passed, 0]  # a separator leads back to the start
        assert sequences.state[index, :length].tolist() == states[:-1]
    assert bounds.strings_min <= min(numbers) <= max(numbers) <= bounds.strings_max
    assert bounds.length_min <= min(lengths) <= max(lengths) <= bounds.length_max


@pytest.mark.parametrize("bounds", [Bounds(), STATED])
def test_numbers_and_lengths_are_uniform(bounds: Bounds) -> None:
    _, sequences = drawn(bounds, 2, 8000)
    texts = [sequences.text(index).split("|") for index in range(8000)]
    numbers = torch.tensor([len(words) for words in texts])
    assert_uniform(numbers.bincount(minlength=bounds.strings_max + 1)[bounds.strings_min :])
    assert numbers.max() == bounds.strings_max
    for place in (slice(None), slice(0, 1), slice(7, 8)):
        lengths = torch.tensor([len(word) for words in texts for word in words[place]])
        assert_uniform(lengths.bincount(minlength=bounds.length_max + 1)[1:])
        assert lengths.max() == bounds.length_max
    # The lengths of neighbours, and the number of strings and the first length, know nothing of each other.
    third = torch.tensor([[(3 * len(word) - 1) // (bounds.length_max + 1) for word in words[:2]] for words in texts])
    pairs = (third[:, 0] * 3 + third[:, 1]).bincount(minlength=9)
    assert pairs.max() / pairs.min() < 1.35
    lower, upper = (third[numbers % 2 == odd, 0].double().mean() for odd in (0, 1))
    assert abs(lower - upper) < 0.08


def choices(automata: Automata, sequences: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the state's edges each token took, and how many there were, (b, l); -1 where there was no choice."""
    b, length = sequences.ids.shape
    before = torch.zeros(b, length, dtype=torch.int64)
    before[:, 1:] = sequences.state[:, :-1]
    d = len(automata.edges)
    symbols = automata.symbol.masked_fill(automata.edges == NO_EDGE, -9).permute(2, 1, 0)  # (b, n, d)
    here = symbols.gather(1, before[..., None].expand(b, length, d))
    match = here == sequences.ids.long()[..., None] - 1
    degree = automata.degree.T.gather(1, before)
    is_symbol = (sequences.ids > 0) & (sequences.ids < SEPARATOR_ID)
    assert (match.sum(2) == is_symbol).all()
    taken = match.long().argmax(2).masked_fill(~is_symbol, -1)
    return taken, degree


def test_the_next_symbol_is_uniform_over_the_edges() -> None:
    automata, sequences = drawn(Bounds(), 3, 3000)
    taken, degree = choices(automata, sequences)
    for k in (2, 3):
        assert_uniform(taken[(degree == k) & (taken >= 0)].bincount(minlength=k))
    # Every slot of a block of random words, and neighbouring slots jointly: a word gives two draws of 16 bits.
    fixed = Bounds(8, 8, 8, 8, 2, 2, 12, 12, 40, 40)
    automata, sequences = drawn(fixed, 4, 1000)
    taken = choices(automata, sequences)[0].view(1000, -1)
    strings = torch.stack([taken[:, i * 41 : i * 41 + 40] for i in range(12)], 1)  # (languages, strings, place)
    assert strings.min() == 0
    for place in range(39):
        assert_uniform(strings[:, :, place].flatten().bincount(minlength=2))
        assert_uniform((2 * strings[:, :, place] + strings[:, :, place + 1]).flatten().bincount(minlength=4))
    for apart in range(2, 17):
        together = 2 * strings[:, :, :-apart] + strings[:, :, apart:]
        assert_uniform(together.flatten().bincount(minlength=4))
    # Strings of one language, and languages, are drawn independently.
    assert_uniform((2 * strings[:, :-1] + strings[:, 1:]).flatten().bincount(minlength=4))
    assert_uniform((2 * strings[:-1] + strings[1:]).flatten().bincount(minlength=4))


@pytest.mark.parametrize("bounds", KINDS.values(), ids=KINDS)
def test_a_sequence_does_not_depend_on_its_company(bounds: Bounds) -> None:
    numbers = torch.tensor([7, 0, 2**32 + 5, -3, 12, 2**40])
    automata = draw_automata(bounds, 9, numbers)
    whole = draw_sequences(automata, bounds, 9, numbers)
    for i in range(len(numbers)):
        alone = draw_sequences(automata[torch.tensor([i])], bounds, 9, numbers[i : i + 1])
        length = int(alone.length)
        assert alone.ids.shape == (1, length)
        assert torch.equal(alone.ids[0], whole.ids[i, :length])
        assert torch.equal(alone.state[0], whole.state[i, :length])
        assert length == whole.length[i]


def test_the_first_texts_stay_what_they_are() -> None:
    """Another digest means other strings under the same seed: raise the dataset's version then."""
    _, sequences = drawn(Bounds(), 0, 1000)
    lines = "\n".join(map(sequences.text, range(1000)))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == "ec2fd778609d3da2745c7c666753dbf59781137aa07a46fe098cfff56c77635e"
