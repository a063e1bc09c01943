"""How tensors are renamed and laid out: one `Rule` a tensor of the zoo's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Sizes = tuple[int, ...]


def first(parts: Sequence[Tensor]) -> Tensor:
    return parts[0]


def alone(tensor: Tensor) -> Sequence[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Rule:
    """The tensor `ours` of the zoo's model is `join` of transformers' tensors, and those are `split` of it.

    theirs: their names and sizes, in order.
    """

    ours: str
    theirs: dict[str, Sizes]
    join: Callable[[Sequence[Tensor]], Tensor] = first
    split: Callable[[Tensor], Sequence[Tensor]] = alone


def same(ours: str, theirs: str, *sizes: int) -> Rule:
    """A tensor that only has another name."""
    return Rule(ours, {theirs: sizes})
