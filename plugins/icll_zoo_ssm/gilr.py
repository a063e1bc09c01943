"""The gated impulse linear recurrence (Martin and Cundy 2018, arXiv:1709.04057), "gilr".

    v_t, o_t, f_t from W x_t + b
    h_t = sigmoid(f_t) h_{t-1} + (1 - sigmoid(f_t)) v_t
    y_t = W LayerNorm(dropout(h_t silu(o_t))) + b

The output gate, the dropout and the norm are those of the code of Akyurek et al. 2024 (arXiv:2401.12973), where this
layer crashes for want of an argument and was never measured.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo_ssm.lru import BACKENDS, checked_dropout, projections
from icll_zoo_ssm.precision import at_least_float32
from icll_zoo_ssm.s4d import Backend


class Gilr(nn.Module):
    """GILR, (batch, length, d_model) -> same; its state is h, one number a channel.

    inner_dropout: before the norm, in training only.
    backend: "fast" (auto) scans in chunks, "reference" token by token; one function.
    """

    def __init__(self, d_model: int, n_layers: int, inner_dropout: float = 0.2, backend: Backend = "auto") -> None:
        super().__init__()
        self.d_model = d_model
        self.scan = BACKENDS[backend]
        self.in_proj, self.out_proj = projections(d_model, 3 * d_model, d_model, n_layers)
        self.dropout = nn.Dropout(checked_dropout(inner_dropout))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, self.init_state(x.size(0), x.device, x.dtype))[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """h, (b, d_model); zeros before the first token."""
        return {"h": torch.zeros(batch_size, self.d_model, device=device, dtype=at_least_float32(dtype))}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        v, o, f = self.in_proj(x).chunk(3, -1)
        f = f.to(state["h"].dtype)
        # sigmoid(-f), not 1 - sigmoid(f): no digits are lost where the gate is nearly open.
        h = self.scan(f.sigmoid(), (-f).sigmoid() * v, state["h"])
        return self.out_proj(self.norm(self.dropout(h * F.silu(o)).to(x.dtype))), {"h": h[:, -1]}
