"""Kimi Delta Attention's mixer against its equations, and its steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from delta_cases import convolved, leak, of_length_one, off, random, rms, scattered, worst_step
from torch import Tensor

from icll_zoo import InputError, create_model
from icll_zoo_linear.kda import KimiDeltaAttention

D, HEADS = 24, 3


def mixer(**options: Any) -> Any:
    torch.manual_seed(0)
    return scattered(KimiDeltaAttention(D, 2, HEADS, **options))


@torch.no_grad()
def explicit(made: Any, x: Tensor) -> Tensor:
    """Kimi Delta Attention by its equations, one row, head and token at a time."""
    d = D // HEADS
    q, k, v = convolved(made.qkv_proj(x), made.conv.weight).split(D, -1)
    beta = torch.sigmoid(made.beta_proj(x))
    low = x @ made.decay_down.weight.T @ made.decay_up.weight.T
    rate = torch.log1p(torch.exp(low + made.decay.bias.flatten()))
    decay = torch.exp(-torch.exp(made.decay.log_rate).repeat_interleave(d) * rate)
    gate = torch.sigmoid(x @ made.gate_down.weight.T @ made.gate_up.weight.T + made.gate_up.bias)
    mixed = torch.zeros_like(v)
    for row in range(len(x)):
        for head in range(HEADS):
            own = slice(head * d, (head + 1) * d)
            state = torch.zeros(d, d, dtype=torch.float64)
            for t in range(x.size(1)):
                key, b = of_length_one(k[row, t, own]), beta[row, t, head]
                state = torch.diag(decay[row, t, own]) @ state
                state = state - b * torch.outer(key, key) @ state + b * torch.outer(key, v[row, t, own])
                mixed[row, t, own] = rms(of_length_one(q[row, t, own]) @ state / d**0.5, made.norm.weight)
    return (gate * mixed) @ made.out_proj.weight.T


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("conv_size", [1, 4])
def test_equals_the_equations(backend: str, conv_size: int) -> None:
    made, x = mixer(backend=backend, conv_size=conv_size), random(1, 2, 20, D)
    assert off(made(x), explicit(made, x)) <= 1e-11


@pytest.mark.parametrize("sizes", [[1], [3], [8], [1, 3, 8], [70]])
def test_steps_equal_forward(sizes: list[int]) -> None:
    assert worst_step(mixer(), random(1, 2, 70, D), sizes) <= 1e-11


def test_is_causal() -> None:
    assert leak(mixer(), random(1, 2, 70, D), 37) <= 1e-13


def test_the_decays_parameters_do_not_decay() -> None:
    model = create_model("kda", 20, d_model=32, n_layers=1)
    assert model.no_weight_decay() == {"blocks.0.mixer.decay.log_rate", "blocks.0.mixer.decay.bias"}
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


def test_errors() -> None:
    with pytest.raises(InputError, match="n_heads 5 does not divide d_model 24"):
        KimiDeltaAttention(D, 2, 5)
    with pytest.raises(InputError, match="needs CUDA tensors"):
        KimiDeltaAttention(D, 2, HEADS, backend="fla")(torch.zeros(1, 5, D))


def test_bfloat16() -> None:
    torch.manual_seed(0)
    made = KimiDeltaAttention(D, 2, HEADS)
    x = random(1, 2, 70, D).float()
    wanted = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert off(found, wanted) <= 0.05
    assert off(made.bfloat16()(x.bfloat16()), wanted) <= 0.05
