"""The n-gram head as a layer.

    y_t = W0 a_t + W1 x_t,   a_t = mean of x_j over the j that follow an earlier occurrence of the last n tokens

W0, W1 full with biases, drawn from N(0, 0.02). Source: arXiv:2401.12973 (section on n-gram heads) and its reference
implementation. Order 1 is an induction head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from icll_zoo import InputError
from icll_zoo_ngram.attention import ngram_attend, ngram_attend_reference, ngram_weights
from icll_zoo_ngram.plan import check_order, ngram_plan

State = dict[str, Tensor]


class NGramHead(nn.Module):
    """x (b, l, d_model), tokens (b, l) -> (b, l, d_model).

    order: n, the length of the context that must have occurred before. There is no back-off: each order is a layer.
    backend: "fast", O(l log l + l d), or "reference", the l x l form. The weights are the same.

    Raises InputError for an order below 1.
    """

    state_grows = True
    heads_enter = "attended"  # what reads the head, for whoever takes heads out

    def __init__(self, d_model: int, order: int = 1, backend: Literal["fast", "reference"] = "fast") -> None:
        super().__init__()
        check_order(order)
        if backend not in ("fast", "reference"):
            raise InputError(f"the backend of an n-gram head is {backend!r}", hint="fast or reference")
        self.d_model = d_model
        self.order = order
        self.backend = backend
        self.attended = nn.Linear(d_model, d_model)
        self.own = nn.Linear(d_model, d_model)
        for linear in (self.attended, self.own):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.attended(self._attend(x, tokens)) + self.own(x)

    def attention_weights(self, x: Tensor, tokens: Tensor) -> Tensor:
        """What each position takes from each, (b, 1, l, l), the same whatever x is; see `icll_zoo.trace`."""
        return ngram_weights(tokens, self.order, x.dtype)[:, None]

    def _attend(self, x: Tensor, tokens: Tensor) -> Tensor:
        if tokens.shape != x.shape[:2]:
            raise InputError(f"an n-gram head was given token ids {tuple(tokens.shape)} for vectors {tuple(x.shape)}")
        if self.backend == "reference":
            return ngram_attend_reference(x, tokens, self.order)
        return ngram_attend(x, ngram_plan(tokens, self.order))

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Before the first token: the ids (b, 0) and the vectors (b, 0, d_model) read so far."""
        return {
            "tokens": torch.zeros(batch_size, 0, dtype=torch.int64, device=device),
            "x": torch.zeros(batch_size, 0, self.d_model, device=device, dtype=dtype),
        }

    def step(self, x: Tensor, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """As forward, for the next k tokens: x (b, k, d_model), tokens (b, k).

        Each of a few tokens is compared with the whole history, O(history (n + d_model)); many at once, as a prompt is,
        go through the plan of everything read.
        """
        after = {"tokens": torch.cat([state["tokens"], tokens], 1), "x": torch.cat([state["x"], x], 1)}
        k = x.size(1)
        if k * self.order <= 64 and state["tokens"].size(1):
            attended = _attend_last(after["x"], after["tokens"], self.order, k)
        else:
            attended = self._attend(after["x"], after["tokens"])[:, after["x"].size(1) - k :]
        return self.attended(attended) + self.own(x), after

    def extra_repr(self) -> str:
        return f"order={self.order}, backend={self.backend!r}"


def _attend_last(h: Tensor, tokens: Tensor, order: int, k: int) -> Tensor:
    """The last k positions of the attention: h (b, l, d), tokens (b, l) -> (b, k, d)."""
    length = tokens.size(1)
    if length <= order:
        return torch.zeros_like(h[:, length - k :])
    query = torch.arange(length - k, length, device=tokens.device)
    key = torch.arange(order, length, device=tokens.device)
    match = (key < query[:, None]).expand(tokens.size(0), -1, -1)  # so query >= order wherever there is a key
    for back in range(order):
        asked = tokens[:, (query - back).clamp(min=0)]
        match = match & (asked[:, :, None] == tokens[:, None, order - 1 - back : length - 1 - back])
    wide = torch.promote_types(h.dtype, torch.float32)
    weight = match.to(wide) / match.sum(-1, keepdim=True).clamp(min=1)
    return (weight @ h[:, order:].to(wide)).to(h.dtype)
