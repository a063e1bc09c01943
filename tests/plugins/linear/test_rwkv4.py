"""RWKV-4's time mixing against its equations, for exponents of any size, and the fault of the paper's variant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import create_model
from icll_zoo_linear.rwkv4 import RwkvTimeMixing, wkv, wkv_recurrent

B, D = 2, 12


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(length: int, size: float = 1.0, decay: str = "mixed") -> list[Tensor]:
    """k (of a given size), v, decay and bonus."""
    k, v, bonus = random(1, B, length, D) * size, random(2, B, length, D), random(3, D) * size
    decays = {"mixed": torch.logspace(-6, 1.7, D), "growing": -torch.logspace(-6, 1, D), "none": torch.zeros(D)}
    return [k, v, decays[decay].double(), bonus]


def off(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def log_sums(state: Tensor) -> Tensor:
    """The state without its unit: n / d and m + log d, which is all that it says."""
    n, d, m = state.unbind(1)
    return torch.stack([n / d, m + d.log()])


def with_gradients(op: Any, given: list[Tensor], **options: Any) -> list[Tensor]:
    given = [x.detach().clone().requires_grad_() for x in given]
    o, state = op(*given, **options)
    # The state by way of what is read after it, as its units may differ.
    after, _ = wkv_recurrent(*inputs(1), state)
    loss = (o * random(7, *o.shape)).sum() + (after * random(8, *after.shape)).sum()
    return [x.detach() for x in (o, log_sums(state), *torch.autograd.grad(loss, given))]


@pytest.mark.parametrize("op", [wkv, wkv_recurrent])
@pytest.mark.parametrize("decay", ["mixed", "growing"])
def test_equals_the_formula(op: Any, decay: str) -> None:
    """The weighted mean by its definition, in Python numbers, for decays up to e^-50 and growth up to e^10 a token."""
    k, v, w, u = inputs(9, decay=decay)
    o, _ = op(k, v, w, u)
    for t in range(9):
        for row in range(B):
            for c in range(D):
                weights = [math.exp(k[row, s, c] - (t - 1 - s) * w[c]) for s in range(t)]
                weights.append(math.exp(u[c] + k[row, t, c]))
                wanted = sum(p * v[row, s, c].item() for s, p in enumerate(weights)) / sum(weights)
                assert o[row, t, c].item() == pytest.approx(wanted, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("size", [1.0, 300.0])
@pytest.mark.parametrize("decay", ["mixed", "growing", "none"])
@pytest.mark.parametrize("chunk_size", [1, 16, 32, 300])
def test_scan_equals_the_recurrence(size: float, decay: str, chunk_size: int) -> None:
    given = inputs(257, size, decay)
    wanted, found = with_gradients(wkv_recurrent, given), with_gradients(wkv, given, chunk_size=chunk_size)
    assert wanted[0].isfinite().all()
    # The running maximum of k + t w is a number of thousands here, of which exponents keep that many digits less.
    assert max(off(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-9


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33, 65])
def test_any_length_and_from_a_state(length: int) -> None:
    given = inputs(length)
    _, state = wkv_recurrent(*inputs(20, 2.0))
    for start in (None, state):
        found, wanted = wkv(*given, start), wkv_recurrent(*given, start)
        assert off(found[0], wanted[0]) <= 1e-11
        assert off(log_sums(found[1]), log_sums(wanted[1])) <= 1e-11


def test_pieces_equal_the_whole() -> None:
    k, v, w, u = inputs(100)
    wanted, _ = wkv(k, v, w, u)
    found, state = [], None
    for piece_k, piece_v in zip(k.split([1, 40, 3, 56], 1), v.split([1, 40, 3, 56], 1), strict=True):
        before = None if state is None else state.clone()
        o, after = wkv(piece_k, piece_v, w, u, state)
        assert before is None or torch.equal(state, before)
        found.append(o)
        state = after
    assert off(torch.cat(found, 1), wanted) <= 1e-11


def test_gradients_through_the_state() -> None:
    """A loss on what follows reaches what came before, through n and d alike."""
    k, v, w, u = inputs(40)
    results = []
    for op in (wkv, wkv_recurrent):
        early = [x[:, :20].clone().requires_grad_() for x in (k, v)]
        _, state = op(*early, w, u)
        o, _ = op(k[:, 20:], v[:, 20:], w, u, state)
        results.append(torch.autograd.grad((o * random(5, *o.shape)).sum(), early))
    whole = [x.clone().requires_grad_() for x in (k, v)]
    o = wkv(*whole, w, u)[0][:, 20:]
    results.append([g[:, :20] for g in torch.autograd.grad((o * random(5, *o.shape)).sum(), whole)])
    for found in results[:2]:
        assert max(off(a, b) for a, b in zip(found, results[2], strict=True)) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types(dtype: torch.dtype) -> None:
    k, v, w, u = inputs(257, 20.0)
    k, v = k.to(dtype), v.to(dtype)
    o, state = wkv(k, v, w.float(), u.float())
    wanted, _ = wkv_recurrent(k.double(), v.double(), w.float().double(), u.float().double())
    assert (o.dtype, state.dtype) == (dtype, torch.float32)
    assert off(o.double(), wanted) <= (1e-4 if dtype == torch.float32 else 1e-2)


@torch.no_grad()
def explicit(made: RwkvTimeMixing, x: Tensor, sign: float) -> Tensor:
    """The equations, one token at a time, the sums without units."""
    before = torch.zeros_like(x[:, 0])
    n, d = torch.zeros_like(before), torch.zeros_like(before)
    outputs = []
    for t in range(x.size(1)):
        now = x[:, t]
        k, v, r = (
            (mu * now + (1 - mu) * before) @ proj.weight.T
            for mu, proj in zip(made.mix, (made.k_proj, made.v_proj, made.r_proj), strict=True)
        )
        own = torch.exp(made.time_first + k)
        o = (n + own * v) / (d + own)
        outputs.append((torch.sigmoid(r) * o) @ made.out_proj.weight.T)
        factor = torch.exp(sign * torch.exp(made.time_decay))
        n, d = factor * n + k.exp() * v, factor * d + k.exp()
        before = now
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("amplify", [False, True])
def test_equals_the_equations(backend: str, amplify: bool) -> None:
    """With the fault, the state grows by e^w a token, where it should shrink."""
    made = RwkvTimeMixing(D, 2, 1, amplify=amplify, backend=backend).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    x = random(9, 2, 13, D)
    torch.testing.assert_close(made(x), explicit(made, x, 1.0 if amplify else -1.0), rtol=0, atol=1e-11)


def test_old_tokens_win_with_the_fault_only() -> None:
    """Two values, long apart: decayed, the recent one is read; amplified, the old one."""
    k, v = torch.zeros(1, 40, 1), torch.zeros(1, 40, 1)
    v[:, 0], v[:, 38] = 1.0, -1.0
    w, u = torch.ones(1), torch.full((1,), -20.0)
    assert wkv(k, v, w, u)[0][0, -1].item() < -0.6
    assert wkv(k, v, -w, u)[0][0, -1].item() > 0.6


def test_as_in_the_paper() -> None:
    torch.manual_seed(0)
    model: Any = create_model("rwkv-4-paper", 20)
    assert len(model.blocks) == 8
    assert model.blocks[0].mlp.kind == "gelu"
    for block in model.blocks:
        made = block.mixer
        assert made.amplify
        for parameter in (made.mix, made.time_decay, made.time_first):
            assert parameter.std().item() == pytest.approx(1, abs=0.25)
            assert parameter.abs().max() > 1
        assert made.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    ours: Any = create_model("rwkv-4", 20)
    assert ours.blocks[0].mlp.kind == "rwkv"
    assert not ours.blocks[0].mixer.amplify


def test_initialisation_by_layer() -> None:
    model: Any = create_model("rwkv-4", 20, n_layers=3, d_model=64)
    for index, block in enumerate(model.blocks):
        made = block.mixer
        assert (made.time_decay[0].item(), made.time_decay[-1].item()) == pytest.approx((-5, 3))
        assert made.time_decay.diff().min() > 0
        assert made.time_first[:3].tolist() == pytest.approx([math.log(0.3) + z for z in (0, 0.5, -0.5)])
        place = torch.arange(64) / 64
        height = 1 - index / 3
        for mu, wanted in zip(
            made.mix, (place**height, place**height + 0.15 * index, place ** (height / 2)), strict=True
        ):
            torch.testing.assert_close(mu.detach(), wanted)
