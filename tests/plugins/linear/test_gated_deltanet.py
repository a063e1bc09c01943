"""Gated DeltaNet's mixer against its equations, its steps and how its decays start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from delta_cases import convolved, leak, of_length_one, off, random, rms, scattered, worst_step
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import InputError, create_model
from icll_zoo_linear.gated_deltanet import DecayGate, GatedDeltaNet

D, HEADS = 24, 3


def mixer(**options: Any) -> Any:
    torch.manual_seed(0)
    return scattered(GatedDeltaNet(D, 2, HEADS, **options))


@torch.no_grad()
def explicit(made: Any, x: Tensor) -> Tensor:
    """Gated DeltaNet by its equations, one row, head and token at a time."""
    d_k, d_v = made.d_k, made.d_v
    q, k, v = convolved(made.qkv_proj(x), made.conv.weight).split([HEADS * d_k, HEADS * d_k, HEADS * d_v], -1)
    beta = torch.sigmoid(made.beta_proj(x))
    rate = torch.log1p(torch.exp(made.decay_proj(x) + made.decay.bias[:, 0]))
    decay = torch.exp(-torch.exp(made.decay.log_rate[:, 0]) * rate)
    gate = made.gate_proj(x)
    mixed = torch.zeros_like(v)
    for row in range(len(x)):
        for head in range(HEADS):
            keys, values = slice(head * d_k, (head + 1) * d_k), slice(head * d_v, (head + 1) * d_v)
            state = torch.zeros(d_k, d_v, dtype=torch.float64)
            for t in range(x.size(1)):
                key = of_length_one(k[row, t, keys])
                state = decay[row, t, head] * state
                state += beta[row, t, head] * torch.outer(key, v[row, t, values] - key @ state)
                mixed[row, t, values] = rms(of_length_one(q[row, t, keys]) @ state / d_k**0.5, made.norm.weight)
    return (gate * torch.sigmoid(gate) * mixed) @ made.out_proj.weight.T


@pytest.mark.parametrize("options", [{}, {"expand_k": 1.0, "expand_v": 1.0, "conv_size": 2}])
@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_equals_the_equations(options: dict[str, Any], backend: str) -> None:
    made, x = mixer(backend=backend, **options), random(1, 2, 20, D)
    assert off(made(x), explicit(made, x)) <= 1e-11


@pytest.mark.parametrize("sizes", [[1], [3], [8], [1, 3, 8], [70]])
def test_steps_equal_forward(sizes: list[int]) -> None:
    assert worst_step(mixer(), random(1, 2, 70, D), sizes) <= 1e-11


def test_is_causal() -> None:
    assert leak(mixer(), random(1, 2, 70, D), 37) <= 1e-13


@pytest.mark.parametrize("d", [1, 64])
def test_decays_start_as_mamba_2s(d: int) -> None:
    torch.manual_seed(0)
    gate = DecayGate(500, d)
    rate, dt = gate.log_rate.exp(), F.softplus(gate.bias)
    assert 1 <= rate.min() <= 1.3
    assert 15.7 <= rate.max() <= 16
    assert dt.min().item() == pytest.approx(1e-3, rel=0.05)
    assert dt.max().item() == pytest.approx(0.1, rel=0.05)
    assert dt.log().median().exp().item() == pytest.approx(0.01, rel=0.2)
    log_decay = gate(torch.zeros(2, 3, 500, d))
    torch.testing.assert_close(log_decay, -(rate * dt).expand(2, 3, 500, d))
    assert gate(torch.zeros(2, 3, 500, d, dtype=torch.bfloat16)).dtype == torch.float32


def test_has_6_d_squared_parameters() -> None:
    made = GatedDeltaNet(512, 2, 4)
    matrices = sum(p.numel() for p in made.parameters() if p.ndim == 2 and min(p.shape) > 4)
    assert matrices == 6 * 512**2
    assert (made.d_k, made.d_v) == (96, 192)


def test_the_decays_parameters_do_not_decay() -> None:
    model = create_model("gated-deltanet", 20, d_model=32, n_layers=1)
    found = model.no_weight_decay()
    assert found == {"blocks.0.mixer.decay.log_rate", "blocks.0.mixer.decay.bias"}
    assert found <= dict(model.named_parameters()).keys()


def test_errors() -> None:
    with pytest.raises(InputError, match="n_heads 5 does not divide expand_k"):
        GatedDeltaNet(D, 2, 5)
    with pytest.raises(InputError, match=r"expand_v -1\.0 gives heads of -24 dimensions"):
        GatedDeltaNet(D, 2, 3, expand_v=-1.0)
    with pytest.raises(InputError, match="needs CUDA tensors"):
        GatedDeltaNet(D, 2, HEADS, backend="fla")(torch.zeros(1, 5, D))


def test_bfloat16() -> None:
    torch.manual_seed(0)
    made = GatedDeltaNet(D, 2, HEADS)
    x = random(1, 2, 70, D).float()
    wanted = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert off(found, wanted) <= 0.05
    assert off(made.bfloat16()(x.bfloat16()), wanted) <= 0.05
