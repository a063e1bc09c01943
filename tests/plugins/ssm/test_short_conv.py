"""The short convolution against torch's, and what it remembers."""

from __future__ import annotations

import pytest
import torch
from ssm_cases import normal, off
from torch.nn import functional as F

from icll_zoo_ssm.short_conv import ShortConv


@pytest.mark.parametrize(("size", "length"), [(1, 5), (3, 1), (4, 2), (4, 70)])
def test_equals_a_grouped_conv1d(size: int, length: int) -> None:
    torch.manual_seed(0)
    conv, x = ShortConv(6, size).double(), normal(1, 2, length, 6)
    padded = F.pad(x.transpose(1, 2), (size - 1, 0))
    wanted = F.conv1d(padded, conv.weight, conv.bias, groups=6).transpose(1, 2)
    y, tail = conv(x)
    assert off(y, wanted) <= 1e-14
    assert torch.equal(tail, padded.transpose(1, 2)[:, length:])
    found, before = [], None
    for token in x.split(1, 1):
        y, before = conv(token, before)
        found.append(y)
    assert off(torch.cat(found, 1), wanted) <= 1e-14


def test_initialised_as_a_grouped_conv1d() -> None:
    torch.manual_seed(0)
    conv, torchs = ShortConv(4096, 4), torch.nn.Conv1d(4096, 4096, 4, groups=4096)
    for mine, wanted in zip(conv.parameters(), torchs.parameters(), strict=True):
        assert mine.shape == wanted.shape
        assert mine.abs().max() <= 0.5
        assert mine.std().item() == pytest.approx(wanted.std().item(), rel=0.05)


def test_bfloat16_rounds_once() -> None:
    torch.manual_seed(0)
    conv = ShortConv(64, 4).bfloat16()
    x = normal(1, 2, 50, 64).bfloat16()
    y, tail = conv(x)
    assert y.dtype == tail.dtype == torch.bfloat16
    assert torch.equal(y, conv.double()(x.double())[0].bfloat16())
