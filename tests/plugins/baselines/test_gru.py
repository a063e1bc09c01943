"""The GRU against its equations and its initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from icll_zoo_baselines.gru import Gru

D = 16


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_equals_the_equations() -> None:
    layer = Gru(D).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    x, own = random(9, 3, 10, D), layer.gru
    h, wanted = torch.zeros(3, D, dtype=torch.float64), []
    for t in range(10):
        r, z, n = (x[:, t] @ own.weight_ih_l0.T + own.bias_ih_l0).split(D, -1)
        r_h, z_h, n_h = (h @ own.weight_hh_l0.T + own.bias_hh_l0).split(D, -1)
        r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
        h = (1 - z) * (n + r * n_h).tanh() + z * h
        wanted.append(h)
    assert_same(layer(x), torch.stack(wanted, 1))


def test_initialisation() -> None:
    torch.manual_seed(0)
    gru = Gru(64).gru
    gram = gru.weight_hh_l0.T @ gru.weight_hh_l0
    torch.testing.assert_close(gram, torch.eye(64), rtol=0, atol=1e-5)
    bound = math.sqrt(6 / (64 + 3 * 64))  # Glorot's uniform bound for a matrix of 3 * 64 by 64
    assert gru.weight_ih_l0.abs().max() <= bound
    assert gru.weight_ih_l0.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not any(bias.any() for bias in (gru.bias_ih_l0, gru.bias_hh_l0))
