"""Retention against its equations and the paper's parallel form, normalisations included."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError, create_model
from icll_zoo_linear.decay import gla_recurrent
from icll_zoo_linear.retnet import Retention, retention, retention_quadratic, rotate

D, HEADS = 24, 3


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixer(**options: Any) -> Retention:
    made = Retention(D, 2, HEADS, **options).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    return made


@torch.no_grad()
def explicit(made: Retention, x: Tensor) -> Tensor:
    """Retention with both normalisations (they may change nothing), one query and head at a time."""
    b, length, d = x.shape
    d_k = d // HEADS
    d_v = made.v_proj.out_features // HEADS
    q, k, v, g = made.q_proj(x), made.k_proj(x) / math.sqrt(d_k), made.v_proj(x), made.g_proj(x)
    mixed = torch.zeros_like(v)
    for head in range(HEADS):
        gamma = 1 - 2 ** (-5 - head)
        keys, values = slice(head * d_k, (head + 1) * d_k), slice(head * d_v, (head + 1) * d_v)
        for row in range(b):
            queries, read = turned(q[row, :, keys]), turned(k[row, :, keys])
            for t in range(length):
                decays = [gamma ** (t - s) for s in range(t + 1)]
                scores = [float(queries[t] @ read[s]) * decays[s] for s in range(t + 1)]
                if made.normalise:
                    scores = [score / math.sqrt(sum(decays)) for score in scores]
                    scores = [score / max(abs(sum(scores)), 1.0) for score in scores]
                o = sum(score * v[row, s, values] for s, score in enumerate(scores))
                o = (o - o.mean()) / (o.var(correction=0) + 1e-5).sqrt()
                mixed[row, t, values] = o
    return made.out_proj(torch.sigmoid(g) * g * mixed)


def turned(x: Tensor) -> Tensor:
    """x (l, d): dimensions 2i and 2i + 1 as a complex number, times exp(i t / 10000^(i / (d / 2 - 1)))."""
    out = torch.empty_like(x)
    pairs = x.size(1) // 2
    for t in range(x.size(0)):
        for i in range(pairs):
            z = complex(x[t, 2 * i], x[t, 2 * i + 1]) * cmath.exp(1j * t / 10000 ** (i / (pairs - 1)))
            out[t, 2 * i], out[t, 2 * i + 1] = z.real, z.imag
    return out


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("options", [{}, {"bias": True, "normalise": True}, {"value_factor": 1}])
def test_equals_the_equations(backend: str, options: dict[str, Any]) -> None:
    made, x = mixer(backend=backend, **options), random(9, 2, 13, D)
    torch.testing.assert_close(made(x), explicit(made, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("op", [None, gla_recurrent])
def test_recurrent_equals_parallel(normalise: bool, op: Any) -> None:
    """Scores large enough for the sum of a row to exceed 1 here and there, and gradients that pass it by."""
    results = []
    for form in (retention_quadratic, retention):
        q, k, v = (random(i, 2, 150, HEADS, 8).requires_grad_() for i in range(3))
        if form is retention:
            o = retention(q, k, v, normalise=normalise, **({"op": op} if op else {}))[0]
        else:
            o = retention_quadratic(q, k, v, normalise)
        results.append([o, *torch.autograd.grad((o * random(5, *o.shape)).sum(), (q, k, v))])
    if normalise:
        t = torch.arange(150)
        decays = (1 - 2.0**-5) ** (t[:, None] - t).double().tril().clamp(min=0)
        sums = (torch.einsum("bid,bjd->bij", q[:, :, 0], k[:, :, 0]) * decays.tril()).sum(-1).abs()
        assert 0.1 < (sums > decays.tril().sum(-1).sqrt()).double().mean() < 0.9
    for found, wanted in zip(results[1], results[0], strict=True):
        assert ((found - wanted).abs().max() / wanted.abs().max()).item() <= 1e-12


def test_the_norm_makes_little_of_the_normalisation() -> None:
    """What the default leaves out: factors of a whole row, which LayerNorm divides out but for its eps."""
    x = random(9, 2, 40, D)
    with torch.no_grad():
        plain, normalised = mixer()(x), mixer(normalise=True)(x)
    gap = ((plain - normalised).norm() / plain.norm()).item()
    assert 1e-8 < gap < 1e-3


@pytest.mark.parametrize("normalise", [False, True])
def test_rows_may_stand_at_different_positions(normalise: bool) -> None:
    made, x = mixer(normalise=normalise), random(9, 2, 20, D)
    states = []
    for row, start in enumerate((3, 7)):
        _, state = made.step(x[row : row + 1, :start], made.init_state(1, "cpu", torch.float64))
        states.append(state)
    together = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    following = torch.stack([x[0, 3:8], x[1, 7:12]])
    y, after = made.step(following, together)
    assert after["position"].tolist() == [8, 12]
    torch.testing.assert_close(y[0], made(x[:1])[0, 3:8], rtol=0, atol=1e-11)
    torch.testing.assert_close(y[1], made(x[1:])[0, 7:12], rtol=0, atol=1e-11)


def test_rotated_products_depend_on_distance_only() -> None:
    q, k = random(1, 1, 1, 1, 8), random(2, 1, 1, 1, 8)

    def product(of_query: int, of_key: int) -> Tensor:
        return (rotate(q, torch.tensor([[of_query]])) * rotate(k, torch.tensor([[of_key]]))).sum()

    torch.testing.assert_close(product(7, 3), product(100_004, 100_000), rtol=0, atol=1e-9)
    assert (product(7, 3) - product(7, 4)).abs() > 1e-3


def test_as_in_the_paper() -> None:
    with torch.device("meta"):
        model: Any = create_model("retnet-paper", 20)
    mixers = [block.mixer for block in model.blocks]
    assert {(m.n_heads, m.d_k, m.d_v, m.normalise) for m in mixers} == {(2, 64, 128, True)}
    # q, k of d^2, v, g, out of 2 d^2, all with biases; the MLP of 8 d^2; two norms.
    block = 8 * 128**2 + 7 * 128 + 8 * 128**2 + 5 * 128 + 4 * 128
    assert sum(p.numel() for p in model.parameters()) == 20 * 128 + 8 * block + 2 * 128


def test_bad_options() -> None:
    with pytest.raises(InputError, match="heads of 3 dimensions"):
        Retention(24, 2, n_heads=8)
    with pytest.raises(InputError, match="value_factor 0"):
        Retention(24, 2, value_factor=0)
