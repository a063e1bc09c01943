"""DeltaNet: linear attention that corrects what it stored (Yang et al. 2024, arXiv:2406.06484), "deltanet".

    S_t = S_{t-1} + beta_t k_t^T (v_t - k_t S_{t-1}),   o_t = q_t S_t / sqrt(d_k),   beta_t = sigmoid(W_b x_t)
    q_t, k_t = c(W_q x)_t / |.|, c(W_k x)_t / |.|;   v_t = c(W_v x)_t;   c the short convolution with silu
    y_t = W_o [RMSNorm(o_t), all heads]

The delta rule (Schlag et al. 2021, arXiv:2102.11174): a key's old value is replaced, by the share beta_t, instead of
added to. The preset `deltanet-paper` is what the authors of arXiv:2401.12973 ran for DeltaNet's figure on its task: one
convolution of the input before all projections, and keys half as wide as values. Their code reads no `n_heads`, so the
1 and 2 heads of their sweep were 4 every time. They ran it with and without the convolution (`conv`) and the gate.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_linear.delta import delta, delta_recurrent, norm_wide, unit
from icll_zoo_linear.ops import Backend, Op, fla_kernel
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, out_std
from icll_zoo_linear.shortconv import ShortConv


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None, chunk_size: int = 64
) -> tuple[Tensor, Tensor]:
    """The delta rule in chunks: (o, state), o (b, l, h, d_v), state (b, h, d_k, d_v) after the last token.

    q, k (b, l, h, d_k), q already scaled and |k| = 1 as a rule; v (b, l, h, d_v); beta (b, l, h), in 0 to 2.
    state: before the first token, zeros if None. See `delta.delta` for the rest.
    """
    return delta(q, k, v, beta, q.new_zeros(1, q.size(1), 1, 1), state, chunk_size)


def delta_rule_recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `delta_rule` computes, by the recurrence, one token after the other."""
    return delta_recurrent(q, k, v, beta, q.new_zeros(1, q.size(1), 1, 1), state)


def delta_rule_fla(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same by flash-linear-attention; InputError without that package or off CUDA."""
    kernel = fla_kernel("delta_rule", "chunk_delta_rule", q)
    q, k, beta = (x.to(v.dtype) for x in (q, k, beta))
    return kernel(q, k, v, beta, scale=1.0, initial_state=state, output_final_state=True)


OPS: dict[Backend, Op] = {
    "auto": delta_rule,
    "fast": delta_rule,
    "reference": delta_rule_recurrent,
    "fla": delta_rule_fla,
}


def expanded(d_model: int, ratio: float, n_heads: int, name: str) -> int:
    """A head's size where all heads are ratio * d_model wide; InputError unless that is a whole number above 0."""
    width = ratio * d_model
    if width <= 0 or width != round(width):
        raise InputError(f"{name} {ratio} gives heads of {width:g} dimensions in all", hint="it multiplies d_model")
    return head_size(round(width), n_heads, f"{name} * d_model")


class DeltaNet(nn.Module):
    """DeltaNet's token mixer, (b, l, d_model) -> same; its state is a d_k x d_v matrix a head and the last inputs.

    expand_k, expand_v: the width of all keys and of all values over d_model.
    conv: "each" is the short convolution of queries, keys and values; "shared" convolves the input of all projections
        instead; "none" leaves it out, and with it the silu.
    gate: multiply the normed outputs by silu(W_g x_t).
    scaled_out: start W_o smaller the more layers there are, as the rest of the zoo does; else from N(0, 0.02).
    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int = 2,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        conv: Literal["each", "shared", "none"] = "each",
        conv_size: int = 4,
        gate: bool = False,
        scaled_out: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.n_heads, self.conv_kind = n_heads, conv
        self.d_k = expanded(d_model, expand_k, n_heads, "expand_k")
        self.d_v = expanded(d_model, expand_v, n_heads, "expand_v")
        keys, values = n_heads * self.d_k, n_heads * self.d_v
        self.op = OPS[backend]
        self.qkv_proj = linear(d_model, 2 * keys + values)
        self.beta_proj = linear(d_model, n_heads)
        convolved = {"each": 2 * keys + values, "shared": d_model, "none": 0}[conv]
        self.conv = ShortConv(convolved, conv_size) if convolved else None
        self.gate_proj = linear(d_model, values) if gate else None
        self.norm = nn.RMSNorm(self.d_v, eps=1e-5)
        self.out_proj = linear(values, d_model, std=out_std(n_layers) if scaled_out else 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, {})[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The keys' values, (b, h, d_k, d_v), and what the convolution still sees: zeros before the first token."""
        state = {"kv": matrix_state(batch_size, self.n_heads, self.d_k, self.d_v, device, dtype)}
        if self.conv is not None:
            state["conv"] = self.conv.init_state(batch_size, device, dtype)
        return state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        return self._mix(x, state)

    def _mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        after = {}
        if self.conv is not None and self.conv_kind == "shared":
            x, after["conv"] = self.conv(x, state.get("conv"))
        qkv = self.qkv_proj(x)
        if self.conv is not None and self.conv_kind == "each":
            qkv, after["conv"] = self.conv(qkv, state.get("conv"))
        q, k, v = qkv.split([self.n_heads * d for d in (self.d_k, self.d_k, self.d_v)], -1)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)) for y in (q, k, v))
        beta = self.beta_proj(x).sigmoid()
        o, after["kv"] = self.op(unit(q) * self.d_k**-0.5, unit(k), v, beta, state.get("kv"))
        o = norm_wide(self.norm, o).flatten(2)
        if self.gate_proj is not None:
            o = o * F.silu(self.gate_proj(x))
        return self.out_proj(o), after
