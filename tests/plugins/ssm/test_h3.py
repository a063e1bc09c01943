"""H3: the shift, the bilinear rule, the layer."""

from __future__ import annotations

import math

import pytest
import torch
from ssm_cases import TOLERANCE, assert_same_op, normal, off, uniform

from icll_zoo import create_model
from icll_zoo_ssm.h3 import H3, bilinear, shift_ssm, shift_ssm_reference


@pytest.mark.parametrize("taps", [1, 2, 64])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257])
def test_shift_in_chunks_equals_steps(length: int, taps: int) -> None:
    inputs = (normal(0, 2, length, 3), normal(1, 3, taps), normal(2, 2, taps - 1, 3))
    if taps == 1:  # no state, and so no gradient of one
        y, state = shift_ssm(*inputs)
        assert state.shape == (2, 0, 3)
        assert off(y, inputs[0] * inputs[1].T) <= TOLERANCE
        return
    assert_same_op(shift_ssm, shift_ssm_reference, *inputs)


def test_shift_is_the_state_space_model_with_a_shift_matrix() -> None:
    """s_t = A s_{t-1} + e_1 u_t with ones below the diagonal of A, y_t = C s_t."""
    size, u, taps = 5, normal(0, 1, 12, 1), normal(1, 1, 5)
    matrix = torch.diag(torch.ones(size - 1, dtype=torch.float64), -1)
    s, wanted = torch.zeros(size, dtype=torch.float64), []
    for value in u.flatten():
        s = matrix @ s
        s[0] += value
        wanted.append(taps[0] @ s)
    assert off(shift_ssm(u, taps)[0].flatten(), torch.stack(wanted)) <= 1e-14


def test_bilinear() -> None:
    log_dt, real, imaginary = uniform(0, 3).log(), -5 * uniform(1, 3, 4), 20 * normal(2, 3, 4)
    log_a, weight = bilinear(log_dt, real, imaginary)
    z = log_dt.exp()[:, None] * torch.complex(real, imaginary)
    a = torch.polar(log_a[..., 0].exp(), log_a[..., 1])
    assert off(torch.view_as_real(a), torch.view_as_real((1 + z / 2) / (1 - z / 2))) <= 1e-14
    wanted = log_dt.exp()[:, None] / (1 - z / 2)
    assert off(weight, torch.view_as_real(wanted)) <= 1e-14
    assert (log_a[..., 0] < 0).all()


def test_the_layer_token_by_token() -> None:
    torch.manual_seed(0)
    layer, x = H3(6, d_state=8).double(), normal(1, 2, 40, 6)
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).chunk(3, -1)
    z = layer.log_dt.exp()[:, None] * torch.complex(-layer.log_a_real.exp(), layer.a_imaginary)
    a, b, c = (1 + z / 2) / (1 - z / 2), layer.log_dt.exp()[:, None] / (1 - z / 2), torch.view_as_complex(layer.c)
    s, wanted = torch.zeros(2, 6, 4, dtype=torch.complex128), []
    for t in range(40):
        shifted = sum(layer.taps[:, i] * k[:, t - i] for i in range(min(8, t + 1)))
        kv = (shifted + layer.d_shift * k[:, t]) * v[:, t]
        s = a * s + b * kv[..., None]
        wanted.append(q[:, t] * (2 * (c * s).sum(2).real + layer.d * kv))
    out = torch.stack(wanted, 1) @ layer.out_proj.weight.T + layer.out_proj.bias
    assert off(layer(x), out) <= TOLERANCE


def test_initialisation() -> None:
    torch.manual_seed(0)
    layer = H3(256)
    # S4D-Lin: -1/2 + i pi n, for every channel its own.
    torch.testing.assert_close(layer.a_imaginary.detach(), (math.pi * torch.arange(32)).expand(256, 32))
    torch.testing.assert_close(layer.log_a_real.exp().detach(), torch.full((256, 32), 0.5))
    assert layer.taps.abs().max() <= 1 / 8
    assert layer.c.std().item() == pytest.approx(math.sqrt(0.5), rel=0.02)
    for linear in (layer.qkv, layer.out_proj):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert (linear.bias == 0).all()


def test_as_in_the_paper() -> None:
    model = create_model("h3-paper", 20)
    assert (model.options.d_model, model.options.n_layers, model.options.mlp) == (128, 8, "gelu")
    assert model.blocks[0].mixer.d_state == 128
