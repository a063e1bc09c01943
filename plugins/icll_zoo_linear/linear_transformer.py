"""Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236) as Akyurek et al. 2024 ran it, "linear-transformer".

    q_t, k_t, v_t = W_qkv x_t + b
    S_t = S_{t-1} + k_t^T v_t,   o_t = q_t S_t / sqrt(d_head)
    y_t = W_o [o_t, all heads] + b

That is softmax attention without the softmax: no feature map and no normaliser, unlike the paper that named it. The
backbone adds learned positions. Source of the variant: the reference of arXiv:2401.12973.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icll_zoo import InputError
from icll_zoo_linear.decay import OPS
from icll_zoo_linear.ops import Backend
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, out_std


def linear_attention_quadratic(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module | None = None) -> Tensor:
    """Linear attention through its l x l scores, with dropout on them: q, k, v (b, l, h, d) -> (b, l, h, d)."""
    scores = linear_scores(q, k)
    return torch.einsum("bhij,bjhd->bihd", scores if dropout is None else dropout(scores), v)


def linear_scores(q: Tensor, k: Tensor) -> Tensor:
    """The weight of each earlier token, (b, h, l, l); q, k (b, l, h, d)."""
    return torch.einsum("bihd,bjhd->bhij", q, k).tril()


class LinearAttention(nn.Module):
    """Linear attention, (b, l, d_model) -> same; its state is one d_head x d_head matrix a head.

    attention_dropout: on the scores, in training only, as the paper's reference has it at 0.1. A value above 0 trains
        through the l x l scores, since a state cannot forget single pairs of tokens.
    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int = 2,
        attention_dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if not 0 <= attention_dropout < 1:
            raise InputError(f"attention_dropout {attention_dropout} is not in [0, 1)")
        self.d_head = head_size(d_model, n_heads)
        self.n_heads = n_heads
        self.attention_dropout = attention_dropout
        self.dropout = nn.Dropout(attention_dropout)
        self.op = OPS[backend]
        self.qkv = linear(d_model, 3 * d_model, bias=True)
        self.out_proj = linear(d_model, d_model, bias=True, std=out_std(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.attention_dropout:
            return self.out_proj(linear_attention_quadratic(*self._project(x), self.dropout).flatten(2))
        return self._mix(x, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The sum of k^T v, (b, h, d_head, d_head), zeros before the first token."""
        return {"kv": matrix_state(batch_size, self.n_heads, self.d_head, self.d_head, device, dtype)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was. There is no dropout."""
        y, kv = self._mix(x, state["kv"])
        return y, {"kv": kv}

    def attention_weights(self, x: Tensor) -> Tensor:
        """What each head of each position takes from each, (b, h, l, l), of any sign; see `icll_zoo.trace`."""
        q, k, _ = self._project(x)
        return linear_scores(q, k)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_head)).unbind(2)
        return q * self.d_head**-0.5, k, v

    def _mix(self, x: Tensor, kv: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self._project(x)
        o, kv = self.op(q, k, v, q.new_zeros(1, 1, 1, 1), kv)
        return self.out_proj(o.flatten(2)), kv
