"""Canonical forms: the tensors against the plain form, against automata-lib, and as what decides the split."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
import torch
from automata.fa.dfa import DFA
from torch import Tensor

from icll_zoo import splitmix64
from icll_zoo_dfa.automata import NO_EDGE, SHIFT, TARGET, Automata, draw_automata
from icll_zoo_dfa.bounds import Bounds
from icll_zoo_dfa.language import LETTERS, Language
from icll_zoo_dfa.minimal import canonical, language_hash, split_code

# Few letters make many states equivalent; few states make many languages equal.
TWINS = Bounds(2, 4, 1, 2, 1, 1)
KINDS = {
    "default": Bounds(),
    "stated": Bounds(degree_max=4, strings_max=20, length_max=50),
    "one letter or two": Bounds(4, 12, 1, 2, 1, 2),
    "tiny": TWINS,
    "cycles": Bounds(2, 12, 1, 1, 1, 1),
    "many states": Bounds(40, 63, 1, 3, 1, 3),
    "all letters": Bounds(19, 25, 18, 18, 18, 18),
}
Table = dict[int, dict[str, int]]


def decoded(row: Tensor, n_edges: int) -> Table:
    """A canonical form as `Language.delta`."""
    states = [[edge for edge in edges if edge >= 0] for edges in row.view(-1, n_edges).tolist()]
    return {
        state: {LETTERS[edge >> SHIFT]: edge & TARGET for edge in edges} for state, edges in enumerate(states) if edges
    }


def as_oracle(delta: Mapping[int, Mapping[str, int]], start: int = 0) -> DFA:
    return DFA(
        states=set(delta),
        input_symbols=set(LETTERS),
        transitions={state: dict(edges) for state, edges in delta.items()},
        initial_state=start,
        final_states=set(delta),
        allow_partial=True,
    )


def renumbered(automata: Automata, seed: int) -> Automata:
    """The same automata, their states other than the start shuffled."""
    d, n, b = automata.edges.shape
    generator = torch.Generator().manual_seed(seed)
    new = torch.zeros(n, b, dtype=torch.int64)
    new[1:] = 1 + torch.rand(n - 1, b, generator=generator).argsort(0)
    target = new.gather(0, automata.target.flatten(0, 1)).view(d, n, b)
    edges = torch.where(automata.edges == NO_EDGE, NO_EDGE, automata.edges & ~TARGET | target)
    moved = torch.empty_like(edges).scatter_(1, new.expand(d, n, b), edges)
    return Automata(moved, torch.empty_like(automata.degree).scatter_(0, new, automata.degree))


@pytest.mark.parametrize("bounds", KINDS.values(), ids=KINDS)
def test_tensors_equal_the_plain_form(bounds: Bounds) -> None:
    automata = draw_automata(bounds, 5, torch.arange(100 if bounds.degree_max == 18 else 1000))
    forms = canonical(automata)
    for index, form in enumerate(forms):
        plain = automata.language(index).canonical()
        assert plain.start == 0
        assert decoded(form, bounds.degree_max) == plain.delta
        assert [list(edges) for edges in plain.delta.values()] == [sorted(edges) for edges in plain.delta.values()]


@pytest.mark.parametrize("bounds", KINDS.values(), ids=KINDS)
def test_automata_lib_finds_the_same_minimal_automaton(bounds: Bounds) -> None:
    count = 20 if bounds.degree_max == 18 else 100
    for language in map(draw_automata(bounds, 6, torch.arange(count)).language, range(count)):
        given, small = as_oracle(language.delta), language.canonical()
        assert as_oracle(small.delta) == given
        assert len(small.delta) == len(given.minify().states)


@pytest.mark.parametrize("bounds", [TWINS, Bounds(2, 3, 2, 2, 1, 2), Bounds()])
def test_equal_forms_are_equal_languages(bounds: Bounds) -> None:
    automata = draw_automata(bounds, 7, torch.arange(20000))
    # Automata over the first three letters, so that chance makes some of them equal.
    few = (automata.symbol.where(automata.edges != NO_EDGE, 0) < 3).all(0).all(0)
    few = few.nonzero()[:60, 0] if bounds.symbols_max == 2 else torch.arange(60)
    automata = automata[few]
    forms = canonical(automata)
    oracles = [as_oracle(automata.language(i).delta) for i in range(len(few))]
    equal = [(i, j) for i in range(len(few)) for j in range(i) if oracles[i] == oracles[j]]
    assert equal == [(i, j) for i in range(len(few)) for j in range(i) if torch.equal(forms[i], forms[j])]
    assert len(few) == 60
    if bounds.symbols_max == 2:
        assert len(equal) > 20


@pytest.mark.parametrize("bounds", KINDS.values(), ids=KINDS)
def test_names_of_states_do_not_matter(bounds: Bounds) -> None:
    automata = draw_automata(bounds, 8, torch.arange(500))
    forms = canonical(automata)
    for seed in range(3):
        shuffled = renumbered(automata, seed)
        if bounds.states_max > 4:
            assert not torch.equal(shuffled.edges, automata.edges)
        assert torch.equal(canonical(shuffled), forms)


def test_plain_form_ignores_names_copies_and_what_cannot_be_reached() -> None:
    generator = random.Random(0)
    for language in map(draw_automata(Bounds(), 9, torch.arange(200)).language, range(200)):
        plain = language.canonical()
        assert plain.canonical() == plain
        names = generator.sample(range(1000), len(language.delta))
        delta = {
            names[state]: dict(sorted(((s, names[t]) for s, t in edges.items()), key=lambda _: generator.random()))
            for state, edges in language.delta.items()
        }
        # A second copy of one state takes over some of the edges to it, and another state leads in but not out.
        twin = generator.choice(names)
        for edges in delta.values():
            edges.update({s: 2000 for s, t in edges.items() if t == twin and generator.random() < 0.5})
        delta[2000] = dict(delta[twin])
        delta[3000] = {"a": names[0], "b": 3000}
        assert Language(names[language.start], delta).canonical() == plain
        # Another start is another language, unless the automaton cannot tell the two apart.
        other = Language(1, language.delta) if 1 in language.delta else language
        assert (other.canonical() == plain) == (as_oracle(language.delta, 1) == as_oracle(language.delta))


def test_one_changed_edge_is_another_language() -> None:
    """Every way of leading one edge of a minimal automaton to another of its states, or of relabelling it."""
    checked = 0
    for language in map(draw_automata(Bounds(4, 6), 10, torch.arange(20)).language, range(20)):
        plain = language.canonical()
        for state, edges in plain.delta.items():
            symbol, target = next(iter(edges.items()))
            others = [t for t in plain.delta if t != target]
            changes: list[dict[str, int]] = [{**edges, symbol: t} for t in others]
            unused = next(letter for letter in LETTERS if letter not in edges)
            changes.append({**{s: t for s, t in edges.items() if s != symbol}, unused: target})
            for change in changes:
                assert Language(0, {**plain.delta, state: change}).canonical() != plain
                checked += 1
    assert checked > 300


def test_a_form_written_by_hand() -> None:
    # 0 and 2 are equivalent, as are 1 and 3; 4 cannot be reached.
    language = Language(2, {0: {"b": 1, "a": 3}, 1: {"c": 0}, 2: {"a": 1, "b": 3}, 3: {"c": 2}, 4: {"a": 4}})
    assert language.canonical() == Language(0, {0: {"a": 1, "b": 1}, 1: {"c": 0}})
    # A cycle of one letter is that letter for ever: after minimisation a state may lead to itself.
    assert Language(0, {0: {"r": 1}, 1: {"r": 2}, 2: {"r": 0}}).canonical() == Language(0, {0: {"r": 0}})


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(2, 4, 1, 3, 1, 2)])
def test_hashes_are_equal_exactly_if_forms_are(bounds: Bounds) -> None:
    forms, hashes = [], []
    for start in range(0, 100_000, 10_000):
        table = canonical(draw_automata(bounds, 1, torch.arange(start, start + 10_000)))
        forms += [row.tobytes() for row in table.numpy()]
        hashes += language_hash(table, bounds.degree_max).tolist()
    pairs = set(zip(forms, hashes, strict=True))
    assert len(set(forms)) == len(set(hashes)) == len(pairs)
    assert len(pairs) < 99_000


def test_a_hash_does_not_depend_on_the_bounds() -> None:
    automata = draw_automata(Bounds(), 2, torch.arange(500))
    d, n, b = automata.edges.shape
    wide = torch.full((d + 2, n + 5, b), NO_EDGE)
    wide[:d, :n] = automata.edges
    larger = Automata(wide, (wide != NO_EDGE).sum(0))
    assert torch.equal(language_hash(canonical(larger), d + 2), language_hash(canonical(automata), d))


def test_split_mix_against_its_published_sequence() -> None:
    # The first outputs of splitmix64.c (Vigna) from the state 0; each adds the golden ratio, as ours does itself.
    golden = 0x9E3779B97F4A7C15
    state = [(i * golden) % 2**64 for i in range(3)]
    found = splitmix64(torch.tensor([s - 2**64 if s >= 2**63 else s for s in state]))
    assert [x % 2**64 for x in found.tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_one_in_sixteen_for_each_held_out_split() -> None:
    codes, seen = torch.zeros(3), set()
    for start in range(0, 100_000, 10_000):
        table = canonical(draw_automata(Bounds(), 3, torch.arange(start, start + 10_000)))
        for form, code in zip(table.numpy(), split_code(language_hash(table, 3)).tolist(), strict=True):
            if (key := form.tobytes()) not in seen:
                seen.add(key)
                codes[code] += 1
    total = len(seen)
    deviation = (total / 16 * 15 / 16) ** 0.5
    assert abs(codes[0] - total / 16) < 3 * deviation
    assert abs(codes[1] - total / 16) < 3 * deviation
    edges = torch.tensor([0, 1 << 60, 2 << 60, 7 << 60, -(1 << 63), -1])
    assert split_code(edges).tolist() == [0, 1, 2, 2, 2, 2]
