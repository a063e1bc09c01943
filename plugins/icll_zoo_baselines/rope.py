"""Softmax attention with rotary positions (Su et al. 2021, arXiv:2104.09864), "transformer-rope".

    q_t, k_t, v_t = W_qkv x_t + b;   q'_t = R_t q_t,  k'_t = R_t k_t
    R_t turns the pair of dimensions (2i, 2i + 1) by the angle t / theta^(2i / d_head)
    y_t = W_o [sum_{s <= t} softmax_s(q'_t . k'_s / sqrt(d_head)) v_s, all heads] + b

All dimensions of a head turn, in interleaved pairs. The backbone adds no positions. With fewer keys than queries,
n_kv_heads < n_heads, each key and value serves n_heads / n_kv_heads queries in turn (Ainslie et al. 2023,
arXiv:2305.13245).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icll_zoo import InputError, rotate_pairs
from icll_zoo_baselines.transformer import BACKENDS, Backend, attention_weights, empty_cache, head_size, projections

THETA = 10000.0


def rotate(x: Tensor, start: int = 0, theta: float = THETA) -> Tensor:
    """Turn each pair of dimensions of x (b, l, h, d) by its position's angle; x[:, 0] stands at `start`."""
    d_head = x.size(-1)
    rates = theta ** -(torch.arange(0, d_head, 2, device=x.device, dtype=torch.float64) / d_head)
    positions = torch.arange(start, start + x.size(1), device=x.device, dtype=torch.float64)
    return rotate_pairs(x, torch.outer(positions, rates)[None])


class RotaryAttention(nn.Module):
    """Softmax attention over rotated queries and keys, (batch, length, d_model) -> same, without dropout.

    n_kv_heads: heads of keys and values; None is n_heads. bias: in both projections. theta: the rotation's base.
    backend: "fast" never stores the length x length weights, "reference" is their softmax; one function.
    """

    state_grows = True

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int = 8,
        n_kv_heads: int | None = None,
        bias: bool = True,
        theta: float = THETA,
        backend: Backend = "fast",
    ) -> None:
        super().__init__()
        self.d_head = head_size(d_model, n_heads)
        if self.d_head % 2:
            raise InputError(
                f"n_heads {n_heads} gives heads of {self.d_head} dimensions with d_model {d_model}",
                hint="rotary positions need an even number",
            )
        self.n_heads, self.n_kv_heads = n_heads, n_heads if n_kv_heads is None else n_kv_heads
        if self.n_kv_heads < 1 or n_heads % self.n_kv_heads:
            raise InputError(f"n_kv_heads {n_kv_heads} does not divide n_heads {n_heads}")
        if theta <= 0:
            raise InputError(f"theta {theta} is not positive")
        self.theta = theta
        self.attend = BACKENDS[backend]
        self.qkv, self.out_proj = projections(d_model, n_layers, self.n_kv_heads * self.d_head, bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x, 0)
        return self._mix(q, k, v)

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Nothing cached yet: rotated keys and values, (b, 0, h, d_head) each, one row more a token."""
        return empty_cache(batch_size, self.n_kv_heads, self.d_head, device, dtype)

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        q, k, v = self._project(x, state["k"].size(1))
        k, v = torch.cat([state["k"], k], 1), torch.cat([state["v"], v], 1)
        return self._mix(q, k, v), {"k": k, "v": v}

    def attention_weights(self, x: Tensor) -> Tensor:
        """What each head of each position takes from each, (b, h, l, l); see `icll_zoo.trace`."""
        q, k, _ = self._project(x, 0)
        return attention_weights(q, self._repeat(k))

    def _project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv(x).unflatten(-1, (-1, self.d_head))
        q, k, v = heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], 2)
        return rotate(q * self.d_head**-0.5, start, self.theta), rotate(k, start, self.theta), v

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.out_proj(self.attend(q, self._repeat(k), self._repeat(v)).flatten(2))

    def _repeat(self, x: Tensor) -> Tensor:
        """Keys or values (b, l, n_kv_heads, d) for all heads."""
        times = self.n_heads // self.n_kv_heads
        return x.repeat_interleave(times, 2) if times > 1 else x
