"""Sequences for learners without parameters, and their answers counted again, position by position, from the text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

V, PAD, SEPARATOR = 7, 0, 6  # as in the paper: the pad first, the separator last, symbols between


def text(ids: list[int]) -> str:
    return "".join("|" if i == SEPARATOR else chr(ord("a") + i) for i in ids)


def answers(tokens: list[int], predict: Callable[[str], dict[str, float]]) -> Tensor:
    """(l, v) float64: after each token what `predict` says of the text so far."""
    rows = torch.zeros(len(tokens), V, dtype=torch.float64)
    for t in range(len(tokens)):
        for symbol, p in predict(text(tokens[: t + 1])).items():
            rows[t, ord(symbol) - ord("a")] = p
    return rows


def sequences(seed: int, lengths: list[int], symbols: int = V - 2, separators: float = 0.15) -> list[list[int]]:
    """Symbols 1 ... `symbols`, each place a separator with the given probability."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        tokens = torch.randint(1, symbols + 1, (length,), generator=generator)
        tokens[torch.rand(length, generator=generator) < separators] = SEPARATOR
        made.append(tokens.tolist())
    return made


def padded(rows: list[list[int]], to: int = 0) -> Tensor:
    width = max(to, *map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
