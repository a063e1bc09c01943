"""The short convolution of the delta-rule mixers: y_t = silu(sum over i of w_i * x_{t-i}), each channel alone.

Depthwise and causal, without a bias, over 4 tokens as a rule: Mamba's (arXiv:2312.00752), adopted by DeltaNet
(arXiv:2406.06484).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError


def short_conv(x: Tensor, weight: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """silu of the causal depthwise convolution of x (b, l, d) with weight (d, size), the last of which meets x_t.

    before (b, size - 1, d): the inputs before x[:, 0], zeros if None. Returns y (b, l, d) and the next `before`.
    """
    size = weight.size(1)
    if before is None:
        before = x.new_zeros(x.size(0), size - 1, x.size(2))
    x = torch.cat([before.to(x.dtype), x], 1)
    y = F.conv1d(x.mT, weight[:, None], groups=x.size(2)).mT
    return F.silu(y), x[:, x.size(1) - size + 1 :]


class ShortConv(nn.Module):
    """x (b, l, width) -> the same shape. Raises InputError for a size below 1."""

    def __init__(self, width: int, size: int = 4) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"conv_size {size} is not at least 1", hint="4 is what the papers use")
        # torch's own bound for a convolution that sees `size` inputs.
        self.weight = nn.Parameter(torch.empty(width, size).uniform_(-(size**-0.5), size**-0.5))

    def forward(self, x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return short_conv(x, self.weight, before)

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """The last size - 1 inputs, zeros before the first token."""
        width, size = self.weight.shape
        return torch.zeros(batch_size, size - 1, width, device=device, dtype=dtype)
