"""The linear recurrence that diagonal state-space models share.

    h_t = a_t h_{t-1} + b_t,   |a_t| <= 1,   elementwise, real or complex

In chunks: all chunks of the sequence advance together as if each began with h = 0, and so does the product p_t of the
a since the chunk's beginning; then the state is carried from chunk to chunk, and what a chunk began with is added:

    h_t = h'_t + p_t h_{before the chunk}

No logarithm and no division: p only shrinks, and where it reaches 0 nothing was left to add. A sequence of T tokens
takes T / C + C steps of Python instead of T (Blelloch 1990 gives the principle, Martin and Cundy 2018,
arXiv:1709.04057, the use). The gradient is the same recurrence from the end, so training keeps a and h only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Measured on a CPU: from this many elements a token on, a step costs more than the call that makes it, and one pass
# over the sequence beats the two or three of the chunked form.
WIDE = 4096
CHUNK = 32


def linear_scan(
    a: Tensor, b: Tensor, state: Tensor | None = None, chunk_size: int | None = None, pairs: bool = False
) -> Tensor:
    """h (b, l, ...) of the recurrence above, every token's; h[:, -1] is the state after the last one.

    a: (b, l, ...) of b's dtype, or of size 1 where it does not depend on the row, the token or more. b: (b, l, ...).
    state (b, ...): h before the first token; zeros if None. chunk_size: None chooses, the length makes one pass.
    pairs: all three are real, and their last dimension of 2 holds the real and the imaginary part.
    """
    if state is None:
        state = torch.zeros_like(b[:, 0])
    if b.is_complex():
        a, b, state = (torch.view_as_real(x.resolve_conj()) for x in (a, b, state))
        return torch.view_as_complex(linear_scan(a, b, state, chunk_size, True))
    return LinearScan.apply(a, b, state, chunk_size or pass_size(b), False, pairs)


def linear_scan_reference(a: Tensor, b: Tensor, state: Tensor | None = None, pairs: bool = False) -> Tensor:
    """`linear_scan`, token by token."""
    if pairs:
        a, b = torch.view_as_complex(a.contiguous()), torch.view_as_complex(b.contiguous())
        state = None if state is None else torch.view_as_complex(state.contiguous())
        return torch.view_as_real(linear_scan_reference(a, b, state))
    h = torch.zeros_like(b[:, 0]) if state is None else state
    out = []
    for a_t, b_t in zip(a.expand_as(b).unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        out.append(h)
    return torch.stack(out, 1)


def pass_size(b: Tensor) -> int:
    """The chunk size that is fastest for b (b, l, ...)."""
    return b.size(1) if b.device.type == "cpu" and b.numel() >= WIDE * b.size(1) else CHUNK


class LinearScan(torch.autograd.Function):
    """The recurrence and its gradient. `reverse` runs from the last token, with `state` behind it, to the first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, state: Tensor, chunk_size: int, reverse: bool, pairs: bool) -> Tensor:
        return opaque_scan(a, b, state, chunk_size, reverse, pairs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, _, state, ctx.chunk_size, ctx.reverse, ctx.pairs = inputs
        ctx.save_for_backward(a, state, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """db_t = g_t + conj(a_{t+1}) db_{t+1};  da_t = db_t conj(h_{t-1});  dstate = conj(a_1) db_1."""
        a, state, h = ctx.saved_tensors
        first = -1 if ctx.reverse else 0
        # What stands before the first a is multiplied by a zero state; it only has to be finite.
        following = a if a.size(1) == 1 else shift(a, a[:, first], not ctx.reverse)
        zero = torch.zeros_like(state)
        db = LinearScan.apply(conj(following, ctx.pairs), grad, zero, ctx.chunk_size, not ctx.reverse, ctx.pairs)
        da = None
        if ctx.needs_input_grad[0]:
            da = product(db, conj(shift(h, state, ctx.reverse), ctx.pairs), ctx.pairs).sum_to_size(a.shape)
        d_state = product(db[:, first], conj(a[:, first], ctx.pairs), ctx.pairs)
        return da, db, d_state, None, None, None


def conj(x: Tensor, pairs: bool) -> Tensor:
    """The complex conjugate of pairs; real numbers as they are."""
    return torch.stack([x[..., 0], -x[..., 1]], -1) if pairs else x


def product(x: Tensor, y: Tensor, pairs: bool) -> Tensor:
    """The elementwise product, of complex numbers if they are pairs."""
    if not pairs:
        return x * y
    (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
    return torch.stack([a * c - b * d, a * d + b * c], -1)


def shift(x: Tensor, edge: Tensor, reverse: bool) -> Tensor:
    """x one token later, `edge` first; or one token earlier, `edge` last."""
    edge = edge.unsqueeze(1)
    return torch.cat([x[:, 1:], edge], 1) if reverse else torch.cat([edge, x[:, :-1]], 1)


def scan_kernel(a: Tensor, b: Tensor, h: Tensor, chunk_size: int, reverse: bool, pairs: bool) -> Tensor:
    """The chunked form without its gradient, always a new contiguous tensor."""
    if not pairs:
        return scan(a, b, h, chunk_size, reverse)
    # Complex numbers only in here: a complex multiplication is one pass.
    a, b, h = (torch.view_as_complex(x.contiguous()) for x in (a, b, h))
    return torch.view_as_real(scan(a, b, h, chunk_size, reverse))


def one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """A vmap rule: the results of `op`, one tensor or a tuple, one after the other, stacked."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        results = []
        for i in range(info.batch_size):
            made = op(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)))
            results.append(made if isinstance(made, tuple) else (made,))
        stacked = tuple(torch.stack(same) for same in zip(*results, strict=True))
        return (stacked, (0,) * len(stacked)) if isinstance(made, tuple) else (stacked[0], 0)

    return rule


# One operation to the compiler, which would write out every step of the loops, and to vmap, which cannot write what it
# batches into memory made before.
opaque_scan = torch.library.custom_op("icll_zoo_ssm::linear_scan", scan_kernel, mutates_args=())
opaque_scan.register_fake(lambda a, b, h, chunk_size, reverse, pairs: b.new_empty(b.shape))
opaque_scan.register_vmap(one_by_one(opaque_scan))


def scan(a: Tensor, b: Tensor, h: Tensor, chunk_size: int, reverse: bool) -> Tensor:
    """Whole chunks in the order of reading, then the tokens left over."""
    length = b.size(1)
    whole = length // chunk_size * chunk_size
    if whole <= chunk_size:
        return steps(a.expand(-1, length, *a.shape[2:]), b, h, reverse)
    last = 0 if reverse else -1
    if whole < length:
        part = [(slice(whole), slice(whole, None)), (slice(length - whole, None), slice(length - whole))][reverse]
        a_of = [a if a.size(1) == 1 else a[:, tokens] for tokens in part]
        begun = scan(a_of[0], b[:, part[0]], h, chunk_size, reverse)
        ended = scan(a_of[1], b[:, part[1]], begun[:, last], chunk_size, reverse)
        return torch.cat([ended, begun] if reverse else [begun, ended], 1)
    # A constant a has the same products in every chunk: they are made once.
    a = a.unsqueeze(1).expand(-1, -1, chunk_size, *a.shape[2:]) if a.size(1) == 1 else a.unflatten(1, (-1, chunk_size))
    b = b.unflatten(1, (-1, chunk_size))
    own = steps(a, b, torch.zeros_like(b[:, :, 0]), reverse, 2)
    product_so_far = products(a.unbind(2), reverse)
    ends = product_so_far[:, :, last].expand(-1, b.size(1), *a.shape[3:])
    carried = steps(ends, own[:, :, last], h, reverse)
    return torch.addcmul(own, product_so_far, shift(carried, h, reverse).unsqueeze(2)).flatten(1, 2)


def scan_(a: Tensor, b: Tensor, h: Tensor, reverse: bool) -> Tensor:
    """`scan` in place of b, in the chunk size that is fastest."""
    size = pass_size(b)
    return steps(a, b, h, reverse, out=b) if b.size(1) <= size else b.copy_(scan(a, b, h, size, reverse))


def steps(a: Tensor, b: Tensor, h: Tensor, reverse: bool, dim: int = 1, out: Tensor | None = None) -> Tensor:
    """The recurrence token by token along `dim`, into `out`, which may be b; a new tensor if None."""
    if out is None:
        out = torch.empty_like(b, memory_format=torch.contiguous_format)
    tokens = list(zip(a.unbind(dim), b.unbind(dim), out.unbind(dim), strict=True))
    for a_t, b_t, out_t in tokens[::-1] if reverse else tokens:
        h = torch.addcmul(b_t, a_t, h, out=out_t)
    return out


def products(a: Sequence[Tensor], reverse: bool) -> Tensor:
    """The product of the a read so far, stacked along dimension 2."""
    out = [a[-1 if reverse else 0]]
    for a_t in a[-2::-1] if reverse else a[1:]:
        out.append(out[-1] * a_t)
    return torch.stack(out[::-1] if reverse else out, 2)
