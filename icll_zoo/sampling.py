"""From a model's output to the next token, in float64 on the CPU.

    p = softmax(logits)   or the probabilities themselves
    p = p^(1 / temperature), without what is excluded or not allowed, divided by its sum
    cut to the `top_k` largest, then to the fewest whose sum reaches `top_p`, divided by its sum again
    next token = the first whose cumulative p exceeds u

u is a pure function of the row's seed and of how many tokens it got before: what the device or the rows beside it
change in the last digits of an output is all that they can change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icll_zoo.errors import EnvironmentFault, InputError
from icll_zoo.hashing import logical_shift, mix64, splitmix64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; see `icll_zoo.generate`. Raises InputError for settings that make no sense."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    exclude: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(
                f"temperature {self.temperature} is not a number above 0", hint="greedy=True takes the likeliest"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k} is not at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} is not in (0, 1]")

    def choose(self, output: Tensor, kind: str, u: Tensor, allowed: Tensor | None = None) -> Tensor:
        """The next token of every row, (b, 1) int64. output, allowed: (b, v). u: (b,) float64 in [0, 1)."""
        p = distribution(output, kind, self.temperature, self.top_k, self.exclude, self.top_p, allowed)
        if self.greedy:
            return p.argmax(-1, keepdim=True)
        chosen = torch.searchsorted(p.cumsum(-1), u[:, None], right=True)
        # The last sum may be 1 - 1e-16: then u lies past the end, and the last possible token is meant.
        last = p.size(-1) - 1 - (p > 0).flip(-1).long().argmax(-1, keepdim=True)
        return torch.minimum(chosen, last)


def distribution(
    output: Tensor,
    kind: str,
    temperature: float = 1.0,
    top_k: int | None = None,
    exclude: Sequence[int] = (),
    top_p: float | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """What the next token is drawn from, (b, v) float64 on the CPU, rows summing to 1.

    output: (b, v), logits, or probabilities with rows that may sum to less than 1, even to 0: where a model gives
    nothing to any token that may come, all of those are as likely. allowed: (b, v) bool, the tokens that may.
    Of equals, `top_k` and `top_p` (nucleus sampling, arXiv:1904.09751) keep the lowest ids.
    """
    out = output.double().cpu()
    if out.isnan().any() or (out == math.inf).any() or (kind != "logits" and (out < 0).any()):
        raise EnvironmentFault("the model's output is not finite", hint="its weights may be damaged")
    may = may_follow(out, exclude, allowed)
    if not may.any(-1).all():
        raise InputError("every token is excluded")
    logs = (out if kind == "logits" else out.log()) / temperature
    logs = logs.masked_fill(~may, -math.inf)
    nothing = (logs == -math.inf).all(-1, keepdim=True)
    logs = torch.where(nothing & may, 0.0, logs)
    if top_k is not None and top_k < out.size(-1):
        cut = logs.sort(dim=-1, descending=True, stable=True).indices[:, top_k:]
        logs = logs.scatter(-1, cut, -math.inf)
    p = logs.softmax(-1)
    if top_p is None or top_p >= 1:
        return p
    largest, order = p.sort(dim=-1, descending=True, stable=True)
    # The first token is kept whatever it has: nothing lies before it.
    kept = largest.masked_fill(largest.cumsum(-1) - largest >= top_p, 0.0)
    return torch.zeros_like(p).scatter(-1, order, kept / kept.sum(-1, keepdim=True))


def may_follow(output: Tensor, exclude: Sequence[int], allowed: Tensor | None = None) -> Tensor:
    """(b, v) bool: the tokens that are neither excluded nor forbidden by `allowed`."""
    size = output.size(-1)
    if bad := [i for i in exclude if not 0 <= i < size]:
        raise InputError(f"cannot exclude token id {bad[0]}: the model has {size}")
    may = torch.ones(output.shape, dtype=torch.bool) if allowed is None else allowed.cpu().clone()
    if may.shape != output.shape or may.dtype != torch.bool:
        raise InputError(
            f"the constraint gave {may.dtype} of shape {list(may.shape)}", hint=f"bool {list(output.shape)} is wanted"
        )
    may[:, list(exclude)] = False
    return may


# -- randomness --------------------------------------------------------------------------------------------------------


def row_seeds(seed: int | Sequence[int], rows: int) -> Tensor:
    """A seed for every row, (rows,) int64: those given, or of one seed itself for row 0 and a hash of both for others.

    So row r of a batch is what its prompt alone gives with the seed `row_seeds(seed, rows)[r]`.
    """
    given = [seed] if isinstance(seed, int) else list(seed)
    if bad := [s for s in given if not 0 <= s < 2**63]:
        raise InputError(f"seed {bad[0]} is not in [0, 2^63)")
    if not isinstance(seed, int):
        if len(given) != rows:
            raise InputError(f"{len(given)} seeds for {rows} prompts", hint="give one seed, or one a prompt")
        return torch.tensor(given, dtype=torch.int64)
    derived = splitmix64(mix64(torch.tensor(given)), torch.arange(rows) - 1) & ((1 << 63) - 1)
    derived[0] = seed
    return derived


def uniforms(seeds: Tensor, index: int) -> Tensor:
    """The index-th number of every seed's stream, (b,) float64, uniform on [0, 1) in steps of 2^-53.

    The SplitMix64 generator (Steele, Lea, Flood, OOPSLA 2014) at any place of its stream; seeds are mixed before, so
    that near ones start far from each other.
    """
    words = splitmix64(mix64(seeds), index)
    return logical_shift(words, 11).double() * 2.0**-53
