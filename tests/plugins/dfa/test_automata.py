"""Random automata: pure functions of (seed, candidate), within their bounds, and uniform."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from uniform import assert_uniform

from icll_zoo_dfa.automata import NO_EDGE, Automata, draw_automata, sort_few, step_over
from icll_zoo_dfa.bounds import Bounds

SMALL = Bounds(3, 5, 2, 4, 1, 2, 2, 3, 1, 3)
STATED = Bounds(degree_max=4, strings_max=20, length_max=50)
WIDE = Bounds(2, 63, 1, 18, 1, 18)
KINDS = {"default": Bounds(), "stated": STATED, "small": SMALL, "wide": WIDE}


@pytest.fixture(scope="module")
def many() -> Automata:
    return draw_automata(Bounds(), 11, torch.arange(40000))


def assert_same(found: Automata, wanted: Automata) -> None:
    assert torch.equal(found.edges, wanted.edges)
    assert torch.equal(found.degree, wanted.degree)


@pytest.mark.parametrize("bounds", KINDS.values(), ids=KINDS)
def test_a_candidate_does_not_depend_on_its_company(bounds: Bounds) -> None:
    numbers = torch.tensor([0, 1, 2, 999, 2**31, 2**32, 2**32 + 1, 2**62 + 7, -5, 4095, 4096])
    whole = draw_automata(bounds, 3, numbers)
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
    assert_same(draw_automata(bounds, 3, numbers[order]), whole[order])
    for i, number in enumerate(numbers):
        assert_same(draw_automata(bounds, 3, number[None]), whole[torch.tensor([i])])
    repeated = draw_automata(bounds, 3, numbers[[4, 4, 4]])
    assert_same(repeated, whole[torch.tensor([4, 4, 4])])


def test_seeds_and_candidates_give_different_automata() -> None:
    seeds = [0, 1, 2**32, 2**62]
    drawn = torch.cat([draw_automata(Bounds(), seed, torch.arange(200)).edges for seed in seeds], 2)
    assert len({column.numpy().tobytes() for column in drawn.unbind(2)}) > 795  # one-edge automata do repeat


def test_neither_hash_seed_nor_threads_matter() -> None:
    code = """
import hashlib, torch
from icll_zoo import create_dataset
dataset = create_dataset("dfa", languages=300, held_out=50, seed=5)
stream = create_dataset("dfa", seed=5).batch("train", 3, 16, 1)
digest = hashlib.sha256()
for split in ("train", "validation", "test"):
    stored = dataset.stored(split)
    for tensor in (stored.automata.edges, stored.sequences.ids, stored.sequences.state, stored.number):
        digest.update(tensor.contiguous().numpy().tobytes())
