"""The short convolution against its sum, and its state."""

from __future__ import annotations

import pytest
import torch
from delta_cases import convolved, off, random

from icll_zoo import InputError
from icll_zoo_linear.shortconv import ShortConv, short_conv

D = 6


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 20])
def test_is_its_sum(size: int, length: int) -> None:
    x, weight = random(1, 2, length, D), random(2, D, size)
    y, after = short_conv(x, weight)
    assert off(y, convolved(x, weight)) <= 1e-13
    assert after.shape == (2, size - 1, D)


@pytest.mark.parametrize("pieces", [[1] * 9, [2, 7], [5, 1, 3]])
def test_goes_on_from_its_last_inputs(pieces: list[int]) -> None:
    x, conv = random(1, 2, 9, D), ShortConv(D, 4).double()
    wanted, last = conv(x)
    before, outputs = conv.init_state(2, "cpu", torch.float64), []
    for piece in x.split(pieces, 1):
        kept = before.clone()
        y, after = conv(piece, before)
        assert torch.equal(before, kept)
        outputs.append(y)
        before = after
    assert off(torch.cat(outputs, 1), wanted) <= 1e-13
    assert torch.equal(before, last)
    assert torch.equal(last, x[:, -3:])


def test_starts_within_torchs_bound() -> None:
    torch.manual_seed(0)
    weight = ShortConv(1000, 4).weight
    assert weight.abs().max() <= 0.5
    assert weight.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.03)
    with pytest.raises(InputError, match="conv_size 0"):
        ShortConv(4, 0)
