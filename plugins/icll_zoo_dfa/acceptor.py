"""One regular language that a user gives: a deterministic automaton some of whose states accept, made minimal.

`Language` is what the random languages are: there every state accepts, and symbols are letters from a to r.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icll_zoo import InputError, parse_json, read_text

PAD, END = "<pad>", "<end>"
"""Tokens that are no symbols; they are longer than one, so that a regular expression may use any character."""
MOST_STATES, MOST_SYMBOLS, LONGEST_SYMBOL = 1024, 256, 16


@dataclass(frozen=True)
class Acceptor:
    """delta[state][symbol] is the next state; a symbol that is not there leads to no string. The start is state 0."""

    delta: tuple[Mapping[str, int], ...]
    accepting: frozenset[int]

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols on its edges, sorted."""
        return tuple(sorted({symbol for edges in self.delta for symbol in edges}))

    def accepts(self, word: Iterable[str]) -> bool:
        state = 0
        for symbol in word:
            if symbol not in self.delta[state]:
                return False
            state = self.delta[state][symbol]
        return state in self.accepting

    def minimal(self) -> Acceptor:
        """The minimal automaton without a dead state, numbered breadth-first in the order of symbols.

        Two languages are equal exactly if these are. Moore's partition refinement, of the states that a string of the
        language passes. Raises InputError for the empty language.
        """
        useful = self._reachable() & self._leading_to_acceptance()
        if 0 not in useful:
            raise InputError("no string is in the language")
        kept = {s: {a: t for a, t in sorted(self.delta[s].items()) if t in useful} for s in useful}
        block = {state: int(state in self.accepting) for state in kept}
        while True:
            names: dict[Any, int] = {}
            refined = {
                state: names.setdefault((block[state], tuple((a, block[t]) for a, t in edges.items())), len(names))
                for state, edges in kept.items()
            }
            if len(names) == len(set(block.values())):
                break
            block = refined
        member = {block[state]: state for state in kept}
        number, queue = {block[0]: 0}, deque([block[0]])
        while queue:
            for target in kept[member[queue.popleft()]].values():
                if block[target] not in number:
                    number[block[target]] = len(number)
                    queue.append(block[target])
        delta = tuple({a: number[block[t]] for a, t in kept[member[b]].items()} for b in number)
        return Acceptor(delta, frozenset(number[block[s]] for s in kept if s in self.accepting))

    def _reachable(self) -> set[int]:
        found, queue = {0}, [0]
        while queue:
            for target in self.delta[queue.pop()].values():
                if target not in found:
                    found.add(target)
                    queue.append(target)
        return found

    def _leading_to_acceptance(self) -> set[int]:
        sources: dict[int, list[int]] = {}
        for state, edges in enumerate(self.delta):
            for target in edges.values():
                sources.setdefault(target, []).append(state)
        found, queue = set(self.accepting), list(self.accepting)
        while queue:
            for source in sources.get(queue.pop(), ()):
                if source not in found:
                    found.add(source)
                    queue.append(source)
        return found

    @classmethod
    def of(cls, start: str, accepting: Iterable[str], edges: Mapping[str, Mapping[str, str]]) -> Acceptor:
        """From states with names: edges[state][symbol] is a state. Raises InputError for what no automaton has."""
        if len(edges) > MOST_STATES:
            raise InputError(f"it has {len(edges)} states, more than {MOST_STATES}")
        symbols = {symbol for leads in edges.values() for symbol in leads}
        for symbol in sorted(symbols):
            check_symbol(symbol)
        if len(symbols) > MOST_SYMBOLS:
            raise InputError(f"it has {len(symbols)} symbols, more than {MOST_SYMBOLS}")
        for what, named in (
            ("the start", [start]),
            ("an accepting state", accepting),
            ("the end of an edge", [target for leads in edges.values() for target in leads.values()]),
        ):
            if unknown := sorted(set(named) - set(edges)):
                raise InputError(f"{what} is {unknown[0][:40]!r}, which is no state")
        place = {name: i for i, name in enumerate(sorted(edges, key=lambda name: name != start))}
        delta: list[Mapping[str, int]] = [{}] * len(edges)
        for name, leads in edges.items():
            delta[place[name]] = {symbol: place[target] for symbol, target in leads.items()}
        return cls(tuple(delta), frozenset(place[name] for name in accepting))


def check_symbol(symbol: str) -> None:
    """Raise InputError for a text that cannot be a token."""
    if not 1 <= len(symbol) <= LONGEST_SYMBOL:
        raise InputError(f"the symbol {symbol[:40]!r} has {len(symbol)} characters, not 1 to {LONGEST_SYMBOL}")
    if not symbol.isprintable() or any(c.isspace() for c in symbol):
        raise InputError(f"the symbol {symbol!r} holds a white space or control character")
    if symbol in (PAD, END):
        raise InputError(f"the symbol {symbol!r} is a token of its own here", hint="give it another name")


def read_acceptor(path: Path) -> Acceptor:
    """The automaton of a file: JSON (`.json`), or Graphviz (`.dot`, `.gv`). Raises InputError with file and reason.

    JSON: `{"start": 0, "accepting": [1], "delta": {"0": {"a": 1}, "1": {"a": 0, "b": 1}}}`. States are named by texts
    or integers; without `accepting` all accept, as in a file of random languages. Graphviz: see `dot.read_dot`.
    """
    from icll_zoo_dfa.dot import read_dot

    if path.suffix not in (".json", ".dot", ".gv"):
        raise InputError(f"the automaton {str(path)!r} is neither .json nor .dot nor .gv")
    text = read_text(path, "automaton")
    try:
        return from_json(parse_json(text, f"{str(path)!r}")) if path.suffix == ".json" else read_dot(text)
    except InputError as error:
        raise InputError(f"bad automaton in {str(path)!r}: {error}") from error


def from_json(given: Any) -> Acceptor:
    if not isinstance(given, dict):
        raise InputError("it is not a JSON object")
    if unknown := sorted(set(given) - {"start", "accepting", "delta"}):
        raise InputError(f"unknown key {unknown[0]!r}")
    delta = given.get("delta")
    if not isinstance(delta, dict) or not delta or not all(isinstance(edges, dict) for edges in delta.values()):
        raise InputError("'delta' is not a mapping of states to mappings of symbols to states")
    accepting = given.get("accepting", list(delta))
    if not isinstance(accepting, list):
        raise InputError("'accepting' is not a list of states")
    return Acceptor.of(
        state_name(given.get("start"), "'start'"),
        [state_name(name, "a state of 'accepting'") for name in accepting],
        {
            name: {symbol: state_name(target, f"the edge {symbol!r} of {name!r}") for symbol, target in edges.items()}
            for name, edges in delta.items()
        },
    )


def state_name(given: object, what: str) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise InputError(f"{what} is {given!r}, which names no state")
    return str(given)
