"""The Hyena operator of order 2 (Poli et al. 2023, arXiv:2302.10866), "hyena".

    x0, x1, v = short causal convolution (3 tokens) of W x + b
    y_t = x0_t (sum_{s<=t} h_{t-s} u_s + bias u_t),   u = x1 v,   output W y + b
    h_t = window_t MLP(t):  sines of time, the window decays exponentially, faster in later channels

The filter is as long as the sequence, and is made by a small MLP from the time t / (max_length - 1), which the backbone
gives. As in Akyurek et al. 2024 (arXiv:2401.12973), except that they always used a max_length of 4098 (preset
`hyena-paper`) for sequences of at most 711 tokens. The convolution is by FFT: the past depends on the future in
rounding errors only. There is no constant state: `step` keeps all inputs u.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo_ssm.precision import at_least_float32, widened, without_autocast
from icll_zoo_ssm.s4d import Backend
from icll_zoo_ssm.short_conv import ShortConv

SHORT, BANDS, WIDTH, FREQUENCY = 3, 2, 64, 10.0
# The window falls to 1 % within 0.3 of max_length in the fastest channel, within 1.5 of it in the slowest.
TARGET, FAST, SLOW = 0.01, 0.3, 1.5


def long_conv(u: Tensor, h: Tensor) -> Tensor:
    """y_t = sum_{s<=t} h_{t-s} u_s in each channel, by FFT: u (b, l, d), h (l, d) -> (b, l, d)."""
    dtype = u.dtype
    u, h = widened(u, h)
    return LongConv.apply(u, h.unsqueeze(0), False).to(dtype)


class LongConv(torch.autograd.Function):
    """The convolution and its gradient, which is two convolutions of the reversed gradient.

    u, h (b, l, d), or a single row for all; `total` adds up the rows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, h: Tensor, total: bool) -> Tensor:
        # One operation to the compiler, which has no complex numbers.
        kernel = opaque_conv if torch.compiler.is_compiling() else conv_kernel
        return kernel(u, h, total)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        u, h, _ = inputs
        ctx.save_for_backward(u, h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """du_s = sum_{t>=s} h_{t-s} g_t;  dh_m = sum_{t>=m} u_{t-m} g_t, over all rows that share it."""
        (u, h), back = ctx.saved_tensors, grad.flip(1)
        d_u, d_h = (LongConv.apply(back, other, one.size(0) == 1) for one, other in ((u, h), (h, u)))
        return d_u.flip(1), d_h.flip(1), None


def conv_kernel(u: Tensor, h: Tensor, total: bool) -> Tensor:
    """The convolution without its gradient, always a new contiguous tensor."""
    length = u.size(1)
    # Long enough that the end does not come round to the beginning, and a power of 2.
    size = 1 << (2 * length - 1).bit_length()
    # Time last: transforms of contiguous rows are several times faster.
    spectrum = torch.fft.rfft(u.transpose(1, 2).contiguous(), size) * torch.fft.rfft(h.transpose(1, 2), size)
    y = torch.fft.irfft(spectrum.sum(0, keepdim=True) if total else spectrum, size)
    return y[..., :length].transpose(1, 2).contiguous()


opaque_conv = torch.library.custom_op("icll_zoo_ssm::long_conv", conv_kernel, mutates_args=())


@opaque_conv.register_fake
def _(u, h, total):
    rows = 1 if total else max(u.size(0), h.size(0))
    return u.new_empty(rows, *u.shape[1:])


def long_conv_reference(u: Tensor, h: Tensor) -> Tensor:
    """`long_conv`, output by output."""
    return torch.stack([(u[:, : t + 1] * h[: t + 1].flip(0)).sum(1) for t in range(u.size(1))], 1)


BACKENDS = {"auto": long_conv, "fast": long_conv, "reference": long_conv_reference}


class Filter(nn.Module):
    """The implicit filter: its values at the first `length` times, (length, d_model), in at least float32."""

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__()
        self.d_model, self.max_length = d_model, max_length
        sizes = [1 + 2 * BANDS, WIDTH, WIDTH, WIDTH]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(WIDTH, d_model, bias=False)
        # One vector of frequencies for all the sines.
        self.frequency = nn.Parameter(torch.full((WIDTH,), FREQUENCY))
        for linear in [*self.hidden, self.out]:
            nn.init.normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, length: int) -> Tensor:
        # Half precision cannot tell neighbouring times apart.
        about = {"device": self.frequency.device, "dtype": at_least_float32(self.frequency.dtype)}
        steps = torch.arange(length, **about)[:, None]
        time = steps / max(1, self.max_length - 1)
        angle = 2 * math.pi * torch.linspace(1e-4, BANDS - 1, BANDS, **about) * steps / self.max_length
        rates = torch.linspace(-math.log(TARGET) / SLOW, -math.log(TARGET) / FAST, self.d_model, **about)
        x = torch.cat([time, angle.cos(), -angle.sin()], -1)
        with without_autocast(x):
            for linear in self.hidden:
                x = torch.sin(self.frequency * F.linear(x, linear.weight.to(x.dtype), linear.bias.to(x.dtype)))
            return F.linear(x, self.out.weight.to(x.dtype)) * torch.exp(-time * rates)


class Hyena(nn.Module):
    """Hyena, (batch, length, d_model) -> same; its state is every input of the long convolution, so it grows.

    Sequences may be longer than max_length: time goes on past 1.
    backend: "fast" (auto) convolves by FFT, "reference" sums; one function.
    """

    state_grows = True

    def __init__(self, d_model: int, n_layers: int, max_length: int, backend: Backend = "auto") -> None:
        super().__init__()
        self.d_model = d_model
        self.conv = BACKENDS[backend]
        self.in_proj, self.out_proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        nn.init.normal_(self.in_proj.weight, std=0.02)
        # GPT-2's rule: 2 n_layers parts add to the residual stream, so each starts that much smaller.
        nn.init.normal_(self.out_proj.weight, std=0.02 / math.sqrt(2 * n_layers))
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)
        self.short = ShortConv(3 * d_model, SHORT)
        self.filter = Filter(d_model, max_length)
        self.bias = nn.Parameter(torch.randn(d_model))

    def no_weight_decay(self) -> set[str]:
        """What the reference trains without weight decay: the filter's MLP."""
        return {f"filter.{name}" for name, _ in self.filter.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        x0, u, _ = self._inputs(x, None)
        return self.out_proj(x0 * (self.conv(u, self.filter(u.size(1))) + self.bias * u))

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """u so far, (b, 0, d_model), one row more a token; and the short convolution's last inputs."""
        return {
            "u": torch.empty(batch_size, 0, self.d_model, device=device, dtype=dtype),
            "short": self.short.nothing(batch_size, device, dtype),
        }

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        x0, new, short = self._inputs(x, state["short"])
        u = torch.cat([state["u"], new], 1)
        h = self.filter(u.size(1))
        # One output is one sum; an FFT would compute all the earlier ones again.
        y = (u * h.flip(0)).sum(1, keepdim=True).to(u.dtype) if x.size(1) == 1 else self.conv(u, h)[:, -x.size(1) :]
        return self.out_proj(x0 * (y + self.bias * new)), {"u": u, "short": short}

    def _inputs(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        mixed, short = self.short(self.in_proj(x), before)
        x0, x1, v = mixed.chunk(3, -1)
        return x0, x1 * v, short
