"""64-bit words that are pure functions of integers, for many at once: what makes a batch a function of its index.

SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), at any place of its
stream. int64 tensors hold the words: their sums and products wrap as unsigned ones do, the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def splitmix64(z: Tensor, index: int | Tensor = 0) -> Tensor:
    """Word `index` of the stream that starts at z, mix64(z + (index + 1) GOLDEN): all 64 bits random.

    z, index: int64 tensors that broadcast, or an integer index.
    """
    if isinstance(index, int):  # added as a number: a tensor made of it would have to be sent to a GPU
        return mix64(z + (((index + 1) * GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)))
    return mix64(z + (index.to(z.device) + 1) * GOLDEN)


def mix64(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64 bits; int64 of any shape -> same. It leaves 0 as it is."""
    z = (z ^ logical_shift(z, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ logical_shift(z, 27)) * (0x94D049BB133111EB - (1 << 64))
    return z ^ logical_shift(z, 31)


def logical_shift(z: Tensor, by: int) -> Tensor:
    """z >> by with zeros from the left, as of an unsigned word; 0 < by < 64."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def stream_key(*integers: int | Tensor) -> Tensor:
    """One key, int64, for every combination of integers and int64 tensors that broadcast."""
    key = torch.zeros((), dtype=torch.int64)
    for integer in integers:
        key = splitmix64(key ^ integer)
    return key
