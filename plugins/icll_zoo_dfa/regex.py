r"""Regular expressions, and the automaton of what they match as a whole.

    a|b  alternatives     ab  one after the other     a* a+ a?  repeated, repeated at least once, optional
    ( )  grouping         .   any symbol              [abc] [a-c] [^abc]  one of some, or of all others
    \*   the character itself; `()` and an empty alternative match the empty string

Every symbol is one character. `.` and `[^ ]` mean the symbols of the alphabet, which is what the expression names
unless it is given. There is nothing else: what other dialects read as counts, anchors or classes is an error.

The automaton is that of Glushkov (1961): a state for every place of a symbol in the expression, then the subsets.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from icll_zoo import InputError
from icll_zoo_dfa.acceptor import MOST_STATES, Acceptor, check_symbol

LONGEST, DEEPEST = 1000, 50
ELSEWHERE = "{}^$"
"""Characters with a meaning in other dialects; here they must be escaped."""


@dataclass(frozen=True)
class Part:
    """Of an expression: whether it matches the empty string, and the places that may come first and last in it."""

    nullable: bool
    first: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()


@dataclass
class Parser:
    """Reads an expression from the left, and notes which symbols each place has and which places may follow it."""

    text: str
    at: int = 0
    # (symbols, whether all others are meant) of every place
    places: list[tuple[frozenset[str], bool]] = field(default_factory=list)
    follow: list[set[int]] = field(default_factory=list)

    def wrong(self, what: str, at: int | None = None) -> InputError:
        place = (self.at if at is None else at) + 1
        return InputError(f"wrong value in data.regex: {what} at character {place} of {self.text[:60]!r}")

    def next(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def alternatives(self, depth: int = 0) -> Part:
        part = self.sequence(depth)
        while self.next() == "|":
            self.at += 1
            other = self.sequence(depth)
            part = Part(part.nullable or other.nullable, part.first | other.first, part.last | other.last)
        return part

    def sequence(self, depth: int) -> Part:
        part = Part(True)
        while self.next() and self.next() not in "|)":
            other = self.repeated(depth)
            self.link(part.last, other.first)
            part = Part(
                part.nullable and other.nullable,
                part.first | other.first if part.nullable else part.first,
                part.last | other.last if other.nullable else other.last,
            )
        return part

    def repeated(self, depth: int) -> Part:
        part = self.atom(depth)
        sign = self.next()
        if not sign or sign not in "*+?":
            return part
        self.at += 1
        if sign != "?":
            self.link(part.last, part.first)
        if (again := self.next()) and again in "*+?":
            # Other dialects read a+? as something else than (a+)?.
            raise self.wrong(f"{again!r} after {sign!r}, which needs a group")
        return Part(part.nullable or sign != "+", part.first, part.last)

    def link(self, before: frozenset[int], after: frozenset[int]) -> None:
        for place in before:
            self.follow[place] |= after

    def atom(self, depth: int) -> Part:
        start, c = self.at, self.next()
        if c == "(":
            if depth == DEEPEST:
                raise self.wrong(f"more than {DEEPEST} open groups")
            self.at += 1
            part = self.alternatives(depth + 1)
            if self.next() != ")":
                raise self.wrong("a group that is not closed", start)
            self.at += 1
            return part
        if c == "[":
            return self.place(*self.choice())
        if c == ".":
            self.at += 1
            return self.place(frozenset(), True)
        if c in "*+?":
            raise self.wrong(f"{c!r} with nothing before it to repeat")
        if c == "]":
            raise self.wrong("']' that closes nothing")
        return self.place(frozenset(self.character()), False)

    def place(self, symbols: frozenset[str], others: bool) -> Part:
        self.places.append((symbols, others))
        self.follow.append(set())
        here = frozenset([len(self.places) - 1])
        return Part(False, here, here)

    def choice(self) -> tuple[frozenset[str], bool]:
        """[abc], [a-c], [^abc]."""
        start = self.at
        self.at += 1
        others = self.next() == "^"
        self.at += others
        found: set[str] = set()
        while self.next() != "]":
            if not self.next():
                raise self.wrong("a choice that is not closed", start)
            low = high = self.character(inside=True)
            if self.next() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self.character(inside=True)
            if low > high:
                raise self.wrong(f"the empty range {low}-{high}")
            found.update(map(chr, range(ord(low), ord(high) + 1)))
        if not found:
            raise self.wrong("a choice of nothing", start)
        self.at += 1
        return frozenset(found), others

    def character(self, inside: bool = False) -> str:
        """One symbol, escaped or not."""
        start, c = self.at, self.next()
        self.at += 1
        if c == "\\":
            c = self.next()
            if not c:
                raise self.wrong("an escape of nothing", start)
            if c.isalnum():
                raise self.wrong(f"the escape \\{c}, which has no meaning here", start)
            self.at += 1
        elif c in ELSEWHERE and not inside:
            raise self.wrong(f"{c!r} that is not escaped", start)
        try:
            check_symbol(c)
        except InputError as error:
            raise self.wrong(str(error), start) from error
        return c


def parse_regex(text: str, alphabet: str | None = None) -> Acceptor:
    """The minimal automaton of the strings that an expression matches. Raises InputError saying what is wrong."""
    if len(text) > LONGEST:
        raise InputError(f"wrong value in data.regex: it has {len(text)} characters, more than {LONGEST}")
    parser = Parser(text)
    whole = parser.alternatives()
    if parser.at < len(text):
        raise parser.wrong("')' that closes nothing")
    named = frozenset().union(*(symbols for symbols, _ in parser.places))
    if alphabet is not None:
        for symbol in alphabet:
            check_symbol(symbol)
        if unknown := sorted(named - set(alphabet)):
            raise InputError(f"data.regex names {unknown[0]!r}, which is not in data.alphabet {alphabet[:60]!r}")
    known = named if alphabet is None else frozenset(alphabet)
    if not known and parser.places:
        raise InputError("data.regex names no symbol, so that '.' means none", hint="give data.alphabet")
    symbols_of = [known - symbols if others else symbols for symbols, others in parser.places]
    return subsets(whole, symbols_of, parser.follow).minimal()


def subsets(whole: Part, symbols_of: list[frozenset[str]], follow: list[set[int]]) -> Acceptor:
    """The deterministic automaton whose states are the sets of places that a string may have ended in."""
    start: tuple[frozenset[int], bool] = (frozenset(), True)  # no place yet: the only set with `True`
    number, queue = {start: 0}, deque([start])
    delta: list[dict[str, int]] = []
    accepting = set()
    while queue:
        state = queue.popleft()
        places, begins = state
        if (begins and whole.nullable) or places & whole.last:
            accepting.add(len(delta))
        after = set(whole.first) if begins else set().union(*(follow[place] for place in places))
        leads: dict[str, set[int]] = {}
        for place in after:
            for symbol in symbols_of[place]:
                leads.setdefault(symbol, set()).add(place)
        edges = {}
        for symbol in sorted(leads):
            target = (frozenset(leads[symbol]), False)
            if target not in number:
                if len(number) == MOST_STATES:
                    raise InputError(f"the automaton of data.regex has more than {MOST_STATES} states")
                number[target] = len(number)
                queue.append(target)
            edges[symbol] = number[target]
        delta.append(edges)
    return Acceptor(tuple(delta), frozenset(accepting))
