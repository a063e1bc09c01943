"""The infinite-gram (Liu et al. 2024, arXiv:2401.17377), "infinigram": the longest suffix that was read before decides.

    h = the longest suffix of the open string, its start included, that was followed by a symbol before
    "longest":  P(c) = C(h c) / (sum over c of C(h c))
    "backoff":  P_h(c) = (C(h c) + Q(c)) / (1 + the same sum);  Q = P of the suffix one symbol shorter, over those c
                that never followed h, scaled to sum to one; if all symbols have followed h, P_h is as "longest"

"longest" is the paper's: its back-off is the choice of h. "backoff" goes on below h in the manner of Katz 1987
(doi:10.1109/TASSP.1987.1165125), with one occurrence's worth of the mass for what is new after h, as `ngram.py` of
unbounded order. Counts are within strings, and padding ends one; only symbols read so far can have probability; a row
sums to one as soon as a symbol was read.

Contexts grow by one symbol at a time, among those that occur more than once: a sort for each length, over ever fewer
positions. A position costs what its longest match is long, wherever it stands.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from icll_zoo import InputError
from icll_zoo_baselines.ngram import Events, Runs

Smoothing = Literal["longest", "backoff"]
SMOOTHINGS = get_args(Smoothing)
# Elements (tokens x vocabulary) worked on at once: more than fits into a core's cache, since few are left after the
# first contexts, and then each operation's own cost decides.
CHUNK = 1 << 18


def infinigram_probabilities(
    tokens: Tensor,
    vocab_size: int,
    separator_id: int | None,
    smoothing: Smoothing = "longest",
    pad_id: int | None = None,
) -> Tensor:
    """What the learner predicts after each token: ids (b, l) -> (b, l, vocab_size) float64, row sums one or zero."""
    b, length = tokens.shape
    out = torch.empty(b, length, vocab_size, dtype=torch.float64, device=tokens.device)
    if pad_id is not None:
        # As a symbol, a tail of pads would be the longest match of all.
        tokens = tokens.masked_fill(tokens == pad_id, vocab_size)
    rows = max(1, CHUNK // max(1, length * vocab_size))
    for begin in range(0, b, rows):
        part = tokens[begin : begin + rows]
        predicted = predict(Events(part, vocab_size, separator_id), smoothing)
        out[begin : begin + rows] = predicted.unflatten(1, (len(part), length + 1))[:, :, 1:].movedim(0, -1)
    return out


def predict(events: Events, smoothing: Smoothing) -> Tensor:
    """The probabilities at every event, (v, e)."""
    device, e = events.symbol.device, len(events.symbol)
    result = events.one_hot(events.symbol).unflatten(1, events.shape).cumsum(2).flatten(1)
    result.div_(result.sum(0).clamp(min=1))
    # The events whose context of the length at hand occurs more than once, and the contexts' numbers.
    place = torch.arange(e, device=device)
    context = events.row * (events.v + 1) + events.symbol
    while len(place):
        runs = Runs(context)
        count = runs.before(events.one_hot(events.following[place[runs.order]]))
        total = count.sum(0)
        lower = result.index_select(1, place)
        if smoothing == "backoff":
            new = lower * (count == 0)
            mass = new.sum(0)
            mixed = (count + new / torch.where(mass > 0, mass, 1)) / (total + (mass > 0)).clamp(min=1)
        else:
            mixed = count / total.clamp(min=1)
        result.index_copy_(1, place, torch.where(total > 0, mixed, lower))
        # One symbol longer: the context of the event before, among those that are left of it, and the symbol.
        shared = runs.number.bincount()[runs.number] > 1
        number = torch.full((e,), -1, device=device)
        number[place[shared]] = runs.number[shared]
        place = place[shared]
        before = number[place - 1]
        kept = ~events.start[place] & (before >= 0)
        place, context = place[kept], before[kept] * (events.v + 1) + events.symbol[place[kept]]
    return result


class InfinigramLearner(nn.Module):
    """The infinite-gram of the sequence so far: token ids (b, l) -> next-token probabilities (b, l, v), float64.

    separator_id: the token between strings; None reads each row as one string. pad_id: no symbol; it ends a string too.
    smoothing: "longest" (the longest suffix alone) or "backoff" (the shorter ones say what else may come).
    """

    output = "probabilities"

    def __init__(
        self, vocab_size: int, separator_id: int | None, pad_id: int | None, smoothing: Smoothing = "longest"
    ) -> None:
        super().__init__()
        if smoothing not in SMOOTHINGS:
            raise InputError(f"smoothing {smoothing!r} is unknown", hint=f"choose from {', '.join(SMOOTHINGS)}")
        self.vocab_size = vocab_size
        self.separator_id = separator_id
        self.pad_id = pad_id
        self.smoothing: Smoothing = smoothing

    def forward(self, tokens: Tensor) -> Tensor:
        return infinigram_probabilities(tokens, self.vocab_size, self.separator_id, self.smoothing, self.pad_id)
