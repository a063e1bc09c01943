"""Automata of users: minimal forms, JSON files, and what is wrong with them."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from icll_zoo import InputError
from icll_zoo_dfa.acceptor import Acceptor, read_acceptor

EVEN = {"start": 0, "accepting": [0], "delta": {"0": {"a": 1, "b": 0}, "1": {"a": 0, "b": 1}}}


def words(symbols, longest):
    return (word for n in range(longest + 1) for word in itertools.product(symbols, repeat=n))


def random_acceptor(seed):
    rng = random.Random(seed)
    n = rng.randint(1, 7)
    delta = tuple({s: rng.randrange(n) for s in "ab" if rng.random() < 0.8} for _ in range(n))
    return Acceptor(delta, frozenset(s for s in range(n) if rng.random() < 0.4))


def distinguishable(acceptor):
    """The number of different futures of its states, by all words that tell seven states apart: the slow form."""
    futures = set()
    for state in range(len(acceptor.delta)):
        ends = []
        for word in words("ab", 7):
            at = state
            for symbol in word:
                at = acceptor.delta[at].get(symbol) if at is not None else None
            ends.append(at in acceptor.accepting)
        futures.add(tuple(ends))
    return len(futures)


@pytest.mark.parametrize("seed", range(60))
def test_the_minimal_automaton_accepts_the_same_and_has_no_state_too_many(seed):
    acceptor = random_acceptor(seed)
    try:
        minimal = acceptor.minimal()
    except InputError:
        assert not any(acceptor.accepts(word) for word in words("ab", 7))
        return
    assert all(acceptor.accepts(word) == minimal.accepts(word) for word in words("ab", 8))
    assert distinguishable(minimal) == len(minimal.delta)
    assert minimal.minimal() == minimal
    # Every state is on the way of some string.
    assert minimal._reachable() == minimal._leading_to_acceptance() == set(range(len(minimal.delta)))


def test_by_hand():
    """Two states that accept the same are one, a dead state is none, and numbers follow the symbols from the start."""
    given = Acceptor(({"b": 1, "a": 2, "c": 3}, {"a": 1}, {"a": 2}, {"a": 3}), frozenset([1, 2]))
    assert given.minimal() == Acceptor(({"a": 1, "b": 1}, {"a": 1}), frozenset([1]))
    assert given.symbols == ("a", "b", "c")
    assert given.accepts("ba")
    assert not given.accepts("")
    assert not given.accepts("bb")


def test_equal_languages_have_equal_minimal_automata():
    one = Acceptor(({"a": 1}, {"a": 0}), frozenset([0, 1]))
    two = Acceptor(({"a": 0},), frozenset([0]))
    assert one.minimal() == two.minimal() == two


def test_a_json_file(tmp_path):
    path = tmp_path / "even.json"
    path.write_text(json.dumps(EVEN))
    acceptor = read_acceptor(path)
    assert acceptor.accepts("abba")
    assert not acceptor.accepts("ab")
    # States named by texts, symbols of more than one character, the start not first, no `accepting`: all accept.
    path.write_text('{"start": "y", "delta": {"x": {"go": "y"}, "y": {"stay": "y", "go": "x"}}}')
    acceptor = read_acceptor(path)
    assert acceptor.accepts(["stay", "go", "go"])
    assert acceptor.accepts([])
    assert not acceptor.accepts(["go", "stay"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"start": 7}, "the start is '7', which is no state"),
        ({"start": None}, "'start' is None"),
        ({"start": True}, "'start' is True"),
        ({"accepting": [9]}, "an accepting state is '9'"),
        ({"accepting": 0}, "'accepting' is not a list"),
        ({"accepting": [[0]]}, "a state of 'accepting'"),
        ({"delta": {}}, "'delta' is not"),
        ({"delta": [1]}, "'delta' is not"),
        ({"delta": {"0": ["a"]}}, "'delta' is not"),
        ({"delta": {"0": {"a": 5}}}, "the end of an edge is '5'"),
        ({"delta": {"0": {"a": None}}}, "the edge 'a' of '0' is None"),
        ({"delta": {"0": {"": 0}}}, "the symbol '' has 0 characters"),
        ({"delta": {"0": {"a b": 0}}}, "white space"),
        ({"delta": {"0": {"<end>": 0}}}, "a token of its own"),
        ({"delta": {"0": {"x" * 17: 0}}}, "has 17 characters"),
        ({"delta": {str(i): {} for i in range(1025)}}, "1025 states, more than 1024"),
        ({"delta": {"0": {f"s{i}": 0 for i in range(300)}}}, "300 symbols, more than 256"),
        ({"final": [0]}, "unknown key 'final'"),
    ],
)
def test_a_bad_json_file(tmp_path, change, says):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**EVEN, **change}))
    with pytest.raises(InputError, match=says) as caught:
        read_acceptor(path)
    assert str(path) in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no automaton at"):
        read_acceptor(tmp_path / "none.json")
    (tmp_path / "x.txt").write_text("{}")
    with pytest.raises(InputError, match=r"neither .json nor .dot"):
        read_acceptor(tmp_path / "x.txt")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="bad JSON"):
        read_acceptor(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        read_acceptor(tmp_path / "y.json")


def test_the_empty_language_is_an_error():
    with pytest.raises(InputError, match="no string is in the language"):
        Acceptor(({"a": 0},), frozenset()).minimal()
