"""RWKV-6's time mixing against its equations, and its recurrence as decayed linear attention with shifted queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError, create_model
from icll_zoo_linear.decay import gla_recurrent
from icll_zoo_linear.rwkv6 import FinchTimeMixing, wkv6, wkv6_recurrent

D, HEADS = 24, 3


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(length: int, strongest: float = 5.0) -> list[Tensor]:
    """r, k, v, log_decay, bonus and a state."""
    b, d_k, d_v = 2, 8, 5
    log_decay = -strongest * torch.rand(b, length, HEADS, d_k, generator=torch.Generator().manual_seed(6)).double() ** 4
    return [
        random(1, b, length, HEADS, d_k),
        random(2, b, length, HEADS, d_k),
        random(3, b, length, HEADS, d_v),
        log_decay,
        random(4, HEADS, d_k),
        random(5, b, HEADS, d_k, d_v),
    ]


def off(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def test_by_hand() -> None:
    """One channel: what is read is the state before the decay, plus the bonus' share of the token itself."""
    r, k, v = (torch.tensor(x, dtype=torch.float64).view(1, 2, 1, 1) for x in ([1.0, 3.0], [5.0, 7.0], [11.0, 13.0]))
    log_decay = torch.tensor([0.5, 0.25], dtype=torch.float64).log().view(1, 2, 1, 1)
    bonus, state = torch.tensor([[10.0]], dtype=torch.float64), torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    between = 2 / 2 + 5 * 11
    for op in (wkv6, wkv6_recurrent):
        o, after = op(r, k, v, log_decay, bonus, state)
        assert o.flatten().tolist() == pytest.approx([2 + 10 * 5 * 11, 3 * (between + 10 * 7 * 13)], rel=1e-15)
        assert after.item() == pytest.approx(between / 4 + 7 * 13, rel=1e-15)


@pytest.mark.parametrize("strongest", [1e-3, 50.0])
@pytest.mark.parametrize("op", [None, gla_recurrent])
def test_shifted_queries_equal_the_recurrence(strongest: float, op: Any) -> None:
    results = []
    for form in (wkv6_recurrent, wkv6):
        given = [x.requires_grad_() for x in inputs(257, strongest)]
        o, state = form(*given, **({"op": op} if op and form is wkv6 else {}))
        loss = (o * random(7, *o.shape)).sum() + (state * random(8, *state.shape)).sum()
        results.append([o, state, *torch.autograd.grad(loss, given)])
    assert max(off(found, wanted) for wanted, found in zip(*results, strict=True)) <= 1e-12


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65])
def test_any_length_with_and_without_a_state(length: int) -> None:
    given = inputs(length)
    for some in (given, given[:5]):
        for found, wanted in zip(wkv6(*some), wkv6_recurrent(*some), strict=True):
            assert found.shape == wanted.shape
            assert off(found, wanted) <= 1e-12


@torch.no_grad()
def explicit(made: FinchTimeMixing, x: Tensor) -> Tensor:
    """The equations of the paper, one token at a time."""
    b, length, d = x.shape
    size = d // HEADS
    rank = made.mix_up.size(1)
    before = torch.zeros(b, d, dtype=torch.float64)
    state = torch.zeros(b, HEADS, size, size, dtype=torch.float64)
    outputs = []
    for t in range(length):
        now = x[:, t]
        step = before - now
        base = now + step * made.mix_x
        streams = []
        for i in range(5):
            low = torch.tanh(base @ made.mix_down[:, i * rank : (i + 1) * rank])
            streams.append(now + step * (made.mix[i] + low @ made.mix_up[i]))
        x_w, x_k, x_v, x_r, x_g = streams
        w = torch.exp(-torch.exp(made.decay + torch.tanh(x_w @ made.decay_down) @ made.decay_up)).view(b, HEADS, size)
        r, k, v = (
            (y @ proj.weight.T).view(b, HEADS, size)
            for y, proj in ((x_r, made.r_proj), (x_k, made.k_proj), (x_v, made.v_proj))
        )
        g = x_g @ made.g_proj.weight.T
        kv = k[..., None] * v[:, :, None]
        o = torch.einsum("bhk,bhkv->bhv", r, state + made.bonus[..., None] * kv)
        state = w[..., None] * state + kv
        o = (o - o.mean(-1, keepdim=True)) / (o.var(-1, correction=0, keepdim=True) + 64e-5).sqrt()
        o = o.reshape(b, d) * made.norm.weight + made.norm.bias
        outputs.append((torch.sigmoid(g) * g * o) @ made.out_proj.weight.T)
        before = now
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_equals_the_equations(backend: str) -> None:
    made = FinchTimeMixing(D, 2, 1, HEADS, mix_rank=4, decay_rank=6, backend=backend).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    x = random(9, 2, 13, D)
    torch.testing.assert_close(made(x), explicit(made, x), rtol=0, atol=1e-11)


def test_initialisation_by_layer() -> None:
    model: Any = create_model("rwkv-6", 20, n_layers=3, d_model=64)
    mixers = [block.mixer for block in model.blocks]
    for index, made in enumerate(mixers):
        # Channels from remembering for e^6 tokens to forgetting within e.
        assert (made.decay[0].item(), made.decay[-1].item()) == pytest.approx((-6, -1))
        assert made.decay.diff().min() > 0
        # The first channel looks back all the way, later ones less; in the last layer none looks back much.
        assert made.mix_x[0] == 1
        assert made.mix_x.diff().max() <= 0
        assert made.mix_x[1:].mean().item() == pytest.approx((0.5, 0.41, 0.25)[index], abs=0.02)
        assert 0 < made.mix_down.abs().max() <= 1e-4
        assert made.bonus.numel() == 64
    # Without depth, the bonus is the zigzag of -0.1, 0 and 0.1 alone.
    assert sorted({round(u, 6) for u in mixers[0].bonus.flatten().tolist()}) == [-0.1, 0.0, 0.1]
    assert mixers[0].bonus.flatten()[:3].tolist() == pytest.approx([0.0, 0.1, -0.1])
    assert model.blocks[0].mlp.kind == "rwkv"


def test_bad_options() -> None:
    with pytest.raises(InputError, match="n_heads 5 does not divide d_model 24"):
        FinchTimeMixing(24, 2, 0, n_heads=5)
    with pytest.raises(InputError, match="decay_rank 0 must be at least 1"):
        FinchTimeMixing(24, 2, 0, decay_rank=0)
