"""The mesa layer: its chunks, its solver against elimination, its gradients, and the mixer against the equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from delta_cases import (
    D_K,
    D_V,
    DECAYS,
    B,
    H,
    convolved,
    leak,
    log_decays,
    of_length_one,
    off,
    random,
    rms,
    scattered,
    uniform,
    with_gradients,
    worst_step,
)
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import InputError, create_model
from icll_zoo_linear.mesanet import MesaNet, conjugate_gradient, mesa, mesa_direct, mesa_fla, mesa_recurrent

D, HEADS = 24, 3
EXACT = {"iterations": 60, "tolerance": 1e-13}


def inputs(length: int, decay: str = "mixed") -> list[Tensor]:
    """q, k, v, beta, log_decay, penalty and a state, float64."""
    half = random(7, B, H, D_K, D_K)
    return [
        F.normalize(random(1, B, length, H, D_K), dim=-1),
        F.normalize(random(2, B, length, H, D_K), dim=-1),
        random(3, B, length, H, D_V),
        uniform(4, B, length, H),
        log_decays(decay, B, length, H),
        0.25 + uniform(5, H, D_K),
        torch.cat([half @ half.mT, random(6, B, H, D_K, D_V)], -1),
    ]


def symmetric_gradients(op: Any, given: list[Tensor], **options: Any) -> list[Tensor]:
    """As `with_gradients`, where H's is the gradient for symmetric changes: there are no others."""
    *found, state = with_gradients(op, given, **options)
    state[..., :D_K] = state[..., :D_K] + state[..., :D_K].mT
    return [*found, state]


