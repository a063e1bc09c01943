"""RWKV-7 "Goose", its time mixing (Peng et al. 2025, arXiv:2503.14456, section 4), "rwkv-7".

    S_t = diag(w_t) S_{t-1} - (a_t * c_t)^T (c_t S_{t-1}) + m_t^T v_t,   o_t = r_t S_t
    c_t = (k_t * xi) / |k_t * xi|,   m_t = k_t * (1 + (a_t - 1) * alpha),   log w_t = -exp(-1/2) sigmoid(d_t)
    y_t = W_o [g_t * (GroupNorm(o_t) + (r_t * rho . m_t) v_t), all heads]

What the state answers to the key c_t is taken away, channel by channel, by the rates a_t; the new pair comes under
another key, m_t. r_t, k_t, v_t = W x^r_t, W x^k_t, W x^v_t, and with A, B of low rank and biases b

    d_t = b_d + tanh(x^d_t A) B,   a_t = sigmoid(b_a + x^a_t A B),   g_t = sigmoid(x^g_t A) B

where x^*_t = x_t + mu_* (x_{t-1} - x_t). Two things differ from the paper. It also mixes into v_t the value of the
first layer: a mixer sees its own input alone, so that is left out. And the backbone's channel mixing is RWKV-4's, with
a gate that RWKV-7 dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_linear.delta import chunked
from icll_zoo_linear.ops import FEW, Backend, Op, fla_kernel, initial, widen
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, out_std, shift

STREAMS = 6  # r, d, k, v, a, g: what is read from between two tokens


def rwkv7(
    r: Tensor,
    log_decay: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """RWKV-7's recurrence in chunks: (o, state), o (b, l, h, d_v), state (b, h, d_k, d_v) after the last token.

        S_t = diag(exp(log_decay_t)) S_{t-1} + b_t^T (a_t S_{t-1}) + k_t^T v_t;   o_t = r_t S_t

    r, log_decay, k, a, b (b, l, h, d_k), log_decay finite and <= 0; v (b, l, h, d_v). state: before the first token,
    zeros if None. RWKV-7 has a_t = -c_t, b_t = a_t * c_t in its own letters. chunk_size: rounded up to a power of 2.
    Sums and the state are float32, or float64 if an input is; o has v's dtype. InputError for a chunk_size below 1.
    """
    if r.size(1) <= FEW:
        return rwkv7_recurrent(r, log_decay, k, v, a, b, state)
    dtype, (r, log_decay, k, v, a, b) = v.dtype, widen(r, log_decay, k, v, a, b)
    with torch.autocast(r.device.type, enabled=False):
        o, state = chunked(r, a, b, k, v, log_decay, state, chunk_size)
    return o.to(dtype), state


def rwkv7_recurrent(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `rwkv7` computes, by the recurrence, one token after the other."""
    dtype, (r, log_decay, k, v, a, b) = v.dtype, widen(r, log_decay, k, v, a, b)
    with torch.autocast(r.device.type, enabled=False):
        decay = log_decay.exp().expand_as(r)
        state = initial(state, k, v)
        outputs = []
        for t in range(r.size(1)):
            answer = a[:, t, :, None] @ state
            state = decay[:, t, :, :, None] * state + b[:, t, :, :, None] * answer
            state = state + k[:, t, :, :, None] * v[:, t, :, None]
            outputs.append((r[:, t, :, None] @ state)[:, :, 0])
    return torch.stack(outputs, 1).to(dtype), state


