"""Mamba-2: the dual form in chunks against the recurrence, decays from none to all, the layer."""

from __future__ import annotations

import math

import pytest
import torch
from ssm_cases import TOLERANCE, assert_same_op, normal, off, uniform
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_ssm.mamba2 import Mamba2, ssd, ssd_reference

DECAYS = {"none": 0.0, "tiny": 1e-6, "usual": 1.0, "strong": 50.0}


def inputs(length: int, decay: float = 1.0, heads: int = 4, groups: int = 2) -> tuple[Tensor, ...]:
    """x, log decay, B, C, state."""
    return (
        normal(0, 2, length, heads, 3),
        -decay * uniform(1, 2, length, heads),
        normal(2, 2, length, groups, 5),
        normal(3, 2, length, groups, 5),
        normal(4, 2, heads, 5, 3),
    )


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257])
def test_chunks_equal_steps(length: int, decay: float) -> None:
    assert_same_op(ssd, ssd_reference, *inputs(length, decay))


@pytest.mark.parametrize("chunk_size", [1, 3, 100, 500])
def test_any_chunk_size(chunk_size: int) -> None:
    assert_same_op(lambda *x: ssd(*x, chunk_size), ssd_reference, *inputs(257))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_of_heads(groups: int) -> None:
    assert_same_op(ssd, ssd_reference, *inputs(70, groups=groups))


def test_equals_the_masked_product() -> None:
    """y = (L o C B^T) x with L_ts = exp of the sum of log decays after s up to t (equation 1 of the paper)."""
    x, log_decay, b, c, _ = inputs(130)
    b, c = (z.repeat_interleave(2, 2) for z in (b, c))
    total = log_decay.cumsum(1)
    mask = (total[:, :, None] - total[:, None]).masked_fill(torch.ones(130, 130).triu(1).bool()[:, :, None], -math.inf)
    wanted = torch.einsum("btsh,bthn,bshn,bshp->bthp", mask.exp(), c, b, x)
    assert off(ssd(*inputs(130)[:4])[0], wanted) <= TOLERANCE


def test_by_hand() -> None:
    # One head, n = p = 1, decays 1/2 then 1/4, from 8: S = 4 + 3 = 7, then 7/4 + 8; y = 2 S and 3 S.
    x = torch.tensor([1.5, 4.0]).view(1, 2, 1, 1)
    log_decay = torch.tensor([0.5, 0.25]).log().view(1, 2, 1)
    b, c = torch.tensor([2.0, 2.0]).view(1, 2, 1, 1), torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    y, state = ssd(x, log_decay, b, c, torch.full((1, 1, 1, 1), 8.0))
    torch.testing.assert_close(y.flatten(), torch.tensor([14.0, 29.25]))
    assert state.item() == pytest.approx(9.75)


def test_strong_and_weak_decays_side_by_side_in_float32() -> None:
    """Between two tokens after a strong decay little is lost; from there a difference of large sums must keep it."""
    x, log_decay, b, c, state = (z.float() for z in inputs(64, 1e-3))
    log_decay[:, :32] = -50
    y, _ = ssd(x, log_decay, b, c, state)
    wanted, _ = ssd_reference(*(z.double() for z in (x, log_decay, b, c, state)))
    assert off(y.double(), wanted) <= 2e-6


def test_half_precision_inputs_run_in_float32() -> None:
    given = [x.float() for x in inputs(100)]
    rounded = [x.bfloat16() for x in given[:4]]
    y, state = ssd(*rounded, given[4])
    wanted, exact = ssd(*(x.float() for x in rounded), given[4])
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, wanted.bfloat16())
    assert torch.equal(state, exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssd(*given)[0], ssd(*given)[0].float())


@torch.no_grad()
def test_the_layer_token_by_token() -> None:
    torch.manual_seed(0)
    layer, x = Mamba2(8, n_layers=2, d_state=5, d_head=4, n_groups=2).double(), normal(1, 2, 30, 8)
    z, mixed, dt = (x @ layer.in_proj.weight.T).split([16, 36, 4], -1)
    mixed = F.conv1d(F.pad(mixed.transpose(1, 2), (3, 0)), layer.short.weight, layer.short.bias, groups=36)
    u, b, c = F.silu(mixed.transpose(1, 2)).split([16, 10, 10], -1)
    u, b, c = u.unflatten(-1, (4, 4)), b.unflatten(-1, (2, 5)), c.unflatten(-1, (2, 5))
    dt = F.softplus(dt + layer.dt_bias)
    s, wanted = torch.zeros(2, 4, 5, 4, dtype=torch.float64), []
    for t in range(30):
        y = torch.empty(2, 4, 4, dtype=torch.float64)
        for h in range(4):
            decay = torch.exp(-layer.a_log[h].exp() * dt[:, t, h])[:, None, None]
            s[:, h] = decay * s[:, h] + b[:, t, h // 2, :, None] * (dt[:, t, h, None] * u[:, t, h])[:, None]
            y[:, h] = (c[:, t, h // 2, :, None] * s[:, h]).sum(1) + layer.d[h] * u[:, t, h]
        gated = y.flatten(1) * F.silu(z[:, t])
        wanted.append(gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight)
    assert off(layer(x), torch.stack(wanted, 1) @ layer.out_proj.weight.T) <= TOLERANCE


def test_initialisation() -> None:
    torch.manual_seed(0)
    layer = Mamba2(512, n_layers=4, d_head=1)
    assert layer.n_heads == 1024
    rates = layer.a_log.exp()
    assert 1 <= rates.min() < 1.1
    assert 15.9 < rates.max() <= 16
    assert rates.mean().item() == pytest.approx(8.5, rel=0.05)
    steps = F.softplus(layer.dt_bias)
    assert 0.001 <= steps.min() < 0.0012
    assert 0.08 < steps.max() <= 0.1001
    assert (layer.d == 1).all()
    assert layer.out_proj.weight.abs().max().item() == pytest.approx(1 / math.sqrt(1024) / 2, rel=0.01)
    # Heads of 64 channels, or one head where there are fewer.
    assert [Mamba2(d, n_layers=1).n_heads for d in (16, 32, 64, 128)] == [1, 1, 2, 4]


def test_faults_of_options() -> None:
    with pytest.raises(InputError, match="d_head 5 does not divide 2 x d_model 8"):
        Mamba2(8, n_layers=1, d_head=5)
    with pytest.raises(InputError, match="n_groups 3 does not divide 4 heads"):
        Mamba2(8, n_layers=1, d_head=4, n_groups=3)
    with pytest.raises(InputError, match="d_state 0 is not at least 1"):
        Mamba2(8, n_layers=1, d_state=0)


def test_a_kernel_that_is_not_there_is_an_error() -> None:
    layer = Mamba2(8, n_layers=1, backend="fla")
    with pytest.raises(InputError, match="backend 'fla' needs CUDA tensors, not cpu"):
        layer(torch.zeros(1, 4, 8))
