"""What the recurrent networks have in common: the backbone around them, their constant state, and causality."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import create_model

D, V = 16, 11
# Vectors of state a layer.
NAMES = {"gru": 1, "rnn": 1, "lstm": 2}


def ids(seed: int, b: int, length: int) -> Tensor:
    return torch.randint(V, (b, length), generator=torch.Generator().manual_seed(seed))


def language_model(name: str) -> Any:
    torch.manual_seed(0)
    return create_model(name, V, d_model=D, n_layers=2).double().eval()


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_standard_backbone_around_it(name: str) -> None:
    model, tokens = language_model(name), ids(1, 2, 15)
    x = model.embedding(tokens)
    for block in model.blocks:
        x = x + getattr(block.mixer, name)(block.norm(x))[0]
        x = x + block.mlp(block.mlp_norm(x))
    assert_same(model(tokens), model.norm(x) @ model.embedding.weight.T)
    assert model.positions is None


@pytest.mark.parametrize("name", [*NAMES, "lstm-paper"])
@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 6], [8, 3, 1]])
def test_step_equals_forward(name: str, pieces: list[int]) -> None:
    model, tokens = language_model(name), ids(2, 3, 12)
    state = model.init_state(3)
    for piece, expected in zip(tokens.split(pieces, 1), model(tokens).split(pieces, 1), strict=True):
        before = {key: tensor.clone() for key, tensor in state.items()}
        logits, after = model.step(piece, state)
        assert_same(logits, expected)
        assert all(torch.equal(state[key], before[key]) for key in state)
        state = after


@pytest.mark.parametrize(("name", "vectors"), NAMES.items())
def test_the_state_is_constant(name: str, vectors: int) -> None:
    model, sizes = language_model(name), set()
    assert model.has_step
    assert not model.state_grows
    for length in (0, 1, 64, 512):
        state = model.init_state(1)
        if length:
            _, state = model.step(ids(1, 1, length), state)
        sizes.add(sum(tensor.nbytes for tensor in state.values()))
    assert sizes == {2 * vectors * D * 8}  # layers, vectors, float64


@pytest.mark.parametrize("name", NAMES)
def test_causal(name: str) -> None:
    model, tokens = language_model(name), ids(1, 2, 20)
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % V
    before, after = model(tokens), model(changed)
    assert_same(before[:, :12], after[:, :12])
    assert ((before - after)[:, 12:].abs().amax(-1) > 1e-8).all()
