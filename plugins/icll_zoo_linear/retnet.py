"""The retentive network (Sun et al. 2023, arXiv:2307.08621), "retnet".

    q_t, k_t = R_t W_q x_t, R_t W_k x_t / sqrt(d_k),   v_t = W_v x_t;   gamma_h = 1 - 2^(-5 - h) for head h = 0, 1, ...
    S_t = gamma_h S_{t-1} + k_t^T v_t,   o_t = q_t S_t
    y_t = W_o [silu(W_g x_t) * LayerNorm(o_t), all heads]

R_t turns the pair of dimensions (2i, 2i + 1) by the angle t / 10000^(i / (d_k / 2 - 1)). Values are twice as wide as
keys. The norm has no weights (the paper's group norm).

The paper's parallel form (its section 2.4, "retention score normalization") also divides the decays of row t by the
root of their sum n_t = 1 + gamma + ... + gamma^t, and then the scores of row t by max(|their sum|, 1), through which
it sends no gradient. All scores of a row have these factors in common, so that with z_t = gamma z_{t-1} + k_t

    o_t = (q_t S_t / sqrt(n_t)) / max(|q_t z_t| / sqrt(n_t), 1) = q_t S_t / max(|q_t z_t|, sqrt(n_t)),

a recurrence again, equal to the parallel form. LayerNorm removes such factors but for its eps of 1e-5, which is why
the default leaves them out; `normalise` (in the preset `retnet-paper`) puts them in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError, rotate_pairs
from icll_zoo_linear.decay import OPS, gla
from icll_zoo_linear.ops import Backend, Op
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, norm_heads, out_std, unit_values

THETA = 10000.0


def log_gammas(n_heads: int, device: torch.device | str | None = None) -> Tensor:
    """log gamma of each head, (h,) float64."""
    return torch.log1p(-(2.0 ** (-5.0 - torch.arange(n_heads, device=device, dtype=torch.float64))))


def retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    position: Tensor | None = None,
    normalise: bool = False,
    op: Op = gla,
) -> tuple[Tensor, Tensor]:
    """Retention of rotated queries and keys (b, l, h, d_k), the keys scaled: (o, state), o of the shape of v.

    v (b, l, h, d_v). position (b,): how many tokens came before, none if None. op: the form of the recurrence.
    normalise: divide by max(|q z|, sqrt(n)), without a gradient; the state's last column is then z.
    """
    log_gamma = log_gammas(q.size(2), q.device)
    log_decay = log_gamma.to(torch.promote_types(q.dtype, torch.float32))[None, None, :, None]
    if not normalise:
        return op(q, k, v, log_decay, state)
    o, state = op(q, k, torch.cat([v, torch.ones_like(v[..., :1])], -1), log_decay, state)
    read = 1 + positions(q.size(1), position, q.device)[..., None]
    root = (torch.expm1(read * log_gamma) / torch.expm1(log_gamma)).sqrt()
    total = torch.maximum(o[..., -1:].detach().abs(), root[..., None].to(o.dtype))
    return o[..., :-1] / total, state


def retention_quadratic(q: Tensor, k: Tensor, v: Tensor, normalise: bool = False) -> Tensor:
    """The paper's parallel form: the l x l matrix of decays, and the two normalisations of its rows."""
    t = torch.arange(q.size(1), device=q.device)
    distance = (t[:, None] - t).clamp(min=0)
    decays = torch.exp(distance * log_gammas(q.size(2), q.device)[:, None, None]).tril().to(q.dtype)
    if normalise:
        decays = decays / decays.sum(-1, keepdim=True).sqrt()
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * decays
    if normalise:
        scores = scores / scores.detach().sum(-1, keepdim=True).abs().clamp(min=1)
    return torch.einsum("bhij,bjhd->bihd", scores, v)


def positions(length: int, start: Tensor | None, device: torch.device) -> Tensor:
    """The positions of `length` tokens, the first at start (b,): (b, l), or (1, l) from 0 on."""
    steps = torch.arange(length, device=device)[None]
    return steps if start is None else start[:, None] + steps


def rotate(x: Tensor, at: Tensor) -> Tensor:
    """Turn each pair of dimensions of x (b, l, h, d) by its angle at the positions `at` (b or 1, l)."""
    rates = THETA ** -torch.linspace(0, 1, x.size(-1) // 2, device=x.device, dtype=torch.float64)
    return rotate_pairs(x, at[..., None] * rates)


class Retention(nn.Module):
    """Multi-scale retention, (b, l, d_model) -> same; its state is a position and a d_k x d_v matrix a head.

    value_factor: the width of the values over d_model. bias: in all five linear layers, as in the reference of
    arXiv:2401.12973. normalise: divide by the paper's row sums.
    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int = 4,
        value_factor: int = 2,
        bias: bool = False,
        normalise: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if value_factor < 1:
            raise InputError(f"value_factor {value_factor} is not at least 1")
        self.d_k = head_size(d_model, n_heads)
        if self.d_k % 2:
            raise InputError(
                f"n_heads {n_heads} gives heads of {self.d_k} dimensions with d_model {d_model}",
                hint="rotary positions need an even number",
            )
        self.n_heads = n_heads
        self.d_v = self.d_k * value_factor
        self.normalise = normalise
        self.op = OPS[backend]
        self.q_proj = linear(d_model, d_model, bias)
        self.k_proj = linear(d_model, d_model, bias)
        self.v_proj = linear(d_model, d_model * value_factor, bias)
        self.g_proj = linear(d_model, d_model * value_factor, bias)
        self.out_proj = linear(d_model * value_factor, d_model, bias, std=out_std(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The decayed sum of k^T v, (b, h, d_k, d_v), with that of k as a last column if normalised; no token read."""
        d_v = self.d_v + self.normalise
        return {
            "kv": matrix_state(batch_size, self.n_heads, self.d_k, d_v, device, dtype),
            "position": torch.zeros(batch_size, dtype=torch.int64, device=device),
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        y, kv = self._mix(x, state["kv"], state["position"])
        return y, {"kv": kv, "position": state["position"] + x.size(1)}

    def attention_weights(self, x: Tensor) -> Tensor:
        """What each head of each position takes from each, (b, h, l, l), of any sign, before the norm of the heads."""
        q, k = self._project(x, None)
        return retention(q, k, unit_values(k), None, None, self.normalise, self.op)[0].transpose(1, 2)

    def _project(self, x: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        at = positions(x.size(1), position, x.device)
        q = rotate(self.q_proj(x).unflatten(-1, (self.n_heads, self.d_k)), at)
        return q, rotate(self.k_proj(x).unflatten(-1, (self.n_heads, self.d_k)), at) / math.sqrt(self.d_k)

    def _mix(self, x: Tensor, kv: Tensor | None, position: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k = self._project(x, position)
        v = self.v_proj(x).unflatten(-1, (self.n_heads, self.d_v))
        o, kv = retention(q, k, v, kv, position, self.normalise, self.op)
        return self.out_proj(F.silu(self.g_proj(x)) * norm_heads(o)), kv
