"""A shuffle that is a function: where each place of an epoch leads, without a table of all of them.

A Feistel network over just enough bits is a permutation of 2^bits numbers for any round function (Luby and Rackoff,
1988); a number that leaves the range is sent through again until it is back in it (Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002). So any place of any epoch is known at once, in memory that does not grow.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from icll_zoo import logical_shift, passes, splitmix64

ROUNDS = 8
LEAST_BITS = 8
"""Fewer would leave too few round functions to shuffle a handful of rows well."""
WINDOW = 2**16
"""Places worked out at once: what one costs alone is mostly the calls."""


def permuted(place: Tensor, size: int, key: int) -> Tensor:
    """Where places (n,) int64 in [0, size) lead in the shuffle called `key`: (n,) int64, a bijection of the range."""
    bits = max(LEAST_BITS, (size - 1).bit_length())
    right = bits // 2
    masks = ((1 << (bits - right)) - 1, (1 << right) - 1)
    keys = splitmix64(torch.tensor(key), torch.arange(ROUNDS))
    result = place.clone()
    outside = torch.arange(len(place))
    moving = place
    while len(outside):
        halves = [moving >> right, moving & masks[1]]
        for turn in range(ROUNDS):
            side = turn % 2
            mixed = splitmix64(halves[1 - side] ^ keys[turn])
            halves[side] = halves[side] ^ (logical_shift(mixed, 20) & masks[side])
        moving = (halves[0] << right) | halves[1]
        result[outside] = moving
        wrong = moving >= size
        outside, moving = outside[wrong], moving[wrong]
    return result


def rows_of(size: int, k: int, batch_size: int, seed: int | None) -> Tensor:
    """Which of `size` rows make up batch k, (<= batch_size,) int64, as `icll_zoo.epoch_indices` says it.

    The order of an epoch is a function of (seed, epoch) alone, not of the batch size.
    """
    epoch, position = divmod(k, passes(size, batch_size))
    begin, end = position * batch_size, min((position + 1) * batch_size, size)
    if seed is None:
        if epoch:
            raise IndexError(f"batch {k} of a single pass of {passes(size, batch_size)} batches")
        return torch.arange(begin, end)
    first, last = begin // WINDOW, (end - 1) // WINDOW
    windows = [window_of(size, epoch, seed, i) for i in range(first, last + 1)]
    joined = windows[0] if len(windows) == 1 else torch.cat(windows)
    return joined[begin - first * WINDOW : end - first * WINDOW]


@lru_cache(maxsize=8)
def window_of(size: int, epoch: int, seed: int, index: int) -> Tensor:
    """Some places of an epoch in turn, shuffled."""
    key = int(splitmix64(splitmix64(torch.tensor(seed)) ^ epoch))
    return permuted(torch.arange(index * WINDOW, min((index + 1) * WINDOW, size)), size, key)
