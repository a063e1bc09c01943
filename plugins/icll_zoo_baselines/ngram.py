"""The n-gram learner with back-off: it learns a language from the sequence that it reads, and has no parameters.

    P_n(c | context) = C(context c) / C(context)                        if the context was followed by c before
                     = left * P_{n-1}(c | shorter context) / (sum of the same over all such c)      if it was not
    left = 1 - the sum of the first line,   P_1(c) = C(c) / (number of symbols)

The baseline of Akyurek et al. 2024 (arXiv:2401.12973), as in their code, with its peculiarities:

- Counts are within strings, between separators. Each string has order - 1 pads on its left and no end; pads are
  symbols of a context and count in C(context) and in the number of symbols.
- Only symbols read so far can have probability.
- C(context) counts the open occurrence at the end of what was read too, so `left` is positive. If all symbols read so
  far have followed the context, `left` is lost: a row may sum to less than one, and is not renormalised.
- "add-one" uses (C(context c) + 1) / (C(context) + symbols read) for the c that followed, and counts the pad as a
  symbol for P_1 only; "none" stops after the first line.

"katz" is "backoff" without the loss: if all symbols read so far have followed the context, they share what is left in
proportion, so that every row sums to one as soon as a symbol was read.

Contexts become numbers, a sort brings equal contexts together in order of time, and one running sum counts what
followed them: the cost of a position does not depend on where it stands. `ngram_reference.py` is the same, slowly.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from icll_zoo import InputError

Smoothing = Literal["backoff", "katz", "none", "add-one"]
SMOOTHINGS = get_args(Smoothing)
# Elements (tokens x vocabulary) worked on at once. Tables of 0.5 MB stay in a core's cache, and the C library keeps
# their memory for the next ones; tables of 1 MB and more took twice as long, half of it in page faults.
CHUNK = 1 << 16


def ngram_probabilities(
    tokens: Tensor, vocab_size: int, separator_id: int | None, order: int = 3, smoothing: Smoothing = "backoff"
) -> Tensor:
    """What the learner predicts after each token: ids (b, l) -> (b, l, vocab_size) float64, row sums <= 1."""
    b, length = tokens.shape
    out = torch.empty(b, length, vocab_size, dtype=torch.float64, device=tokens.device)
    rows = max(1, CHUNK // max(1, length * vocab_size))
    for begin in range(0, b, rows):
        part = tokens[begin : begin + rows]
        predicted = Events(part, vocab_size, separator_id).predict(order, smoothing)
        out[begin : begin + rows] = predicted.unflatten(1, (len(part), length + 1))[:, :, 1:].movedim(0, -1)
    return out


class Events:
    """The moments at which something is predicted: the start of each row and after each of its tokens.

    b rows of length + 1 events, flattened to e = b (length + 1); tables over the vocabulary are (v, e).
    """

    def __init__(self, tokens: Tensor, vocab_size: int, separator_id: int | None) -> None:
        b, length = tokens.shape
        self.shape, self.v = (b, length + 1), vocab_size
        # The symbol read last; v, the pad, where a string starts.
        symbol = torch.full(self.shape, vocab_size, dtype=torch.int64, device=tokens.device)
        symbol[:, 1:] = tokens if separator_id is None else tokens.masked_fill(tokens == separator_id, vocab_size)
        self.symbol = symbol.flatten()
        self.start = self.symbol == vocab_size
        self.row = torch.arange(b, device=tokens.device).repeat_interleave(length + 1)
        # The symbol read next; v where none is: before a separator and at the end.
        following = torch.full_like(symbol, vocab_size)
        following[:, :-1] = symbol[:, 1:]
        self.following = following.flatten()

    def predict(self, order: int, smoothing: Smoothing) -> Tensor:
        """The probabilities at every event, (v, e)."""
        extra = 1.0 if smoothing == "add-one" else 0.0
        read = self.one_hot(self.symbol).unflatten(1, self.shape).cumsum(2).flatten(1)
        kinds = (read > 0).sum(0) if extra else 0
        result = read
        if order == 1 or smoothing != "none":
            pads = (order - 1) * self.start.view(self.shape).cumsum(1).flatten()
            total = read.sum(0) + pads + extra * (kinds + (order > 1))
            # Before the first token nothing was read, not even a pad if the order is 1.
            result = (read + extra * (read > 0) if extra else read).div_(total.clamp(min=1))
        context = self.row
        for n in range(2, order + 1):
            runs = Runs(self.longer(context))
            context = runs.number
            if smoothing == "none" and n < order:
                continue
            count = runs.before(self.one_hot(self.following.gather(0, runs.order)))
            total = runs.until(torch.where(self.start, order - n + 1, 1)).double()
            if smoothing == "none":
                return count.div_(total)
            # 1 where the symbol never followed: several times faster on a CPU than a mask of bools.
            never = (1 - count).clamp_(min=0)
            result.mul_(never)
            if extra:
                count, total = count.add_(1 - never), total + kinds
            left, unseen = (total - count.sum(0)) / total, result.sum(0)
            # With nobody to give it to, what is left is lost.
            result.mul_(torch.where(unseen > 0, left / unseen, 0)).addcdiv_(count, total)
        if smoothing == "katz":
            # Once at the end: of a shorter context's row only the proportions are used.
            result.div_(result.sum(0).clamp(min=torch.finfo(result.dtype).tiny))
        return result

    def longer(self, context: Tensor) -> Tensor:
        """A number for each event's context and row, one symbol longer than the numbers given; (e,) both."""
        # Where a string starts all is pads: the context before the last pad is the same one.
        before = torch.where(self.start, context, context.roll(1))
        return before * (self.v + 1) + self.symbol

    def one_hot(self, symbol: Tensor) -> Tensor:
        """(e,) -> (v, e) float64, a column of zeros for the pad."""
        table = torch.zeros(self.v + 1, len(symbol), dtype=torch.float64, device=symbol.device)
        return table.scatter_(0, symbol[None], 1.0)[: self.v]


