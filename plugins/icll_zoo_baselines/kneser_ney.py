"""Interpolated Kneser-Ney smoothing (Kneser and Ney 1995, doi:10.1109/ICASSP.1995.479394), "kneser-ney".

    P_n(c | h) = (max(N(h c) - D, 0) + D K(h) P_{n-1}(c | shorter h)) / (sum over c of N(h c))
    N = occurrences for the longest context of a position; below it, how many different symbols stood before h c
    K(h) = how many different c followed h,   P_0(c) = 1 / (number of different symbols read)

As Chen and Goodman 1999 (doi:10.1006/csla.1999.0128, equation 24) write it, read from the sequence itself. Counts are
within strings. Each string begins with one start symbol, which has nothing before it: a context that reaches it is the
longest of its position and counts occurrences. An open occurrence at the end of what was read is followed by nothing
and counts nowhere. A context that nothing followed gives way to the shorter one. Every row sums to one as soon as a
symbol was read.

The parts of `ngram.py`: contexts are sorted into runs, and a gram adds to the level below it where it occurs for the
first time, so that all counts are running sums and the cost of a position does not depend on where it stands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icll_zoo import InputError
from icll_zoo_baselines.ngram import CHUNK, Events, Runs


def kneser_ney_probabilities(
    tokens: Tensor, vocab_size: int, separator_id: int | None, order: int = 4, discount: float = 0.75
) -> Tensor:
    """What the learner predicts after each token: ids (b, l) -> (b, l, vocab_size) float64, row sums one or zero."""
    b, length = tokens.shape
    out = torch.empty(b, length, vocab_size, dtype=torch.float64, device=tokens.device)
    rows = max(1, CHUNK // max(1, length * vocab_size))
    for begin in range(0, b, rows):
        part = tokens[begin : begin + rows]
        predicted = predict(Events(part, vocab_size, separator_id), order, discount)
        out[begin : begin + rows] = predicted.unflatten(1, (len(part), length + 1))[:, :, 1:].movedim(0, -1)
    return out


def predict(events: Events, order: int, discount: float) -> Tensor:
    """The probabilities at every event, (v, e)."""
    read = events.one_hot(events.symbol).unflatten(1, events.shape).cumsum(2).flatten(1) > 0
    result = read.double() / read.sum(0).clamp(min=1)
    depth = since_start(events)
    # The runs of contexts of 0, 1 ... order - 1 symbols, the start symbol one of them.
    levels = [Runs(events.row)]
    while len(levels) < order:
        levels.append(Runs(events.longer(levels[-1].number)))
    for n, runs in enumerate(levels):
        whole = depth >= n  # else the context would reach beyond the string's start: there is no such level here
        if n + 1 == order:
            weight = whole
        else:
            longer = Runs(levels[n + 1].number * (events.v + 1) + events.following)
            # Nothing stands before the start symbol, so a context that begins with it counts its occurrences.
            weight = whole & ((depth == n) | (longer.place == longer.begin))
        count = runs.before(events.one_hot(events.following[runs.order]).mul_(weight[runs.order]))
        total, kinds = count.sum(0), (count > 0).double().sum(0)
        mixed = (count - discount).clamp_(min=0).addcmul_(result, discount * kinds).div_(total.clamp(min=1))
        result = torch.where(whole & (total > 0), mixed, result)
    return result


def since_start(events: Events) -> Tensor:
    """How many symbols the longest context of each event has, the start symbol one of them, (e,)."""
    place = torch.arange(len(events.symbol), device=events.symbol.device)
    return place - torch.where(events.start, place, 0).cummax(0).values + 1


class KneserNeyLearner(nn.Module):
    """Interpolated Kneser-Ney on the sequence so far: token ids (b, l) -> next-token probabilities (b, l, v), float64.

    separator_id: the token between strings; None reads each row as one string. order: n, the length of the longest
    gram. discount: D, taken from every count that is not zero, in (0, 1].
    """

    output = "probabilities"

    def __init__(self, vocab_size: int, separator_id: int | None, order: int = 4, discount: float = 0.75) -> None:
        super().__init__()
        if order < 1:
            raise InputError(f"order {order} is not at least 1", hint="order is the length of the longest gram")
        if not 0 < discount <= 1:
            raise InputError(f"discount {discount} is not in (0, 1]", hint="0.75 is usual")
        self.vocab_size = vocab_size
        self.separator_id = separator_id
        self.order = order
        self.discount = discount

    def forward(self, tokens: Tensor) -> Tensor:
        return kneser_ney_probabilities(tokens, self.vocab_size, self.separator_id, self.order, self.discount)
