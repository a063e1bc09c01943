"""Which earlier positions each position of a batch attends to, for n-gram heads, without a T x T matrix.

For order n, position t (from 0) attends uniformly to the positions j, n <= j < t, whose n preceding tokens
x[j-n..j-1] equal the last n tokens x[t-n+1..t]: to what followed the earlier occurrences of its context.

Positions p are sorted by (context that ends at p, p), so that equal contexts are runs in order of time. A query t then
wants the sum, over the earlier p of its run, of the value h[p+1]; except p = t-1, whose successor is t itself. The
query of rank r sits in slot r-1, so that it wants the values of its run up to its own slot: all of them, or all but the
slot's own if that is p = t-1.

The sums are taken in blocks of 16 slots: a masked 16 x 16 product within the block, plus a carry of the run that is
alive at the block's start. The carries are such sums again, over blocks, 16 blocks at a time, and so on. A global
cumulative sum would be shorter, but a difference of two large sums has lost its digits.

Cost: O(n T log T) once a batch of ids for the plan, O(T d) for its use. Nothing waits for the device.
"""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import InputError

BLOCK = 16  # a larger block costs more arithmetic, a smaller one more carries: 32 measured a tenth slower


class Level(NamedTuple):
    """One level of block sums: b rows of n blocks of s slots (s <= 16). Level 0 is over slots, the next over blocks.

    same: (b, n, s, s) bool, query in slot i takes the value of rank k.
    head: (b, n, s) bool, the query belongs to the run that is alive at its block's start.
    tail: (b, n, s) bool, the value belongs to the run that is alive at its block's end.
    """

    same: Tensor
    head: Tensor
    tail: Tensor


class Plan(NamedTuple):
    """The attention of one order over one batch of ids (b, l), with m >= l slots a row; it has no gradient.

    order: n.
    value_of_rank: (b, m) int64, the position in the row whose vector is the value of a rank.
    rank_of_value: (b, l) int64, its inverse (position 0 is nobody's value).
    query_of_slot: (b, m) int64, the position that asks in a slot (0 where nobody does).
    slot_of_query: (b, l) int64, its inverse.
    count: (b, m) int32, over how many positions the slot's query averages; 0 where there is none.
    levels: the block sums, from slots up to a single block.
    context: (b, l) int64, equal for equal contexts of n tokens in a row; what the next order is refined from.
    symbol: (b, l) int64, the same for n = 1.
    """

    order: int
    value_of_rank: Tensor
    rank_of_value: Tensor
    query_of_slot: Tensor
    slot_of_query: Tensor
    count: Tensor
    levels: tuple[Level, ...]
    context: Tensor
    symbol: Tensor


def ngram_plan(tokens: Tensor, order: int) -> Plan:
    """The plan of a batch of token ids (b, l), any integers, for contexts of `order` >= 1 tokens.

    Layers that ask for the same tensor in turn share it, and an order is refined from the ones below it in one pass.
    Raises InputError for ids that are no (b, l) integers, or for an order below 1.
    """
    check_order(order)
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.is_complex():
        raise InputError(f"n-gram heads read token ids (batch, length), not {tokens.dtype} {tuple(tokens.shape)}")
    with torch.no_grad():
        made = _remembered(tokens)
        below = max((n for n in made if n <= order), default=0)
        if below == 0:
            made[1], below = _plan(tokens, None), 1
        for n in range(below, order):
            made[n + 1] = _plan(tokens, made[n])
        return made[order]


def check_order(order: int) -> None:
    """Raise InputError unless `order` is an integer >= 1."""
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise InputError(
            f"the order of an n-gram head is {order!r}, not an integer >= 1", hint="1 is an induction head"
        )


