"""The diagonal structured state-space model S4D (Gu, Gupta, Goel and Re 2022, arXiv:2206.11893), "s4d".

    continuous:  ds/dt = A s + u,   y = 2 Re(C s) + D u,   A and C in C^(N/2) for each channel, Re A < 0
    by zero-order hold with step dt:   s_t = exp(dt A) s_{t-1} + (exp(dt A) - 1) / A u_t
    layer:   W gelu(y) + b

As in Akyurek et al. 2024 (arXiv:2401.12973): one A for all channels, initialised as S4D-Inv, a step for each channel.
Their code gives the parameters of A and the step a learning rate of at most 1e-3 and no weight decay.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_ssm.diagonal import diagonal_ssm, diagonal_ssm_reference, times
from icll_zoo_ssm.precision import at_least_float32, widened

Backend = Literal["auto", "fast", "reference"]
BACKENDS = {"auto": diagonal_ssm, "fast": diagonal_ssm, "reference": diagonal_ssm_reference}


def zero_order_hold(log_dt: Tensor, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """log a and the input's weight of the discrete recurrence, (d, n, 2) each.

    log_dt (d,); real and imaginary parts of A, (n,) or (d, n). log a holds log |a| and the angle, the weight
    (exp(dt A) - 1) / A its real and imaginary part.
    """
    log_dt, real, imaginary = widened(log_dt, real, imaginary)
    dt = log_dt.exp().unsqueeze(-1)
    x, y = dt * real, dt * imaginary
    # exp(x + iy) - 1 without the cancellation of a small step.
    less_one = torch.stack([x.expm1() * y.cos() - 2 * (y / 2).sin().square(), x.exp() * y.sin()], -1)
    inverse = torch.stack([real, -imaginary], -1) / (real.square() + imaginary.square()).unsqueeze(-1)
    return torch.stack([x, y], -1), times(less_one, inverse)


def half_state(d_state: int) -> int:
    """How many complex numbers are kept of a state of d_state: one of each conjugate pair. InputError if odd."""
    if d_state < 2 or d_state % 2:
        raise InputError(f"d_state {d_state} is not an even number above 0", hint="its numbers are conjugate pairs")
    return d_state // 2


def log_uniform(count: int, low: float, high: float) -> Tensor:
    """Logarithms of steps dt, spread evenly between those of `low` and `high`."""
    if not 0 < low <= high:
        raise InputError(f"steps from dt_min {low} to dt_max {high}", hint="0 < dt_min <= dt_max")
    return math.log(low) + torch.rand(count) * (math.log(high) - math.log(low))


class S4d(nn.Module):
    """S4D, (batch, length, d_model) -> same; its state is d_state / 2 complex numbers a channel.

    d_state: N, the size of the real state; conjugate pairs are kept once.
    dt_min, dt_max: the initial steps lie between them, evenly on a logarithmic scale.
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
        self.ssm = BACKENDS[backend]
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max))
        # S4D-Inv: the eigenvalues that the HiPPO matrix has asymptotically.
        imaginary = d_state / math.pi * (d_state / (1 + 2 * torch.arange(n)) - 1)
        self.log_a_real = nn.Parameter(torch.full((n,), math.log(0.5 + 1e-4)))
        self.a_imaginary = nn.Parameter(imaginary)
        # C takes in the usual B, a random vector scaled so that a constant input gives outputs of variance about 1.
        b = torch.randn(n, 2) * math.sqrt(0.5)
        constant = b.square().sum(-1) / (0.25 + imaginary.square())
        b = b / (2 * constant.sum()).sqrt()
        self.c = nn.Parameter(times(torch.randn(d_model, n, 2) * math.sqrt(0.5), b))
        self.d = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.normal_(self.out_proj.weight, std=0.02)
        nn.init.zeros_(self.out_proj.bias)

    def no_weight_decay(self) -> set[str]:
        """What the reference trains without weight decay."""
        return {"log_dt", "log_a_real", "a_imaginary"}

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, self.init_state(x.size(0), x.device, x.dtype))[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """s, (b, d_model, d_state / 2, 2), real and imaginary parts; zeros before the first token."""
        shape = (batch_size, *self.c.shape)
        return {"s": torch.zeros(shape, device=device, dtype=at_least_float32(dtype))}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        log_a, weight = zero_order_hold(self.log_dt, -self.log_a_real.exp(), self.a_imaginary)
        y, s = self.ssm(x, log_a, 2 * times(self.c, weight), state["s"])
        return self.out_proj(F.gelu(y + self.d * x)), {"s": s}
