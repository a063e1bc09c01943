"""HGRN2 against its equations, and the lower bounds of its forget gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError, create_model
from icll_zoo_linear.hgrn2 import Hgrn2, forget_gates

D, HEADS = 24, 3


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def explicit(made: Hgrn2, x: Tensor, bound: Tensor) -> Tensor:
    """The recurrence, one row, head and token at a time."""
    b, length, d = x.shape
    size = d // HEADS
    q, i = made.q_proj(x), made.i_proj(x)
    f = bound + (1 - bound) / (1 + torch.exp(-made.f_proj(x)))
    o = torch.zeros_like(x)
    for row in range(b):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            state = torch.zeros(size, size, dtype=torch.float64)
            for t in range(length):
                forget = f[row, t, part]
                state = forget[:, None] * state + torch.outer(1 - forget, i[row, t, part])
                query = q[row, t, part]
                o[row, t, part] = query * torch.sigmoid(query) @ state
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * made.norm.weight
    return o @ made.out_proj.weight.T


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("layer_index", [0, 1, 3])
def test_equals_the_equations(backend: str, layer_index: int) -> None:
    made = Hgrn2(D, 4, layer_index, HEADS, backend=backend).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    bound = torch.zeros(D, dtype=torch.float64) if made.bound is None else 1 / (1 + torch.exp(-made.bound))
    x = random(9, 2, 13, D)
    torch.testing.assert_close(made(x), explicit(made, x, bound), rtol=0, atol=1e-11)


def test_bounds_start_at_the_layers_share() -> None:
    """What the cumulative softmax of the paper gives to rows that are all alike, without the layer itself."""
    model: Any = create_model("hgrn-2", 20, n_layers=5, d_model=16)
    first, *others = [block.mixer.bound for block in model.blocks]
    assert first is None
    shares = torch.softmax(torch.zeros(5), 0).cumsum(0)
    for bound, share in zip(others, shares, strict=False):
        torch.testing.assert_close(bound.sigmoid(), torch.full((16,), share.item()))


@pytest.mark.parametrize("bound", [None, 0.25])
def test_gates_keep_their_digits(bound: float | None) -> None:
    """Where sigmoid is nearly 1 or 0: log f is not 0, the key is not 0, and gradients are finite, in float32."""
    f = torch.tensor([-80.0, -30.0, 0.0, 30.0, 80.0], requires_grad=True)
    low = None if bound is None else torch.tensor(bound)
    log_f, key = forget_gates(f, low)
    exact = f.detach().double()
    wanted_key = (1 - (bound or 0)) * torch.sigmoid(-exact)
    torch.testing.assert_close(key.double(), wanted_key, rtol=1e-6, atol=0)
    wanted = torch.nn.functional.logsigmoid(exact) if bound is None else torch.log1p(-wanted_key)
    torch.testing.assert_close(log_f.double(), wanted, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad((log_f + key).sum(), f)
    assert gradient.isfinite().all()


def test_bad_options() -> None:
    with pytest.raises(InputError, match="n_heads 5 does not divide d_model 24"):
        Hgrn2(24, 2, 0, n_heads=5)
