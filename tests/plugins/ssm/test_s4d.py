"""S4D: its discretisation, its layer, its initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from ssm_cases import TOLERANCE, normal, off, uniform
from torch.nn import functional as F

from icll_zoo import InputError, create_model
from icll_zoo_ssm.s4d import S4d, zero_order_hold


def test_zero_order_hold_is_the_exact_solution() -> None:
    """Of ds/dt = A s + u with u constant over a step, by 20,000 small ones."""
    log_dt, real, imaginary = torch.tensor([0.3]).log().double(), -0.5 - uniform(0, 4), 9 * normal(1, 4)
    log_a, weight = zero_order_hold(log_dt, real, imaginary)
    a, steps = torch.complex(real, imaginary), 20_000
    s = torch.ones(4, dtype=torch.complex128)
    small = 0.3 / steps
    for _ in range(steps):  # s = 1, u = 2; the implicit midpoint rule
        s = ((1 + small * a / 2) * s + small * 2.0) / (1 - small * a / 2)
    found = torch.polar(log_a[0, :, 0].exp(), log_a[0, :, 1]) + 2.0 * torch.view_as_complex(weight[0])
    assert off(torch.view_as_real(found), torch.view_as_real(s)) <= 1e-7


def test_a_small_step_keeps_its_digits_in_float32() -> None:
    log_dt, real, imaginary = torch.tensor([1e-4]).log(), torch.tensor([-0.5]), torch.tensor([0.25])
    found = zero_order_hold(log_dt, real, imaginary)[1].double()
    exact = zero_order_hold(log_dt.double(), real.double(), imaginary.double())[1]
    assert off(found, exact) <= 3e-7


def test_the_layer_is_the_papers_convolution() -> None:
    """y = K * u + D u with K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l); then W gelu(y) + b."""
    torch.manual_seed(0)
    layer, u = S4d(6, d_state=8).double(), normal(1, 2, 150, 6)
    a = torch.complex(-layer.log_a_real.exp(), layer.a_imaginary)
    step = layer.log_dt.exp()[:, None] * a
    weight = torch.view_as_complex(layer.c.detach()) * (step.exp() - 1) / a
    kernel = 2 * (weight[..., None] * torch.exp(step[..., None] * torch.arange(150))).sum(1).real
    y = torch.stack([(kernel.T[: t + 1].flip(0) * u[:, : t + 1]).sum(1) for t in range(150)], 1) + layer.d * u
    assert off(layer(u), F.linear(F.gelu(y), layer.out_proj.weight, layer.out_proj.bias)) <= TOLERANCE


def test_initialisation() -> None:
    torch.manual_seed(0)
    layer = S4d(512, d_state=64)
    # S4D-Inv, equation 9 of the paper: -1/2 + i N/pi (N/(2n + 1) - 1), the same for all channels.
    n = torch.arange(32)
    torch.testing.assert_close(layer.a_imaginary.detach(), 64 / math.pi * (64 / (2 * n + 1) - 1))
    torch.testing.assert_close(layer.log_a_real.exp().detach(), torch.full((32,), 0.5001))
    steps = layer.log_dt.exp().detach()
    assert 0.001 <= steps.min() < 0.002
    assert 0.05 < steps.max() <= 0.1
    assert layer.log_dt.mean().item() == pytest.approx(math.log(0.01), abs=0.2)
    assert layer.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert (layer.out_proj.bias == 0).all()
    assert layer.d.std().item() == pytest.approx(1, rel=0.1)
    # With a constant input of 1, s tends to -1/A, and y has the variance that B is scaled for.
    size = torch.complex(-layer.log_a_real.exp(), layer.a_imaginary).detach()
    y = 2 * (torch.view_as_complex(layer.c.detach()) / -size).sum(1).real
    assert y.std().item() == pytest.approx(1, rel=0.15)


def test_faults_of_options() -> None:
    for d_state in (0, -2, 7):
        with pytest.raises(InputError, match=f"d_state {d_state} is not an even number"):
            S4d(8, d_state=d_state)
    with pytest.raises(InputError, match=r"dt_min 0\.2 to dt_max 0\.1"):
        S4d(8, dt_min=0.2)


def test_as_in_the_paper() -> None:
    options = create_model("s4d-paper", 20).options
    assert (options.d_model, options.n_layers, options.norm, options.mlp) == (128, 12, "layernorm", "gelu")
    assert (options.mlp_ratio, options.residual, options.positions, options.dropout) == (4.0, True, "none", 0.1)
