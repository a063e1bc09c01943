"""The cumulative mean: y_t = W (x_1 + ... + x_t) / t + b, with a state of two tensors."""

import torch
from torch import nn


class CumulativeMean(nn.Module):
    """Mix by the mean of everything so far, (batch, length, d_model) -> same; constant state."""

    def __init__(self, d_model: int):
        super().__init__()
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        return self.step(x, self.init_state(x.size(0), x.device, x.dtype))[0]

    def init_state(self, batch_size, device, dtype):
        return {
            "sum": torch.zeros(batch_size, self.proj.in_features, device=device, dtype=dtype),
            "count": torch.zeros(batch_size, 1, device=device, dtype=dtype),
        }

    def step(self, x, state):
        """The next k tokens, x (batch, k, d_model), from a state that is left as it was."""
        sums = state["sum"][:, None] + x.cumsum(1)
        counts = state["count"][:, None] + torch.arange(1, x.size(1) + 1, device=x.device, dtype=x.dtype)[:, None]
        return self.proj(sums / counts), {"sum": sums[:, -1], "count": counts[:, -1]}
