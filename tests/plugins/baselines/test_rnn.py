"""The plain recurrent network against its equations and its initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from icll_zoo_baselines.rnn import Rnn

D = 16


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_equals_the_equations() -> None:
    layer = Rnn(D).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    x, own = random(9, 3, 10, D), layer.rnn
    h, wanted = torch.zeros(3, D, dtype=torch.float64), []
    for t in range(10):
        h = (x[:, t] @ own.weight_ih_l0.T + own.bias_ih_l0 + h @ own.weight_hh_l0.T + own.bias_hh_l0).tanh()
        wanted.append(h)
    assert_same(layer(x), torch.stack(wanted, 1))


def test_initialisation() -> None:
    torch.manual_seed(0)
    rnn = Rnn(64).rnn
    gram = rnn.weight_hh_l0.T @ rnn.weight_hh_l0
    torch.testing.assert_close(gram, torch.eye(64), rtol=0, atol=1e-5)
    bound = math.sqrt(6 / (64 + 64))  # Glorot's uniform bound for a square matrix of 64
    assert rnn.weight_ih_l0.abs().max() <= bound
    assert rnn.weight_ih_l0.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not any(bias.any() for bias in (rnn.bias_ih_l0, rnn.bias_hh_l0))
