"""The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), "gru".

    r, z = sigmoid of W_i x_t + b_i + W_h h_{t-1} + b_h
    n_t = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn))
    h_t = (1 - z) n_t + z h_{t-1},  the output

The reset gate acts after the matrix product, as in torch and the libraries below it. In the standard backbone the
layers are stacked, each with its norm, residual and MLP.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class Gru(nn.Module):
    """One GRU layer, (batch, length, d_model) -> same; its state is h, (b, d_model)."""

    icll_zoo_expected_failures: ClassVar = {"compiles": "torch.compile does not take torch's nn.GRU"}

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.gru = nn.GRU(d_model, d_model, batch_first=True)
        # As the LSTM's: W_h turns h and neither shrinks nor stretches it.
        nn.init.xavier_uniform_(self.gru.weight_ih_l0)
        nn.init.orthogonal_(self.gru.weight_hh_l0)
        nn.init.zeros_(self.gru.bias_ih_l0)
        nn.init.zeros_(self.gru.bias_hh_l0)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """h, zeros before the first token."""
        return {"h": torch.zeros(batch_size, self.d_model, device=device, dtype=dtype)}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        y, h = self.gru(x, state["h"][None].contiguous())
        return y, {"h": h[0]}
