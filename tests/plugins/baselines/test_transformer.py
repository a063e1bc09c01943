"""Softmax attention and its rotary variant against their formulas written out, and the transformers made of them."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icll_zoo import InputError, create_model
from icll_zoo_baselines.rope import RotaryAttention, rotate
from icll_zoo_baselines.transformer import Attention

D, HEADS, V = 24, 3, 11
NAMES = ("transformer", "transformer-rope")
KINDS = {"transformer": Attention, "transformer-rope": RotaryAttention}


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(seed: int, b: int, length: int) -> Tensor:
    return torch.randint(V, (b, length), generator=torch.Generator().manual_seed(seed))


def mixer(name: str, **options: Any) -> Any:
    """A mixer in float64 with weights large enough for the attention to be far from uniform."""
    made = KINDS[name](d_model=D, n_layers=2, n_heads=HEADS, **options).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    return made


def language_model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    defaults = {"d_model": D, "n_layers": 2, "n_heads": HEADS, "max_length": 64}
    model = create_model(name, V, **defaults | options).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(random(i, *parameter.shape) * 0.3)
    return model


@torch.no_grad()
def explicit(made: Any, x: Tensor, rotary: bool) -> Tensor:
    """Attention by its definition, one query, head and dimension at a time."""
    b, length, d = x.shape
    size = d // HEADS
    q, k, v = (x @ made.qkv.weight.T + made.qkv.bias).split(d, -1)
    mixed = torch.zeros_like(x)
    for row in range(b):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            keys, queries = k[row, :, part], q[row, :, part]
            if rotary:
                keys, queries = turned(keys), turned(queries)
            for t in range(length):
                scores = [float(queries[t] @ keys[s]) / math.sqrt(size) for s in range(t + 1)]
                weights = [math.exp(score - max(scores)) for score in scores]
                for s, weight in enumerate(weights):
                    mixed[row, t, part] += weight / sum(weights) * v[row, s, part]
    return mixed @ made.out_proj.weight.T + made.out_proj.bias


def turned(x: Tensor, start: int = 0) -> Tensor:
    """x (l, d): dimensions 2i and 2i + 1 as a complex number, times exp(i t / 10000^(2i / d))."""
    length, d = x.shape
    out = torch.empty_like(x)
    for t in range(length):
        for i in range(d // 2):
            z = complex(x[t, 2 * i], x[t, 2 * i + 1]) * cmath.exp(1j * (start + t) / 10000 ** (2 * i / d))
            out[t, 2 * i], out[t, 2 * i + 1] = z.real, z.imag
    return out


def assert_same(found: Tensor, wanted: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_formula(name: str, backend: str) -> None:
    made, x = mixer(name, backend=backend), random(9, 2, 13, D)
    assert_same(made(x), explicit(made, x, rotary=name == "transformer-rope"))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_backends_agree(name: str) -> None:
    gradients = []
    for backend in ("fast", "reference"):
        made, x = mixer(name, backend=backend), random(9, 2, 13, D).requires_grad_()
        gradients.append(torch.autograd.grad((made(x) * random(8, 2, 13, D)).sum(), [x, *made.parameters()]))
    for fast, reference in zip(*gradients, strict=True):
        assert_same(fast, reference, atol=1e-10)


@pytest.mark.parametrize("start", [0, 5, 4000])
def test_rotation_equals_complex_numbers(start: int) -> None:
    x = random(1, 2, 7, HEADS, 8)
    found = rotate(x, start)
    for row in range(2):
        for head in range(HEADS):
            assert_same(found[row, :, head], turned(x[row, :, head], start))


def test_rotated_products_depend_on_distance_only() -> None:
    q, k = random(1, 1, 1, 1, 8), random(2, 1, 1, 1, 8)

    def product(at: int, of: int) -> Tensor:
        return (rotate(q, at) * rotate(k, of)).sum()

    assert_same(product(7, 3), product(1004, 1000), atol=1e-10)
    assert (product(7, 3) - product(7, 4)).abs() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_causal(name: str) -> None:
    model, tokens = language_model(name), ids(1, 2, 20)
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % V
    before, after = model(tokens), model(changed)
    assert_same(before[:, :12], after[:, :12])
    assert ((before - after)[:, 12:].abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 6], [1, 11], [4, 4, 4]])
def test_step_equals_forward(name: str, pieces: list[int]) -> None:
    model, tokens = language_model(name), ids(2, 3, 12)
    wanted = model(tokens)
    state = model.init_state(3)
    for piece, expected in zip(tokens.split(pieces, 1), wanted.split(pieces, 1), strict=True):
        before = {key: tensor.clone() for key, tensor in state.items()}
        logits, after = model.step(piece, state)
        assert_same(logits, expected)
        assert state.keys() == before.keys() == after.keys()
        assert all(torch.equal(state[key], before[key]) for key in state)
        state = after


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_a_mixers_step_equals_its_forward(name: str, backend: str) -> None:
    made, x = mixer(name, backend=backend), random(3, 2, 9, D)
    state, found = made.init_state(2, "cpu", torch.float64), []
    for piece in x.split([1, 3, 5], 1):
        y, state = made.step(piece, state)
        found.append(y)
    assert_same(torch.cat(found, 1), made(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_state_grows_by_a_key_and_a_value_a_token(name: str) -> None:
    model = language_model(name)
    assert model.has_step
    assert model.state_grows

    def size(length: int) -> int:
        _, state = model.step(ids(1, 1, length), model.init_state(1))
        return sum(tensor.nbytes for key, tensor in state.items() if key != "position")

    assert size(10) == 10 * 2 * 2 * D * 8  # layers, keys and values, float64
    assert size(40) == 4 * size(10)


def test_learned_positions() -> None:
    model = language_model("transformer")
    assert model.positions.weight.shape == (64, D)
    tokens = torch.full((1, 8), 3)
    # Of one token repeated, attention alone says the same everywhere.
    assert model(tokens).std(1).max() > 1e-3
    with torch.no_grad():
        model.positions.weight.zero_()
    assert_same(model(tokens), model(tokens)[:, :1].expand(-1, 8, -1))
    with pytest.raises(InputError, match="65 tokens in a model with 64"):
        model(ids(1, 1, 65))
    assert language_model("transformer-rope").positions is None


@pytest.mark.parametrize(("d", "n_layers", "n_heads"), [(128, 12, 2), (64, 1, 4), (256, 2, 1)])
def test_parameters_as_in_the_paper(d: int, n_layers: int, n_heads: int) -> None:
    with torch.device("meta"):
        model = create_model("transformer", 20, d_model=d, n_layers=n_layers, n_heads=n_heads, max_length=4098)
    assert sum(p.numel() for p in model.parameters()) == 20 * d + 4098 * d + n_layers * (12 * d**2 + 13 * d) + 2 * d


@pytest.mark.parametrize("name", NAMES)
def test_initialisation(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 20, d_model=256, n_layers=8)
    for block in model.blocks:
        for linear, std in ((block.mixer.qkv, 0.02), (block.mixer.out_proj, 0.02 / math.sqrt(2 * 8))):
            assert linear.weight.std().item() == pytest.approx(std, rel=0.02)
            assert (linear.bias == 0).all()


def test_defaults_as_in_the_paper() -> None:
    attention = Attention(128, 4)
    assert (attention.n_heads, attention.attention_dropout) == (2, 0.1)
    assert RotaryAttention(128, 4).n_heads == 8


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_dropout_on_the_weights_in_training_only(backend: str) -> None:
    made, x = mixer("transformer", attention_dropout=0.5, backend=backend), random(1, 2, 10, D)
    assert torch.equal(made(x), made(x))
    assert_same(made(x), explicit(made, x, rotary=False))
    made.train()
    assert not torch.equal(made(x), made(x))
    # The expectation stays: attention is linear in the dropped weights.
    torch.manual_seed(0)
    with torch.no_grad():
        mean = torch.stack([made(x) for _ in range(2000)]).mean(0)
    exact = made.eval()(x)
    # 2,000 draws leave 2 % of noise; without the scaling by 1 / (1 - p) half would be missing.
    assert (mean - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("name", NAMES)
def test_bad_options(name: str) -> None:
    for bad in (0, 5):
        with pytest.raises(InputError, match=f"n_heads {bad} does not divide d_model 24"):
            KINDS[name](d_model=24, n_layers=1, n_heads=bad)
    with pytest.raises(InputError, match="backend"):
        create_model(name, backend="flash")
    with pytest.raises(InputError, match="attention_dropout 1"):
        Attention(24, 1, attention_dropout=1.0)
    with pytest.raises(InputError, match="even number"):
        RotaryAttention(24, 1, n_heads=8)


@pytest.mark.parametrize("name", NAMES)
def test_trains(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, V, d_model=32, n_layers=2, n_heads=2)
    tokens = ids(5, 4, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())
