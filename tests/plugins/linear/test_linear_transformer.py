"""The paper's linear transformer against its formula, and its dropout on scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError, create_model
from icll_zoo_linear.linear_transformer import LinearAttention, linear_attention_quadratic

D, HEADS = 24, 3


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixer(**options: Any) -> LinearAttention:
    made = LinearAttention(D, 2, HEADS, **options).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    return made


@torch.no_grad()
def explicit(made: LinearAttention, x: Tensor) -> Tensor:
    """Sums over pairs of tokens: no softmax, no feature map, no normaliser."""
    size = D // HEADS
    q, k, v = (x @ made.qkv.weight.T + made.qkv.bias).split(D, -1)
    mixed = torch.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for t in range(x.size(1)):
            for s in range(t + 1):
                score = (q[:, t, part] * k[:, s, part]).sum(-1, keepdim=True) / math.sqrt(size)
                mixed[:, t, part] += score * v[:, s, part]
    return mixed @ made.out_proj.weight.T + made.out_proj.bias


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_equals_the_formula(backend: str) -> None:
    made, x = mixer(backend=backend), random(9, 2, 13, D)
    torch.testing.assert_close(made(x), explicit(made, x), rtol=0, atol=1e-11)


def test_dropout_is_on_the_scores_in_training_only() -> None:
    x = random(9, 2, 13, D)
    made, plain = mixer(attention_dropout=0.5), mixer()
    assert torch.equal(made(x), plain(x))
    torch.manual_seed(0)
    first, second = made.train()(x), made(x)
    assert (first - second).abs().max() > 1e-3
    # The first token has one score a head: it is dropped, or it counts twice.
    _, _, v = made._project(x)
    q, k, _ = made._project(x)
    whole = ((q * k).sum(-1, keepdim=True) * v)[:, 0]
    torch.manual_seed(0)
    o = linear_attention_quadratic(q, k, v, torch.nn.Dropout(0.5))[:, 0]
    dropped = (o == 0).all(-1)
    assert 0 < dropped.sum() < dropped.numel()
    torch.testing.assert_close(o[~dropped], 2 * whole[~dropped])


def test_without_dropout_training_takes_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "einsum", None)
    x = random(9, 2, 70, D)
    assert torch.equal(mixer().train()(x), mixer()(x))


def test_quadratic_form_equals_the_chunks() -> None:
    made, x = mixer(), random(9, 2, 150, D)
    o = linear_attention_quadratic(*made._project(x))
    torch.testing.assert_close(made.out_proj(o.flatten(2)), made(x), rtol=1e-10, atol=1e-8)


def test_as_in_the_paper() -> None:
    with torch.device("meta"):
        model: Any = create_model("linear-transformer-paper", 20)
    mixers = [block.mixer for block in model.blocks]
    assert len(mixers) == 8
    assert {(m.n_heads, m.attention_dropout) for m in mixers} == {(2, 0.1)}
    assert model.options.positions == "learned"
    # As the transformer of the same size: the scores have no parameters.
    assert sum(p.numel() for p in model.parameters()) == 20 * 128 + 4098 * 128 + 8 * (12 * 128**2 + 13 * 128) + 2 * 128


def test_bad_options() -> None:
    with pytest.raises(InputError, match=r"attention_dropout 1.0 is not in \[0, 1\)"):
        LinearAttention(D, 2, attention_dropout=1.0)
    with pytest.raises(InputError, match="n_heads 5 does not divide d_model 24"):
        LinearAttention(D, 2, n_heads=5)
