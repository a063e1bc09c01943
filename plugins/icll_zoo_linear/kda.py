"""Kimi Delta Attention, the recurrent layer of Kimi Linear (Kimi Team 2025, arXiv:2510.26692), "kda".

    S_t = (I - beta_t k_t^T k_t) diag(a_t) S_{t-1} + beta_t k_t^T v_t,   o_t = q_t S_t / sqrt(d_k)
    log a_t = -exp(A) softplus(W_2 W_1 x_t + dt), a number a key channel and token;   beta_t = sigmoid(W_b x_t)
    y_t = W_o [sigmoid(W_4 W_3 x_t + b) * RMSNorm(o_t), all heads]

Gated DeltaNet with a decay a channel instead of a head. q, k, v and their short convolutions are DeltaNet's; W_1 and
W_3 have the rank of a head's size. A and dt start here as in Gated DeltaNet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icll_zoo_linear.delta import delta, delta_recurrent, norm_wide, unit
from icll_zoo_linear.gated_deltanet import DecayGate
from icll_zoo_linear.ops import Backend, Op, fla_kernel
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, out_std
from icll_zoo_linear.shortconv import ShortConv


def kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The delta rule with a decay a key channel, in chunks: (o, state), o (b, l, h, d_v), state (b, h, d_k, d_v).

    q, k, log_decay (b, l, h, d_k), q already scaled, |k| = 1 as a rule, log_decay <= 0; v (b, l, h, d_v); beta
    (b, l, h), in 0 to 2. state: before the first token, zeros if None. See `delta.delta` for the rest.
    """
    return delta(q, k, v, beta, log_decay, state, chunk_size)


def kda_recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `kda` computes, by the recurrence, one token after the other."""
    return delta_recurrent(q, k, v, beta, log_decay, state)


def kda_fla(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by flash-linear-attention; InputError without that package or off CUDA."""
    kernel = fla_kernel("kda", "chunk_kda", q)
    q, k, beta = (x.to(v.dtype) for x in (q, k, beta))
    return kernel(q, k, v, g=log_decay, beta=beta, scale=1.0, initial_state=state, output_final_state=True)


OPS: dict[Backend, Op] = {"auto": kda, "fast": kda, "reference": kda_recurrent, "fla": kda_fla}


class KimiDeltaAttention(nn.Module):
    """Kimi Delta Attention, (b, l, d_model) -> same; its state is a d_head x d_head matrix a head and the last inputs.

    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self, d_model: int, n_layers: int, n_heads: int = 2, conv_size: int = 4, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_head = head_size(d_model, n_heads)
        self.op = OPS[backend]
        self.qkv_proj = linear(d_model, 3 * d_model)
        self.conv = ShortConv(3 * d_model, conv_size)
        self.beta_proj = linear(d_model, n_heads)
        self.decay_down = linear(d_model, self.d_head)
        self.decay_up = linear(self.d_head, d_model)
        self.decay = DecayGate(n_heads, self.d_head)
        self.gate_down = linear(d_model, self.d_head)
        self.gate_up = linear(self.d_head, d_model, bias=True)
        self.norm = nn.RMSNorm(self.d_head, eps=1e-5)
        self.out_proj = linear(d_model, d_model, std=out_std(n_layers))

    def no_weight_decay(self) -> set[str]:
        """The parameters of the decays, which weight decay would pull to other memories."""
        return {"decay.log_rate", "decay.bias"}

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The keys' values, (b, h, d_head, d_head), and what the convolution still sees: zeros at first."""
        return {
            "kv": matrix_state(batch_size, self.n_heads, self.d_head, self.d_head, device, dtype),
            "conv": self.conv.init_state(batch_size, device, dtype),
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        return self._mix(x, state["kv"], state["conv"])

    def _mix(self, x: Tensor, kv: Tensor | None, before: Tensor | None) -> tuple[Tensor, State]:
        heads = (self.n_heads, self.d_head)
        qkv, before = self.conv(self.qkv_proj(x), before)
        q, k, v = qkv.unflatten(-1, (3, *heads)).unbind(2)
        beta = self.beta_proj(x).sigmoid()
        log_decay = self.decay(self.decay_up(self.decay_down(x)).unflatten(-1, heads))
        o, kv = self.op(unit(q) * self.d_head**-0.5, unit(k), v, beta, log_decay, kv)
        y = self.out_proj(self.gate_up(self.gate_down(x)).sigmoid() * norm_wide(self.norm, o).flatten(2))
        return y, {"kv": kv, "conv": before}
