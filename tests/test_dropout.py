"""Dropout masks: one function of seed, update, layer, row and position, however a batch is cut, padded or placed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import icll_zoo
from icll_zoo.dropout import Dropout, adopt, keep_mask, masks

LANE = 2**16


def by_definition(key: int, place: tuple[int, ...], p: float) -> bool:
    """The docstring's formula with Python's integers."""
    mask = 2**64 - 1

    def word(z: int, index: int) -> int:
        z = (z + (index + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    for index in place[:-1]:
        key = word(key, index)
    lane = word(key, place[-1] // 4) >> 16 * (place[-1] % 4) & (LANE - 1)
    signed = lane - LANE if lane >= LANE // 2 else lane
    return signed < round((1 - p) * LANE) - LANE // 2


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 2, 3, 9), (2, 6), (4,)])
def test_the_mask_is_the_formula(shape: tuple[int, ...]) -> None:
    keys = torch.tensor([-7, 2**62, 3, 12345])[: shape[0]]
    mask = keep_mask(keys, list(shape), 0.3)
    for place in torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape)).tolist():
        rest = tuple(place[1:]) or (0,)
        assert bool(mask[tuple(place)]) == by_definition(int(keys[place[0]]), rest, 0.3)


def dropped(rows: Tensor, shape: tuple[int, ...], update: int = 0, seed: int = 0, p: float = 0.5) -> Tensor:
    layers = adopt(nn.Sequential(nn.Dropout(p), nn.Dropout(p)).train())
    with masks(layers, seed, update, rows):
        return torch.stack([layer(torch.ones(len(rows), *shape)) for layer in layers])


def test_a_row_s_mask_does_not_depend_on_its_company_or_its_padding() -> None:
    whole = dropped(torch.arange(8), (9, 6))
    for rows in (torch.tensor([5]), torch.arange(1, 8, 2), torch.tensor([7, 0])):
        assert torch.equal(dropped(rows, (9, 6)), whole[:, rows])
    assert torch.equal(dropped(torch.arange(8), (4, 6)), whole[:, :, :4])
    assert torch.equal(dropped(torch.arange(8), (9, 5)), whole[..., :5])


def test_masks_differ_between_seeds_updates_layers_rows_positions_and_calls() -> None:
    def overlap(a: Tensor, b: Tensor) -> float:
        return ((a > 0) == (b > 0)).float().mean().item()

    one = dropped(torch.arange(8), (30, 64))
    for a, b in (
        (one, dropped(torch.arange(8), (30, 64), update=1)),
        (one, dropped(torch.arange(8), (30, 64), seed=1)),
        (one[0], one[1]),
        (one[:, :-1], one[:, 1:]),
        (one[:, :, :-1], one[:, :, 1:]),
        (one[..., :-1], one[..., 1:]),
    ):
        assert overlap(a, b) == pytest.approx(0.5, abs=0.015)  # 15,360 places or more: 0.004 of spread
    (layer,) = adopt(nn.Sequential(nn.Dropout(0.5)))
    with masks([layer], 0, 0, torch.arange(8)):
        first, second = layer(torch.ones(8, 30, 64)), layer(torch.ones(8, 30, 64))
    assert overlap(first, second) == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_expectation_stays(p: float) -> None:
    out = dropped(torch.arange(16), (50, 64), p=p)
    kept = (out != 0).double().mean().item()
    assert kept == pytest.approx(1 - p, abs=0.006)
    assert out.double().mean().item() == pytest.approx(0 if p == 1 else 1, abs=0.03)
    assert len(out.unique()) == (1 if p in (0, 1) else 2)


def test_the_gradient_meets_the_same_mask() -> None:
    (layer,) = adopt(nn.Sequential(nn.Dropout(0.4)))
    x = torch.ones(4, 7, 8, requires_grad=True)
    with masks([layer], 3, 2, torch.arange(4)):
        y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_a_model_keeps_its_weights_and_outside_of_training_torch_s_generator() -> None:
    model = icll_zoo.create_model("transformer", vocab_size=20, d_model=16, n_layers=2, attention_dropout=0.2)
    names = list(model.state_dict())
    plain = nn.Dropout(0.1)
    layers = adopt(model)
    assert len(layers) == 3  # of the embeddings, and of the weights of two layers
    assert adopt(model) == layers
    assert list(model.state_dict()) == names
    assert not any(type(module) is nn.Dropout for module in model.modules())
    x = torch.ones(4, 5, 16)
    torch.manual_seed(0)
    expected = plain(x)
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.1)(x), expected)
    assert torch.equal(Dropout(0.1).eval()(x), x)


def test_an_input_that_is_not_one_entry_a_row_is_left_to_torch() -> None:
    (layer,) = adopt(nn.Sequential(nn.Dropout(0.5)))
    with masks([layer], 0, 0, torch.arange(4)):
        torch.manual_seed(0)
        out = layer(torch.ones(3, 8))
    torch.manual_seed(0)
    assert torch.equal(out, nn.Dropout(0.5)(torch.ones(3, 8)))
    assert layer.keys is None


# The real compiler takes half a minute, and warns of itself.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_layer_drops_the_same(backend: str) -> None:
    layers = adopt(model := nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 8, bias=False), nn.Dropout(0.3)))
    compiled = torch.compile(model, backend=backend)
    x = torch.randn(4, 6, 8)
    for update in range(3):
        with masks(layers, 0, update, torch.arange(4)):
            plain = model(x)
        with masks(layers, 0, update, torch.arange(4)):
            torch.testing.assert_close(compiled(x), plain)


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    keys = torch.arange(16) * 7919 - 5
    for shape in ((16, 30, 64), (16, 2, 9, 9)):
        mask = keep_mask(keys, list(shape), 0.1)
        assert torch.equal(keep_mask(keys.cuda(), list(shape), 0.1).cpu(), mask)
