"""The short causal convolution in front of Hyena and the Mambas: each channel by itself, over its last few tokens.

y_t = bias + sum_{i<k} w_i x_{t-k+1+i},   x before the first token is 0
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        wide, weight, bias = widened(x, self.weight, bias)
        # Only numbers next to each other are multiplied several at a time.
        taps = weight.squeeze(1).T.contiguous()
        return ShiftedSum.apply(wide, taps, bias).to(dtype), x[:, length:]

    def nothing(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """What is remembered before the first token."""
        return torch.zeros(batch_size, self.size - 1, self.channels, device=device, dtype=dtype)


class ShiftedSum(torch.autograd.Function):
    """bias + sum_i taps_i x_{t+i}, (b, l, channels), of x (b, l + k - 1, channels); taps (k, channels).

    On a CPU training takes a third of what a grouped Conv1d's takes. By itself autograd would make a gradient as
    large as x for every tap.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        return shifted_sum(x, taps, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, taps = ctx.saved_tensors
        reach, length = taps.size(0) - 1, dy.size(1)
        d_x = shifted_sum(F.pad(dy, (0, 0, reach, reach)), taps.flip(0), torch.zeros_like(taps[0]))
        d_taps = [(x[:, i : i + length] * dy).sum((0, 1)) for i in range(reach + 1)]
        return d_x, torch.stack(d_taps), dy.sum((0, 1))


def shifted_sum(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """`ShiftedSum` without its gradient."""
    length = x.size(1) - taps.size(0) + 1
    y = torch.addcmul(bias, x[:, :length], taps[0])
    for i in range(1, taps.size(0)):
        y.addcmul_(x[:, i : i + length], taps[i])
    return y