digest.update(stream.tokens.numpy().tobytes() + stream.group.numpy().tobytes())
print(torch.get_num_threads(), digest.hexdigest())
"""
    seen = []
    for hash_seed, threads in (("0", "1"), ("1", "2")):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        seen.append(done.stdout.split())
    assert len({digest for _, digest in seen}) == 1
    assert len(seen[0][1]) == 64


def test_threads_within_one_process_do_not_matter(many: Automata) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same(draw_automata(Bounds(), 11, torch.arange(40000)), many)
    finally:
        torch.set_num_threads(before)


def check_structure(automata: Automata, bounds: Bounds) -> Tensor:
    """Everything that every automaton has; the numbers of states (b,)."""
    d, n, b = automata.edges.shape
    assert (d, n) == (bounds.degree_max, bounds.states_max)
    exists = automata.edges != NO_EDGE
    assert torch.equal(exists.sum(0), automata.degree)
    # Edges stand in front of the gaps, and in the order of their symbols, which are distinct.
    assert torch.equal(exists, torch.arange(d)[:, None, None] < automata.degree)
    assert ((automata.symbol.diff(dim=0) > 0) | ~exists[1:]).all()
    assert automata.symbol[exists].max() < 18
    count = (automata.degree > 0).sum(0)
    states = torch.arange(n)[:, None]
    assert torch.equal(automata.degree > 0, states < count)
    target = automata.target
    assert ((target < count) | ~exists).all()
    assert ((target != states) | ~exists).all()
    for e in range(d):
        for f in range(e):
            assert ((target[e] != target[f]) | ~exists[e]).all()
    used = torch.zeros(18 + 1, b).scatter_(0, torch.where(exists, automata.symbol, 18).flatten(0, 1), 1)[:18]
    assert used.sum(0).max() <= bounds.symbols_max
    assert count.min() >= bounds.states_min
    assert automata.degree[automata.degree > 0].min() >= bounds.degree_min
    return count


@pytest.mark.parametrize("bounds", KINDS.values(), ids=KINDS)
def test_structure_and_bounds(bounds: Bounds) -> None:
    automata = draw_automata(bounds, 1, torch.arange(3000))
    count = check_structure(automata, bounds)
    assert sorted(set(count.tolist())) == list(range(bounds.states_min, bounds.states_max + 1))
    degrees = set(automata.degree[automata.degree > 0].tolist())
    assert degrees == set(range(bounds.degree_min, bounds.degree_max + 1))


def test_states_and_degrees_are_uniform(many: Automata) -> None:
    count = check_structure(many, Bounds())
    assert_uniform(count.bincount(minlength=13)[4:])
    # Of each state by itself, given that the automaton has it.
    for state in range(12):
        degree = many.degree[state]
        assert_uniform(degree[degree > 0].bincount(minlength=4)[1:])
    # Neighbouring states choose independently, and so do neighbouring candidates.
    assert_uniform((many.degree[0] * 3 + many.degree[1] - 4).bincount(minlength=9))
    assert_uniform((count[1:] * 9 + count[:-1] - 40).bincount(minlength=81))


def test_alphabets_are_uniform(many: Automata) -> None:
    single = many.degree[0] == 1
    assert_uniform(many.symbol[0, 0, single].bincount(minlength=18))
    # Twelve states of three edges use all of an alphabet of up to six letters, but for one automaton in 700.
    bounds = Bounds(12, 12, 4, 6, 3, 3)
    drawn = draw_automata(bounds, 2, torch.arange(6000))
    used = torch.zeros(18, 6000, dtype=torch.int64).scatter_(0, drawn.symbol.flatten(0, 1), 1)
    sizes = used.sum(0)
    assert set(sizes.tolist()) <= {4, 5, 6}
    assert_uniform(sizes.bincount(minlength=7)[4:])
    # Letters are chosen as often as each other, and so are pairs of them.
    together = used[:, sizes == 4].double() @ used[:, sizes == 4].double().T
    assert_uniform(together.diagonal())
    assert_uniform(together[*torch.triu_indices(18, 18, 1)])


def test_edges_are_uniform() -> None:
    # Two edges of state 0 to two of three others by two of four letters, in order: 6 times 6 outcomes.
    drawn = draw_automata(Bounds(4, 4, 4, 4, 2, 2), 3, torch.arange(30000))
    everything = drawn.symbol.flatten(0, 1)
    letters = torch.zeros(18, 30000, dtype=torch.int64).scatter_(0, everything, 1)
    whole = letters.sum(0) == 4
    rank = (letters.cumsum(0) - 1).gather(0, drawn.symbol[:, 0])[:, whole]
    code = (rank[0] * 4 + rank[1]) * 16 + drawn.target[0, 0, whole] * 4 + drawn.target[1, 0, whole]
    counts = code.bincount()
    assert_uniform(counts[counts > 0])
    assert (counts > 0).sum() == 36
    # All others by all letters: 6 orders.
    drawn = draw_automata(Bounds(4, 4, 3, 3, 3, 3), 3, torch.arange(30000))
    counts = (drawn.target[0, 2] * 16 + drawn.target[1, 2] * 4 + drawn.target[2, 2]).bincount()
    assert (counts > 0).sum() == 6
    assert_uniform(counts[counts > 0])


def test_few_states_or_letters_lower_the_bound_of_degrees() -> None:
    drawn = draw_automata(Bounds(2, 4, 4, 4, 1, 3), 4, torch.arange(20000))
    count = (drawn.degree > 0).sum(0)
    for n in (2, 3, 4):
        degree = drawn.degree[:n, count == n]
        assert degree.max() == n - 1
        assert_uniform(degree[0].bincount(minlength=n)[1:])
    letters = draw_automata(Bounds(9, 9, 1, 3, 1, 3), 4, torch.arange(3000))
    used = torch.zeros(19, 3000).scatter_(0, torch.where(letters.edges == NO_EDGE, 18, letters.symbol).flatten(0, 1), 1)
    assert set(used[:18].sum(0).tolist()) == {1, 2, 3}


def test_choices_without_replacement() -> None:
    taken = [torch.tensor([3, 0, 5]), torch.tensor([1, 1, 0])]
    for rank in range(5):
        left = [[x for x in range(10) if x not in pair][rank] for pair in ((3, 1), (0, 1), (5, 0))]
        assert step_over(torch.full((3,), rank), taken).tolist() == left
    columns = torch.randint(9, (5, 100), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.stack(sort_few(list(columns))), columns.sort(dim=0).values)


def test_the_next_symbol_table() -> None:
    drawn = draw_automata(STATED, 7, torch.arange(300))
    table = drawn.next_probability()
    assert table.shape == (300, 12, 20)
    for index in range(300):
        language = drawn.language(index)
        for state in range(12):
            row = [0.0] * 20
            for symbol in (edges := language.delta.get(state, {})):
                row[1 + ord(symbol) - ord("a")] = 1 / len(edges)
            assert table[index, state].tolist() == pytest.approx(row, abs=1e-7)


def test_the_first_automata_stay_what_they_are() -> None:
    """Another digest means other languages under the same seed: raise the dataset's version then."""
    drawn = draw_automata(Bounds(), 0, torch.arange(1000))
    lines = "\n".join(f"{language.start} {language.delta}" for language in map(drawn.language, range(1000)))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == "0ef3883ae362ba908054dd25da9ff342eea3bc48cbf68f3d452a434355e2a8bb"
