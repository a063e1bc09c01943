"""The linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349), gated, "lru".

    u_t in C^d and o_t in R^2d from W x_t + b
    h_t = lambda h_{t-1} + gamma u_t,   lambda = exp(-exp(nu) + i exp(theta)), fixed in time
    y_t = W LayerNorm(dropout([Re h_t, Im h_t] silu(o_t))) + b

The projections, the gate and the norm are those of the code of Akyurek et al. 2024 (arXiv:2401.12973), where this layer
crashes for want of an argument and was never measured. At the start |lambda| lies in [0.9, 0.999], lambda evenly over
that ring, and gamma = sqrt(1 - |lambda|^2) keeps the size of h that of u.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_ssm.precision import at_least_float32, widened
from icll_zoo_ssm.s4d import Backend
from icll_zoo_ssm.scan import linear_scan, linear_scan_reference

BACKENDS = {"auto": linear_scan, "fast": linear_scan, "reference": linear_scan_reference}


def projections(d_model: int, d_in: int, d_out: int, n_layers: int) -> tuple[nn.Linear, nn.Linear]:
    """W of the input, d_model -> d_in, and of the output, d_out -> d_model, initialised as in the paper's reference."""
    in_proj, out_proj = nn.Linear(d_model, d_in), nn.Linear(d_out, d_model)
    nn.init.normal_(in_proj.weight, std=0.02)
    # GPT-2's rule: 2 n_layers parts add to the residual stream, so each starts that much smaller.
    nn.init.normal_(out_proj.weight, std=0.02 / math.sqrt(2 * n_layers))
    nn.init.zeros_(in_proj.bias)
    nn.init.zeros_(out_proj.bias)
    return in_proj, out_proj


def checked_dropout(value: float) -> float:
    """`value` if it may be a probability of dropping; InputError otherwise."""
    if not 0 <= value < 1:
        raise InputError(f"inner_dropout {value} is not in [0, 1)")
    return value


class Lru(nn.Module):
    """The LRU, (batch, length, d_model) -> same; its state is one complex number a channel.

    inner_dropout: before the norm, in training only.
    r_min, r_max: where |lambda| starts.
    backend: "fast" (auto) scans in chunks, "reference" token by token; one function.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        inner_dropout: float = 0.2,
        r_min: float = 0.9,
        r_max: float = 0.999,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if not 0 < r_min < r_max < 1:
            raise InputError(f"|lambda| from r_min {r_min} to r_max {r_max}", hint="0 < r_min < r_max < 1")
        self.d_model = d_model
        self.scan = BACKENDS[backend]
        self.in_proj, self.out_proj = projections(d_model, 4 * d_model, 2 * d_model, n_layers)
        self.dropout = nn.Dropout(checked_dropout(inner_dropout))
        self.norm = nn.LayerNorm(2 * d_model)
        # Even over the ring's area, so even in the square of the radius (section 3.2.2); 1 - rand is never 0.
        squared = r_min**2 + torch.rand(d_model) * (r_max**2 - r_min**2)
        self.nu_log = nn.Parameter((-0.5 * squared.log()).log())
        self.theta_log = nn.Parameter((2 * math.pi * (1 - torch.rand(d_model))).log())
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-squared))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, self.init_state(x.size(0), x.device, x.dtype))[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """h, (b, d_model, 2), real and imaginary part; zeros before the first token."""
        return {"h": torch.zeros(batch_size, self.d_model, 2, device=device, dtype=at_least_float32(dtype))}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        u, o = self.in_proj(x).chunk(2, -1)
        nu, theta, gamma = widened(self.nu_log, self.theta_log, self.gamma_log)
        decay = (-nu.exp()).exp().unsqueeze(-1) * torch.stack([theta.exp().cos(), theta.exp().sin()], -1)
        u = gamma.exp().unsqueeze(-1) * u.unflatten(-1, (2, -1)).transpose(-1, -2)
        h = self.scan(decay[None, None], u, state["h"], pairs=True)
        y = h.transpose(-1, -2).flatten(-2) * F.silu(o)
        return self.out_proj(self.norm(self.dropout(y).to(x.dtype))), {"h": h[:, -1]}
