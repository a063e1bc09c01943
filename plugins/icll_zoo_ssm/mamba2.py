"""State-space duality (Dao and Gu 2024, arXiv:2405.21060), "mamba-2".

    z, x, B, C, dt = W_in u;   x, B, C = silu(short causal convolution (4 tokens) of them);   dt = softplus(dt + b)
    S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T   for each head, A = -exp(A_log) one number a head
    y_t = C_t S_t + D x_t;   output  W_out RMSNorm(y silu(z))

This is linear attention with a decay that is one number a head and token: C are the queries, B the keys, shared by all
heads of a group, and dt x the values. As for "mamba", the standard backbone adds no MLP.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_ssm.mamba import at_least, inverse_softplus
from icll_zoo_ssm.precision import at_least_float32, widened, without_autocast
from icll_zoo_ssm.s4d import log_uniform
from icll_zoo_ssm.scan import linear_scan, shift
from icll_zoo_ssm.short_conv import ShortConv


def ssd(
    x: Tensor, dt_log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None, chunk_size: int = 64
) -> tuple[Tensor, Tensor]:
    """y_t = C_t S_t of S_t = exp(log_decay_t) S_{t-1} + B_t x_t^T, and the state after the last token.

    x (batch, length, heads, p), already times dt; dt_log_decay (batch, length, heads), dt A <= 0; B, C (batch,
    length, groups, n), each group for heads / groups heads in turn. state (batch, heads, n, p), zeros if None.
    By matrix products in chunks of chunk_size tokens (section 6 of the paper).
    """
    dtype, length, (heads, p), (groups, n) = x.dtype, x.size(1), x.shape[2:], B.shape[2:]
    if state is None:
        state = torch.zeros(x.size(0), heads, n, p, device=x.device, dtype=x.dtype)
    x, b, c, state = widened(x, B, C, state)
    size = min(chunk_size, length)
    padding = -length % size
    with without_autocast(x):
        # Tokens that pad the last chunk add nothing and decay nothing. Shapes from here on: b batch, k chunks,
        # t tokens of a chunk, g groups, r heads of a group.
        x, b, c = (F.pad(z, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, size)) for z in (x, b, c))
        log_decay = F.pad(dt_log_decay, (0, 0, 0, padding)).unflatten(1, (-1, size)).transpose(2, 3)
        # In float64: decays between near tokens are small differences of sums that may be large.
        total = log_decay.double().cumsum(-1)
        between = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(x.dtype)
        later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
        decays = between.masked_fill(later, -math.inf).exp()
        since, until = total.to(x.dtype).exp(), (total[..., -1:] - total).to(x.dtype).exp()

        keys, queries = b.permute(0, 1, 3, 4, 2), c.transpose(2, 3)  # (b k g n t), (b k g t n)
        weights = (queries @ keys).repeat_interleave(heads // groups, 2) * decays
        y = weights @ x.transpose(2, 3)  # (b k h t p)
        values = (x * until.transpose(2, 3).unsqueeze(-1)).unflatten(3, (groups, -1)).flatten(4).transpose(2, 3)
        added = (keys @ values).unflatten(-1, (-1, p))  # (b k g n r p)
        whole = since[..., -1].unflatten(-1, (groups, 1, -1, 1))  # (b k g 1 r 1)
        state = state.unflatten(1, (groups, -1)).transpose(2, 3)
        ended = linear_scan(whole, added, state)
        begun = shift(ended, state, False).flatten(-2)
        y = y + (queries @ begun).unflatten(-1, (-1, p)).transpose(3, 4).flatten(2, 3) * since.unsqueeze(-1)
    y = y.transpose(2, 3).flatten(1, 2)[:, :length]
    return y.to(dtype), ended[:, -1].transpose(2, 3).flatten(1, 2)


def ssd_reference(
    x: Tensor, dt_log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ssd`, token by token."""
    heads, groups = x.size(2), B.size(2)
    if state is None:
        state = torch.zeros(x.size(0), heads, B.size(3), x.size(3), device=x.device, dtype=x.dtype)
    b, c = (z.repeat_interleave(heads // groups, 2) for z in (B, C))
    y = []
    for t in range(x.size(1)):
        state = dt_log_decay[:, t, :, None, None].exp() * state + b[:, t, :, :, None] * x[:, t, :, None, :]
        y.append((c[:, t, :, :, None] * state).sum(2))
    return torch.stack(y, 1).to(x.dtype), state


def ssd_fla(
    x: Tensor, dt_log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ssd` by the kernel of flash-linear-attention. InputError without that package or a CUDA device."""
    if x.device.type != "cuda":
        raise InputError(f"backend 'fla' needs CUDA tensors, not {x.device.type}", hint="backend auto runs anywhere")
    try:
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError as error:
        raise InputError(f"backend 'fla' cannot be used: {error}", hint="pip install flash-linear-attention") from error
    b, c = (z.repeat_interleave(x.size(2) // z.size(2), 2) for z in (B, C))
    return chunk_simple_gla(c, b, x, dt_log_decay, scale=1.0, initial_state=state, output_final_state=True)


BACKENDS = {"auto": ssd, "fast": ssd, "reference": ssd_reference, "fla": ssd_fla}


class Mamba2(nn.Module):
    """Mamba-2, (batch, length, d_model) -> same; its state is S and the short convolution's last inputs.

    d_state: the length n of B and C. d_conv: tokens that the short convolution sees. expand: channels over d_model.
    d_head: channels of a head; None is 64, or all of them if they are fewer. n_groups: of heads that share B and C.
    norm_groups: groups of channels that the last norm takes by themselves. dt_low, dt_high: the bounds of the steps.
    bias: in the first and the last projection. conv_bias: in the short convolution.
    backend: "fast" (auto) works in chunks, "reference" token by token, "fla" by flash-linear-attention's kernel.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        d_head: int | None = None,
        n_groups: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_low: float = 0.0,
        dt_high: float | None = None,
        norm_groups: int = 1,
        bias: bool = False,
        conv_bias: bool = True,
        backend: Literal["auto", "fast", "reference", "fla"] = "auto",
    ) -> None:
        super().__init__()
        self.d_inner = at_least("expand", expand) * d_model
        self.d_head = min(64, self.d_inner) if d_head is None else at_least("d_head", d_head)
        self.n_heads = self.d_inner // self.d_head
        if self.n_heads * self.d_head != self.d_inner:
            raise InputError(
                f"d_head {self.d_head} does not divide {expand} x d_model {d_model}",
                hint="the expanded channels are divided into heads",
            )
        if self.n_heads % at_least("n_groups", n_groups):
            raise InputError(f"n_groups {n_groups} does not divide {self.n_heads} heads")
        if self.d_inner % at_least("norm_groups", norm_groups):
            raise InputError(f"norm_groups {norm_groups} does not divide {self.d_inner} channels")
        if not 0 <= dt_low < (math.inf if dt_high is None else dt_high):
            raise InputError(f"dt_low {dt_low} and dt_high {dt_high} leave no steps")
        self.norm_groups, self.dt_bounds = norm_groups, (dt_low, dt_high)
        self.shared = (n_groups, at_least("d_state", d_state))
        self.ssm = BACKENDS[backend]
        mixed = self.d_inner + 2 * n_groups * d_state
        self.parts = [self.d_inner, mixed, self.n_heads]
        self.in_proj = nn.Linear(d_model, sum(self.parts), bias=bias)
        self.short = ShortConv(mixed, at_least("d_conv", d_conv), conv_bias)
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(self.n_heads, dt_min, dt_max).exp().clamp(min=1e-4)))
        self.a_log = nn.Parameter(torch.empty(self.n_heads).uniform_(1, 16).log())
        self.d = nn.Parameter(torch.ones(self.n_heads))
        self.norm = nn.RMSNorm(self.d_inner, eps=1e-5)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        with torch.no_grad():
            # n_layers blocks add to the residual stream, one part each.
            self.out_proj.weight /= math.sqrt(n_layers)

    def no_weight_decay(self) -> set[str]:
        """What the authors train without weight decay, beside all biases and norms."""
        return {"a_log", "d", "dt_bias"}

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, self.init_state(x.size(0), x.device, x.dtype))[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """S, (b, heads, d_state, d_head), and the last d_conv - 1 inputs of the convolution; zeros."""
        shape = (batch_size, self.n_heads, self.shared[1], self.d_head)
        return {
            "s": torch.zeros(shape, device=device, dtype=at_least_float32(dtype)),
            "short": self.short.nothing(batch_size, device, dtype),
        }

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        z, mixed, dt = self.in_proj(x).split(self.parts, -1)
        mixed, short = self.short(mixed, state["short"])
        size = self.shared[0] * self.shared[1]
        u, b, c = F.silu(mixed).split([self.d_inner, size, size], -1)
        u, b, c = (
            u.unflatten(-1, (self.n_heads, self.d_head)),
            b.unflatten(-1, self.shared),
            c.unflatten(-1, self.shared),
        )
        dt = F.softplus(dt + self.dt_bias)
        if self.dt_bounds != (0.0, None):
            dt = dt.clamp(*self.dt_bounds)
        y, s = self.ssm(u * dt.unsqueeze(-1), -dt * self.a_log.exp(), b, c, state["s"])
        y = (y + self.d[:, None] * u).flatten(2)
        return self.out_proj(self._norm((y * F.silu(z)).to(x.dtype))), {"s": s, "short": short}

    def _norm(self, y: Tensor) -> Tensor:
        if self.norm_groups == 1:
            return self.norm(y)
        size = self.d_inner // self.norm_groups
        grouped = F.rms_norm(y.unflatten(-1, (self.norm_groups, size)), (size,), eps=self.norm.eps)
        return grouped.flatten(-2) * self.norm.weight