def rwkv7_fla(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by flash-linear-attention; InputError without that package or off CUDA."""
    kernel = fla_kernel("generalized_delta_rule", "chunk_dplr_delta_rule", r)
    r, k, a, b = (x.to(v.dtype) for x in (r, k, a, b))
    return kernel(r, k, v, a, b, gk=log_decay, scale=1.0, initial_state=state, output_final_state=True)


OPS: dict[Backend, Op] = {"auto": rwkv7, "fast": rwkv7, "reference": rwkv7_recurrent, "fla": rwkv7_fla}


class LowRank(nn.Module):
    """x (b, l, d_model) -> bias + act(x A) B, the same shape; no activation or no bias where it is None."""

    def __init__(
        self, d_model: int, rank: int, act: Callable[[Tensor], Tensor] | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.act = act
        # The authors start A at zero. Almost zero does the same and lets a gradient through to B from the first step.
        self.down = nn.Parameter(torch.empty(d_model, rank).uniform_(-1e-4, 1e-4))
        self.up = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, d_model), gain=0.1))
        self.bias = nn.Parameter(bias) if bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        low = x @ self.down
        y = (low if self.act is None else self.act(low)) @ self.up
        return y if self.bias is None else y + self.bias


class GooseTimeMixing(nn.Module):
    """RWKV-7's time mixing, (b, l, d_model) -> same; its state is a d_head x d_head matrix a head and the last input.

    decay_rank, rate_rank, gate_rank: the ranks of A in d_t, a_t and g_t. The authors' rule if None: about
        2.5 sqrt(d_model) for the first two and 5 sqrt(d_model) for the third, in steps of 32 and at least 32.
    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        layer_index: int,
        n_heads: int = 2,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        gate_rank: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        ranks = [_rank(2.5, d_model, decay_rank), _rank(2.5, d_model, rate_rank), _rank(5.0, d_model, gate_rank)]
        if min(ranks) < 1:
            raise InputError(f"a rank of {min(ranks)} is not at least 1", hint="leave it out for the authors' rule")
        self.d_model, self.n_heads = d_model, n_heads
        self.d_head = head_size(d_model, n_heads)
        self.op = OPS[backend]

        # As in the authors' code: depth goes from 0 to 1 over the layers, height from 1 to nearly 0. Later channels
        # forget faster, within each head and over all of them; lower layers look back more than upper ones.
        depth, height = layer_index / max(n_layers - 1, 1), 1 - layer_index / n_layers
        i = torch.arange(d_model, dtype=torch.float32)
        line = i / max(d_model - 1, 1)
        zigzag = (i % self.d_head) / max(self.d_head - 1, 1) * 2 - 1
        zigzag = zigzag * zigzag.abs()
        powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])
        self.mix = nn.Parameter(1 - (i / d_model) ** (powers * height)[:, None])
        self.decay = LowRank(d_model, ranks[0], torch.tanh, -5.5 + 6 * line ** (1 + depth**0.3) + 2.5 * zigzag)
        self.rate = LowRank(d_model, ranks[1], bias=-0.19 + 0.3 * zigzag + 0.4 * (line - 0.5))
        self.gate = LowRank(d_model, ranks[2], torch.sigmoid)
        self.removal = nn.Parameter(0.71 - 0.1 * (line - 0.5))
        self.replacement = nn.Parameter(torch.full((d_model,), 1.02))
        self.bonus = nn.Parameter(torch.full((n_heads, self.d_head), -0.04))
        self.r_proj, self.k_proj, self.v_proj = (linear(d_model, d_model) for _ in range(3))
        for proj, size in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5)):
            bound = size / math.sqrt(d_model)
            nn.init.uniform_(proj.weight, -bound, bound)
        # The authors' eps: 1e-5 for each of the 64 dimensions of their heads.
        self.norm = nn.GroupNorm(n_heads, d_model, eps=64e-5)
        self.out_proj = linear(d_model, d_model, std=out_std(n_layers))

    def no_weight_decay(self) -> set[str]:
        """What the authors do not decay: all but the square matrices."""
        low = {f"{name}.{end}" for name in ("decay", "rate", "gate") for end in ("down", "up")}
        return low | {"mix", "decay.bias", "rate.bias", "removal", "replacement", "bonus"}

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The state matrices, (b, h, d_head, d_head), and the input before the first token, (b, d_model): zeros."""
        return {
            "kv": matrix_state(batch_size, self.n_heads, self.d_head, self.d_head, device, dtype),
            "before": torch.zeros(batch_size, self.d_model, device=device, dtype=dtype),
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        y, kv = self._mix(x, state["before"], state["kv"])
        return y, {"kv": kv, "before": x[:, -1]}

    def _mix(self, x: Tensor, before: Tensor | None, kv: Tensor | None) -> tuple[Tensor, Tensor]:
        back = shift(x, before) - x
        x_r, x_d, x_k, x_v, x_a, x_g = (x + back * mu for mu in self.mix)
        r, k, v = self.r_proj(x_r), self.k_proj(x_k), self.v_proj(x_v)
        wide = torch.promote_types(x.dtype, torch.float32)
        log_decay = -math.exp(-0.5) * self.decay(x_d).to(wide).sigmoid()
        rate = self.rate(x_a).sigmoid()
        removal, k = k * self.removal, k * (1 + (rate - 1) * self.replacement)
        r, log_decay, k, v, rate, removal = (
            y.unflatten(-1, (self.n_heads, self.d_head)) for y in (r, log_decay, k, v, rate, removal)
        )
        removal = F.normalize(removal.to(wide), dim=-1)
        o, kv = self.op(r, log_decay, k, v, -removal, removal * rate, kv)
        o = self.norm(o.flatten(0, 1).flatten(1)).view_as(x).unflatten(-1, (self.n_heads, self.d_head))
        o = o + (r * k * self.bonus).sum(-1, keepdim=True) * v
        return self.out_proj(self.gate(x_g) * o.flatten(2)), kv


def _rank(factor: float, d_model: int, given: int | None) -> int:
    return max(32, round(factor * math.sqrt(d_model) / 32) * 32) if given is None else given