class Runs:
    """Events sorted by a key, equal keys by time, so that sums over earlier events of one key are running sums.

    order (e,): the event at each place. number (e,): the events' keys, replaced by 0, 1, 2 ...
    """

    def __init__(self, key: Tensor) -> None:
        place = torch.arange(len(key), device=key.device)
        # Key and time in one number: numpy sorts plain integers ten times faster than torch sorts stably on a CPU.
        bits = len(key).bit_length()
        packed = (key << bits) | place
        packed = torch.from_numpy(np.sort(packed.numpy())) if packed.device.type == "cpu" else packed.sort().values
        key, self.order = packed >> bits, packed & ((1 << bits) - 1)
        first = torch.ones_like(key, dtype=torch.bool)
        first[1:] = key[1:] != key[:-1]
        number = first.cumsum(0) - 1
        self.place = torch.empty_like(place).scatter_(0, self.order, place)
        self.number = number.gather(0, self.place)
        self.begin = first.nonzero()[:, 0].gather(0, self.number)

    def before(self, sorted_values: Tensor) -> Tensor:
        """Sums over the earlier events of the same key: (v, e) by place -> (v, e) by event. Exact for whole numbers."""
        total = sorted_values.cumsum(1)
        # Sums over all places before one, so that a run's is a difference.
        total.sub_(sorted_values)
        return self.pick(total, self.place).sub_(self.pick(total, self.begin))

    def until(self, values: Tensor) -> Tensor:
        """Sums over the same and the earlier events of the same key: (e,) by event -> the same."""
        values = values.gather(0, self.order)
        total = values.cumsum(0)
        return total.gather(0, self.place) - (total - values).gather(0, self.begin)

    @staticmethod
    def pick(table: Tensor, place: Tensor) -> Tensor:
        # gather over an expanded index: several times faster on a CPU than table[:, place].
        return table.gather(1, place.expand(len(table), -1))


class NGramLearner(nn.Module):
    """An n-gram model of the sequence so far: token ids (b, l) -> next-token probabilities (b, l, v), float64.

    separator_id: the token between strings; None reads each row as one string. Padding on the right needs no care:
        what is predicted before it cannot depend on it.
    order: n, the length of the grams; the context has order - 1 symbols.
    smoothing: "backoff", "katz" (the same, normalised), "none" (no probability for what has not followed the context)
        or "add-one" (with back-off).
    """

    output = "probabilities"

    def __init__(
        self, vocab_size: int, separator_id: int | None, order: int = 3, smoothing: Smoothing = "backoff"
    ) -> None:
        super().__init__()
        if order < 1:
            raise InputError(f"order {order} is not at least 1", hint="order is the length of the longest gram")
        if smoothing not in SMOOTHINGS:
            raise InputError(f"smoothing {smoothing!r} is unknown", hint=f"choose from {', '.join(SMOOTHINGS)}")
        self.vocab_size = vocab_size
        self.separator_id = separator_id
        self.order = order
        self.smoothing: Smoothing = smoothing

    def forward(self, tokens: Tensor) -> Tensor:
        return ngram_probabilities(tokens, self.vocab_size, self.separator_id, self.order, self.smoothing)
