"""Gated linear attention against its equations, and the variant of the paper of in-context language learning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError, create_model
from icll_zoo_linear.gla import GatedLinearAttention

D, HEADS = 24, 3


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixer(scale: float = 0.5, **options: Any) -> GatedLinearAttention:
    made = GatedLinearAttention(D, 2, HEADS, **options).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(i, *parameter.shape) * scale)
    return made


@torch.no_grad()
def explicit(made: GatedLinearAttention, x: Tensor, divisor: float, lowest: float, scale: float) -> Tensor:
    """The recurrence, one row, head and token at a time."""
    b, length, d = x.shape
    d_k, d_v = d // 2 // HEADS, d // HEADS
    q, k, v, g = made.q_proj(x), made.k_proj(x), made.v_proj(x), made.g_proj(x)
    gate = x @ made.decay_down.weight.T @ made.decay_up.weight.T + made.decay_up.bias
    alpha = torch.exp((torch.log(1 / (1 + torch.exp(-gate))) / divisor).clamp(min=lowest))
    mixed = torch.zeros_like(v)
    for row in range(b):
        for head in range(HEADS):
            keys, values = slice(head * d_k, (head + 1) * d_k), slice(head * d_v, (head + 1) * d_v)
            state = torch.zeros(d_k, d_v, dtype=torch.float64)
            for t in range(length):
                state = alpha[row, t, keys, None] * state + torch.outer(k[row, t, keys], v[row, t, values])
                o = scale * q[row, t, keys] @ state
                mixed[row, t, values] = (o - o.mean()) / (o.var(correction=0) + 1e-5).sqrt()
    return (torch.sigmoid(g) * g * mixed) @ made.out_proj.weight.T


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_equals_the_equations(backend: str) -> None:
    made, x = mixer(backend=backend), random(9, 2, 13, D)
    wanted = explicit(made, x, 16.0, -math.inf, 1 / math.sqrt(D / 2 / HEADS))
    torch.testing.assert_close(made(x), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_variant_of_the_paper(backend: str) -> None:
    """The scale of the value heads, and a bound on the decay that is reached here with a divisor of 1."""
    options = {"scale_by": "value", "min_log_decay": -3.0, "gate_divisor": 1.0}
    made, x = mixer(2.0, backend=backend, **options), random(9, 2, 13, D)
    log_decay = made._log_decay(x)
    assert log_decay.min() == -3
    assert log_decay.max() > -1
    torch.testing.assert_close(made(x), explicit(made, x, 1.0, -3.0, 1 / math.sqrt(D / HEADS)), rtol=0, atol=1e-11)


def test_as_in_the_paper() -> None:
    with torch.device("meta"):
        model: Any = create_model("gla-paper", 20)
    mixers = [block.mixer for block in model.blocks]
    assert len(mixers) == 8
    assert {(m.n_heads, m.d_k, m.d_v) for m in mixers} == {(2, 32, 64)}
    assert {(m.scale, m.gate_divisor, m.min_log_decay) for m in mixers} == {(64**-0.5, 16.0, -3.0)}
    # Without biases but those of the output gate and the decays.
    assert {name for name, _ in mixers[0].named_parameters() if "bias" in name} == {"decay_up.bias", "g_proj.bias"}


def test_bad_options() -> None:
    with pytest.raises(InputError, match="d_model 27 is odd"):
        GatedLinearAttention(27, 2)
    with pytest.raises(InputError, match="n_heads 8 does not divide d_model / 2 12"):
        GatedLinearAttention(24, 2, n_heads=8)
    with pytest.raises(InputError, match=r"min_log_decay 1\.0 is above 0"):
        GatedLinearAttention(24, 2, min_log_decay=1.0)
    with pytest.raises(InputError, match=r"gate_divisor 0\.0 must be above 0"):
        GatedLinearAttention(24, 2, gate_divisor=0.0)
