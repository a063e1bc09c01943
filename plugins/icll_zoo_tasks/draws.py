"""Random numbers out of random words: uniform, integer, categorical, gamma and Dirichlet, for many rows at once.

All of it is in float64 and a function of the words alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from icll_zoo import logical_shift, splitmix64
from icll_zoo_tasks.words import words

GAMMA_ATTEMPTS = 64
"""An attempt fails one time in twenty at most."""
CHUNK = 1 << 14
"""Worked on at a time: what a cache holds."""


def uniform(random: Tensor) -> Tensor:
    """Words as float64 in the open interval (0, 1)."""
    return (logical_shift(random, 12).double() + 0.5) * 2.0**-52


def integers(random: Tensor, bound: int | Tensor) -> Tensor:
    """Words as integers in [0, bound), uniform to within 2^-52."""
    return (uniform(random) * bound).long()


def categorical(random: Tensor, weight: Tensor) -> Tensor:
    """A place of each row of weights (b, n) >= 0, in proportion to them; random: words (b,). Returns (b,) int64."""
    sums = weight.cumsum(1)
    # Times the sum as it was rounded: the last place must not be taken for what the others miss to 1.
    return (sums[:, :-1] <= uniform(random)[:, None] * sums[:, -1:]).sum(1)


def log_gamma(key: Tensor, shape: Tensor) -> Tensor:
    """Logarithms of gamma variates of scale 1, one for each key; key: (...) int64, shape: (...) float64 >= 0.

    Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000. A shape below 1 goes by
    G(a) = G(a + 1) U^(1/a), in logarithms, as U^(1/a) may be too small for a number. A shape of 0 gives -inf.
    """
    flat = zip(key.flatten().split(CHUNK), shape.expand(key.shape).flatten().split(CHUNK), strict=True)
    return torch.cat([log_gamma_piece(*piece) for piece in flat]).view(key.shape)


def log_gamma_piece(key: Tensor, shape: Tensor) -> Tensor:
    """The same for one dimension, all at once."""
    small = shape < 1
    d = torch.where(small, shape + 1, shape) - 1 / 3
    out = torch.empty_like(d)
    pending = torch.arange(len(key), device=key.device)
    for attempt in range(GAMMA_ATTEMPTS):
        e = d[pending]
        u = uniform(splitmix64(key[pending], torch.arange(1, 4, device=key.device)[:, None] + 3 * attempt))
        normal = (-2 * u[0].log()).sqrt() * (2 * math.pi * u[1]).cos()
        v = (1 + normal / (9 * e).sqrt()) ** 3
        log_v = v.clamp(min=torch.finfo(torch.float64).tiny).log()
        good = (v > 0) & (u[2].log() < normal**2 / 2 + e - e * v + e * log_v)
        out[pending[good]] = (e.log() + log_v)[good]
        pending = pending[~good]
        if not pending.numel():
            break
    return torch.where(small, out + uniform(splitmix64(key)).log() / shape, out)


def dirichlet(key: Tensor, shape: Tensor | float, count: int) -> Tensor:
    """One point of the simplex for every key (...): (..., count) float64; shape: the parameter(s), (..., count)."""
    flat = words(key.flatten(), count).view(*key.shape, count)
    if isinstance(shape, float) and shape == 1:  # the exponential distribution
        gamma = -uniform(flat).log()
        return gamma / gamma.sum(-1, keepdim=True)
    shapes = torch.as_tensor(shape, dtype=torch.float64, device=key.device)
    return log_gamma(flat, shapes).softmax(-1)
