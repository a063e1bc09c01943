"""What the tasks share beside their rows: batches of them, the check of options, the names of symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from icll_zoo import IGNORED, Batch, InputError

PAD_ID = 0

LONGEST = 1 << 14
"""Tokens of a sequence: what is drawn at once is then 128 MB of int64 words."""
MOST_SYMBOLS = 1 << 10
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def as_batch(ids: Tensor, counted: Tensor | bool, group: Tensor, **extra: Tensor) -> Batch:
    """Sequences as a batch: all but the last token are read, and what follows each is its target where `counted`."""
    following = ids[:, 1:]
    valid = following != PAD_ID
    targets = following.masked_fill(~(valid & torch.as_tensor(counted)), IGNORED)
    return Batch(tokens=ids[:, :-1] * valid, targets=targets, valid=valid, group=group, extra=extra)


def answer_batch(ids: Tensor, group: Tensor, everywhere: bool) -> Batch:
    """The same where the last token is the answer, alone in the loss or with all others, and `following` an extra."""
    last = torch.arange(ids.size(1) - 1) == ids.size(1) - 2
    return as_batch(ids, last | everywhere, group, following=ids[:, 1:])


def refuse(
    faults: list[tuple[bool, str]], sequences: int | None, held_out: int, seed: int, length: int | None = None
) -> None:
    """Raise InputError with every fault of a task's options: its own, and those of the options that all tasks have."""
    faults = [
        *faults,
        (length is not None and length > LONGEST, f"data.length: {length} is more than {LONGEST} tokens"),
        (sequences is not None and sequences < 1, f"data.sequences: {sequences} is less than 1"),
        (held_out < 1, f"data.held_out: {held_out} is less than 1"),
        (not 0 <= seed < 2**63, f"data.seed: {seed} is not in [0, 2^63)"),
    ]
    if said := [f"wrong value in {line}" for wrong, line in faults if wrong]:
        raise InputError(said[0], faults=said)


def symbol_names(count: int) -> tuple[str, ...]:
    """Names of so many symbols: letters, as long as there are enough."""
    return tuple(LETTERS[:count]) if count <= len(LETTERS) else tuple(f"s{i}" for i in range(count))