def test_by_hand() -> None:
    """Two tokens of one number, from H = 2 and G = 3, with a penalty of 1/2."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).view(1, 2, 1, 1) for x in ([1.0, 3.0], [5.0, 7.0], [11.0, 13.0]))
    beta = torch.tensor([0.5, 0.25], dtype=torch.float64).view(1, 2, 1)
    log_decay = torch.tensor([0.5, 0.125], dtype=torch.float64).log().view(1, 2, 1)
    penalty, state = torch.tensor([[0.5]]).double(), torch.tensor([2.0, 3.0]).double().view(1, 1, 1, 2)
    h1, g1 = 2 / 2 + 0.5 * 25, 3 / 2 + 0.5 * 5 * 11
    h2, g2 = h1 / 8 + 0.25 * 49, g1 / 8 + 0.25 * 7 * 13
    for op in (mesa, mesa_recurrent, mesa_direct):
        o, after = op(q, k, v, beta, log_decay, penalty, state)
        assert o.flatten().tolist() == pytest.approx([g1 / (h1 + 0.5), 3 * g2 / (h2 + 0.5)], rel=1e-12)
        assert after.flatten().tolist() == pytest.approx([h2, g2], rel=1e-12)


@torch.no_grad()
def test_is_the_least_squares_fit() -> None:
    """With no decay, o_t is q_t times the ridge regression of the values so far on the keys so far."""
    q, k, v, beta, log_decay, penalty, _ = inputs(30, "none")
    o, _ = mesa(q, k, v, beta, log_decay, penalty, **EXACT)
    for b in range(B):
        for h in range(H):
            for t in (0, 3, 29):
                root = beta[b, : t + 1, h, None].sqrt()
                rows = torch.cat([root * k[b, : t + 1, h], torch.diag(penalty[h].sqrt())])
                wanted = torch.cat([root * v[b, : t + 1, h], torch.zeros(D_K, D_V, dtype=torch.float64)])
                assert off(o[b, t, h], q[b, t, h] @ torch.linalg.lstsq(rows, wanted).solution) <= 1e-11


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_chunks_equal_elimination(decay: str, chunk_size: int) -> None:
    given = inputs(257, decay)
    found = symmetric_gradients(mesa, given, chunk_size=chunk_size, **EXACT)
    for a, b in zip(found, symmetric_gradients(mesa_direct, given), strict=True):
        assert off(a, b) <= 1e-10


@pytest.mark.parametrize("iterations", [1, 3])
def test_both_forms_take_the_same_steps(iterations: int) -> None:
    given = inputs(130)
    options: dict[str, Any] = {"iterations": iterations, "tolerance": 0.0}
    found, wanted = with_gradients(mesa, given, **options), with_gradients(mesa_recurrent, given, **options)
    for a, b in zip(found, wanted, strict=True):
        assert off(a, b) <= 1e-11
    assert off(found[0], mesa_direct(*given)[0]) > 1e-4  # too few to solve


@pytest.mark.parametrize("length", [1, 2, 5, 63, 64, 65])
@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_any_length_in_any_chunks(length: int, chunk_size: int) -> None:
    *given, state = inputs(length)
    for start in (state, None):
        found = mesa(*given, start, chunk_size=chunk_size, **EXACT)
        for a, b in zip(found, mesa_direct(*given, start), strict=True):
            assert off(a, b) <= 1e-10


def test_the_solver() -> None:
    half = random(1, 50, 12, 12)
    matrices, y = half @ half.mT + torch.eye(12), random(2, 50, 12)
    y[3] = 0

    def product(p: Tensor) -> Tensor:
        return (matrices @ p[..., None])[..., 0]

    exact = torch.linalg.solve(matrices, y)
    assert off(conjugate_gradient(product, y, 40, 0.0), exact) <= 1e-12
    assert off(conjugate_gradient(product, y, 400, 0.0), exact) <= 1e-12  # long after there is nothing left to do
    for tolerance in (1e-1, 1e-4):
        x = conjugate_gradient(product, y, 40, tolerance)
        residual = (y - product(x)).norm(dim=-1)
        assert (residual <= 1.01 * tolerance * y.norm(dim=-1)).all()
        assert residual.max() > 1e-3 * tolerance * y.norm(dim=-1).max()  # it rests once that is reached


def test_float32_and_the_strongest_decays() -> None:
    given = inputs(512)
    given[4][:, ::7] = -1e4
    wanted = symmetric_gradients(mesa_direct, given)
    found = symmetric_gradients(mesa, [x.float() for x in given], iterations=30, tolerance=1e-7)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert off(a, b) <= 2e-5


@pytest.mark.parametrize("op", [mesa, mesa_recurrent])
def test_bfloat16_in_float32_inside(op: Any) -> None:
    given = [x.bfloat16() for x in inputs(70, "tiny")]
    wanted, state = op(*(x.float() for x in given))
    with torch.autocast("cpu", torch.bfloat16):
        o, after = op(*given)
    assert (o.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    assert off(o, wanted) <= 4e-3
    assert torch.equal(after, state)


def test_autocast_changes_nothing_in_float32() -> None:
    def under_autocast(*given: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return mesa(*given)

    given = [x.float() for x in inputs(70, "tiny")]
    for a, b in zip(with_gradients(under_autocast, given), with_gradients(mesa, given), strict=True):
        assert torch.equal(a, b)


def mixer(**options: Any) -> Any:
    torch.manual_seed(0)
    return scattered(MesaNet(D, 2, HEADS, **options))


@torch.no_grad()
def explicit(made: Any, x: Tensor) -> Tensor:
    """MesaNet by its equations, one row, head and token at a time, with the inverse itself."""
    d = D // HEADS
    q, k = convolved(made.qk_proj(x), made.conv.weight).split(D, -1)
    v = made.v_proj(x)
    beta, decay = torch.sigmoid(made.beta_proj(x)), torch.sigmoid(made.decay_proj(x))
    penalty = torch.log1p(torch.exp(made.penalty)) + made.min_penalty
    mixed = torch.zeros_like(x)
    for row in range(len(x)):
        for head in range(HEADS):
            own = slice(head * d, (head + 1) * d)
            h, g = torch.zeros(d, d, dtype=x.dtype), torch.zeros(d, d, dtype=x.dtype)
            for t in range(x.size(1)):
                key, a, b = of_length_one(k[row, t, own]), decay[row, t, head], beta[row, t, head]
                h = a * h + b * torch.outer(key, key)
                g = a * g + b * torch.outer(key, v[row, t, own])
                o = of_length_one(q[row, t, own]) @ torch.linalg.inv(h + torch.diag(penalty[head])) @ g
                mixed[row, t, own] = rms(o, made.norm.weight)
    if made.gate_proj is not None:
        gate = made.gate_proj(x)
        mixed = mixed * gate * torch.sigmoid(gate)
    return mixed @ made.out_proj.weight.T


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("gate", [False, True])
def test_equals_the_equations(backend: str, gate: bool) -> None:
    made, x = mixer(backend=backend, gate=gate, **EXACT), random(1, 2, 20, D)
    assert off(made(x), explicit(made, x)) <= 1e-10


@pytest.mark.parametrize("options", [EXACT, {}, {"iterations": 3, "tolerance": 0.0}])
@pytest.mark.parametrize("sizes", [[1], [3], [8], [1, 3, 8], [70]])
def test_steps_equal_forward(options: dict[str, Any], sizes: list[int]) -> None:
    assert worst_step(mixer(**options), random(1, 2, 70, D), sizes) <= 1e-10


def test_is_causal() -> None:
    assert leak(mixer(), random(1, 2, 70, D), 37) <= 1e-12


def test_starts_with_a_penalty_of_1() -> None:
    model = create_model("mesanet", 20, d_model=32, n_layers=1, min_penalty=0.3)
    made = model.blocks[0].mixer
    torch.testing.assert_close(F.softplus(made.penalty) + 0.3, torch.ones(2, 16))
    assert model.no_weight_decay() == {"blocks.0.mixer.penalty"}


def test_errors() -> None:
    for options, message in (
        ({"n_heads": 5}, "n_heads 5 does not divide d_model 24"),
        ({"iterations": 0}, "iterations 0 must be at least 1"),
        ({"tolerance": -1.0}, "tolerance -1.0 at least 0"),
        ({"min_penalty": 0.0}, "min_penalty 0.0 is not between"),
    ):
        with pytest.raises(InputError, match=message):
            MesaNet(D, 2, **{"n_heads": HEADS, **options})
    given = inputs(10)
    with pytest.raises(InputError, match="chunk_size 0"):
        mesa(*given, chunk_size=0)
    with pytest.raises(InputError, match="iterations 0"):
        mesa(*given, iterations=0)
    with pytest.raises(InputError, match="needs CUDA tensors"):
        mesa_fla(*given)


def test_bfloat16() -> None:
    torch.manual_seed(0)
    made = MesaNet(D, 2, HEADS)
    x = random(1, 2, 70, D).float()
    wanted = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert off(found, wanted) <= 0.05
    assert off(made.bfloat16()(x.bfloat16()), wanted) <= 0.05
