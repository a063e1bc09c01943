"""Linear attention whose state decays, one key channel or one head at a time: the recurrence of five architectures.

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t,   o_t = q_t S_t

so that o_t = sum over s <= t of (q_t exp(log_decay_{s+1} + ... + log_decay_t) . k_s) v_s. The chunked form keeps a
state a chunk and takes the sums within a chunk as a matrix of scores. The factors q_t exp(..) and k_s exp(..) of a
score must meet at some point between s and t, or one of them overflows. Gated linear attention (arXiv:2312.06635,
section 4) cuts chunks into sub-chunks, with pairwise differences inside them. Here a chunk is halved again and again:
every pair s < t lies astride the middle of exactly one block, and meets there. Each exponent is a sum of logarithms
<= 0, never a difference of sums: nothing overflows and no digits cancel, for decays of any strength in any mixture.

Cost: O(l chunk_size) scores, log2(chunk_size) exponentials a key channel and token, one state a chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_linear.ops import FEW, Backend, Op, fla_kernel, initial, wide_dtype, widen


def gla(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, chunk_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Decayed linear attention in chunks: (o, state), o (b, l, h, d_v), state (b, h, d_k, d_v) after the last token.

    q, k (b, l, h, d_k), q already scaled; v (b, l, h, d_v). log_decay: finite, <= 0, of q's shape or broadcastable to
    it; one value a head, (b, l, h, 1), takes a cheaper path. state: before the first token, zeros if None.
    chunk_size: a power of 2. Decays, sums and the state are float32, or float64 if an input is; o has v's dtype.
    Raises InputError for another chunk_size.
    """
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise InputError(f"chunk_size {chunk_size} is not a power of 2", hint="64 suits most sizes")
    b, length, h, d_k = q.shape
    if length <= FEW:
        return gla_recurrent(q, k, v, log_decay, state)
    dtype, wide = v.dtype, wide_dtype(q, k, v, log_decay)
    size = min(chunk_size, 1 << (length - 1).bit_length())
    n = -(-length // size)
    # A decay that is the same in all rows or heads stays so; in time it must end at the last token, as the padding does
    # not decay.
    per_head = log_decay.size(-1) == 1
    log_decay = log_decay.expand(-1, length, -1, -1) if per_head else log_decay.expand(b, length, h, d_k)

    with torch.autocast(q.device.type, enabled=False):
        # Matrix units multiply bfloat16 with float32 sums. What is rounded here is rounded in o too; the state is not.
        product = torch.bfloat16 if q.dtype == k.dtype == v.dtype == torch.bfloat16 else wide
        q, k, v = (_chunks(x.to(product), n, size) for x in (q, k, v))
        log_decay = _chunks(log_decay.to(wide), n, size)
        scores, since_start, until_end = (_scores_per_head if per_head else _scores)(q, k, log_decay)
        updates = (k * until_end.exp()).mT @ v.to(wide)
        kept = since_start[..., -1:, :].exp().mT
        state = updates.new_zeros(b, h, d_k, v.size(-1)) if state is None else state.to(wide)
        states = []
        for update, factor in zip(updates.unbind(1), kept.unbind(1), strict=True):
            states.append(state)
            state = torch.addcmul(update, state, factor)
        queries = (q * since_start.exp()).to(product)
        o = scores.to(product) @ v + queries @ torch.stack(states, 1).to(product)
    return o.transpose(2, 3).flatten(1, 2)[:, :length].to(dtype), state


def gla_recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `gla` computes, by the recurrence, one token after the other."""
    dtype, (q, k, v, log_decay) = v.dtype, widen(q, k, v, log_decay)
    with torch.autocast(q.device.type, enabled=False):
        decay = log_decay.exp().expand(-1, q.size(1), -1, -1)
        state = initial(state, k, v)
        outputs = []
        for t in range(q.size(1)):
            state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
            outputs.append((q[:, t, :, None] @ state)[:, :, 0])
    return torch.stack(outputs, 1).to(dtype), state


def gla_fla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same by the Triton kernels of flash-linear-attention; InputError without that package or off CUDA."""
    if log_decay.size(-1) == 1:
        kernel, log_decay = fla_kernel("simple_gla", "chunk_simple_gla", q), log_decay[..., 0].expand(q.shape[:3])
    else:
        kernel, log_decay = fla_kernel("gla", "chunk_gla", q), log_decay.expand(q.shape)
    return kernel(q, k, v, log_decay.contiguous(), scale=1.0, initial_state=state, output_final_state=True)


OPS: dict[Backend, Op] = {"auto": gla, "fast": gla, "reference": gla_recurrent, "fla": gla_fla}
"""By the `backend` option. "auto" is the chunked form: no kernel is chosen that was not asked for."""


def _chunks(x: Tensor, n: int, size: int) -> Tensor:
    """x (b, l, h, d) -> (b, n, h, size, d), contiguous, padded with zeros at the end."""
    if padding := n * size - x.size(1):
        x = F.pad(x, (0, 0, 0, 0, 0, padding))
    return x.unflatten(1, (n, size)).transpose(2, 3).contiguous()


def _scores(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scores within chunks (..., c, c), and log decays since a chunk's start and until its end (..., c, d_k).

    All inputs (..., c, d_k), c a power of 2; results have log_decay's dtype. Token t's own decay counts as since the
    start, not as until the end.
    """
    lead, (size, d_k) = q.shape[:-2], q.shape[-2:]
    q, k, log_decay = (x.to(log_decay.dtype).view(-1, size, d_k) for x in (q, k, log_decay))

    def across(m: int, since_middle: Tensor, until_middle: Tensor) -> Tensor:
        queries = q.view(-1, 2, m, d_k).unbind(1)[1] * since_middle.exp()
        keys = k.view(-1, 2, m, d_k).unbind(1)[0] * until_middle.exp()
        # Very many products of two vectors are faster as sums than as matrices.
        return (queries * keys).sum(-1, keepdim=True) if m == 1 else queries @ keys.mT

    scores, since_start, until_end = _halves((q * k).sum(-1), log_decay, across, above=0.0)
    return scores.view(*lead, size, size), since_start.view(*lead, size, d_k), until_end.view(*lead, size, d_k)


def _scores_per_head(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_scores` for log_decay (..., c, 1), of which one matrix serves all channels: exp(..) times q . k."""
    lead, size = log_decay.shape[:-2], log_decay.size(-2)
    log_decay = log_decay.view(-1, size, 1)

    def across(m: int, since_middle: Tensor, until_middle: Tensor) -> Tensor:
        return since_middle + until_middle.mT

    own = torch.zeros_like(log_decay[..., 0])
    between, since_start, until_end = _halves(own, log_decay, across, above=-torch.inf)
    scores = (q @ k.mT) * between.view(*lead, size, size).exp()
    return scores, since_start.view(*lead, size, 1), until_end.view(*lead, size, 1)


def _halves(
    diagonal: Tensor, log_decay: Tensor, across: Callable[[int, Tensor, Tensor], Tensor], above: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A lower triangular matrix a chunk, (n, c, c), and log decays since its start and until its end, (n, c, d).

    diagonal (n, c); log_decay (n, c, d). Blocks of 2 m tokens are put together from halves: across(m, log decays since
    the middle, (.., m, d), until the middle, (.., m, d)) is what the second half has to do with the first, (.., m, m).
    """
    n, size, d = log_decay.shape
    matrix = diagonal.reshape(-1, 1, 1)
    since_start, until_end = log_decay, torch.zeros_like(log_decay)
    m = 1
    while m < size:
        since_first, since_second = since_start.view(-1, 2, m, d).unbind(1)
        until_first, until_second = until_end.view(-1, 2, m, d).unbind(1)
        first, second = matrix.view(-1, 2, m, m).unbind(1)
        lower = torch.cat([across(m, since_second, until_first), second], -1)
        matrix = torch.cat([F.pad(first, (0, m), value=above), lower], -2)
        since_start = torch.cat([since_first, since_first[:, -1:] + since_second], 1)
        until_end = torch.cat([until_first + since_second[:, -1:], until_second], 1)
        m *= 2
    return matrix.view(n, size, size), since_start.view(n, size, d), until_end.view(n, size, d)
