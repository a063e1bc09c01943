"""Multi-head causal softmax attention (Vaswani et al. 2017, arXiv:1706.03762), "transformer".

    q_t, k_t, v_t = W_qkv x_t + b
    a_ts = softmax over s <= t of q_t . k_s / sqrt(d_head)
    y_t = W_o [sum_s a_ts v_s, all heads] + b

As in Akyurek et al. 2024 (arXiv:2401.12973): biases on, dropout on the attention weights, positions from the backbone.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError, dropout_keys
from icll_zoo_baselines.attend_in_blocks import attend_in_blocks

Backend = Literal["fast", "reference"]


def attend_reference(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module | None = None) -> Tensor:
    """Causal attention of the last n tokens to all l >= n tokens, through the n x l weights.

    q (b, n, h, d), already scaled; k, v (b, l, h, d); query i stands at position l - n + i. Returns (b, n, h, d).
    dropout: applied to the weights (b, h, n, l).
    """
    weights = attention_weights(q, k)
    return torch.einsum("bhij,bjhd->bihd", weights if dropout is None else dropout(weights), v)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """The weights of causal attention, (b, h, n, l), of the last n tokens to all l; q (b, n, h, d), k (b, l, h, d)."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k)
    return scores.masked_fill(~causal_mask(q, k), -math.inf).softmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend_reference` without the n x l weights: through torch's fused kernels, or in blocks where they are slow."""
    if works_in_blocks(q, k):
        return attend_in_blocks(q, k, v)
    n, length = q.size(1), k.size(1)
    # is_causal aligns the mask with the first key, so it fits only when every key is also a query.
    mask = causal_mask(q, k) if 1 < n < length else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=1 < n == length, scale=1.0)
    return out.transpose(1, 2)


def works_in_blocks(q: Tensor, k: Tensor) -> bool:
    """Whether attention is left to `attend_in_blocks`: of several tokens to themselves, on a CPU, uncompiled."""
    return q.device.type == "cpu" and 1 < q.size(1) == k.size(1) and not torch.compiler.is_compiling()


def causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """(n, l) bool: true where the key is not later than the query, the last query standing at the last key."""
    n, length = q.size(1), k.size(1)
    return torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)


BACKENDS = {"fast": attend, "reference": attend_reference}


def head_size(d_model: int, n_heads: int) -> int:
    """d_model / n_heads; InputError unless that is a whole number."""
    if n_heads < 1 or d_model % n_heads:
        raise InputError(
            f"n_heads {n_heads} does not divide d_model {d_model}",
            hint="every head has d_model / n_heads dimensions",
        )
    return d_model // n_heads


def projections(d_model: int, n_layers: int, d_kv: int | None = None, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """W_qkv and W_o, initialised as in the paper's reference. d_kv: of all keys, and of all values; None is d_model."""
    qkv = nn.Linear(d_model, d_model + 2 * (d_model if d_kv is None else d_kv), bias=bias)
    out_proj = nn.Linear(d_model, d_model, bias=bias)
    nn.init.normal_(qkv.weight, std=0.02)
    # GPT-2's rule: 2 n_layers parts add to the residual stream, so each starts that much smaller.
    nn.init.normal_(out_proj.weight, std=0.02 / math.sqrt(2 * n_layers))
    if bias:
        nn.init.zeros_(qkv.bias)
        nn.init.zeros_(out_proj.bias)
    return qkv, out_proj


def empty_cache(
    batch_size: int, n_heads: int, d_head: int, device: torch.device | str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A cache of no keys and values, each (b, 0, h, d_head)."""
    return {name: torch.empty(batch_size, 0, n_heads, d_head, device=device, dtype=dtype) for name in ("k", "v")}


class Attention(nn.Module):
    """Softmax attention, (batch, length, d_model) -> same; its state is the cache of keys and values.

    attention_dropout: on the attention weights, in training only. A value above 0 trains through the length x length
        weights on a GPU: a fused kernel's dropout would depend on how a batch is cut and on what else was drawn.
    backend: "fast" never stores those weights otherwise, "reference" is the length x length softmax; one function.
    """

    state_grows = True

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int = 2,
        attention_dropout: float = 0.1,
        backend: Backend = "fast",
    ) -> None:
        super().__init__()
        if not 0 <= attention_dropout < 1:
            raise InputError(f"attention_dropout {attention_dropout} is not in [0, 1)")
        self.d_head = head_size(d_model, n_heads)
        self.n_heads = n_heads
        self.attention_dropout = attention_dropout
        self.dropout = nn.Dropout(attention_dropout)
        self.attend = BACKENDS[backend]
        self.qkv, self.out_proj = projections(d_model, n_layers)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x)
        return self._mix(q, k, v)

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Nothing cached yet: k and v, (b, 0, h, d_head) each, one row more a token."""
        return empty_cache(batch_size, self.n_heads, self.d_head, device, dtype)

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        q, k, v = self._project(x)
        k, v = torch.cat([state["k"], k], 1), torch.cat([state["v"], v], 1)
        return self._mix(q, k, v), {"k": k, "v": v}

    def attention_weights(self, x: Tensor) -> Tensor:
        """What each head of each position takes from each, (b, h, l, l); see `icll_zoo.trace`."""
        q, k, _ = self._project(x)
        return attention_weights(q, k)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_head)).unbind(2)
        return q * self.d_head**-0.5, k, v

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.training or not self.attention_dropout:
            o = self.attend(q, k, v)
        elif self.attend is attend and works_in_blocks(q, k):
            b, length, h, _ = q.shape
            keys = dropout_keys(self.dropout, (b, h, length, length), q.device)
            o = attend_in_blocks(q, k, v, keys, self.attention_dropout)
        else:
            o = attend_reference(q, k, v, self.dropout)
        return self.out_proj(o.flatten(2))
