"""RWKV-7: its recurrence in chunks, and its time mixing against the equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from delta_cases import (
    D_K,
    D_V,
    DECAYS,
    B,
    H,
    leak,
    log_decays,
    off,
    random,
    scattered,
    uniform,
    with_gradients,
    worst_step,
)
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import InputError, create_model
from icll_zoo_linear.rwkv7 import GooseTimeMixing, rwkv7, rwkv7_recurrent

D, HEADS = 24, 3


def inputs(length: int, decay: str = "mixed", width: int = D_K) -> list[Tensor]:
    """r, log_decay, k, v, a, b and a state, a and b as RWKV-7 has them: -c and rate * c with |c| = 1."""
    removal = F.normalize(random(4, B, length, H, D_K), dim=-1)
    return [
        random(1, B, length, H, D_K),
        log_decays(decay, B, length, H, width),
        random(2, B, length, H, D_K),
        random(3, B, length, H, D_V),
        -removal,
        uniform(5, B, length, H, D_K) * removal,
        random(6, B, H, D_K, D_V),
    ]


@pytest.mark.parametrize("op", [rwkv7, rwkv7_recurrent])
def test_by_hand(op: Any) -> None:
    """Six tokens of one number: s <- w s + b a s + k v."""
    r, w, k, v, a, b = uniform(1, 6, 6)
    o, after = op(*(x.view(1, 6, 1, 1) for x in (r, w.log(), k, v, -a, b)), torch.full((1, 1, 1, 1), 2.0).double())
    state = 2.0
    for t in range(6):
        state = float(w[t] * state - b[t] * a[t] * state + k[t] * v[t])
        assert o[0, t].item() == pytest.approx(r[t].item() * state, rel=1e-12)
    assert after.item() == pytest.approx(state, rel=1e-12)


@torch.no_grad()
def test_the_recurrence_is_the_papers() -> None:
    """Equation 17 of the paper, whose state is the other way round: S (diag(w) - c^T (a * c)) + v^T k."""
    r, log_decay, k, v, a, b, start = inputs(9)
    o, after = rwkv7_recurrent(r, log_decay, k, v, a, b, start)
    for row in range(B):
        for h in range(H):
            state = start[row, h].T
            for t in range(9):
                move = torch.diag(log_decay[row, t, h].exp()) + torch.outer(a[row, t, h], b[row, t, h])
                state = state @ move + torch.outer(v[row, t, h], k[row, t, h])
                assert off(o[row, t, h], state @ r[row, t, h]) <= 1e-12
            assert off(after[row, h], state.T) <= 1e-12


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("width", [D_K, 1])
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_chunks_equal_the_recurrence(decay: str, width: int, chunk_size: int) -> None:
    given = inputs(257, decay, width)
    found = with_gradients(rwkv7, given, chunk_size=chunk_size)
    for a, b in zip(found, with_gradients(rwkv7_recurrent, given), strict=True):
        assert off(a, b) <= 1e-11


@pytest.mark.parametrize("length", [1, 2, 5, 63, 64, 65])
@pytest.mark.parametrize("chunk_size", [7, 64])
def test_any_length_in_any_chunks(length: int, chunk_size: int) -> None:
    *given, state = inputs(length)
    for start in (state, None):
        for a, b in zip(rwkv7(*given, start, chunk_size), rwkv7_recurrent(*given, start), strict=True):
            assert off(a, b) <= 1e-11


@pytest.mark.parametrize("op", [rwkv7, rwkv7_recurrent])
def test_bfloat16_in_float32_inside(op: Any) -> None:
    given = [x.bfloat16() for x in inputs(130, "tiny")]
    wanted, state = op(*(x.float() for x in given))
    with torch.autocast("cpu", torch.bfloat16):
        o, after = op(*given)
    assert (o.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    assert off(o, wanted) <= 4e-3
    assert torch.equal(after, state)


def mixer(**options: Any) -> Any:
    torch.manual_seed(0)
    return scattered(GooseTimeMixing(D, 4, 1, HEADS, **options))


@torch.no_grad()
def explicit(made: Any, x: Tensor) -> Tensor:
    """RWKV-7's time mixing by its equations, one row, head and token at a time."""
    d = D // HEADS
    before = torch.cat([torch.zeros(len(x), 1, D, dtype=x.dtype), x[:, :-1]], 1)
    x_r, x_d, x_k, x_v, x_a, x_g = (x + mu * (before - x) for mu in made.mix)
    r, k, v = x_r @ made.r_proj.weight.T, x_k @ made.k_proj.weight.T, x_v @ made.v_proj.weight.T
    w = torch.exp(-math.exp(-0.5) * torch.sigmoid(made.decay.bias + torch.tanh(x_d @ made.decay.down) @ made.decay.up))
    rate = torch.sigmoid(made.rate.bias + x_a @ made.rate.down @ made.rate.up)
    gate = torch.sigmoid(x_g @ made.gate.down) @ made.gate.up
    key = k * (1 + (rate - 1) * made.replacement)
    mixed = torch.zeros_like(x)
    for row in range(len(x)):
        for head in range(HEADS):
            own = slice(head * d, (head + 1) * d)
            state = torch.zeros(d, d, dtype=x.dtype)
            for t in range(x.size(1)):
                c = k[row, t, own] * made.removal[own]
                c = c / c.norm()
                state = torch.diag(w[row, t, own]) @ state - torch.outer(rate[row, t, own] * c, c @ state)
                state = state + torch.outer(key[row, t, own], v[row, t, own])
                o = r[row, t, own] @ state
                o = (o - o.mean()) / (o.var(correction=0) + 64e-5).sqrt() * made.norm.weight[own] + made.norm.bias[own]
                bonus = (r[row, t, own] * made.bonus[head] * key[row, t, own]).sum()
                mixed[row, t, own] = o + bonus * v[row, t, own]
    return (gate * mixed) @ made.out_proj.weight.T


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_equals_the_equations(backend: str) -> None:
    made, x = mixer(backend=backend), random(1, 2, 20, D)
    assert off(made(x), explicit(made, x)) <= 1e-11


