"""Small mixers for tests: one with a constant state, one with a growing state, one that reads tokens."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from icll_zoo.zoo import Zoo

State = dict[str, Tensor]


class CumulativeSum(nn.Module):
    """y_t = W (x_1 + ... + x_t) / 8. State: the sum. Its own initialisation is orthogonal."""

    def __init__(self, d_model: int, gain: float = 1.0, backend: Literal["reference", "fast"] = "fast") -> None:
        super().__init__()
        self.backend = backend
        self.proj = nn.Linear(d_model, d_model)
        nn.init.orthogonal_(self.proj.weight, gain=gain)
        self.register_buffer("scale", torch.tensor(0.125), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.cumsum(1) * self.scale)

    def init_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> State:
        return {"sum": torch.zeros(batch_size, self.proj.in_features, device=device, dtype=dtype)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        sums = state["sum"][:, None] + x.cumsum(1)
        return self.proj(sums * self.scale), {"sum": sums[:, -1]}


class UniformAttention(nn.Module):
    """y_t = the mean of W x over earlier positions of the same token. State: everything read, so it grows."""

    state_grows = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.step(x, self.init_state(x.size(0), x.device, x.dtype), tokens)[0]

    def init_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> State:
        return {
            "values": torch.zeros(batch_size, 0, self.proj.in_features, device=device, dtype=dtype),
            "tokens": torch.zeros(batch_size, 0, dtype=torch.int64, device=device),
        }

    def step(self, x: Tensor, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        values = torch.cat([state["values"], self.proj(x)], 1)
        read = torch.cat([state["tokens"], tokens], 1)
        last, first = read.size(1), state["tokens"].size(1)
        earlier = torch.arange(last, device=x.device) <= torch.arange(first, last, device=x.device)[:, None]
        same = (earlier & (tokens[:, :, None] == read[:, None])).to(x.dtype)
        return same @ values / same.sum(-1, keepdim=True), {"values": values, "tokens": read}


class Stateless(nn.Module):
    """A mixer that can only read everything again."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.cumsum(1) / 8)


class Counter(nn.Module):
    """A parameter-free learner: how often each token came before; nothing at all (a zero row) at the first one."""

    output = "probabilities"

    def __init__(self, vocab_size: int, separator_id: int | None) -> None:
        super().__init__()
        self.vocab_size, self.separator_id = vocab_size, separator_id

    def forward(self, tokens: Tensor) -> Tensor:
        ones = nn.functional.one_hot(tokens, self.vocab_size).float()
        counts = ones.cumsum(1) - ones
        return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def zoo_of_tests() -> Zoo:
    """A zoo of these alone, registered as a script does."""
    zoo = Zoo()
    zoo.register("mixer", "sum", CumulativeSum, license="Apache-2.0", paper="arXiv:2401.12973")
    zoo.register("mixer", "uniform", UniformAttention)
    zoo.register("mixer", "stateless", Stateless)
    zoo.register("architecture", "counter", Counter)
    return zoo
