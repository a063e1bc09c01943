"""RWKV-6 "Finch", its time mixing (Peng et al. 2024, arXiv:2404.05892, section 4.2), "rwkv-6".

    S_t = diag(w_t) S_{t-1} + k_t^T v_t,   o_t = r_t (S_{t-1} + diag(u) k_t^T v_t)
    y_t = W_o [silu(g_t) * GroupNorm(o_t), all heads]
    r_t, k_t, v_t, g_t = W x^r_t, W x^k_t, W x^v_t, W x^g_t;   w_t = exp(-exp(lambda + tanh(x^w_t A) B))

Each x^*_t lies between x_t and x_{t-1}, at a place that both of them decide: with d_t = x_{t-1} - x_t,
x^*_t = x_t + d_t (mu_* + tanh((x_t + d_t mu_x) A_*) B_*). The backbone's MLP is RWKV's channel mixing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_linear.decay import OPS, gla
from icll_zoo_linear.ops import Backend, Op
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, out_std, shift

STREAMS = 5  # w, k, v, r, g: what is read from between two tokens


def wkv6(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor | None = None, op: Op = gla
) -> tuple[Tensor, Tensor]:
    """RWKV-6's recurrence: (o, state), o (b, l, h, d_v), state (b, h, d_k, d_v) after the last token.

    r, k, log_decay (b, l, h, d_k), log_decay <= 0; v (b, l, h, d_v); bonus u (h, d_k). state: zeros if None.
    op: the form of decayed linear attention to use.
    """
    # r_{t+1} reads what `op` reads after token t: the queries go one token ahead, and the outputs one back.
    ahead = torch.cat([r[:, 1:], torch.zeros_like(r[:, :1])], 1)
    o, after = op(ahead, k, v, log_decay, state)
    first = torch.zeros_like(o[:, :1])
    if state is not None:
        first = (r[:, 0, :, None].to(state.dtype) @ state).transpose(1, 2).to(o.dtype)
    own = (r * bonus * k).sum(-1, keepdim=True) * v
    return torch.cat([first, o[:, :-1]], 1) + own, after


def wkv6_recurrent(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `wkv6` computes, by the equations, one token after the other, in the inputs' dtype."""
    b, length, h, d_k = r.shape
    if state is None:
        state = v.new_zeros(b, h, d_k, v.size(-1))
    outputs = []
    for t in range(length):
        kv = k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((r[:, t, :, None] @ (state + bonus[..., None] * kv))[:, :, 0])
        state = log_decay[:, t].exp()[..., None] * state + kv
    return torch.stack(outputs, 1), state


class FinchTimeMixing(nn.Module):
    """RWKV-6's time mixing, (b, l, d_model) -> same; its state is a d_head x d_head matrix a head and the last input.

    mix_rank, decay_rank: the ranks of A in the places between tokens and in the decays (32 and 64 in the paper).
    backend: "fast" works in chunks, "reference" token by token, "fla" with Triton kernels on CUDA; "auto" is "fast".
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        layer_index: int,
        n_heads: int = 2,
        mix_rank: int = 32,
        decay_rank: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if min(mix_rank, decay_rank) < 1:
            raise InputError(f"mix_rank {mix_rank} and decay_rank {decay_rank} must be at least 1")
        self.d_model = d_model
        self.d_head = head_size(d_model, n_heads)
        self.n_heads = n_heads
        self.op = OPS[backend]
        self.mix_x = nn.Parameter(torch.empty(d_model))
        self.mix = nn.Parameter(torch.empty(STREAMS, d_model))
        self.mix_down = nn.Parameter(torch.empty(d_model, STREAMS * mix_rank))
        self.mix_up = nn.Parameter(torch.empty(STREAMS, mix_rank, d_model))
        self.decay = nn.Parameter(torch.empty(d_model))
        self.decay_down = nn.Parameter(torch.empty(d_model, decay_rank))
        self.decay_up = nn.Parameter(torch.empty(decay_rank, d_model))
        self.bonus = nn.Parameter(torch.empty(n_heads, self.d_head))
        self.r_proj, self.k_proj, self.v_proj, self.g_proj = (linear(d_model, d_model) for _ in range(4))
        # The paper's eps is 1e-5 for outputs divided by 8, which is the same as 64e-5 for these.
        self.norm = nn.GroupNorm(n_heads, d_model, eps=64e-5)
        self.out_proj = linear(d_model, d_model, std=out_std(n_layers))
        self._init_by_place(layer_index / max(n_layers - 1, 1), 1 - layer_index / n_layers)

    @torch.no_grad()
    def _init_by_place(self, depth: float, height: float) -> None:
        """As in the authors' code: depth goes from 0 to 1 over the layers, height from 1 to nearly 0.

        Later channels forget faster and look back less, and lower layers look back more than upper ones.
        """
        i = torch.arange(self.d_model, dtype=torch.float32)
        place, line = i / self.d_model, i / max(self.d_model - 1, 1)
        self.mix_x.copy_(1 - place**height)
        for mu, own in zip(
            self.mix,
            (place**height, place**height, place**height + 0.3 * depth, place ** (height / 2), place ** (height / 2)),
            strict=True,
        ):
            mu.copy_(1 - own)
        self.decay.copy_(-6 + 5 * line ** (0.7 + 1.3 * depth))
        self.bonus.copy_((depth * (1 - line) + 0.1 * ((i + 1) % 3 - 1)).view_as(self.bonus))
        # The low-rank parts start at almost nothing, but not at zero, where one factor would hold up the other.
        for down, up in ((self.mix_down, self.mix_up), (self.decay_down, self.decay_up)):
            nn.init.uniform_(down, -1e-4, 1e-4)
            nn.init.uniform_(up, -1e-2, 1e-2)

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The decayed sum of k^T v, (b, h, d_head, d_head), and the input before the first token, (b, d_model)."""
        return {
            "kv": matrix_state(batch_size, self.n_heads, self.d_head, self.d_head, device, dtype),
            "before": torch.zeros(batch_size, self.d_model, device=device, dtype=dtype),
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        y, kv = self._mix(x, state["before"], state["kv"])
        return y, {"kv": kv, "before": x[:, -1]}

    def _mix(self, x: Tensor, before: Tensor | None, kv: Tensor | None) -> tuple[Tensor, Tensor]:
        heads = (self.n_heads, self.d_head)
        step = shift(x, before) - x
        low = torch.tanh((x + step * self.mix_x) @ self.mix_down).unflatten(-1, (STREAMS, -1))
        x_w, x_k, x_v, x_r, x_g = (
            x + step * (mu + low[:, :, i] @ up) for i, (mu, up) in enumerate(zip(self.mix, self.mix_up, strict=True))
        )
        d = self.decay + torch.tanh(x_w @ self.decay_down) @ self.decay_up
        log_decay = -d.to(torch.promote_types(d.dtype, torch.float32)).exp()
        r, k, v = self.r_proj(x_r), self.k_proj(x_k), self.v_proj(x_v)
        r, k, v, log_decay = (y.unflatten(-1, heads) for y in (r, k, v, log_decay))
        o, kv = wkv6(r, k, v, log_decay, self.bonus, kv, self.op)
        o = self.norm(o.flatten(0, 1).flatten(1)).view_as(x)
        return self.out_proj(F.silu(self.g_proj(x_g)) * o), kv
