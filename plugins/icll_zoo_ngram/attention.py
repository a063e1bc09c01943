"""The attention of an n-gram head: what followed the earlier occurrences of the last n tokens, averaged.

    o_t = mean of h_j over n <= j < t with x[j-n..j-1] = x[t-n+1..t]; zero if there is no such j

Source: the n-gram heads of arXiv:2401.12973 and their reference implementation, which builds a T x T matrix.
`ngram_attend` gives the same in O(T d) from a plan; `ngram_attend_reference` is the T x T form, which tests tie to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_ngram.plan import Level, Plan, check_order

CHUNK_BYTES = 4 << 20  # a CPU works on as many rows at a time as fit its cache, and never holds a sorted copy of h


def ngram_attend(h: Tensor, plan: Plan) -> Tensor:
    """h (b, l, d) -> (b, l, d), the mean over each position's matches; differentiable in h, any number of times.

    Sums are taken in float32, or in float64 if h is. Equal inputs give equal bits, forward and backward: there is no
    atomic addition. Raises InputError if h is not of the plan's shape.
    """
    if h.ndim != 3 or h.shape[:2] != plan.slot_of_query.shape:
        raise InputError(f"a plan of token ids {tuple(plan.slot_of_query.shape)} for vectors {tuple(h.shape)}")
    if h.numel() == 0:
        return torch.zeros_like(h)
    flat = [tensor for level in plan.levels for tensor in level]
    # Where no gradient is wanted, torch 2.14's compiler passes a Function with setup_context one argument too many.
    wanted = torch.is_grad_enabled() and h.requires_grad
    apply = _attend if torch.compiler.is_compiling() and not wanted else _Attend.apply
    return apply(
        h,
        False,
        plan.count,
        plan.value_of_rank,
        plan.rank_of_value,
        plan.query_of_slot,
        plan.slot_of_query,
        *flat,
    )


def ngram_attend_reference(h: Tensor, tokens: Tensor, order: int) -> Tensor:
    """The same from the whole (b, l, l) matrix of matches; h (b, l, d), tokens (b, l)."""
    return (ngram_weights(tokens, order, _wide(h.dtype)) @ h.to(_wide(h.dtype))).to(h.dtype)


def ngram_weights(tokens: Tensor, order: int, dtype: torch.dtype) -> Tensor:
    """What each position takes from each, (b, l, l): one over the number of matches at a match."""
    match = ngram_matches(tokens, order)
    weight = match.to(dtype)
    weight /= match.sum(-1, keepdim=True).clamp(min=1)
    return weight


def ngram_matches(tokens: Tensor, order: int) -> Tensor:
    """(b, l, l) bool: position t attends to position j."""
    check_order(order)
    b, length = tokens.shape
    match = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(-1).repeat(b, 1, 1)
    match[:, :, :order] = False
    for back in range(min(order, length)):
        # x[t - back] == x[j - 1 - back], for every t and j that have these tokens
        same = tokens[:, : length - back, None] == tokens[:, None, : length - back - 1]
        match[:, back:, back + 1 :] &= same
    return match


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Attend(Function):
    """The sums as one linear map; its derivative is its transpose, which is the same code with two roles exchanged."""

    @staticmethod
    def forward(h: Tensor, transposed: bool, *plan: Tensor) -> Tensor:  # type: ignore[override]
        return _attend(h, transposed, *plan)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.transposed, *plan = inputs
        ctx.save_for_backward(*plan)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        plan = ctx.saved_tensors
        # The compiler traces no Function within a Function's backward, and gives no second derivative to need one.
        again = _attend if torch.compiler.is_compiling() else _Attend.apply
        return again(grad, not ctx.transposed, *plan), None, *(None for _ in plan)

    @staticmethod
    def vmap(info, in_dims, h: Tensor, transposed: bool, *plan: Tensor):  # type: ignore[override]
        """Many models at once: of one batch of ids they are more features, of several they are more rows."""
        size, (h_dim, _, *plan_dims) = info.batch_size, in_dims
        if all(dim is None for dim in plan_dims):
            b, length, d = h.shape[:h_dim] + h.shape[h_dim + 1 :]
            wide = h.movedim(h_dim, 2).reshape(b, length, size * d)
            return _Attend.apply(wide, transposed, *plan).view(b, length, size, d), 2
        rows = [
            (tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)).flatten(0, 1)
            for tensor, dim in zip((h, *plan), (h_dim, *plan_dims), strict=True)
        ]
        out = _Attend.apply(rows[0], transposed, *rows[1:])
        return out.view(size, -1, *out.shape[1:]), 0


def _attend(h: Tensor, transposed: bool, *plan: Tensor) -> Tensor:
    """h by position -> means by position; `plan` is flat, as in `ngram_attend`."""
    count, value_of_rank, rank_of_value, query_of_slot, slot_of_query, *flat = plan
    levels = [Level(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
    source, target = (query_of_slot, rank_of_value) if transposed else (value_of_rank, slot_of_query)
    b, _, d = h.shape
    out = torch.empty_like(h, memory_format=torch.contiguous_format)
    step = b
    if h.device.type == "cpu" and not torch.compiler.is_compiling():
        step = max(1, CHUNK_BYTES // (source.size(1) * d * _wide(h.dtype).itemsize))
    with torch.autocast(h.device.type, enabled=False):
        for i in range(0, b, step):
            rows = slice(i, i + step)
            part = [Level(same[rows], head[rows], tail[rows]) for same, head, tail in levels]
            values = _take(h[rows], source[rows]).to(_wide(h.dtype))
            scale = count[rows].to(values.dtype).reciprocal_().masked_fill_(count[rows] == 0, 0)
            if transposed:
                values *= scale[..., None]
            sums = _block_sums(values, part, transposed)
            if not transposed:
                sums *= scale[..., None]
            if sums.dtype == out.dtype and sums.device.type == "cpu" and not torch.compiler.is_compiling():
                # Gathered straight into its place: a copy less.
                index = _flat(target[rows], sums.size(1))
                torch.index_select(sums.view(-1, d), 0, index, out=out[rows].view(-1, d))
            else:
                out[rows] = _take(sums, target[rows])
    if transposed:
        out[:, 0] = 0  # nobody attends to the first position
    return out


def _take(h: Tensor, index: Tensor) -> Tensor:
    """h (b, l, d), index (b, m) -> (b, m, d), row by row."""
    b, length, d = h.shape
    return h.reshape(b * length, d).index_select(0, _flat(index, length)).view(b, -1, d)


def _flat(index: Tensor, length: int) -> Tensor:
    """Places in rows of a length, (b, m) -> places in all rows laid end to end, (b m,)."""
    return (index + torch.arange(len(index), device=index.device)[:, None] * length).view(-1)


def _block_sums(values: Tensor, levels: list[Level], transposed: bool) -> Tensor:
    """values (b, m, d) by rank -> sums (b, m, d) by slot; transposed, from slots to ranks."""
    b, m, d = values.shape
    same, head, tail = levels[0]
    n, size = head.shape[1:]
    if transposed:
        same, head, tail = same.mT, tail, head
    values = values.view(b * n, size, d)
    sums = torch.bmm(same.to(values.dtype).view(b * n, size, size), values)
    if n == 1:
        return sums.view(b, m, d)
    ends = torch.bmm(tail.to(values.dtype).view(b * n, 1, size), values).view(b, n, d)
    above = levels[1].head.shape[1:].numel()
    carry = _block_sums(F.pad(ends, (0, 0, 0, above - n)), levels[1:], transposed)[:, :n]
    return sums.view(b, n, size, d).addcmul_(head.to(values.dtype)[..., None], carry[:, :, None]).view(b, m, d)
