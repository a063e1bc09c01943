"""Hungry Hungry Hippos (Fu, Dao et al. 2022, arXiv:2212.14052), "h3".

    q, k, v = W_q x + b_q, W_k x + b_k, W_v x + b_v
    shift:      k'_t = sum_{i<N} c_i k_{t-i} + D_k k_t,   a state-space model whose state is the last N keys
    diagonal:   y_t = 2 Re(C s_t) + D k'_t v_t,   s_t = a s_{t-1} + b k'_t v_t
    output:     W (q_t y_t) + b,   all products elementwise (heads of one dimension)

As in Akyurek et al. 2024 (arXiv:2401.12973): both states of size d_state; the diagonal one starts as S4D-Lin, made
discrete by the bilinear rule a = (1 + dt A / 2) / (1 - dt A / 2), b = dt / (1 - dt A / 2). The shift's B is e_1, as in
the paper (their code trains it, and B of the diagonal model, which only enters in B C). The reference gives A and the
steps no weight decay.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo_ssm.diagonal import diagonal_ssm, diagonal_ssm_reference, times, toeplitz
from icll_zoo_ssm.precision import at_least_float32, widened, without_autocast
from icll_zoo_ssm.s4d import Backend, half_state, log_uniform


def shift_ssm(u: Tensor, taps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y_t = sum_i taps_i u_{t-i} in each channel, in chunks of N tokens by matrix products.

    u (b, l, d), taps (d, N). state (b, N - 1, d): the inputs before the first one, zeros if None; returned as it is
    after the last one. (Of the N inputs that the model's state holds, the oldest is never read again.)
    """
    dtype, (b, length, d), size = u.dtype, u.shape, taps.size(1)
    if state is None:
        state = torch.zeros(b, size - 1, d, device=u.device, dtype=u.dtype)
    history = torch.cat([state.to(dtype), u], 1)
    wide, taps = widened(history, taps)
    width = min(size, length)
    chunks = -(-length // width)
    with without_autocast(u):
        # Row j, column i: the tap that takes input j of the two chunks [before, now] to output i of the second.
        band = toeplitz(taps, size, size + width, width)
        x = F.pad(wide.permute(2, 0, 1), (1, chunks * width - length))
        # One chunk reads all that there is; several are whole, each reads itself and the one before it.
        pairs = x.unsqueeze(2) if chunks == 1 else x.unflatten(2, (-1, size))
        if chunks > 1:
            pairs = torch.cat([pairs[:, :, :-1], pairs[:, :, 1:]], -1)
        y = pairs.flatten(1, 2) @ band
    y = y.unflatten(1, (b, -1)).flatten(2)[..., :length].permute(1, 2, 0)
    return y.to(dtype), history[:, length:]


def shift_ssm_reference(u: Tensor, taps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`shift_ssm`, token by token: the state moves by one place and takes in the new input."""
    if state is None:
        state = torch.zeros(u.size(0), taps.size(1) - 1, u.size(2), device=u.device, dtype=u.dtype)
    y = []
    for u_t in u.unbind(1):
        newest_last = torch.cat([state, u_t.unsqueeze(1)], 1)
        y.append((newest_last * taps.flip(1).T).sum(1))
        state = newest_last[:, 1:]
    return torch.stack(y, 1), state


def bilinear(log_dt: Tensor, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """log a and the input's weight b of the discrete recurrence, (d, n, 2) each, as in `s4d.zero_order_hold`."""
    log_dt, real, imaginary = widened(log_dt, real, imaginary)
    dt = log_dt.exp().unsqueeze(-1)
    x, y = dt * real, dt * imaginary
    below = (2 - x).square() + y.square()
    # |2 + z|^2 is |2 - z|^2 + 8 Re z.
    log_size = torch.log1p(8 * x / below) / 2
    angle = torch.atan2(y, 2 + x) + torch.atan2(y, 2 - x)
    return torch.stack([log_size, angle], -1), torch.stack([2 * dt * (2 - x) / below, 2 * dt * y / below], -1)


BACKENDS = {
    "auto": (shift_ssm, diagonal_ssm),
    "fast": (shift_ssm, diagonal_ssm),
    "reference": (shift_ssm_reference, diagonal_ssm_reference),
}


class H3(nn.Module):
    """H3, (batch, length, d_model) -> same; its state is the last keys and d_state / 2 complex numbers a channel.

    d_state: N, the size of both states. dt_min, dt_max: as in S4D.
    backend: "fast" (auto) works in chunks, "reference" token by token; one function.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        n = half_state(d_state)
        self.d_model, self.d_state = d_model, d_state
        self.shift, self.ssm = BACKENDS[backend]
        self.qkv, self.out_proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        for linear in (self.qkv, self.out_proj):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        # What torch gives to a Conv1d of d_state taps; the newest token's tap first.
        bound = 1 / math.sqrt(d_state)
        self.taps = nn.Parameter(torch.empty(d_model, d_state).uniform_(-bound, bound))
        self.d_shift = nn.Parameter(torch.randn(d_model))
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max))
        # S4D-Lin: the frequencies of a Fourier series.
        self.log_a_real = nn.Parameter(torch.full((d_model, n), math.log(0.5)))
        self.a_imaginary = nn.Parameter((math.pi * torch.arange(n)).repeat(d_model, 1))
        self.c = nn.Parameter(torch.randn(d_model, n, 2) * math.sqrt(0.5))
        self.d = nn.Parameter(torch.randn(d_model))

    def no_weight_decay(self) -> set[str]:
        """What the reference trains without weight decay."""
        return {"log_dt", "log_a_real", "a_imaginary"}

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, self.init_state(x.size(0), x.device, x.dtype))[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """The last d_state - 1 keys, (b, d_state - 1, d_model), and s, (b, d_model, d_state / 2, 2); zeros."""
        return {
            "keys": torch.zeros(batch_size, self.d_state - 1, self.d_model, device=device, dtype=dtype),
            "s": torch.zeros(batch_size, *self.c.shape, device=device, dtype=at_least_float32(dtype)),
        }

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        q, k, v = self.qkv(x).chunk(3, -1)
        shifted, keys = self.shift(k, self.taps, state["keys"])
        kv = (shifted + self.d_shift * k) * v
        log_a, weight = bilinear(self.log_dt, -self.log_a_real.exp(), self.a_imaginary)
        y, s = self.ssm(kv, log_a, 2 * times(self.c, weight), state["s"])
        return self.out_proj(q * (y + self.d * kv)), {"keys": keys, "s": s}
