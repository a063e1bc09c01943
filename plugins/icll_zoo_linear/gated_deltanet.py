"""Gated DeltaNet: the delta rule on a state that also decays (Yang et al. 2024, arXiv:2412.06464), "gated-deltanet".

    S_t = a_t S_{t-1} + beta_t k_t^T (v_t - k_t a_t S_{t-1}),   o_t = q_t S_t / sqrt(d_k),   beta_t = sigmoid(W_b x_t)
    log a_t = -exp(A) softplus(W_a x_t + dt), a number a head and token, as in Mamba-2
    y_t = W_o [silu(W_g x_t) * RMSNorm(o_t), all heads]

q, k, v and their short convolutions are DeltaNet's. Keys are 3/4 as wide as the model and values 3/2, so that the layer
has 6 d_model^2 parameters, as many as Mamba-2's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo_linear.delta import delta, delta_recurrent, norm_wide, unit
from icll_zoo_linear.deltanet import expanded
from icll_zoo_linear.ops import Backend, Op, fla_kernel
from icll_zoo_linear.parts import State, linear, matrix_state, out_std
from icll_zoo_linear.shortconv import ShortConv


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The delta rule with one decay a head, in chunks: (o, state), o (b, l, h, d_v), state (b, h, d_k, d_v).

    q, k (b, l, h, d_k), q already scaled and |k| = 1 as a rule; v (b, l, h, d_v); beta (b, l, h), in 0 to 2; log_decay
    (b, l, h) or (b, l, h, 1), <= 0. state: before the first token, zeros if None. See `delta.delta` for the rest.
    """
    return delta(q, k, v, beta, _with_channel(log_decay), state, chunk_size)


def gated_delta_rule_recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `gated_delta_rule` computes, by the recurrence, one token after the other."""
    return delta_recurrent(q, k, v, beta, _with_channel(log_decay), state)


def gated_delta_rule_fla(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by flash-linear-attention; InputError without that package or off CUDA."""
    kernel = fla_kernel("gated_delta_rule", "chunk_gated_delta_rule", q)
    q, k, beta = (x.to(v.dtype) for x in (q, k, beta))
    g = _with_channel(log_decay)[..., 0]
    return kernel(q, k, v, g=g, beta=beta, scale=1.0, initial_state=state, output_final_state=True)


OPS: dict[Backend, Op] = {
    "auto": gated_delta_rule,
    "fast": gated_delta_rule,
    "reference": gated_delta_rule_recurrent,
    "fla": gated_delta_rule_fla,
}


def _with_channel(log_decay: Tensor) -> Tensor:
    return log_decay[..., None] if log_decay.dim() == 3 else log_decay


class DecayGate(nn.Module):
    """z (b, l, h, d) -> log decays -exp(A) softplus(z + dt), the same shape, float32 or better.

    A is a head's, dt a channel's. Parametrised and initialised as in Mamba-2 (arXiv:2405.21060): exp(A) uniform in 1 to
    16 and softplus(dt) log-uniform in 0.001 to 0.1, so that at first the heads remember for one token up to a thousand.
    """

    def __init__(self, n_heads: int, d: int) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.empty(n_heads, 1).uniform_(1, 16).log())
        dt = torch.empty(n_heads, d).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt

    def forward(self, z: Tensor) -> Tensor:
        wide = torch.promote_types(z.dtype, torch.float32)
        return -self.log_rate.to(wide).exp() * F.softplus(z.to(wide) + self.bias.to(wide))


class GatedDeltaNet(nn.Module):
    """Gated DeltaNet's mixer, (b, l, d_model) -> same; its state is a d_k x d_v matrix a head and the last inputs.

    expand_k, expand_v: the width of all keys and of all values over d_model.
    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int = 2,
        expand_k: float = 0.75,
        expand_v: float = 1.5,
        conv_size: int = 4,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_k = expanded(d_model, expand_k, n_heads, "expand_k")
        self.d_v = expanded(d_model, expand_v, n_heads, "expand_v")
        keys, values = n_heads * self.d_k, n_heads * self.d_v
        self.op = OPS[backend]
        self.qkv_proj = linear(d_model, 2 * keys + values)
        self.conv = ShortConv(2 * keys + values, conv_size)
        self.beta_proj = linear(d_model, n_heads)
        self.decay_proj = linear(d_model, n_heads)
        self.decay = DecayGate(n_heads, 1)
        self.gate_proj = linear(d_model, values)
        self.norm = nn.RMSNorm(self.d_v, eps=1e-5)
        self.out_proj = linear(values, d_model, std=out_std(n_layers))

    def no_weight_decay(self) -> set[str]:
        """The parameters of the decays, which weight decay would pull to other memories."""
        return {"decay.log_rate", "decay.bias"}

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The keys' values, (b, h, d_k, d_v), and what the convolution still sees: zeros before the first token."""
        return {
            "kv": matrix_state(batch_size, self.n_heads, self.d_k, self.d_v, device, dtype),
            "conv": self.conv.init_state(batch_size, device, dtype),
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        return self._mix(x, state["kv"], state["conv"])

    def _mix(self, x: Tensor, kv: Tensor | None, before: Tensor | None) -> tuple[Tensor, State]:
        qkv, before = self.conv(self.qkv_proj(x), before)
        q, k, v = qkv.split([self.n_heads * d for d in (self.d_k, self.d_k, self.d_v)], -1)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)) for y in (q, k, v))
        beta, log_decay = self.beta_proj(x).sigmoid(), self.decay(self.decay_proj(x)[..., None])
        o, kv = self.op(unit(q) * self.d_k**-0.5, unit(k), v, beta, log_decay, kv)
        y = self.out_proj(F.silu(self.gate_proj(x)) * norm_wide(self.norm, o).flatten(2))
        return y, {"kv": kv, "conv": before}
