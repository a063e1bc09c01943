"""Regular expressions: what they match against Python's `re`, the automata by hand, and what is wrong with them."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from icll_zoo import InputError
from icll_zoo_dfa.acceptor import Acceptor
from icll_zoo_dfa.regex import parse_regex

EXPRESSIONS = [
    "a", "ab", "a|b", "a*", "a+", "a?", "(ab)*", "(ab|ba)+", "a(b|c)*d?", "(a|b)*abb", "a||b", "()", "(|a)b",
    "(a+)?b",
    "(a*)*", "(a?b?)*c", "((a|b)(a|c))+", "[ab]c", "[a-c]+", "a[^a]", "[^ab]c", ".a", "a.*b|c", "(a.)*", "[ab-]c?",
    "[a^]b", "", "(a|b|c)(a|b|c)(a|b|c)", "a*b*c*", "(a|ab)(c|bcd?)*",
]  # fmt: skip


def matches_as_re_does(expression, alphabet, longest=6):
    acceptor = parse_regex(expression, alphabet)
    pattern = re.compile(expression)
    for n in range(longest + 1):
        for word in itertools.product(alphabet, repeat=n):
            assert acceptor.accepts(word) == bool(pattern.fullmatch("".join(word))), (expression, word)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_it_matches_what_re_matches(expression):
    alphabet = "".join(sorted(set(re.sub(r"[^a-d^-]", "", expression)) | {"a", "b", "c"}))
    matches_as_re_does(expression, alphabet, 5 if len(alphabet) > 3 else 6)


@pytest.mark.parametrize("seed", range(40))
def test_random_expressions_match_what_re_matches(seed):
    rng = random.Random(seed)

    def expression(depth):
        kind = rng.randrange(8) if depth else 0
        if kind <= 1:
            return rng.choice(["a", "b", "c", ".", "[ab]", "[^b]"])
        if kind <= 3:
            return expression(depth - 1) + expression(depth - 1)
        if kind == 4:
            return f"({expression(depth - 1)}|{expression(depth - 1)})"
        return f"({expression(depth - 1)}){rng.choice('*+?')}"

    matches_as_re_does(expression(5), "abc")


def test_automata_by_hand():
    assert parse_regex("(a|b)*abb") == Acceptor(
        ({"a": 1, "b": 0}, {"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 0}), frozenset([3])
    )
    assert parse_regex("ab?") == Acceptor(({"a": 1}, {"b": 2}, {}), frozenset([1, 2]))
    assert parse_regex("") == Acceptor(({},), frozenset([0]))


def test_escapes_are_the_characters_themselves():
    acceptor = parse_regex(r"\(\.\|\*\\[\]\-x]")
    assert acceptor.symbols == tuple(sorted(r"(.|*\]-x"))
    assert acceptor.accepts(r"(.|*\]")
    assert acceptor.accepts(r"(.|*\-")
    assert not acceptor.accepts("(x|*\\]")


def test_any_symbol_is_of_the_alphabet():
    assert parse_regex(".b").symbols == ("b",)
    assert parse_regex(".b", "abc").symbols == ("a", "b", "c")
    assert parse_regex("[^b]", "abc").symbols == ("a", "c")


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("(ab", r"a group that is not closed at character 1"),
        ("a(b|(c)", r"a group that is not closed at character 2"),
        ("ab)", r"'\)' that closes nothing at character 3"),
        ("a]", r"'\]' that closes nothing at character 2"),
        ("*a", r"'\*' with nothing before it to repeat at character 1"),
        ("a|+", r"'\+' with nothing before it to repeat at character 3"),
        ("a+?", r"'\?' after '\+', which needs a group at character 3"),
        ("a**", r"'\*' after '\*'"),
        ("(?:a)", r"'\?' with nothing before it to repeat at character 2"),
        ("[ab", "a choice that is not closed at character 1"),
        ("a[]", "a choice of nothing at character 2"),
        ("[b-a]", "the empty range b-a"),
        ("a\\", "an escape of nothing at character 2"),
        (r"a\d", r"the escape \\d, which has no meaning here at character 2"),
        ("a{2}", r"'{' that is not escaped at character 2"),
        ("^a", r"'\^' that is not escaped"),
        ("a$", r"'\$' that is not escaped"),
        ("a b", "white space or control character at character 2"),
        ("a" * 1001, "1001 characters, more than 1000"),
        ("(" * 60 + "a" + ")" * 60, "more than 50 open groups"),
        (".*", "names no symbol"),
        ("[^a]", "no string is in the language"),
        ("(a|b)*a" + "(a|b)" * 12, "has more than 1024 states"),
    ],
)
def test_what_is_wrong_is_said(expression, says):
    with pytest.raises(InputError, match=says):
        parse_regex(expression)


def test_a_bad_alphabet():
    with pytest.raises(InputError, match=r"names 'c', which is not in data.alphabet 'ab'"):
        parse_regex("abc", "ab")
    with pytest.raises(InputError, match="white space"):
        parse_regex("a", "a ")
