"""Automata in Graphviz's language: what is read, and what is wrong."""

from __future__ import annotations

import itertools

import pytest

from icll_zoo import InputError
from icll_zoo_dfa.acceptor import read_acceptor
from icll_zoo_dfa.dot import read_dot, symbols, words

TEXTBOOK = r"""
// an even number of a, any number of b or c
digraph finite_state_machine {
    rankdir=LR; size="8,5"
    /* where it
       starts */
    node [shape = point]; start
    node [shape = doublecircle]; even;
    node [shape = circle];
    start -> even;
    even -> odd [ label = "a" ];
    odd -> even [ label = a, color="red"; penwidth=2 ]
# a line for a preprocessor
    even -> even [label="b, c"];
    odd -> odd [label="b\nc"];
}
"""


def test_a_textbook_s_drawing(tmp_path):
    path = tmp_path / "even.dot"
    path.write_text(TEXTBOOK)
    acceptor = read_acceptor(path)
    assert acceptor.symbols == ("a", "b", "c")
    for n in range(5):
        for word in itertools.product("abc", repeat=n):
            assert acceptor.accepts(word) == (word.count("a") % 2 == 0)


@pytest.mark.parametrize(
    "start",
    [
        '"" [shape=none]; "" -> 0',
        "s [style=invis] s -> 0",
        's [label=""] s -> 0 [label=start]',
        "s[shape=plaintext]; s->0",
    ],
)
@pytest.mark.parametrize("accepts", ["1 [shape=doublecircle]", "1 [peripheries=2]"])
def test_other_ways_to_mark_the_start_and_what_accepts(start, accepts):
    acceptor = read_dot(f'strict digraph "a name" {{ {start}; {accepts}; 0 -> 1 -> 1 [label="x"] }}')
    assert acceptor.minimal().delta == ({"x": 1}, {"x": 1})
    assert acceptor.minimal().accepting == {1}


def test_labels():
    assert symbols("a") == ["a"]
    assert symbols("a,b , cd") == ["a", "b", "cd"]
    assert symbols(r"a\nb\lc") == ["a", "b", "c"]
    assert symbols(",") == [","]
    assert symbols(" ") == []


def test_words():
    assert words(r'a -> "b \" c" [x=-1.5];') == [
        ("name", "a"), ("sign", "->"), ("quoted", 'b " c'), ("sign", "["), ("name", "x"), ("sign", "="),
        ("name", "-1.5"), ("sign", "]"), ("sign", ";"),
    ]  # fmt: skip


S = "s [shape=point]; s -> 0;"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a name, not 'the end'"),
        ("graph { a -- b }", "cannot read '-- b }' in line 1"),
        ("graph { a }", "it is a 'graph', not a digraph"),
        ("digraph { a", "expected a name, not 'the end'"),
        ("digraph { 0 -> }", "expected a name, not '}'"),
        ("digraph { 0 [shape=circle }", "expected a name, not '}'"),
        ("digraph { 0 } 1", "'1' follows the end"),
        ("digraph { subgraph x { 0 } }", "a subgraph, which is not read here"),
        ("digraph { { 0 } }", "a subgraph"),
        ("digraph { 0 [label=<b>] }", "cannot read '<b>"),
        ("digraph {\n 0:n -> 1 }", "cannot read ':n -> 1 }' in line 2"),
        ('digraph { "0 }', "cannot read"),
        ("digraph { 0 -> 1 [label=a] }", "it has 0 starts"),
        (f"digraph {{ {S} s -> 1 [label=a] }}", "it has 2 starts"),
        (f"digraph {{ {S} 0 -> 1 }}", "the edge '0' -> '1' has no label"),
        (f"digraph {{ {S} 0 -> 1 [label=a]; 0 -> 0 [label=a] }}", "two edges 'a': it is not deterministic"),
        (f"digraph {{ {S} 0 -> s [label=a] }}", "the end of an edge is 's', which is no state"),
        (f'digraph {{ {S} 0 -> 0 [label="<end>"] }}', "a token of its own"),
    ],
)
def test_what_is_wrong_is_said(text, says):
    with pytest.raises(InputError, match=says):
        read_dot(text)
