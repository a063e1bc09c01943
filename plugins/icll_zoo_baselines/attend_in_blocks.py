"""Causal softmax attention in blocks of queries, for a CPU: exact, and no l x l matrix is ever kept.

    queries s .. e:   P = softmax(Q_{s:e} K_{:e}^T, the future left out),   O_{s:e} = drop(P) V_{:e}
    backward, with D the sums over rows of dO * O:   P once more,   dS = P * (drop(dO V^T) - D)
                      dQ_{s:e} = dS K_{:e},   dK_{:e} += dS^T Q_{s:e},   dV_{:e} += drop(P)^T dO_{s:e}

As FlashAttention recomputes P (Dao et al. 2022, arXiv:2205.14135), in products that are large enough for a CPU and
small enough for its caches. torch's own kernel for CPUs makes smaller ones: on a core of 2026 with float32 it takes
1.3 times as long, with bfloat16 twice. That `drop` meets the same elements twice is what a hash of their places is for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icll_zoo import kept

QUERIES = 64
"""Queries of a block: more compute more of the future, only to leave it out."""
SCORES = 1 << 19
"""Scores that exist at a time, over several sequences: about what the caches hold."""


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None, p: float = 0.0) -> Tensor:
    """Causal attention of l tokens to themselves; q (b, l, h, d), already scaled, k, v (b, l, h, d) -> (b, l, h, d).

    keys (b, h, l): what is dropped of each query's weights, with probability p; see `icll_zoo.kept`.
    Sums are float32, or float64 for such inputs. There is no second derivative.
    """
    b, length, h, _ = q.shape
    # A cache of float32 makes keys so beside queries of autocast's bfloat16.
    q, k, v = (x.to(q.dtype).transpose(1, 2).reshape(b * h, length, x.size(-1)) for x in (q, k, v))
    if keys is not None:
        keys = keys.reshape(b * h, length)
    return BlockAttention.apply(q, k, v, keys, p).view(b, h, length, v.size(-1)).transpose(1, 2)


class BlockAttention(torch.autograd.Function):
    """q, k, v (n, l, d), keys (n, l) or None, p -> (n, l, d); n sequences, each of one head."""

    @staticmethod
    def forward(q, k, v, keys, p):
        out = torch.empty_like(v)
        with torch.autocast(q.device.type, enabled=False):
            for part in parts(q):
                for s, e in blocks(q.size(1)):
                    weights = block_weights(q, k, part, s, e)
                    if keys is not None:
                        mask, factor = kept(keys[part, s:e], e, p)
                        weights = weights.mul_(mask).mul_(factor)
                    out[part, s:e] = weights.to(v.dtype) @ v[part, :e]
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        q, k, v, keys, ctx.p = inputs
        ctx.save_for_backward(q, k, v, keys, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:
        q, k, v, keys, out = ctx.saved_tensors
        d_out = d_out.contiguous()
        wide = wide_dtype(q)
        gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        d_q, d_k, d_v = gradients
        with torch.autocast(q.device.type, enabled=False):
            shared = (d_out.to(wide) * out).sum(-1, keepdim=True)
            for part in parts(q):
                # Of many blocks, hence added up in wide numbers.
                sum_k, sum_v = torch.zeros_like(k[part], dtype=wide), torch.zeros_like(v[part], dtype=wide)
                for s, e in blocks(q.size(1)):
                    weights, d_block = block_weights(q, k, part, s, e), d_out[part, s:e]
                    d_weights = (d_block @ v[part, :e].mT).to(wide)
                    used = weights
                    if keys is not None:
                        mask, factor = kept(keys[part, s:e], e, ctx.p)
                        used = (weights * mask).mul_(factor)
                        d_weights.mul_(mask).mul_(factor)
                    sum_v[:, :e] += used.to(v.dtype).mT @ d_block
                    d_scores = d_weights.sub_(shared[part, s:e]).mul_(weights).to(q.dtype)
                    d_q[part, s:e] = d_scores @ k[part, :e]
                    sum_k[:, :e] += d_scores.mT @ q[part, s:e]
                d_k[part], d_v[part] = sum_k, sum_v
        return *gradients, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, p: float) -> Any:
        """Further sequences."""

        def fold(x: Tensor | None, dim: int | None) -> Tensor | None:
            if x is None:
                return None
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        folded = map(fold, (q, k, v, keys), in_dims)
        return BlockAttention.apply(*folded, p).unflatten(0, (info.batch_size, -1)), 0


def block_weights(q: Tensor, k: Tensor, part: slice, s: int, e: int) -> Tensor:
    """The weights of queries s to e - 1 of some sequences, (n, e - s, e), before dropout."""
    scores = q[part, s:e] @ k[part, :e].mT
    future = torch.ones(e - s, e - s, dtype=torch.bool, device=q.device).triu(1)
    scores[..., s:].masked_fill_(future, -math.inf)
    return scores.softmax(-1, dtype=wide_dtype(q))


def wide_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def blocks(length: int) -> list[tuple[int, int]]:
    """Where the blocks of queries begin and end."""
    return [(s, min(s + QUERIES, length)) for s in range(0, length, QUERIES)]


def parts(q: Tensor) -> list[slice]:
    """The sequences that are worked on together."""
    size = max(1, SCORES // max(1, QUERIES * q.size(1)))
    return [slice(start, start + size) for start in range(0, q.size(0), size)]
