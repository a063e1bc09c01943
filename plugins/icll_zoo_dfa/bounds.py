"""Between which bounds languages and their strings are drawn; all bounds are inclusive."""

from __future__ import annotations

from dataclasses import dataclass

from icll_zoo import InputError
from icll_zoo_dfa.language import LETTERS, STATES_MAX

LARGEST = {"states": STATES_MAX, "symbols": len(LETTERS), "degree": len(LETTERS), "strings": 1 << 15, "length": 1 << 15}
SMALLEST = {"states": 2, "symbols": 1, "degree": 1, "strings": 1, "length": 1}
LONGEST = 1 << 17
"""Tokens of a sequence: the 500 sequences of a default split are then at most 200 MB."""


@dataclass(frozen=True)
class Bounds:
    """The defaults are what the paper's code really draws: its upper bounds are exclusive (arXiv:2401.12973).

    states, symbols: of an automaton and its alphabet. degree: edges of a state, at most one to each other state.
    strings: in a sequence. length: of a string.
    """

    states_min: int = 4
    states_max: int = 12
    symbols_min: int = 4
    symbols_max: int = 18
    degree_min: int = 1
    degree_max: int = 3
    strings_min: int = 10
    strings_max: int = 19
    length_min: int = 1
    length_max: int = 49

    def __post_init__(self) -> None:
        faults = []
        for name, smallest in SMALLEST.items():
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low < smallest:
                faults.append(f"wrong value in data.{name}_min: {low} is less than {smallest}")
            if high > LARGEST[name]:
                faults.append(f"wrong value in data.{name}_max: {high} is more than {LARGEST[name]}")
            if low > high:
                faults.append(f"impossible bounds: data.{name}_min={low} is more than data.{name}_max={high}")
        if self.degree_min > min(self.states_min - 1, self.symbols_min):
            faults.append(
                f"impossible bounds: data.degree_min={self.degree_min} edges to different states by different symbols "
                f"need more states than data.states_min={self.states_min} or symbols than {self.symbols_min}"
            )
        if self.degree_max > min(self.states_max - 1, self.symbols_max):
            faults.append(
                f"impossible bounds: data.degree_max={self.degree_max} is never reached with at most "
                f"{self.states_max} states and {self.symbols_max} symbols"
            )
        if self.strings_min == self.length_min == 1:
            faults.append("impossible bounds: one string of length 1 leaves nothing to predict")
        if self.longest > LONGEST:
            faults.append(
                f"impossible bounds: data.strings_max={self.strings_max} strings of data.length_max={self.length_max} "
                f"are {self.longest} tokens, more than {LONGEST}"
            )
        if faults:
            raise InputError(faults[0], faults=faults)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest possible sequence, separators included."""
        return self.strings_max * (self.length_max + 1) - 1
