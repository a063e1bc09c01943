"""The options that checkpoints of transformers need, each by itself; their defaults change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError, create_model
from icll_zoo_baselines.rope import RotaryAttention, rotate
from icll_zoo_ssm.mamba import Mamba
from icll_zoo_ssm.mamba2 import Mamba2
from icll_zoo_ssm.short_conv import ShortConv

V, D = 11, 24


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    made = create_model(name, V, d_model=D, n_layers=2, **options).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made


TOKENS = torch.randint(V, (2, 23), generator=torch.Generator().manual_seed(5))
OPTIONS: dict[str, dict[str, Any]] = {
    "transformer-rope": {"n_heads": 4, "n_kv_heads": 2, "bias": False, "theta": 77.0},
    "mamba": {"bias": True, "conv_bias": False, "norm_eps": 1e-2},
    "mamba-2": {"bias": True, "conv_bias": False, "norm_groups": 4, "dt_low": 0.002, "dt_high": 0.1, "d_head": 8},
    "rwkv-4": {"embedding_norm": True, "norm_eps": 1e-3},
    "transformer": {"embedding_norm": True, "norm": "rmsnorm"},
}


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_stepping_equals_reading(name: str) -> None:
    made = model(name, **OPTIONS[name])
    whole, state, parts = made(TOKENS), made.init_state(2), []
    for piece in TOKENS.split([1, 7, 15], 1):
        y, state = made.step(piece, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    made = model(name, **OPTIONS[name])
    made(TOKENS).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())


@pytest.mark.parametrize("backend", ["fast", "reference"])
@torch.no_grad()
def test_shared_keys_are_repeated_ones(backend: str) -> None:
    """Three heads of keys for six of queries: as full attention whose W_k and W_v repeat each head."""
    torch.manual_seed(0)
    few = RotaryAttention(48, 2, n_heads=6, n_kv_heads=3, backend=backend).double()
    full = RotaryAttention(48, 2, n_heads=6, backend=backend).double()
    few.qkv.bias.normal_()
    for kind in ("weight", "bias"):
        q, k, v = getattr(few.qkv, kind).split([48, 24, 24])
        k, v = (x.unflatten(0, (3, 8)).repeat_interleave(2, 0).flatten(0, 1) for x in (k, v))
        getattr(full.qkv, kind).copy_(torch.cat([q, k, v]))
    full.out_proj.load_state_dict(few.out_proj.state_dict())
    x = random(2, 30, 48)
    torch.testing.assert_close(few(x), full(x), rtol=0, atol=1e-12)
    state = few.step(x, few.init_state(2, "cpu", torch.float64))[1]
    assert state["k"].shape == (2, 30, 3, 8)


def test_theta() -> None:
    x = random(1, 6, 1, 8)
    angles = torch.arange(6.0, dtype=torch.float64)[:, None] * 77.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turned = torch.view_as_complex(x[0, :, 0].unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotate(x, 0, 77.0)[0, :, 0], torch.view_as_real(turned).flatten(-2))
    assert torch.equal(rotate(x), rotate(x, 0, 10000.0))


@torch.no_grad()
def test_biases_are_additions() -> None:
    """Where the options are off there is nothing, which is a bias of zero where they are on."""
    x = random(2, 9, D)
    for kind, extra in ((Mamba, {}), (Mamba2, {"d_head": 8}), (RotaryAttention, {"n_heads": 2})):
        torch.manual_seed(0)
        on = {"bias": True} if kind is RotaryAttention else {"bias": True, "conv_bias": True}
        with_biases = kind(d_model=D, n_layers=2, **extra, **on).double()
        without = kind(d_model=D, n_layers=2, **extra, **dict.fromkeys(on, False)).double()
        missing = without.load_state_dict(with_biases.state_dict(), strict=False).unexpected_keys
        assert len(missing) == (2 if kind is RotaryAttention else 3)
        before = with_biases(x)
        for name in missing:
            with_biases.get_parameter(name).zero_()
        torch.testing.assert_close(without(x), with_biases(x), rtol=0, atol=1e-12)
        for name in missing:
            with_biases.get_parameter(name).normal_()
        assert (with_biases(x) - without(x)).abs().max() > 1e-3
        assert before.isfinite().all()
    assert ShortConv(3, 2).bias is not None


@torch.no_grad()
def test_norm_groups_and_bounds_of_the_steps() -> None:
    torch.manual_seed(0)
    made = Mamba2(D, 2, d_head=8, norm_groups=3).double()
    made.norm.weight.normal_()
    y = random(2, 5, 2 * D)
    parts = [F.rms_norm(part, (16,), eps=1e-5) for part in y.split(16, -1)]
    torch.testing.assert_close(made._norm(y), torch.cat(parts, -1) * made.norm.weight)

    x = random(2, 9, D, seed=1)
    torch.manual_seed(0)
    free = Mamba2(D, 2, d_head=8).double()
    for low, high, equal in ((0.0, 1e9, True), (1e-9, None, True), (0.2, None, False), (0.0, 1e-3, False)):
        bounded = Mamba2(D, 2, d_head=8, dt_low=low, dt_high=high).double()
        bounded.load_state_dict(free.state_dict())
        assert torch.equal(bounded(x), free(x)) is equal


@torch.no_grad()
def test_norms_of_the_backbone() -> None:
    for norm, eps in (("layernorm", 1e-5), ("rmsnorm", 1e-6)):
        default, same, other = (model("gru", norm=norm, norm_eps=e) for e in (None, eps, 0.1))
        assert torch.equal(default(TOKENS), same(TOKENS))
        assert not torch.allclose(default(TOKENS), other(TOKENS))
        assert not [name for name in default.state_dict() if name.startswith("embedding_norm")]
        # A norm on the embeddings is a table of normed rows.
        made = model("gru", norm=norm, embedding_norm=True, tie=False)
        folded = model("gru", norm=norm, tie=False)
        folded.load_state_dict(made.state_dict(), strict=False)
        folded.embedding.weight.copy_(made.embedding_norm(made.embedding.weight))
        torch.testing.assert_close(made(TOKENS), folded(TOKENS))


def test_bad_options() -> None:
    for bad in (0, 3, 8):
        with pytest.raises(InputError, match=f"n_kv_heads {bad} does not divide n_heads 4"):
            create_model("transformer-rope", V, d_model=16, n_heads=4, n_kv_heads=bad)
    with pytest.raises(InputError, match=r"theta -1.0 is not positive"):
        create_model("transformer-rope", V, d_model=16, theta=-1.0)
    with pytest.raises(InputError, match="norm_groups 5 does not divide 32"):
        create_model("mamba-2", V, d_model=16, norm_groups=5)
    for low, high in ((-0.1, None), (0.5, 0.5)):
        with pytest.raises(InputError, match="leave no steps"):
            create_model("mamba-2", V, d_model=16, dt_low=low, dt_high=high)
    with pytest.raises(InputError, match=r"norm_eps: 0.0 is not positive"):
        create_model("gru", V, norm_eps=0.0)
