"""A network over n-gram statistics, "smoothing-mlp": n-gram smoothing that is learned instead of chosen.

    f_n(c) = how often c followed the last n - 1 symbols of the open string before, n = 1 ... N, in one of three codes
    logits = W_2 gelu(W_1 [f_1, ..., f_N] + b_1) + b_2

Akyurek et al. 2024 (arXiv:2401.12973) put it between n-grams and transformers: N = 3, 1,024 hidden units, and codes
"count" (divided by 100), "ratio" (divided by their sum) and "binary" (whether it is not zero). Here the counts are
those of `ngram.py`: within strings, whose starts are symbols of a context. Theirs run on across separators.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_baselines.ngram import CHUNK, Events, Runs

Code = Literal["ratio", "count", "binary"]
CODES = get_args(Code)


def ngram_counts(tokens: Tensor, vocab_size: int, separator_id: int | None, order: int) -> Tensor:
    """How often each symbol followed the last 0, 1 ... order - 1 symbols: ids (b, l) -> (b, l, order, v) float64."""
    b, length = tokens.shape
    out = torch.empty(b, length, order, vocab_size, dtype=torch.float64, device=tokens.device)
    rows = max(1, CHUNK // max(1, length * vocab_size))
    for begin in range(0, b, rows):
        part = tokens[begin : begin + rows]
        events = Events(part, vocab_size, separator_id)
        context = events.row
        for n in range(order):
            if n:
                context = events.longer(context)
            runs = Runs(context)
            context = runs.number
            count = runs.before(events.one_hot(events.following.gather(0, runs.order)))
            count = count.unflatten(1, (len(part), length + 1))[:, :, 1:].movedim(0, -1)
            out[begin : begin + rows, :, n] = count
    return out


def coded(count: Tensor, code: Code) -> Tensor:
    """Counts (..., v) in one of the three codes; a context that nothing followed has zeros in each."""
    if code == "count":
        return count / 100
    if code == "ratio":
        return count / count.sum(-1, keepdim=True).clamp(min=1)
    return (count > 0).to(count.dtype)


class SmoothingMlp(nn.Module):
    """Logits from n-gram statistics: token ids (b, l) -> (b, l, v).

    separator_id: the token between strings; None reads each row as one string. order: N, the length of the longest
    gram. code: of the statistics. d_hidden: hidden units.
    """

    def __init__(
        self, vocab_size: int, separator_id: int | None, order: int = 3, code: Code = "ratio", d_hidden: int = 1024
    ) -> None:
        super().__init__()
        if order < 1:
            raise InputError(f"order {order} is not at least 1", hint="order is the length of the longest gram")
        if code not in CODES:
            raise InputError(f"code {code!r} is unknown", hint=f"choose from {', '.join(CODES)}")
        if d_hidden < 1:
            raise InputError(f"d_hidden {d_hidden} is not at least 1")
        self.vocab_size = vocab_size
        self.separator_id = separator_id
        self.order = order
        self.code: Code = code
        self.hidden = nn.Linear(order * vocab_size, d_hidden)
        self.out = nn.Linear(d_hidden, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        counts = ngram_counts(tokens, self.vocab_size, self.separator_id, self.order)
        features = coded(counts, self.code).flatten(2).to(self.out.weight.dtype)
        return self.out(F.gelu(self.hidden(features)))
