"""Gated linear recurrence with state expansion (Qin et al. 2024, arXiv:2404.07904), "hgrn-2".

    f_t = b + (1 - b) sigmoid(W_f x_t),   i_t = W_i x_t,   q_t = silu(W_q x_t)
    S_t = diag(f_t) S_{t-1} + (1 - f_t)^T i_t,   o_t = q_t S_t
    y_t = W_o RMSNorm([o_t, all heads])

What is not forgotten is not overwritten: the key is 1 - f_t. The lower bound b of the forget gates grows with the
layer, so that upper layers remember for longer; it is 0 in the first. In the paper the bounds of all L layers are one
table of parameters, layer l having the first l of L shares of a softmax over layers. A mixer knows itself alone: here
each has bounds of its own, one a channel, which start at the paper's value l / L and are learned from there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo_linear.decay import OPS
from icll_zoo_linear.ops import Backend
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, out_std


def forget_gates(f: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """log f and 1 - f for f = bound + (1 - bound) sigmoid(f); a bound of None is 0. Neither loses digits near 0."""
    closed = torch.sigmoid(-f)
    if bound is None:
        return F.logsigmoid(f), closed
    key = (1 - bound) * closed
    return torch.log1p(-key), key


class Hgrn2(nn.Module):
    """HGRN2's token mixer, (b, l, d_model) -> same; its state is a d_head x d_head matrix a head.

    n_heads: heads of d_model / n_heads dimensions, which is what the paper calls the expansion ratio (128 there).
    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self, d_model: int, n_layers: int, layer_index: int, n_heads: int = 2, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.d_head = head_size(d_model, n_heads)
        self.n_heads = n_heads
        self.op = OPS[backend]
        self.q_proj = linear(d_model, d_model)
        self.f_proj = linear(d_model, d_model)
        self.i_proj = linear(d_model, d_model)
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.out_proj = linear(d_model, d_model, std=out_std(n_layers))
        share = layer_index / n_layers
        self.bound = nn.Parameter(torch.full((d_model,), share).logit()) if layer_index else None

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The decayed sum of (1 - f)^T i, (b, h, d_head, d_head), zeros before the first token."""
        return {"kv": matrix_state(batch_size, self.n_heads, self.d_head, self.d_head, device, dtype)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        y, kv = self._mix(x, state["kv"])
        return y, {"kv": kv}

    def _mix(self, x: Tensor, kv: Tensor | None) -> tuple[Tensor, Tensor]:
        heads = (self.n_heads, self.d_head)
        f = self.f_proj(x)
        # A forget gate close to 1 is told from 1 by digits that bfloat16 does not have.
        f = f.to(torch.promote_types(f.dtype, torch.float32))
        log_f, key = forget_gates(f, None if self.bound is None else self.bound.sigmoid())
        q, i = F.silu(self.q_proj(x)), self.i_proj(x)
        o, kv = self.op(*(y.unflatten(-1, heads) for y in (q, key.to(i.dtype), i, log_f)), kv)
        # Under autocast o is bfloat16 and the norm's weights are not: torch warns of the two together.
        return self.out_proj(self.norm(o.flatten(2).to(self.norm.weight.dtype))), kv
