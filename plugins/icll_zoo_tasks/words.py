"""Random words of SplitMix64's streams, and places drawn with them, for many keys at once."""

from __future__ import annotations

import torch
from torch import Tensor

from icll_zoo import logical_shift, splitmix64


def words(key: Tensor, count: int) -> Tensor:
    """The first `count` words of every key's stream: (b,) -> (b, count) int64, all 64 bits random."""
    return splitmix64(key[:, None], torch.arange(count))


def choices(random: Tensor, count: int) -> Tensor:
    """`count` different places of each row of words (b, n), in random order, uniformly: (b, count)."""
    return random.argsort(dim=1, stable=True)[:, :count]


def weighted_choices(random: Tensor, weight: Tensor, count: int) -> Tensor:
    """The same with places taken one after the other, each time in proportion to the weights (n,) of those left.

    As a race: place i arrives after an exponential time of rate weight_i, and the first `count` are taken.
    """
    uniform = (logical_shift(random, 11).double() + 0.5) * 2.0**-53
    return (-uniform.log() / weight).argsort(dim=1, stable=True)[:, :count]
