"""What the tests of the delta-rule mixers share: random inputs, decays of every strength, comparisons, steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

B, H, D_K, D_V = 2, 3, 8, 5
DECAYS = ["none", "tiny", "strong", "mixed"]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_decays(kind: str, *shape: int) -> Tensor:
    """From -1e-6 a step to -50, alone or mixed at random."""
    low, high = {"none": (0.0, 0.0), "tiny": (1e-6, 1e-5), "strong": (20.0, 50.0), "mixed": (1e-6, 50.0)}[kind]
    return -low * (high / low) ** uniform(9, *shape) if low else torch.zeros(shape, dtype=torch.float64)


def inputs(length: int, decay: str = "mixed", width: int = D_K) -> list[Tensor]:
    """q, k, v, beta, log_decay and a state, float64; |k| = 1, beta in 0 to 1; `width` 1 is one decay a head."""
    return [
        random(1, B, length, H, D_K),
        F.normalize(random(2, B, length, H, D_K), dim=-1),
        random(3, B, length, H, D_V),
        uniform(4, B, length, H),
        log_decays(decay, B, length, H, width),
        random(5, B, H, D_K, D_V),
    ]


def off(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|; nan if anything is."""
    return ((found.double() - wanted.double()).abs().max() / wanted.abs().max().double().clamp(min=1e-300)).item()


def with_gradients(op: Callable[..., Any], given: list[Tensor], **options: Any) -> list[Tensor]:
    """o, the state, and the gradients of a random sum of both."""
    given = [x.detach().clone().requires_grad_() for x in given]
    o, state = op(*given, **options)
    loss = (o * random(7, *o.shape).to(o.dtype)).sum() + (state * random(8, *state.shape).to(state.dtype)).sum()
    return [x.detach() for x in (o, state, *torch.autograd.grad(loss, given))]


def scattered(mixer: nn.Module, scale: float = 0.3) -> Any:
    """The mixer in float64 with every parameter moved from its start, so that none of them can be forgotten."""
    mixer = mixer.double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(mixer.parameters()):
            parameter.add_(random(100 + i, *parameter.shape) * scale)
    return mixer


@torch.no_grad()
def worst_step(mixer: Any, x: Tensor, sizes: list[int]) -> float:
    """How far steps of these sizes in turn are from forward. No step may change the state that it was given."""
    state = mixer.init_state(len(x), "cpu", x.dtype)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    outputs, start = [], 0
    while start < x.size(1):
        size = sizes[len(outputs) % len(sizes)]
        before = {name: tensor.clone() for name, tensor in state.items()}
        y, after = mixer.step(x[:, start : start + size], state)
        assert all(torch.equal(state[name], before[name]) for name in before)
        assert {name: tensor.shape for name, tensor in after.items()} == shapes  # constant in size
        outputs.append(y)
        state, start = after, start + size
    return off(torch.cat(outputs, 1), mixer(x))


@torch.no_grad()
def leak(mixer: Any, x: Tensor, t: int) -> float:
    """How much the outputs before t change with the inputs from t on."""
    changed = x.clone()
    changed[:, t:] += random(50, *x[:, t:].shape)
    assert off(mixer(changed)[:, t:], mixer(x)[:, t:]) > 0.01
    return off(mixer(changed)[:, :t], mixer(x)[:, :t])


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """silu of sum over i of weight[:, -1 - i] x_{t - i}, one token after the other: x (b, l, d), weight (d, size)."""
    rows = []
    for t in range(x.size(1)):
        total = sum(weight[:, -1 - i] * x[:, t - i] for i in range(min(weight.size(1), t + 1)))
        rows.append(total * torch.sigmoid(total))
    return torch.stack(rows, 1)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def of_length_one(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
