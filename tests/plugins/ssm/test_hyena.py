"""Hyena: the long convolution, the implicit filter, the operator."""

from __future__ import annotations

import math

import pytest
import torch
from ssm_cases import TOLERANCE, assert_same_op, normal, off
from torch.nn import functional as F

from icll_zoo import create_model
from icll_zoo_ssm.hyena import Filter, Hyena, long_conv, long_conv_reference


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257])
@pytest.mark.parametrize("rows", [1, 2])
def test_fft_equals_sums(length: int, rows: int) -> None:
    assert_same_op(long_conv, long_conv_reference, normal(0, rows, length, 3), normal(1, length, 3))


def test_the_end_does_not_come_round_to_the_beginning() -> None:
    for length in (1, 2, 3, 4, 5, 8, 9):
        impulse = torch.zeros(1, length, 1)
        impulse[:, -1] = 1
        y = long_conv(impulse, torch.ones(length, 1))
        assert torch.allclose(y, impulse, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_gradient_by_differences_twice(rows: int) -> None:
    inputs = (normal(0, rows, 6, 2).requires_grad_(), normal(1, 6, 2).requires_grad_())
    assert torch.autograd.gradcheck(long_conv, inputs)
    assert torch.autograd.gradgradcheck(long_conv, inputs)


def test_the_filter() -> None:
    """Time from 0 to 1 over max_length, two bands, an MLP of sines, a window that decays by channel."""
    torch.manual_seed(0)
    made = Filter(5, 100).double()
    t = torch.arange(37, dtype=torch.float64)[:, None]
    bands = torch.tensor([1e-4, 1.0], dtype=torch.float64)
    features = torch.exp(-1j * bands * 2 * math.pi * t / 100)
    x = torch.cat([t / 99, features.real, features.imag], 1)
    for linear in made.hidden:
        x = torch.sin(made.frequency * linear(x))
    x = made.out(x)
    # In 0.3 and 1.5 of max_length the fastest and the slowest channel fall to 1 %.
    rates = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, 5, dtype=torch.float64)
    assert off(made(37), x * torch.exp(-rates * t / 99)) <= 1e-12


def test_the_layer() -> None:
    torch.manual_seed(0)
    layer, x = Hyena(6, n_layers=2, max_length=64).double(), normal(1, 2, 40, 6)
    u = F.pad((x @ layer.in_proj.weight.T + layer.in_proj.bias).transpose(1, 2), (2, 0))
    x0, x1, v = F.conv1d(u, layer.short.weight, layer.short.bias, groups=18).transpose(1, 2).chunk(3, -1)
    inner = long_conv_reference(x1 * v, layer.filter(40)) + layer.bias * x1 * v
    assert off(layer(x), (x0 * inner) @ layer.out_proj.weight.T + layer.out_proj.bias) <= TOLERANCE


def test_longer_than_max_length_goes_on() -> None:
    torch.manual_seed(0)
    layer = Hyena(6, n_layers=2, max_length=16).double()
    x = normal(1, 2, 50, 6)
    y = layer(x)
    assert y.isfinite().all()
    assert off(layer(x[:, :16]), y[:, :16]) <= 1e-12
    assert Filter(6, 1)(3).isfinite().all()


def test_the_filter_does_not_round_times_to_half_precision() -> None:
    torch.manual_seed(0)
    made = Filter(4, 4098).bfloat16()
    found = made(2000)
    assert found.dtype == torch.float32
    assert off(found, made.float()(2000)) <= 1e-6
    # In bfloat16 the times 1024 to 1031 would be one.
    assert (found[1024:1031].diff(dim=0).abs().amax(1) > 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(2000), found)


def test_initialisation() -> None:
    torch.manual_seed(0)
    layer = Hyena(256, n_layers=8, max_length=1024)
    assert layer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert layer.out_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert (layer.filter.frequency == 10).all()
    assert layer.bias.std().item() == pytest.approx(1, rel=0.1)
    assert all(linear.weight.std().item() == pytest.approx(0.02, rel=0.15) for linear in layer.filter.hidden)


def test_as_in_the_paper() -> None:
    model = create_model("hyena-paper", 20)
    assert (model.options.d_model, model.options.n_layers) == (128, 12)
    assert model.blocks[0].mixer.filter.max_length == 4098
