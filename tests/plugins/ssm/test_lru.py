"""LRU and GILR: the layers token by token, their initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from ssm_cases import TOLERANCE, normal, off
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_ssm.gilr import Gilr
from icll_zoo_ssm.lru import Lru


def stirred(layer: torch.nn.Module) -> torch.nn.Module:
    """In float64 and evaluation mode, with projections large enough for the recurrence to matter."""
    with torch.no_grad():
        for i, parameter in enumerate(layer.in_proj.parameters()):
            parameter.add_(normal(i, *parameter.shape).float())
    return layer.double().eval()


def finish(layer: torch.nn.Module, h: Tensor, o: Tensor) -> Tensor:
    y = F.layer_norm(h * F.silu(o), h.shape[-1:], layer.norm.weight, layer.norm.bias)
    return y @ layer.out_proj.weight.T + layer.out_proj.bias


def test_lru_token_by_token() -> None:
    torch.manual_seed(0)
    layer, x = stirred(Lru(6, n_layers=2)), normal(9, 2, 150, 6)
    real, imaginary, o_real, o_imaginary = (x @ layer.in_proj.weight.T + layer.in_proj.bias).chunk(4, -1)
    decay = torch.exp(torch.complex(-layer.nu_log.exp(), layer.theta_log.exp()))
    h, states = torch.zeros(2, 6, dtype=torch.complex128), []
    for t in range(150):
        h = decay * h + layer.gamma_log.exp() * torch.complex(real[:, t], imaginary[:, t])
        states.append(torch.cat([h.real, h.imag], -1))
    wanted = finish(layer, torch.stack(states, 1), torch.cat([o_real, o_imaginary], -1))
    assert off(layer(x), wanted) <= TOLERANCE


def test_gilr_token_by_token() -> None:
    torch.manual_seed(0)
    layer, x = stirred(Gilr(6, n_layers=2)), normal(9, 2, 150, 6)
    v, o, f = (x @ layer.in_proj.weight.T + layer.in_proj.bias).chunk(3, -1)
    h, states = torch.zeros(2, 6, dtype=torch.float64), []
    for t in range(150):
        h = f[:, t].sigmoid() * h + (1 - f[:, t].sigmoid()) * v[:, t]
        states.append(h)
    assert off(layer(x), finish(layer, torch.stack(states, 1), o)) <= TOLERANCE


def test_lru_starts_evenly_on_its_ring() -> None:
    torch.manual_seed(0)
    layer = Lru(1024, n_layers=8)
    size, angle = torch.exp(-layer.nu_log.exp()).detach(), layer.theta_log.exp().detach()
    assert 0.9 - 1e-6 <= size.min() < 0.905
    assert 0.995 < size.max() <= 0.999 + 1e-6
    # Evenly over the area: the square of the radius is even.
    assert size.square().mean().item() == pytest.approx((0.9**2 + 0.999**2) / 2, abs=0.006)
    assert angle.mean().item() == pytest.approx(math.pi, abs=0.2)
    assert angle.max() <= 2 * math.pi + 1e-5
    torch.testing.assert_close(layer.gamma_log.exp().detach(), (1 - size.square()).sqrt(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("layer", [Lru(256, n_layers=8), Gilr(256, n_layers=8)])
def test_projections(layer: Lru | Gilr) -> None:
    assert layer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.out_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert (layer.in_proj.bias == 0).all()
    assert (layer.out_proj.bias == 0).all()


@pytest.mark.parametrize("cls", [Lru, Gilr])
def test_inner_dropout_in_training_only(cls: type[Lru] | type[Gilr]) -> None:
    torch.manual_seed(0)
    layer, x = cls(16, n_layers=1), normal(1, 2, 10, 16).float()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    without = cls(16, n_layers=1, inner_dropout=0.0).train()
    assert torch.equal(without(x), without(x))


def test_faults_of_options() -> None:
    for cls in (Lru, Gilr):
        with pytest.raises(InputError, match=r"inner_dropout 1.0 is not in \[0, 1\)"):
            cls(8, n_layers=1, inner_dropout=1.0)
    for r_min, r_max in ((0.0, 0.9), (0.9, 1.0), (0.95, 0.9)):
        with pytest.raises(InputError, match=f"r_min {r_min} to r_max {r_max}"):
            Lru(8, n_layers=1, r_min=r_min, r_max=r_max)
