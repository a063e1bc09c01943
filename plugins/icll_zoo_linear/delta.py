"""The delta rule in chunks: what DeltaNet, Gated DeltaNet, Kimi Delta Attention and RWKV-7 share.

    S_t = diag(exp(log_decay_t)) S_{t-1} + b_t^T (a_t S_{t-1}) + k_t^T v_t,   o_t = q_t S_t

A state matrix that decays, is corrected along b_t by what it answers to a_t, and takes a new pair. The delta rule is
a_t = -k_t diag(exp(log_decay_t)) and b_t = beta_t k_t, with beta_t k_t^T v_t as the new pair.

Within a chunk that starts from S, let u_t = a_t S_{t-1}. All u_t together solve a triangular system, the UT transform
of Yang et al. 2024 (arXiv:2406.06484, section 3):

    (I - A_ab) U = A S + A_ak V,   A_ab[t, s] = (a_t exp(log_decay_{s+1} + ... + log_decay_{t-1})) . b_s for s < t

so U = U_0 + W S with U_0 and W free of S; the next chunk's state and the chunk's outputs are linear in S as well. What
is left of the recurrence is one d_k x d_k matrix a chunk. Every exponent is a sum of log decays <= 0, see `_scores`:
nothing overflows, for decays of any strength in any mixture.

Cost: O(l chunk_size) scores, log2(chunk_size) exponentials a key channel and token, one state a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_linear.ops import FEW, initial, widen


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The decayed delta rule in chunks: (o, state), o (b, l, h, d_v), state (b, h, d_k, d_v) after the last token.

        S_t = diag(exp(log_decay_t)) S_{t-1};   then S_t += beta_t k_t^T (v_t - k_t S_t);   o_t = q_t S_t

    q, k (b, l, h, d_k), q already scaled; v (b, l, h, d_v); beta (b, l, h). log_decay: finite, <= 0, of q's shape or
    broadcastable to it; one value a head, (b, l, h, 1), takes a cheaper path. state: before the first token, zeros if
    None. The rule is stable where beta_t |k_t|^2 <= 2. chunk_size: rounded up to a power of 2.
    Sums and the state are float32, or float64 if an input is; o has v's dtype.
    Raises InputError for a chunk_size below 1.
    """
    if q.size(1) <= FEW:
        return delta_recurrent(q, k, v, beta, log_decay, state)
    dtype, (q, k, v, beta, log_decay) = v.dtype, widen(q, k, v, beta, log_decay)
    with torch.autocast(q.device.type, enabled=False):
        b = beta[..., None] * k
        # One product for b^T (a S) and beta k^T v: the values of `chunked` are written along b too.
        o, state = chunked(q, -k * log_decay.exp(), b, b, v, log_decay, state, chunk_size)
    return o.to(dtype), state


def delta_recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `delta` computes, by the recurrence, one token after the other."""
    dtype, (q, k, v, beta, log_decay) = v.dtype, widen(q, k, v, beta, log_decay)
    with torch.autocast(q.device.type, enabled=False):
        decay = log_decay.exp().expand(-1, q.size(1), -1, -1)
        state = initial(state, k, v)
        outputs = []
        for t in range(q.size(1)):
            state = decay[:, t, :, :, None] * state
            error = v[:, t] - (k[:, t, :, None] @ state)[:, :, 0]
            state = state + (beta[:, t, :, None] * k[:, t])[..., None] * error[:, :, None]
            outputs.append((q[:, t, :, None] @ state)[:, :, 0])
    return torch.stack(outputs, 1).to(dtype), state


def chunked(
    q: Tensor,
    a: Tensor,
    b: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The general recurrence at the top of this file, in chunks, for tensors of one dtype, float32 or float64.

    q, a, b, k, log_decay (b, l, h, d_k), log_decay broadcastable; v (b, l, h, d_v). If k is b, the same tensor, half of
    the products are spared. Returns o (b, l, h, d_v) and the state (b, h, d_k, d_v).
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size {chunk_size} is not at least 1", hint="64 suits most sizes")
    (batch, length, h, d_k), d_v = q.shape, v.size(-1)
    size = 1 << (min(chunk_size, length) - 1).bit_length()
    n = -(-length // size)
    # A decay that is the same in all rows or heads stays so. In time it must end at the last token: padding is neutral,
    # with no decay and with keys of zero.
    per_head = log_decay.size(-1) == 1
    log_decay = log_decay.expand(-1, length, -1, -1) if per_head else log_decay.expand_as(q)

    def chunks(x: Tensor) -> Tensor:  # (b, l, ...) -> (b, n, ..., size, d)
        return F.pad(x, (0, 0, 0, 0, 0, n * size - length)).unflatten(1, (n, size)).transpose(2, 3)

    tied, state = k is b, initial(state, k, v)
    q, a, b, v, log_decay = (chunks(x) for x in (q, a, b, v, log_decay))
    k = b if tied else chunks(k)
    # A query reads after its own token: what came before, decayed once more, and the token's own writes.
    decayed = q * log_decay.exp()
    writes = b[..., None, :] if tied else torch.stack([b, k], -2)
    scores, since, until, whole = (_scores_per_head if per_head else _scores)(
        torch.stack([decayed, a], -2), writes, log_decay
    )
    (q_b, a_b), (q_k, a_k) = (scores[..., 0].unbind(-2), scores[..., -1].unbind(-2))
    q_b = q_b + torch.diag_embed((q * b).sum(-1))
    new = v if tied else a_k @ v
    # (I - A_ab) [W, U_0] = [A, A_ak V]; with the values written along b, v_t joins u_t.
    reads = torch.linalg.solve_triangular(-a_b, torch.cat([a * since.exp(), new], -1), upper=False, unitriangular=True)
    w, u = reads.split([d_k, d_v], -1)
    ends = (b * until.exp()).mT
    o, update = q_b @ u, ends @ u
    if not tied:
        o = o + (q_k + torch.diag_embed((q * k).sum(-1))) @ v
        update = update + (k * until.exp()).mT @ v
    transition = torch.diag_embed(whole.exp().squeeze(-2).expand(batch, n, h, d_k)) + ends @ w

    states = []
    for move, add in zip(transition.unbind(1), update.unbind(1), strict=True):
        states.append(state)
        state = move @ state + add
    o = o + (decayed * since.exp() + q_b @ w) @ torch.stack(states, 1)
    return o.transpose(2, 3).flatten(1, 2)[:, :length], state


def unit(x: Tensor) -> Tensor:
    """x (..., d) over its Euclidean norm, in float32 or better. Small vectors stay small, so that gradients do too."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def norm_wide(norm: nn.RMSNorm, o: Tensor) -> Tensor:
    """norm(o) in the type of the norm's weights: under autocast o has fewer digits than they, and torch would warn."""
    return norm(o.to(norm.weight.dtype))


