"""One regular language: a deterministic automaton all of whose states accept, in its canonical minimal form."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icll_zoo import SPLITS, InputError, parse_json, read_text

if TYPE_CHECKING:
    from icll_zoo_dfa.constraint import LegalNext

LETTERS = "abcdefghijklmnopqr"
PAD, SEPARATOR = ".", "|"
VOCABULARY = (PAD, *LETTERS, SEPARATOR)
"""The paper's twenty tokens, sorted by code point: the id of a token is its place."""
STATES_MAX = 63
"""A state fits into six bits."""
FILE_LIMIT = 1 << 30
"""Bytes of a file of languages; a line is about 1 kB."""


@dataclass(frozen=True)
class Language:
    """delta[state][symbol] is the next state; every state accepts; the next symbol is uniform over a state's edges."""

    start: int
    delta: Mapping[int, Mapping[str, int]]

    def canonical(self) -> Language:
        """The minimal automaton, states numbered breadth-first from the start in the order of symbols.

        Two languages are equal exactly if their canonical forms are. Plain partition refinement, the slow form that
        the tensors of `minimal.py` are tested against.
        """
        block = dict.fromkeys(self.delta, 0)
        while True:
            signature = {
                state: tuple(sorted((symbol, block[target]) for symbol, target in edges.items()))
                for state, edges in self.delta.items()
            }
            names: dict[Any, int] = {}
            refined = {state: names.setdefault(signature[state], len(names)) for state in self.delta}
            if len(names) == len(set(block.values())):
                break
            block = refined
        edges_of = {block[state]: {s: block[t] for s, t in edges.items()} for state, edges in self.delta.items()}
        number, queue = {block[self.start]: 0}, deque([block[self.start]])
        while queue:
            edges = edges_of[queue.popleft()]
            for symbol in sorted(edges):
                if edges[symbol] not in number:
                    number[edges[symbol]] = len(number)
                    queue.append(edges[symbol])
        return Language(
            0, {new: {s: number[edges_of[old][s]] for s in sorted(edges_of[old])} for old, new in number.items()}
        )

    def states_of(self, word: str) -> list[int] | None:
        """The state after each symbol of a word, or None if the word is not in the language."""
        state, passed = self.start, []
        for symbol in word:
            following = self.delta[state].get(symbol)
            if following is None:
                return None
            state = following
            passed.append(state)
        return passed

    def constraint(self) -> LegalNext:
        """What may follow in texts of this language, for `icll_zoo.generate(..., constraint=...)`."""
        from icll_zoo_dfa.constraint import LegalNext

        return LegalNext([self])

    def __str__(self) -> str:
        """One line a state: `> 0  a -> 1   b -> 3`, the start marked."""
        lines = []
        for state, edges in self.delta.items():
            mark = ">" if state == self.start else " "
            arrows = "   ".join(f"{symbol} -> {target}" for symbol, target in edges.items())
            lines.append(f"{mark} {state:<3}{arrows}")
        return "\n".join(lines)

    def to_json(self, text: str | None = None) -> dict[str, Any]:
        """As a line of a file of languages; with a text of it, strings joined by `|`, that `data.file` reads."""
        delta = {str(state): dict(edges) for state, edges in self.delta.items()}
        plain = {"start": self.start, "delta": delta}
        return plain if text is None else {"text": text, **plain}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Language:
        """The language of `{"start": 5, "delta": {"0": {"a": 2}, ...}}`. Raises InputError saying what is wrong."""
        delta_given = given.get("delta")
        if not isinstance(delta_given, Mapping) or not delta_given:
            raise InputError("'delta' is not a mapping of states to edges")
        if len(delta_given) > STATES_MAX:
            raise InputError(f"'delta' has {len(delta_given)} states, more than {STATES_MAX}")
        delta: dict[int, dict[str, int]] = {}
        for name, edges in delta_given.items():
            if len(name) > 9 or not name.isdecimal() or str(int(name)) != name:
                raise InputError(f"state {name[:20]!r} is not a number")
            if not isinstance(edges, Mapping) or not edges:
                raise InputError(f"state {name!r} has no edges")
            for symbol, target in edges.items():
                if symbol not in LETTERS or len(symbol) != 1:
                    raise InputError(f"symbol {symbol!r} of state {name!r} is not one of {LETTERS}")
                if not isinstance(target, int) or isinstance(target, bool) or str(target) not in delta_given:
                    raise InputError(f"edge {symbol!r} of state {name!r} leads to {target!r}, which is no state")
            delta[int(name)] = dict(sorted(edges.items()))
        start = given.get("start")
        if not isinstance(start, int) or isinstance(start, bool) or start not in delta:
            raise InputError(f"'start' is {start!r}, which is no state")
        return cls(start, dict(sorted(delta.items())))


@dataclass(frozen=True)
class Sample:
    """A language and one text of it: strings joined by the separator; `split` is where a file puts it."""

    text: str
    language: Language
    split: str = "test"


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file of JSON lines. Raises InputError with the file, the line and the reason."""
    samples = []
    for number, line in enumerate(read_text(path, "languages", FILE_LIMIT).splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of {str(path)!r}"
        given = parse_json(line, where)
        if not isinstance(given, dict):
            raise InputError(f"{where} is not a JSON object")
        try:
            if unknown := sorted(set(given) - {"text", "start", "delta", "split"}):
                raise InputError(f"unknown key {unknown[0]!r}")
            language = Language.from_json(given)
            text, split = given.get("text"), given.get("split", "test")
            if not isinstance(text, str) or len(text) < 2:
                raise InputError("'text' is not a text of at least two symbols")
            if split not in SPLITS:
                raise InputError(f"'split' is {split!r}, not one of {', '.join(SPLITS)}")
            for word in text.split(SEPARATOR):
                if not word:
                    raise InputError("'text' holds an empty string")
                if language.states_of(word) is None:
                    raise InputError(f"the string {word[:40]!r} of 'text' is not in the language of 'delta'")
        except InputError as error:
            raise InputError(f"bad language in {where}: {error}") from error
        samples.append(Sample(text, language, split))
    if not samples:
        raise InputError(f"the file of languages {str(path)!r} is empty")
    return samples
