"""The long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000), "lstm".

    i, f, o = sigmoid, g = tanh of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
    c_t = f c_{t-1} + i g
    h_t = o tanh(c_t),  the output

In the standard backbone the layers are stacked, each with its norm, residual and MLP. The paper's reference did
something else, which the preset `lstm-paper` repeats: see the plugin's registration.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class Lstm(nn.Module):
    """One LSTM layer, (batch, length, d_model) -> same; its state is h and c, (b, d_model) each."""

    icll_zoo_expected_failures: ClassVar = {"compiles": "torch.compile does not take torch's nn.LSTM"}

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)
        nn.init.xavier_uniform_(self.lstm.weight_ih_l0)
        nn.init.orthogonal_(self.lstm.weight_hh_l0)
        nn.init.zeros_(self.lstm.bias_ih_l0)
        nn.init.zeros_(self.lstm.bias_hh_l0)
        # The gates lie in the order i, f, g, o. A forget gate that starts open lets gradients through from the start.
        nn.init.ones_(self.lstm.bias_ih_l0[d_model : 2 * d_model])

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """h and c, zeros before the first token."""
        return {name: torch.zeros(batch_size, self.d_model, device=device, dtype=dtype) for name in ("h", "c")}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        y, (h, c) = self.lstm(x, (state["h"][None].contiguous(), state["c"][None].contiguous()))
        return y, {"h": h[0], "c": c[0]}
