"""A linear time-invariant state-space model with a diagonal, complex state; S4D and H3 are made of it.

    s_t = a s_{t-1} + u_t,   a and s in C^n for each channel,  |a| < 1
    y_t = Re (c . s_t)

(The usual B is part of c, since both only enter as their product, and so is the factor 2 for the conjugate half.)

In chunks of C tokens a chunk's outputs are a matrix product with the Toeplitz matrix of Re c . a^m, plus what the state
before the chunk gives; only the C first powers of a are needed, never a kernel as long as the sequence. Complex numbers
are pairs of real ones in a last dimension of 2, so that everything is real matrix products. Unlike a convolution by FFT
(Gu et al. 2022, arXiv:2206.11893) this carries a state, and the past does not depend on the future even in rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo_ssm.precision import widened, without_autocast


def diagonal_ssm(
    u: Tensor, log_a: Tensor, c: Tensor, state: Tensor | None = None, chunk_size: int = 64
) -> tuple[Tensor, Tensor]:
    """y (b, l, d) of u (b, l, d), and the state (b, d, n, 2) after the last token.

    log_a (d, n, 2): log |a| <= 0 and the angle of a. c (d, n, 2): real and imaginary part. state: zeros if None.
    """
    dtype, (b, length, d), n = u.dtype, u.shape, c.size(1)
    if state is None:
        state = torch.zeros(b, d, n, 2, device=u.device, dtype=u.dtype)
    u, log_a, c, state = widened(u, log_a, c, state)
    size = min(chunk_size, length)
    chunks = -(-length // size)
    with without_autocast(u):
        a = powers(log_a, size + 1)
        at_once = toeplitz(real_of_product(c, a[..., :size, :]).sum(1), 0, size, size)
        # (d, C, 2n) and (d, 2n, C), for states (d, ..., 2n) whose first n are the real parts.
        into = a[..., :size, :].flip(2).permute(0, 2, 3, 1).flatten(2)
        later = times(c.unsqueeze(2), a[..., 1:, :])
        out_of = torch.cat([later[..., 0], -later[..., 1]], 1)
        decay = (a[:, None, :, size, 0], a[:, None, :, size, 1])

        u = F.pad(u.permute(2, 0, 1), (0, chunks * size - length)).unflatten(2, (chunks, size))
        s = state.permute(1, 0, 3, 2).flatten(2)
        begun = [s]
        for added in (u[:, :, :-1].flatten(1, 2) @ into).unflatten(1, (b, -1)).unbind(2):
            s = turn(s, *decay) + added
            begun.append(s)
        y = u.flatten(1, 2) @ at_once + torch.stack(begun, 2).flatten(1, 2) @ out_of
        # The last chunk may be short: its tokens have fewer steps to go than the padding suggests.
        rest = length - (chunks - 1) * size
        s = turn(s, a[:, None, :, rest, 0], a[:, None, :, rest, 1]) + u[:, :, -1, :rest] @ into[:, size - rest :]
    y = y.unflatten(1, (b, -1)).flatten(2)[..., :length].permute(1, 2, 0)
    return y.to(dtype), s.unflatten(2, (2, n)).permute(1, 0, 3, 2)


def diagonal_ssm_reference(u: Tensor, log_a: Tensor, c: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`diagonal_ssm`, token by token in complex numbers."""
    a = torch.polar(log_a[..., 0].exp(), log_a[..., 1])
    weight = torch.complex(c[..., 0], c[..., 1])
    s = torch.zeros(u.size(0), *a.shape, device=u.device, dtype=a.dtype)
    if state is not None:
        s = torch.complex(state[..., 0], state[..., 1]).to(a.dtype)
    y = []
    for u_t in u.unbind(1):
        s = a * s + u_t.unsqueeze(2)
        y.append((weight * s).real.sum(2))
    return torch.stack(y, 1).to(u.dtype), torch.view_as_real(s)


def powers(log_a: Tensor, count: int) -> Tensor:
    """a^0 ... a^(count - 1), (d, n, count, 2), of a given by log |a| and angle, (d, n, 2)."""
    steps = torch.arange(count, device=log_a.device, dtype=log_a.dtype)
    # Less whole turns, which change nothing, the powers keep their digits. In float64, as is 2 pi.
    angle = log_a[..., 1].double()
    angle = (angle - 2 * math.pi * (angle.detach() / (2 * math.pi)).round()).to(log_a.dtype)
    size, angle = (log_a[..., 0, None] * steps).exp(), angle.unsqueeze(-1) * steps
    return torch.stack([size * angle.cos(), size * angle.sin()], -1)


def toeplitz(kernel: Tensor, later: int, rows: int, width: int) -> Tensor:
    """(d, m) -> (d, rows, width): row j, column i is the kernel's value `later` + i - j, 0 outside it."""
    # Rows of one period, read with a stride of a period less one, move by one place each.
    period = later + width + rows
    flat = F.pad(kernel, (0, period - kernel.size(-1))).unsqueeze(1).expand(-1, rows + 1, -1).flatten(1)
    return flat[:, later : later + rows * (period - 1)].unflatten(1, (rows, period - 1))[..., :width]


def turn(s: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """The product of complex numbers, s (..., 2n) holding the real parts first."""
    x, y = s.chunk(2, -1)
    return torch.cat([real * x - imaginary * y, real * y + imaginary * x], -1)


def times(x: Tensor, y: Tensor) -> Tensor:
    """The product of complex numbers given as pairs in the last dimension."""
    (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
    return torch.stack([a * c - b * d, a * d + b * c], -1)


def real_of_product(c: Tensor, a: Tensor) -> Tensor:
    """The real part of c a: c (d, n, 2), a (d, n, m, 2) -> (d, n, m)."""
    return c[..., 0, None] * a[..., 0] - c[..., 1, None] * a[..., 1]