def _plan(tokens: Tensor, below: Plan | None) -> Plan:
    """The plan of order 1, or of the order after `below`."""
    b, length = tokens.shape
    position = torch.arange(length, device=tokens.device)
    order = 1 if below is None else below.order + 1
    if below is None:
        code = tokens.long()
    else:
        # Context n+1 at t is the pair (context n at t-1, symbol at t), both ranks below `length`: this never overflows.
        code = F.pad(below.context, (1, 0))[:, :length] * length + below.symbol
        # Positions without a full context match nobody: each gets a code of its own.
        code = torch.where(position >= order - 1, code, -1 - position)
    code, at = torch.sort(code, dim=1, stable=True)

    first = torch.ones_like(code, dtype=torch.bool)
    first[:, 1:] = code[:, 1:] != code[:, :-1]
    run = first.cumsum(1)
    context = torch.zeros_like(run).scatter(1, at, run - 1)
    rank = torch.zeros_like(at).scatter(1, at, position.expand(b, length))

    # What the query of rank r, in slot r-1, finds: r minus the rank at which its run starts, less one if the rank
    # before it is the position before it.
    start = torch.where(first, position, 0).cummax(1).values
    touches = ((at[:, 1:] == at[:, :-1] + 1) & ~first[:, 1:]).int()
    count = position[1:] - start[:, 1:] - touches

    slots = _padded(length)
    last = torch.arange(slots, device=tokens.device) - F.pad(touches, (0, slots - length + 1))[:, :slots]
    run = run.int()
    return Plan(
        order=order,
        value_of_rank=F.pad((at + 1).clamp(max=length - 1), (0, slots - length)),
        rank_of_value=F.pad(rank, (1, 0))[:, :length],
        query_of_slot=F.pad(at[:, 1:], (0, slots - length + 1))[:, :slots],
        slot_of_query=(rank - 1) % max(slots, 1),  # the first rank never finds anything: the last slot has no query
        count=F.pad(count.int(), (0, slots - length + 1))[:, :slots],
        levels=_levels(run, run[:, 1:], last),
        context=context,
        symbol=context if below is None else below.symbol,
    )


def _padded(length: int) -> int:
    """`length` up to a whole number of blocks; a short row is a single block of its own length."""
    return length if length <= BLOCK else -(-length // BLOCK) * BLOCK


def _levels(value_run: Tensor, query_run: Tensor, last: Tensor) -> tuple[Level, ...]:
    """Block sums for: query i takes the values k <= last[i] with value_run[k] == query_run[i]. Runs do not decrease.

    Nobody's runs are -1 for values and -2 for queries, so that they never match.
    """
    b, slots = last.shape
    size = min(slots, BLOCK)
    n = slots // size if size else 0
    value_run = F.pad(value_run, (0, slots - value_run.size(1)), value=-1).view(b, n, size)
    query_run = F.pad(query_run, (0, slots - query_run.size(1)), value=-2)[:, :slots].reshape(b, n, size)
    base = torch.arange(n, device=last.device)[:, None] * size
    inside = torch.arange(size, device=last.device, dtype=torch.int32)
    same = query_run[..., :, None] == value_run[..., None, :]
    same &= inside <= (last.view(b, n, size) - base).int()[..., None]
    level = Level(same, query_run == query_run[..., :1], value_run == value_run[..., -1:])
    if n <= 1:
        return (level,)
    # A block hands on the sum of its tail, and asks for that of the earlier tails of the run at its head.
    blocks = torch.arange(_padded(n), device=last.device).expand(b, -1)
    return (level, *_levels(value_run[..., -1], query_run[..., 0], blocks - 1))


# -- one forward's plans -------------------------------------------------------------------------------------------


class _Remembered:
    """The plans of one tensor of ids, for as long as it lives unchanged."""

    def __init__(self, tokens: Tensor) -> None:
        self.plans: dict[int, Plan] = {}
        self.version = tokens._version
        # Memory shared with numpy can change without the version's knowing. On a CPU a look is cheap.
        self.copy = tokens.clone() if tokens.device.type == "cpu" else None
        plans = self.plans
        self.tokens = weakref.ref(tokens, lambda _: plans.clear())

    def is_of(self, tokens: Tensor) -> bool:
        if self.tokens() is not tokens or self.version != tokens._version:
            return False
        return self.copy is None or torch.equal(self.copy, tokens)


# One tensor a thread: layers ask one after the other, and nothing else is worth keeping.
_local = threading.local()


def _remembered(tokens: Tensor) -> dict[int, Plan]:
    """Order -> plan as known for this very tensor; an empty dictionary that nobody keeps where that is not safe."""
    if torch.compiler.is_compiling() or tokens.is_inference() or type(tokens) is not Tensor:
        return {}
    if torch._C._functorch.is_functorch_wrapped_tensor(tokens):
        return {}  # it stands for several tensors, and only within one vmap
    if tokens.is_cuda and torch.cuda.is_current_stream_capturing():
        return {}  # a captured graph must make its plan again at every replay
    known = getattr(_local, "known", None)
    if known is None or not known.is_of(tokens):
        known = _local.known = _Remembered(tokens)
    return known.plans
