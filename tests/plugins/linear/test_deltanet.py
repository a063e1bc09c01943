"""DeltaNet's mixer against its equations, its steps, and the published variant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from delta_cases import convolved, leak, of_length_one, off, random, rms, scattered, worst_step
from torch import Tensor

from icll_zoo import InputError, create_model
from icll_zoo_linear.deltanet import DeltaNet

D, HEADS = 24, 3
KINDS: list[dict[str, Any]] = [
    {},
    {"expand_k": 0.5, "expand_v": 2.0, "gate": True},
    {"conv": "shared", "expand_k": 0.5},
    {"conv": "shared", "gate": True, "conv_size": 2},
    {"conv": "none", "gate": True},
]


def mixer(**options: Any) -> Any:
    torch.manual_seed(0)
    return scattered(DeltaNet(D, 2, HEADS, **options))


@torch.no_grad()
def explicit(made: Any, x: Tensor) -> Tensor:
    """DeltaNet by its equations, one row, head and token at a time."""
    if made.conv_kind == "shared":
        x = convolved(x, made.conv.weight)
    qkv = made.qkv_proj(x)
    if made.conv_kind == "each":
        qkv = convolved(qkv, made.conv.weight)
    d_k, d_v = made.d_k, made.d_v
    q, k, v = qkv.split([HEADS * d_k, HEADS * d_k, HEADS * d_v], -1)
    beta = torch.sigmoid(made.beta_proj(x))
    mixed = torch.zeros_like(v)
    for row in range(len(x)):
        for head in range(HEADS):
            keys, values = slice(head * d_k, (head + 1) * d_k), slice(head * d_v, (head + 1) * d_v)
            state = torch.zeros(d_k, d_v, dtype=torch.float64)
            for t in range(x.size(1)):
                key = of_length_one(k[row, t, keys])
                state += beta[row, t, head] * torch.outer(key, v[row, t, values] - key @ state)
                mixed[row, t, values] = rms(of_length_one(q[row, t, keys]) @ state / d_k**0.5, made.norm.weight)
    if made.gate_proj is not None:
        gate = made.gate_proj(x)
        mixed = mixed * gate * torch.sigmoid(gate)
    return mixed @ made.out_proj.weight.T


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_equals_the_equations(options: dict[str, Any], backend: str) -> None:
    made, x = mixer(backend=backend, **options), random(1, 2, 20, D)
    assert off(made(x), explicit(made, x)) <= 1e-11


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("sizes", [[1], [3], [8], [1, 3, 8], [70]])
def test_steps_equal_forward(options: dict[str, Any], sizes: list[int]) -> None:
    assert worst_step(mixer(**options), random(1, 2, 70, D), sizes) <= 1e-11


def test_is_causal() -> None:
    for options in KINDS:
        assert leak(mixer(**options), random(1, 2, 70, D), 37) <= 1e-13


def test_as_published() -> None:
    torch.manual_seed(0)
    model = create_model("deltanet-paper", 20)
    options = model.options
    assert (options.d_model, options.n_layers, options.norm, options.mlp, options.mlp_ratio) == (
        256, 8, "layernorm", "gelu", 4.0,
    )  # fmt: skip
    made = model.blocks[0].mixer
    assert (made.n_heads, made.d_k, made.d_v, made.conv_kind, made.gate_proj) == (4, 32, 64, "shared", None)
    assert made.conv.weight.shape == (256, 4)
    assert made.qkv_proj.weight.shape == (128 + 128 + 256, 256)
    # Its code misnames the last layer, which therefore starts as all others do.
    assert made.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert DeltaNet(256, 8).out_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)


def test_widths() -> None:
    made = DeltaNet(D, 2, HEADS, expand_k=0.5, expand_v=2.0)
    state = made.init_state(4, "cpu", torch.bfloat16)
    assert state["kv"].shape == (4, HEADS, D // 2 // HEADS, 2 * D // HEADS)
    assert state["kv"].dtype == torch.float32  # a sum over any number of tokens
    assert state["conv"].shape == (4, 3, 3 * D)
    assert state["conv"].dtype == torch.bfloat16
    assert set(DeltaNet(D, 2, HEADS, conv="none").init_state(4, "cpu", torch.float32)) == {"kv"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 5}, "n_heads 5 does not divide expand_k"),
        ({"n_heads": 2, "expand_v": 1 / 24}, "does not divide expand_v"),
        ({"expand_k": 0.0}, "expand_k 0.0 gives heads of 0 dimensions"),
        ({"expand_k": 0.7}, "expand_k 0.7 gives heads of 16.8 dimensions"),
        ({"conv_size": 0}, "conv_size 0"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DeltaNet(D, 2, **{"n_heads": HEADS, **options})


def test_fla_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="needs CUDA tensors"):
        DeltaNet(D, 2, HEADS, backend="fla")(torch.zeros(1, 5, D))


def test_bfloat16() -> None:
    made = DeltaNet(D, 2, HEADS)
    x = random(1, 2, 70, D).float()
    wanted = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert off(found, wanted) <= 0.05
    assert off(made.bfloat16()(x.bfloat16()), wanted) <= 0.05
