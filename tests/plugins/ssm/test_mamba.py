"""Mamba: the selective scan in chunks, its gradient made without the states, the layer, and what the paper ran."""

from __future__ import annotations

import math

import pytest
import torch
from ssm_cases import TOLERANCE, assert_same_op, normal, off, uniform
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import InputError, create_model
from icll_zoo_ssm.mamba import Mamba, selective_scan, selective_scan_reference

RATES = {"tiny": 1e-6, "usual": 1.0, "strong": 100.0}


def inputs(length: int, rate: float = 1.0, d: int = 6, n: int = 4) -> tuple[Tensor, ...]:
    """x, dt, A, B, C, state; the decay a step is exp(-rate) at most."""
    return (
        normal(0, 2, length, d),
        uniform(1, 2, length, d),
        -rate * uniform(2, d, n),
        normal(3, 2, length, n),
        normal(4, 2, length, n),
        normal(5, 2, n, d),
    )


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257])
def test_chunks_equal_steps(length: int, rate: float) -> None:
    assert_same_op(lambda *x: selective_scan(*x, 64), selective_scan_reference, *inputs(length, rate))


@pytest.mark.parametrize("chunk_size", [1, 3, 100, 500, None])
def test_any_chunk_size(chunk_size: int | None) -> None:
    assert_same_op(lambda *x: selective_scan(*x, chunk_size), selective_scan_reference, *inputs(257))


def test_wide_rows_and_several_chunks() -> None:
    assert_same_op(lambda *x: selective_scan(*x, 4), selective_scan_reference, *inputs(9, d=700))


def test_no_state_is_a_state_of_zeros() -> None:
    *given, state = inputs(20)
    for op in (selective_scan, selective_scan_reference):
        assert torch.equal(op(*given)[0], op(*given, torch.zeros_like(state))[0])


def test_by_hand() -> None:
    # One channel, A = -1, -2; decays exp(-1/2), exp(-1): h = (1/2, 1), then (e^-1/2 / 2 + 3, e^-1 + 0) for dt x = 1.5.
    x, dt = torch.tensor([[[1.0], [3.0]]]).double(), torch.tensor([[[0.5], [0.5]]]).double()
    a = torch.tensor([[-1.0, -2.0]]).double()
    b, c = torch.tensor([[[1.0, 2.0], [2.0, 0.0]]]).double(), torch.tensor([[[1.0, 1.0], [1.0, -1.0]]]).double()
    y, state = selective_scan(x, dt, a, b, c)
    second = (math.exp(-0.5) * 0.5 + 3.0, math.exp(-1.0) * 1.0)
    assert off(y.flatten(), torch.tensor([1.5, second[0] - second[1]]).double()) <= 1e-7
    assert off(state.flatten(), torch.tensor(second).double()) <= 1e-7


def test_training_keeps_no_states_but_those_between_chunks() -> None:
    kept: list[int] = []
    given = [x.float().requires_grad_() for x in inputs(512, n=16)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        selective_scan(*given, 64)
    states = 2 * 512 * 16 * 6
    assert sum(kept) <= sum(x.numel() for x in given) + states // 64


def test_under_vmap() -> None:
    def loss(*x: Tensor) -> Tensor:
        return selective_scan(*x, 8)[0].sin().sum()

    stacked = [torch.stack([x, 0.5 * x]) for x in inputs(20)]
    found = torch.vmap(torch.func.grad(loss, argnums=(0, 2)))(*stacked)
    leaves = [x[1].requires_grad_() for x in stacked]
    wanted = torch.autograd.grad(loss(*leaves), (leaves[0], leaves[2]))
    assert all(off(mine[1], right) <= 1e-14 for mine, right in zip(found, wanted, strict=True))


def test_half_precision_inputs_run_in_float32() -> None:
    given = [x.float() for x in inputs(100)]
    rounded = [x.bfloat16() for x in given[:5]]
    y, state = selective_scan(*rounded, given[5])
    wanted, exact = selective_scan(*(x.float() for x in rounded), given[5])
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert torch.equal(y, wanted.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selective_scan(*given)[0], selective_scan(*given)[0].float())
    assert torch.equal(state, exact)


def test_the_layer_token_by_token() -> None:
    torch.manual_seed(0)
    layer, x = Mamba(6, n_layers=2, d_state=4).double(), normal(1, 2, 30, 6)
    u, z = (x @ layer.in_proj.weight.T).chunk(2, -1)
    u = F.silu(F.conv1d(F.pad(u.transpose(1, 2), (3, 0)), layer.short.weight, layer.short.bias, groups=12))
    u = u.transpose(1, 2)
    dt, b, c = (u @ layer.x_proj.weight.T).split([1, 4, 4], -1)
    dt = F.softplus(dt @ layer.dt_proj.weight.T + layer.dt_proj.bias)
    h, wanted = torch.zeros(2, 12, 4, dtype=torch.float64), []
    for t in range(30):
        h = torch.exp(dt[:, t, :, None] * -layer.a_log.exp()) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        wanted.append(((h * c[:, t, None]).sum(-1) + layer.d * u[:, t]) * F.silu(z[:, t]))
    assert off(layer(x), torch.stack(wanted, 1) @ layer.out_proj.weight.T) <= TOLERANCE


def test_initialisation() -> None:
    torch.manual_seed(0)
    layer = Mamba(256, n_layers=4)
    assert layer.dt_rank == 16
    assert layer.dt_proj.weight.abs().max() <= 1 / 4
    steps = F.softplus(layer.dt_proj.bias).detach()
    assert 0.001 <= steps.min() < 0.0012
    assert 0.08 < steps.max() <= 0.1001
    torch.testing.assert_close(layer.a_log.exp().detach(), torch.arange(1.0, 17).expand(512, 16))
    assert (layer.d == 1).all()
    # torch's own bound for a Linear of 512 inputs, over the root of the number of blocks.
    assert layer.out_proj.weight.abs().max().item() == pytest.approx(1 / math.sqrt(512) / 2, rel=0.01)


def test_no_mlp_beside_it_and_a_residual_around_it() -> None:
    torch.manual_seed(0)
    model = create_model("mamba", 11, d_model=16, n_layers=3).double().eval()
    tokens = torch.randint(11, (2, 20), generator=torch.Generator().manual_seed(0))
    x = model.embedding(tokens)
    for block in model.blocks:
        x = x + block.mixer(F.rms_norm(x, (16,), block.norm.weight, 1e-6))
    wanted = F.rms_norm(x, (16,), model.norm.weight, 1e-6) @ model.embedding.weight.T
    assert off(model(tokens), wanted) <= 1e-12


def test_as_published() -> None:
    torch.manual_seed(0)
    model = create_model("mamba-paper", 400)
    options = model.options
    assert (options.n_layers, options.norm, options.mlp, options.residual) == (1, "none", "none", False)
    assert (options.d_model, options.dropout, options.positions, options.tie) == (512, 0.0, "none", True)
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.02)
    tokens = torch.randint(400, (2, 20), generator=torch.Generator().manual_seed(1))
    wanted = model.blocks[0].mixer(model.embedding(tokens)) @ model.embedding.weight.T
    torch.testing.assert_close(model.train()(tokens), wanted)


def test_faults_of_options() -> None:
    for option in ("d_state", "d_conv", "expand", "dt_rank"):
        with pytest.raises(InputError, match=f"{option} 0 is not at least 1"):
            Mamba(8, n_layers=1, **{option: 0})
