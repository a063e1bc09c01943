"""The n-gram head as a layer, and the models made of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import icll_zoo as zoo
from icll_zoo import InputError
from icll_zoo_ngram.head import NGramHead


def head(order: int = 2, **options: object) -> NGramHead:
    torch.manual_seed(0)
    layer = NGramHead(6, order, **options).double()  # type: ignore[arg-type]
    for linear in (layer.attended, layer.own):
        nn.init.normal_(linear.bias)
    return layer


def batch(length: int, vocab_size: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(vocab_size, (3, length), generator=generator)
    return torch.randn(3, length, 6, generator=generator, dtype=torch.float64), tokens


def test_is_two_linear_maps_of_what_followed_and_what_is() -> None:
    layer = head(1)
    tokens = torch.tensor([[5, 3, 5, 4, 5]])
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    y = layer(x, tokens)
    followed = torch.stack([x[0, 1] * 0, x[0, 1] * 0, x[0, 1], x[0, 1] * 0, (x[0, 1] + x[0, 3]) / 2])
    torch.testing.assert_close(y[0], layer.attended(followed) + layer.own(x[0]))


@pytest.mark.parametrize("order", [1, 2, 3, 8])
def test_backends_agree(order: int) -> None:
    x, tokens = batch(90)
    fast, reference = head(order), head(order, backend="reference")
    reference.load_state_dict(fast.state_dict())
    torch.testing.assert_close(fast(x, tokens), reference(x, tokens), rtol=0, atol=1e-12)


def test_initialisation_is_the_papers() -> None:
    torch.manual_seed(0)
    layer = NGramHead(256)
    for linear in (layer.attended, layer.own):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not linear.bias.any()


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("order", [1, 2, 3, 8])
@pytest.mark.parametrize("chunk", [1, 3, 8, 70])
def test_steps_are_the_forward(order: int, chunk: int, backend: str) -> None:
    layer = head(order, backend=backend)
    x, tokens = batch(75)
    state = layer.init_state(3, dtype=torch.float64)
    pieces = []
    for start in range(0, 75, chunk):
        piece, state = layer.step(x[:, start : start + chunk], state, tokens[:, start : start + chunk])
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x, tokens), rtol=0, atol=1e-12)
    assert torch.equal(state["tokens"], tokens)
    assert torch.equal(state["x"], x)


def test_a_step_leaves_its_state_alone() -> None:
    layer = head()
    x, tokens = batch(20)
    _, state = layer.step(x[:, :10], layer.init_state(3, dtype=torch.float64), tokens[:, :10])
    before = {name: tensor.clone() for name, tensor in state.items()}
    for _ in range(2):
        layer.step(x[:, 10:12], state, tokens[:, 10:12])
    assert layer.state_grows
    for name, tensor in before.items():
        assert torch.equal(state[name], tensor)


def test_half_precision_steps_are_the_forward() -> None:
    layer = head(1).bfloat16()
    x, tokens = batch(40, vocab_size=1)
    x = x.bfloat16()
    state = layer.init_state(3, dtype=torch.bfloat16)
    _, state = layer.step(x[:, :39], state, tokens[:, :39])
    y, _ = layer.step(x[:, 39:], state, tokens[:, 39:])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, layer(x, tokens)[:, 39:], rtol=2e-2, atol=2e-3)


def test_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match="order of an n-gram head is 0"):
        NGramHead(4, order=0)
    with pytest.raises(InputError, match="backend of an n-gram head is 'quick'"):
        NGramHead(4, backend="quick")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"token ids \(1, 3\) for vectors \(1, 2, 4\)"):
        NGramHead(4)(torch.zeros(1, 2, 4), torch.zeros(1, 3, dtype=torch.int64))


def test_models_by_name() -> None:
    assert {"ngram-head", "ngram-head-stack"} <= set(zoo.list_models("*ngram*"))
    model = zoo.create_model("ngram-head-stack")
    assert [block.mixer.order for block in model.blocks] == [1, 2, 3]
    assert model.state_grows
    assert model.positions is None
    hybrid = zoo.create_model("transformer-ngram", d_model=32)
    assert [getattr(block.mixer, "order", None) for block in hybrid.blocks] == [None, 1, 2, 3, *[None] * 4]
    assert [block.mlp.up.out_features for block in hybrid.blocks] == [64, 32, 32, 32, *[64] * 4]


def test_a_stack_steps_as_it_reads() -> None:
    torch.manual_seed(0)
    model = zoo.create_model("ngram-head-stack", d_model=16).double().eval()
    tokens = torch.randint(20, (2, 60))
    logits, state = model.step(tokens[:, :40], model.init_state(2))
    more, _ = model.step(tokens[:, 40:], state)
    torch.testing.assert_close(torch.cat([logits, more], 1), model(tokens), rtol=0, atol=1e-12)


def test_a_stack_learns_to_copy() -> None:
    """A sequence said twice: the second time, each token follows from the last three."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = zoo.create_model("ngram-head-stack", d_model=32, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        once = torch.randint(20, (16, 24), generator=generator)
        twice = torch.cat([once, once], 1)
        logits = model(twice[:, :-1])[:, 27:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), twice[:, 28:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (logits.argmax(-1) == twice[:, 28:]).float().mean().item()
    assert accuracy > 0.95  # a guess is right once in 20
