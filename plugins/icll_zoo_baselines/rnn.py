"""The plain recurrent network (Elman 1990, doi:10.1207/s15516709cog1402_1), "rnn".

    h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh),  the output

The floor: no gate protects what it remembers. In the standard backbone the layers are stacked, each with its norm,
residual and MLP.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class Rnn(nn.Module):
    """One Elman layer, (batch, length, d_model) -> same; its state is h, (b, d_model)."""

    icll_zoo_expected_failures: ClassVar = {"compiles": "torch.compile does not take torch's nn.RNN"}

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.rnn = nn.RNN(d_model, d_model, batch_first=True)
        # As the LSTM's: W_hh turns h and neither shrinks nor stretches it.
        nn.init.xavier_uniform_(self.rnn.weight_ih_l0)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """h, zeros before the first token."""
        return {"h": torch.zeros(batch_size, self.d_model, device=device, dtype=dtype)}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        y, h = self.rnn(x, state["h"][None].contiguous())
        return y, {"h": h[0]}