def _scores(reads: Tensor, writes: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What each read of a chunk finds of each earlier write, and the log decays between a token and its chunk's ends.

        scores[t, i, s, j] = sum over d of reads[t, i, d] exp(log_decay_{s+1} + ... + log_decay_{t-1})_d writes[s, j, d]

    for s < t, and 0 else. reads (..., c, r, d), writes (..., c, w, d), log_decay (..., c, d), c a power of 2. Returns
    scores (..., c, r, c, w), the log decays since the chunk's start and until its end, without the token's own
    (..., c, d), and the whole chunk's (..., 1, d).

    The factors of read and write must meet between s and t, or one of them overflows. A chunk is halved again and
    again: every pair s < t lies astride the middle of exactly one block, and meets there. Each exponent is then a sum
    of log decays, never a difference of sums, so no digits cancel either.
    """
    lead, (c, r, d), w = reads.shape[:-3], reads.shape[-3:], writes.size(-2)
    reads, writes = reads.reshape(-1, c, r, d), writes.reshape(-1, c, w, d).contiguous()
    # Over blocks of m tokens, from m = 1 on.
    whole = log_decay.reshape(-1, 1, d).contiguous()
    since = until = torch.zeros_like(whole)
    scores = reads.new_zeros(whole.size(0), r, w)
    m = 1
    while m < c:
        since_first, since_second = since.view(-1, 2, m, d).unbind(1)
        until_first, until_second = until.view(-1, 2, m, d).unbind(1)
        whole_first, whole_second = whole.view(-1, 2, 1, d).unbind(1)
        second, first = reads.view(-1, 2, m, r, d)[:, 1], writes.view(-1, 2, m, w, d)[:, 0]
        if m > 1:  # of two tokens, both reach the middle without a decay
            second, first = second * since_second.exp()[:, :, None], first * until_first.exp()[:, :, None]
        across = second.flatten(1, 2) @ first.flatten(1, 2).mT
        upper, lower = scores.view(-1, 2, m * r, m * w).unbind(1)
        scores = torch.cat([F.pad(upper, (0, m * w)), torch.cat([across, lower], -1)], -2)
        since = torch.cat([since_first, whole_first + since_second], 1)
        until = torch.cat([until_first + whole_second, until_second], 1)
        whole = whole_first + whole_second
        m *= 2
    since, until, whole = (x.view(*lead, -1, d) for x in (since, until, whole))
    return scores.view(*lead, c, r, c, w), since, until, whole


def _scores_per_head(reads: Tensor, writes: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_scores` for log_decay (..., c, 1): one matrix of decays, times the reads' products with the writes."""
    c, r, _ = reads.shape[-3:]
    sums = segment_sums(log_decay)
    between = F.pad(sums[..., :-1, :], (0, 0, 1, 0))
    later = torch.ones(c, c, dtype=torch.bool, device=reads.device).triu()
    decays = between.masked_fill(later, -torch.inf).exp()
    products = (reads.flatten(-3, -2) @ writes.flatten(-3, -2).mT).unflatten(-1, (c, -1)).unflatten(-3, (c, r))
    since = F.pad(log_decay[..., :-1, :], (0, 0, 1, 0)).cumsum(-2)
    return products * decays[..., :, None, :, None], since, sums[..., -1:, :].mT, log_decay.sum(-2, keepdim=True)


def segment_sums(x: Tensor) -> Tensor:
    """x (..., c, 1) -> (..., c, c), at [t, s] the sum of x_{s+1} to x_t; 0 for s >= t.

    Not as differences of sums from the start: between strong decays those lose the digits of weak ones, and in the
    backward pass the gradients of strong ones, which are as small as the decays are.
    """
    c = x.size(-2)
    early = torch.ones(c, c, dtype=torch.bool, device=x.device).triu()
    return x.expand(*x.shape[:-1], c).masked_fill(early, 0).cumsum(-2)
