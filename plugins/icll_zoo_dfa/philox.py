"""Philox-4x32-10: random words that are a pure function of a key and a counter.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). A round multiplies two of the four
counter words by constants and mixes the halves of the products:

    (c0, c1, c2, c3)  <-  (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0))
    (k0, k1)          <-  (k0 + W0, k1 + W1)                                  everything modulo 2^32

Whole tensors of counters at once; integers only, so that every device gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF
CHUNK = 1 << 15
"""Counters worked on at a time: five int64 words each stay near a core, and a call's overhead is spread over them."""


def philox(counter: tuple[Tensor | int, ...], key: tuple[int, int]) -> Tensor:
    """Four random words for every counter.

    counter: four words in [0, 2^32), int64 tensors that broadcast to one shape, or integers. key: two words.
    Returns (..., 4) int64 in [0, 2^32).
    """
    device = next((c.device for c in counter if isinstance(c, Tensor)), None)
    words = torch.broadcast_tensors(*(torch.as_tensor(c, dtype=torch.int64, device=device) for c in counter))
    shape = words[0].shape
    out = torch.empty(4, words[0].numel(), dtype=torch.int64, device=device)
    # The words change places in every round; beginning in these rows, and the last one beside them, they end in order.
    for row, word in zip((out[3], out[1], out[2]), words[:3], strict=True):
        row.view(shape).copy_(word)
    last = words[3].reshape(-1)
    for start in range(0, out.size(1), CHUNK):
        spare, c1, c2, c0 = out[:, start : start + CHUNK]
        rounds([c0, c1, c2, last[start : start + CHUNK].clone()], spare, *key)
    return out.T.reshape(*shape, 4)


def rounds(c: list[Tensor], spare: Tensor, k0: int, k1: int) -> None:
    """The ten rounds, in place: the words end in `spare`, c[1], c[2], c[0], in this order."""
    shift = torch.bitwise_right_shift
    c0, c1, c2, c3 = c
    for _ in range(10):
        # An int64 product wraps modulo 2^64, which leaves the bits of the unsigned product; an arithmetic shift and a
        # mask then give its upper half. Lower halves keep their upper bits until the end: only xor reads them.
        c0.mul_(M0)
        c2.mul_(M1)
        shift(c2, 32, out=spare).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(LOW)
        shift(c0, 32, out=c1).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(LOW)
        c0, c1, c2, c3, spare = spare, c2, c1, c0, c3
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    c1.bitwise_and_(LOW)
    c3.bitwise_and_(LOW)


def split_words(value: int) -> tuple[int, int]:
    """A 64-bit integer as two words, the low one first."""
    return value & LOW, (value >> 32) & LOW


def in_range(words: Tensor, bound: Tensor | int) -> Tensor:
    """Words of 32 bits as integers in [0, bound), bound <= 2^31, by multiplication and shift: no division, no float.

    The probabilities differ from 1 / bound by at most 2^-32.
    """
    return (words * bound) >> 32
