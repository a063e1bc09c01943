"""What the tests of the state-space models share: seeded random numbers, and one way to compare two forms of an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-8
"""Of the largest: what the forms of every op are held to in float64."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, of the largest number wanted."""
    return ((found - wanted).detach().abs().max() / wanted.detach().abs().max().clamp(min=1e-300)).item()


def results(op: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    """An op's outputs, and the gradients of a random weighting of them with respect to every input."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    made = op(*leaves)
    outputs = list(made) if isinstance(made, tuple) else [made]
    loss = sum((x * normal(90 + i, *x.shape)).sum() for i, x in enumerate(outputs))
    return [x.detach() for x in (*outputs, *torch.autograd.grad(loss, leaves))]


def assert_same_op(fast: Callable[..., Any], slow: Callable[..., Any], *inputs: Tensor) -> None:
    """Outputs and gradients agree to TOLERANCE, and are finite."""
    for found, wanted in zip(results(fast, *inputs), results(slow, *inputs), strict=True):
        assert found.shape == wanted.shape
        assert wanted.isfinite().all()
        assert off(found, wanted) <= TOLERANCE
