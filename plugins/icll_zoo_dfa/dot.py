r"""Automata in Graphviz's language, as textbooks and tools draw them.

    digraph { hidden [shape=point]; even; odd [shape=doublecircle]
              hidden -> even;  even -> odd [label="a"];  odd -> even [label="a"];  odd -> odd [label="b, c"] }

Accepting states have shape=doublecircle or peripheries=2. The start is where an edge leads from a node that is no
state: one of shape point, none or plaintext, of style invis, or with an empty label. A label names one symbol, or
several between commas, white space or \n. Defaults (`node [shape=doublecircle]`) hold for nodes named for the first
time after them. Subgraphs, ports, HTML labels and undirected edges are errors.
"""

from __future__ import annotations

import re
from itertools import pairwise

from icll_zoo import InputError
from icll_zoo_dfa.acceptor import Acceptor

TOKEN = re.compile(
    r"""\s+ | //[^\n]* | ^[ \t]*\#[^\n]* | /\*.*?\*/
    | (?P<quoted> "(?:[^"\\]|\\.)*" )
    | (?P<name> [A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]* | -?(?:\.\d+|\d+(?:\.\d*)?) )
    | (?P<sign> -> | [\[\]{};,=] )""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
NO_STATE = ("point", "none", "plaintext")
Attributes = dict[str, str]
Word = tuple[str, str]
"""A token: its kind ("sign", "name" or "quoted") and its text; at the end ("", "")."""


def words(text: str) -> list[Word]:
    """The tokens of a text. Raises InputError for what is none."""
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            line = text.count("\n", 0, at) + 1
            raise InputError(f"cannot read {text[at : at + 20]!r} in line {line}")
        at = match.end()
        if match.lastgroup == "quoted":
            # Only a quote needs its backslash here; \n stays, and is read as a break in labels.
            found.append(("quoted", match["quoted"][1:-1].replace("\\\n", "").replace('\\"', '"')))
        elif match.lastgroup:
            found.append((match.lastgroup, match[match.lastgroup]))
    return found


class Reader:
    """Reads statements, and notes nodes and edges with their attributes."""

    def __init__(self, text: str) -> None:
        self.words, self.at = words(text), 0
        self.defaults: dict[str, Attributes] = {"node": {}, "edge": {}, "graph": {}}
        self.nodes: dict[str, Attributes] = {}
        self.edges: list[tuple[str, str, Attributes]] = []

    def peek(self) -> Word:
        return self.words[self.at] if self.at < len(self.words) else ("", "")

    def take(self, sign: str) -> bool:
        """Whether the next token is this sign; it is passed then."""
        if self.peek() != ("sign", sign):
            return False
        self.at += 1
        return True

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise InputError(f"expected {sign!r}, not {self.peek()[1][:40] or 'the end'!r}")

    def name(self) -> str:
        kind, text = self.peek()
        if kind not in ("name", "quoted"):
            raise InputError(f"expected a name, not {text[:40] or 'the end'!r}")
        self.at += 1
        return text

    def graph(self) -> None:
        kind = self.name().lower()
        if kind == "strict":
            kind = self.name().lower()
        if kind != "digraph":
            raise InputError(f"it is a {kind[:40]!r}, not a digraph")
        if self.peek() != ("sign", "{"):
            self.name()
        self.need("{")
        while not self.take("}"):
            if not self.take(";"):
                self.statement()
        if self.peek()[0]:
            raise InputError(f"{self.peek()[1][:40]!r} follows the end of the graph")

    def statement(self) -> None:
        if self.peek() == ("sign", "{") or (self.peek()[0] == "name" and self.peek()[1].lower() == "subgraph"):
            raise InputError("a subgraph, which is not read here")
        is_keyword = self.peek()[0] == "name" and self.peek()[1].lower() in self.defaults
        first = self.name()
        if is_keyword:
            self.defaults[first.lower()].update(self.attributes())
            return
        if self.take("="):  # an attribute of the whole graph
            self.name()
            return
        chain = [first]
        while self.take("->"):
            chain.append(self.name())
        for node in chain:
            self.nodes.setdefault(node, dict(self.defaults["node"]))
        given = self.attributes()
        if len(chain) == 1:
            self.nodes[first].update(given)
        for source, target in pairwise(chain):
            self.edges.append((source, target, {**self.defaults["edge"], **given}))

    def attributes(self) -> Attributes:
        found: Attributes = {}
        while self.take("["):
            while not self.take("]"):
                key = self.name()
                found[key.lower()] = self.name() if self.take("=") else "true"
                self.take(",") or self.take(";")
        return found


def is_state(attributes: Attributes) -> bool:
    return (
        attributes.get("shape") not in NO_STATE
        and "invis" not in attributes.get("style", "")
        and attributes.get("label", "?").strip() != ""
    )


def symbols(label: str) -> list[str]:
    """The symbols of an edge's label."""
    return [label] if label == "," else [part for part in re.split(r"(?:,|\\[nlr]|\s)+", label) if part]


def read_dot(text: str) -> Acceptor:
    """The automaton of a text. Raises InputError for what cannot be read, or is no deterministic automaton."""
    reader = Reader(text)
    reader.graph()
    states = {name for name, attributes in reader.nodes.items() if is_state(attributes)}
    leads: dict[str, dict[str, str]] = {name: {} for name in reader.nodes if name in states}
    starts = set()
    for source, target, attributes in reader.edges:
        found = symbols(attributes.get("label", ""))
        if source not in states:
            starts.add(target)
            continue
        if not found:
            raise InputError(f"the edge {source[:40]!r} -> {target[:40]!r} has no label, and names no symbol")
        for symbol in found:
            if leads[source].setdefault(symbol, target) != target:
                raise InputError(f"state {source[:40]!r} has two edges {symbol[:40]!r}: it is not deterministic")
    if len(starts) != 1:
        raise InputError(
            f"it has {len(starts)} starts", hint="mark one by an edge from a node with shape=point and no label"
        )
    accepting = [
        name
        for name in leads
        if reader.nodes[name].get("shape") == "doublecircle" or reader.nodes[name].get("peripheries") == "2"
    ]
    return Acceptor.of(starts.pop(), accepting, leads)
