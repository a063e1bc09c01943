"""State merging: trees by hand, automata that it has to find again, and the learner's predictions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from icll_zoo import InputError, create_dataset, evaluate
from icll_zoo_baselines.alergia import AlergiaLearner, Automaton

V, PAD, SEPARATOR = 7, 0, 6


def learner(**options: Any) -> AlergiaLearner:
    return AlergiaLearner(**{"vocab_size": V, "separator_id": SEPARATOR, "pad_id": PAD} | options)


def bound(alpha: float) -> float:
    return math.sqrt(math.log(2 / alpha) / 2)


def walks(edges: list[dict[int, int]], count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Strings of an automaton: edges[state][symbol] is the next state."""
    generator = torch.Generator().manual_seed(seed)
    strings = []
    for _ in range(count):
        state, string = 0, []
        for _ in range(length):
            symbols = sorted(edges[state])
            symbol = symbols[int(torch.randint(len(symbols), (), generator=generator))]
            string.append(symbol)
            state = edges[state][symbol]
        strings.append(string)
    return strings


def test_the_tree_counts_what_followed_each_prefix() -> None:
    tree = Automaton([[1, 2], [1, 3], [2]])
    assert tree.counts == [{1: 2, 2: 1}, {2: 1, 3: 1}, {}, {}, {}]
    assert tree.leads == [{1: 1, 2: 4}, {2: 2, 3: 3}, {}, {}, {}]
    assert tree.total == [3, 2, 0, 0, 0]
    assert tree.reached([1, 3]) == 3


def test_compatibility_is_hoeffdings() -> None:
    # After 1 came 2 eight times of ten, after 3 it came two times of ten.
    tree = Automaton([[1, 2]] * 8 + [[1, 4]] * 2 + [[3, 2]] * 2 + [[3, 4]] * 8)
    p, q = tree.reached([1]), tree.reached([3])
    # |0.8 - 0.2| against bound * 2 / sqrt(10)
    edge = 0.6 * math.sqrt(10) / 2
    assert tree.evidence(p, q, edge * 1.001) == 10
    assert tree.evidence(p, q, edge * 0.999) == -1


def test_a_difference_deeper_in_the_tree_counts_too() -> None:
    tree = Automaton([[1, 5, 2]] * 20 + [[3, 5, 4]] * 20)
    assert tree.evidence(tree.reached([1]), tree.reached([3]), bound(0.5)) == -1
    same = Automaton([[1, 5]] * 20 + [[3, 5]] * 20)
    assert same.evidence(same.reached([1]), same.reached([3]), bound(0.5)) == 20


@pytest.mark.parametrize(
    "edges",
    [
        [{1: 0, 2: 0}],
        [{1: 1}, {2: 0}],
        [{1: 1, 2: 2}, {1: 0, 3: 2}, {3: 0, 4: 1}],
        [{1: 1, 2: 2}, {3: 3}, {4: 3}, {1: 0, 5: 2}],
    ],
)
def test_finds_an_automaton_again(edges: list[dict[int, int]]) -> None:
    strings = walks(edges, count=120, length=12)
    found = Automaton(strings)
    states = found.merge_states(bound(0.05))
    assert len(states) == len(edges)
    assert sum(found.total[state] for state in states) == 120 * 12
    for string in walks(edges, count=20, length=30, seed=1):
        state, node = 0, 0
        for symbol in string:
            assert set(found.counts[node]) == set(edges[state])
            state, node = edges[state][symbol], found.leads[node][symbol]


def test_merging_keeps_every_observation_and_accepts_what_was_read() -> None:
    generator = torch.Generator().manual_seed(2)
    strings = [torch.randint(1, 4, (int(n),), generator=generator).tolist() for n in range(1, 20)]
    for alpha in (0.05, 0.5, 1.0, 1.9):
        automaton = Automaton(strings)
        states = automaton.merge_states(bound(alpha))
        assert sum(automaton.total[state] for state in states) == sum(map(len, strings))
        assert all(automaton.reached(string) in states for string in strings)


def test_predictions_by_hand() -> None:
    # "ab|a": one string, and the open one at the node after a, where b followed once.
    found = learner(alpha=1.99, weight=0.5)(torch.tensor([[1, 2, SEPARATOR, 1]]))[0]
    shares = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    wanted = (torch.tensor([0.0, 1.0], dtype=torch.float64) + 0.5 * shares) / 1.5
    torch.testing.assert_close(found[-1, [1, 2]], wanted)


def test_rows_sum_to_one_once_a_symbol_was_read() -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, V, (2, 40), generator=generator)
    tokens[:, 0] = SEPARATOR
    tokens[:, 1] = 1
    found = learner()(tokens)
    assert (found >= 0).all()
    assert (found[:, 0] == 0).all()
    torch.testing.assert_close(found[:, 1:].sum(-1), torch.ones(2, 39, dtype=torch.float64))
    assert (found[..., [PAD, SEPARATOR]] == 0).all()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)])
def test_small_batches(shape: tuple[int, int]) -> None:
    assert learner()(torch.ones(shape, dtype=torch.int64)).shape == (*shape, V)


@pytest.mark.slow
def test_is_better_than_bigrams_at_legal_symbols() -> None:
    dataset = create_dataset("dfa", held_out=500)
    model = AlergiaLearner(20, 19, 0)
    found = evaluate(model, dataset, ["accuracy"], limit=20, resamples=2)["accuracy"].value
    assert found > 0.88


def test_bad_options() -> None:
    for name, value in (("alpha", 0.0), ("alpha", 2.0), ("weight", 0.0)):
        with pytest.raises(InputError, match=name):
            learner(**{name: value})
