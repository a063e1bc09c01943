"""Languages of hidden Markov models: the forward algorithm by hand and by enumeration, sampling, bad options."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from icll_zoo import InputError, create_dataset, stream_key
from icll_zoo_tasks.hmm import HiddenMarkov, forward


def joint(word, transition, emission):
    """p(x_1 ... x_n): the sum over every sequence of states."""
    states = len(transition)
    total = 0.0
    for path in itertools.product(range(states), repeat=len(word)):
        p = 1 / states
        for t, (state, symbol) in enumerate(zip(path, word, strict=True)):
            p *= (transition[path[t - 1]][state] if t else 1) * emission[state][symbol]
        total += p
    return total


def test_the_forward_algorithm_by_enumeration():
    dataset = HiddenMarkov(states=3, symbols=4, alpha_transition=1.0, alpha_emission=1.0)
    a, b = dataset.models(stream_key(torch.arange(3)))
    words = [[0, 3, 1, 1, 2], [2, 2, 2, 2, 2], [1, 0, 3, 3, 0]]
    p = forward(torch.tensor(words), a, b)
    for i, word in enumerate(words):
        rows = a[i].tolist(), b[i].tolist()
        for t in range(5):
            before = joint(word[: t + 1], *rows)
            wanted = [joint([*word[: t + 1], symbol], *rows) / before for symbol in range(4)]
            torch.testing.assert_close(p[i, t], torch.tensor(wanted, dtype=torch.float64))


def test_the_forward_algorithm_by_hand():
    """State 0 says a, state 1 says a or b; after b it was state 1, which stays with probability 3/4."""
    a = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]], dtype=torch.float64)
    b = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]], dtype=torch.float64)
    p = forward(torch.tensor([[1, 0]]), a, b)[0]
    assert p[0].tolist() == [0.625, 0.375]
    # Then a: state 0 had 1/4 x 1, state 1 had 3/4 x 1/2, so 2/5 and 3/5; next state 0 with 2/5 1/2 + 3/5 1/4 = 0.35.
    torch.testing.assert_close(p[1], torch.tensor([0.675, 0.325], dtype=torch.float64))


def test_a_long_sequence_has_the_statistics_of_its_hmm():
    dataset = HiddenMarkov(states=3, symbols=3, alpha_transition=1.0, alpha_emission=1.0, length=12_000, held_out=1)
    batch = dataset.batch("test", 0, 1, None)
    a, b = (table[0] for table in dataset.models(batch.extra["key"]))
    stationary = torch.linalg.matrix_power(a, 4000)[0]
    pairs = torch.einsum("r,ri,rs,sj->ij", stationary, b, a, b).flatten()
    x = torch.cat([batch.tokens[0], batch.targets[0, -1:]]) - 1
    share = (x[:-1] * 3 + x[1:]).bincount(minlength=9) / 11_999
    # Neighbours are dependent: allow thrice the independent error, five times.
    assert (share - pairs).abs().max() < 15 * math.sqrt(0.25 / 12_000)
    assert (pairs - 1 / 9).abs().max() > 15 * math.sqrt(0.25 / 12_000)  # it could fail


def test_the_oracle_is_the_forward_algorithm_of_each_row():
    dataset = HiddenMarkov(states=3, symbols=4, length=10)
    batch = dataset.batch("train", 0, 5, 0)
    truth = dataset.oracle(batch)
    assert truth.shape == (5, 9, 5)
    for i in range(5):
        a, b = (table[0].tolist() for table in dataset.models(batch.extra["key"][i : i + 1]))
        word = (batch.tokens[i, :3] - 1).tolist()
        wanted = [joint([*word, symbol], a, b) / joint(word, a, b) for symbol in range(4)]
        torch.testing.assert_close(truth[i, 2, 1:], torch.tensor(wanted))


def test_one_state_is_a_bag_of_symbols():
    dataset = HiddenMarkov(states=1, symbols=3, length=9)
    batch = dataset.batch("train", 0, 4, 0)
    emission = dataset.models(batch.extra["key"])[1].float()
    torch.testing.assert_close(dataset.oracle(batch)[..., 1:], emission.expand(-1, 8, -1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"states": 0}, "data.states: 0"),
        ({"states": 1000}, "data.states: 1000"),
        ({"symbols": 1}, "data.symbols: 1"),
        ({"alpha_transition": 0.0}, "data.alpha_transition: 0.0"),
        ({"alpha_emission": 1e9}, "data.alpha_emission"),
        ({"length": 1}, "data.length: 1"),
    ],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        create_dataset("hmm", **options)