@pytest.mark.parametrize("sizes", [[1], [3], [8], [1, 3, 8], [70]])
def test_steps_equal_forward(sizes: list[int]) -> None:
    assert worst_step(mixer(), random(1, 2, 70, D), sizes) <= 1e-11


def test_is_causal() -> None:
    assert leak(mixer(), random(1, 2, 70, D), 37) <= 1e-13


def test_starts_as_the_authors_code() -> None:
    torch.manual_seed(0)
    first, last = GooseTimeMixing(64, 3, 0, 2), GooseTimeMixing(64, 3, 2, 2)
    # Channel 0 looks back alone; upper layers look back less.
    assert torch.equal(first.mix[:, 0], torch.ones(6))
    assert (last.mix[:, 1:] < first.mix[:, 1:]).all()
    assert first.mix[3, 32].item() == pytest.approx(1 - 0.5**0.7)
    assert last.mix[1, 32].item() == pytest.approx(1 - 0.5 ** (0.9 / 3))
    # The zigzag over heads of 32: -1 at a head's first channel, 1 at its last.
    assert first.decay.bias[0].item() == pytest.approx(-5.5 - 2.5)
    assert first.decay.bias[63].item() == pytest.approx(0.5 + 2.5)
    assert first.decay.bias[32].item() == pytest.approx(-5.5 + 6 * 32 / 63 - 2.5)
    assert last.decay.bias[32].item() == pytest.approx(-5.5 + 6 * (32 / 63) ** 2 - 2.5)
    assert first.rate.bias[0].item() == pytest.approx(-0.19 - 0.3 - 0.2)
    assert first.removal[0].item() == pytest.approx(0.76)
    assert first.out_proj.weight.any()
    assert GooseTimeMixing(8, 1, 0, 2).mix.isfinite().all()


def test_ranks() -> None:
    sizes = {name: getattr(GooseTimeMixing(1024, 24, 0, 16), name).down.size(1) for name in ("decay", "rate", "gate")}
    assert sizes == {"decay": 64, "rate": 64, "gate": 160}  # 2.5 and 5 times 32, in steps of 32
    small = GooseTimeMixing(64, 2, 0, 2, decay_rank=3, rate_rank=4, gate_rank=5)
    assert [low.down.size(1) for low in (small.decay, small.rate, small.gate)] == [3, 4, 5]


def test_only_matrices_decay() -> None:
    model = create_model("rwkv-7", 20, d_model=32, n_layers=1)
    exempt = model.no_weight_decay()
    names = dict(model.named_parameters()).keys()
    assert exempt <= names
    left = {name.removeprefix("blocks.0.mixer.") for name in names - exempt if ".mixer." in name}
    assert left == {f"{name}_proj.weight" for name in ("r", "k", "v", "out")} | {"norm.weight", "norm.bias"}
    assert model.blocks[0].mlp.kind == "rwkv"


def test_errors() -> None:
    with pytest.raises(InputError, match="n_heads 5 does not divide d_model 24"):
        GooseTimeMixing(D, 2, 0, 5)
    with pytest.raises(InputError, match="a rank of 0"):
        GooseTimeMixing(D, 2, 0, HEADS, rate_rank=0)
    with pytest.raises(InputError, match="needs CUDA tensors"):
        GooseTimeMixing(D, 2, 0, HEADS, backend="fla")(torch.zeros(1, 5, D))
    with pytest.raises(InputError, match="chunk_size 0"):
        rwkv7(*inputs(9), chunk_size=0)


def test_bfloat16() -> None:
    torch.manual_seed(0)
    made = GooseTimeMixing(D, 2, 0, HEADS)
    x = random(1, 2, 70, D).float()
    wanted = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert off(found, wanted) <= 0.1
    assert off(made.bfloat16()(x.bfloat16()), wanted) <= 0.1
