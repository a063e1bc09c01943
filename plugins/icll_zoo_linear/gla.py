"""Gated linear attention (Yang et al. 2023, arXiv:2312.06635), "gla".

    q_t, k_t, v_t = W_q x_t, W_k x_t, W_v x_t;   log a_t = log sigmoid(W_2 W_1 x_t + b) / 16
    S_t = diag(a_t) S_{t-1} + k_t^T v_t,   o_t = q_t S_t / sqrt(d_k)
    y_t = W_o [silu(W_g x_t + b) * LayerNorm(o_t), all heads]

Keys are half as wide as values, and W_1 has rank 16 (section 4 of the paper). The norm has no weights, as in the
reference of arXiv:2401.12973, whose variant the preset `gla-paper` is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_linear.decay import OPS, gla, gla_recurrent
from icll_zoo_linear.ops import Backend
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, norm_heads, out_std, unit_values

__all__ = ["GatedLinearAttention", "gla", "gla_recurrent"]


class GatedLinearAttention(nn.Module):
    """Gated linear attention, (b, l, d_model) -> same; its state is one d_k x d_v matrix a head, d_v = 2 d_k.

    gate_rank: the width of the hidden layer of the decays. gate_divisor: what log sigmoid is divided by; larger
        remembers for longer. min_log_decay: the smallest log decay of one step, without a bound if None.
    scale_by: whether the scores are divided by the root of the key heads' size, as they should be, or by that of the
        value heads' (which is larger), as in the reference of arXiv:2401.12973. The norm makes little of it.
    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int = 2,
        gate_rank: int = 16,
        gate_divisor: float = 16.0,
        min_log_decay: float | None = None,
        scale_by: Literal["key", "value"] = "key",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if d_model % 2:
            raise InputError(f"d_model {d_model} is odd", hint="keys are half as wide as d_model")
        if gate_rank < 1 or gate_divisor <= 0:
            raise InputError(f"gate_rank {gate_rank} and gate_divisor {gate_divisor} must be above 0")
        if min_log_decay is not None and min_log_decay > 0:
            raise InputError(f"min_log_decay {min_log_decay} is above 0", hint="it bounds the logarithm of a decay")
        self.n_heads = n_heads
        self.d_k = head_size(d_model // 2, n_heads, "d_model / 2")
        self.d_v = head_size(d_model, n_heads)
        self.scale = (self.d_k if scale_by == "key" else self.d_v) ** -0.5
        self.gate_divisor = gate_divisor
        self.min_log_decay = min_log_decay
        self.op = OPS[backend]
        self.q_proj = linear(d_model, d_model // 2)
        self.k_proj = linear(d_model, d_model // 2)
        self.v_proj = linear(d_model, d_model)
        self.decay_down = linear(d_model, gate_rank)
        self.decay_up = linear(gate_rank, d_model // 2, bias=True)
        self.g_proj = linear(d_model, d_model, bias=True)
        self.out_proj = linear(d_model, d_model, std=out_std(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The decayed sum of k^T v, (b, h, d_k, d_v), zeros before the first token."""
        return {"kv": matrix_state(batch_size, self.n_heads, self.d_k, self.d_v, device, dtype)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        y, kv = self._mix(x, state["kv"])
        return y, {"kv": kv}

    def attention_weights(self, x: Tensor) -> Tensor:
        """What each head of each position takes from each, (b, h, l, l), of any sign, before the norm of the heads."""
        q, k, log_decay = self._project(x)
        return self.op(q, k, unit_values(k), log_decay, None)[0].transpose(1, 2)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, log_decay = (
            y.unflatten(-1, (self.n_heads, self.d_k)) for y in (self.q_proj(x), self.k_proj(x), self._log_decay(x))
        )
        return q * self.scale, k, log_decay

    def _mix(self, x: Tensor, kv: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, log_decay = self._project(x)
        v = self.v_proj(x).unflatten(-1, (self.n_heads, self.d_v))
        o, kv = self.op(q, k, v, log_decay, kv)
        return self.out_proj(F.silu(self.g_proj(x)) * norm_heads(o)), kv

    def _log_decay(self, x: Tensor) -> Tensor:
        log_decay = F.logsigmoid(self.decay_up(self.decay_down(x))) / self.gate_divisor
        return log_decay if self.min_log_decay is None else log_decay.clamp(min=self.min_log_decay)
