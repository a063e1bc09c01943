"""The short causal convolution in front of Hyena and the Mambas: each channel by itself, over its last few tokens.

y_t = bias + sum_{i<k} w_i x_{t-k+1+i},   x before the first token is 0
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from icll_zoo_ssm.precision import widened


class ShortConv(nn.Module):
    """(b, l, channels) -> same; what it must remember is the last `size` - 1 inputs, (b, size - 1, channels)."""

    def __init__(self, channels: int, size: int, bias: bool = True) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        # What torch gives to a Conv1d of one input channel a group; the references of Hyena and Mamba leave it so.
        bound = 1 / math.sqrt(size)
        self.weight = nn.Parameter(torch.empty(channels, 1, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The outputs and what to remember; `before` is that of the tokens before x, zeros if None."""
        if before is None:
            before = self.nothing(x.size(0), x.device, x.dtype)
        dtype, length = x.dtype, x.size(1)
        x = torch.cat([before.to(dtype), x], 1)
        bias = self.weight.new_zeros(self.channels) if self.bias is None else self.bias
        wide, weight, y = widened(x, self.weight, bias)
        # Sums of shifted inputs: on a CPU training takes two thirds of what a grouped Conv1d's takes.
        for i, tap in enumerate(weight.squeeze(1).unbind(1)):
            y = torch.addcmul(y, wide[:, i : i + length], tap)
        return y.to(dtype), x[:, length:]

    def nothing(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """What is remembered before the first token."""
        return torch.zeros(batch_size, self.size - 1, self.channels, device=device, dtype=dtype)
