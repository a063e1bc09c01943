"""The selective state-space model (Gu and Dao 2023, arXiv:2312.00752), "mamba".

    x, z = W_in u;   x = silu(short causal convolution (4 tokens) of x)
    dt_t, B_t, C_t = projections of x_t, dt_t = softplus(W_dt (...) + b_dt);   A = -exp(A_log)
    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t   in R^(d_state) for each channel;   y_t = C_t . h_t + D x_t
    output:  W_out (y silu(z))

In the standard backbone it has no MLP beside it and an RMSNorm before it, as in its own stack: two such blocks stand
for one block of a Transformer. The paper of this zoo did something else, which the preset `mamba-paper` repeats: see
the plugin's registration.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from icll_zoo import InputError
from icll_zoo_ssm.precision import at_least_float32, widened, without_autocast
from icll_zoo_ssm.s4d import Backend, log_uniform
from icll_zoo_ssm.scan import one_by_one, scan_
from icll_zoo_ssm.short_conv import ShortConv

# Numbers in one array of states (b, chunk, d_state, d_inner): on a CPU what stays in the caches, elsewhere what keeps
# the device busy.
STATES = {"cpu": 1 << 19}
STATES_ELSEWHERE = 1 << 25
LOG2_E = math.log2(math.e)


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """y_t = C_t h_t of h_t = exp(dt_t A) h_{t-1} + B_t (dt_t x_t)^T, and the state after the last token.

    x, dt (batch, length, d), dt >= 0; A (d, n), A <= 0; B, C (batch, length, n). Returns y (batch, length, d).
    state (batch, n, d), keys by values as in linear attention: h before the first token, zeros if None.
    The states of chunk_size tokens exist at a time, in training too: the gradient makes them again from those at
    the chunks' beginnings, as in the paper. None chooses; results do not depend on it. There is no second derivative.
    """
    dtype = x.dtype
    if state is None:
        state = torch.zeros(x.size(0), A.size(1), x.size(2), device=x.device, dtype=x.dtype)
    x, dt, A, B, C, state = widened(x, dt, A, B, C, state)
    if chunk_size is None:
        chunk_size = max(1, STATES.get(x.device.type, STATES_ELSEWHERE) // max(1, state.numel()))
    with without_autocast(x):
        y, _, state = SelectiveScan.apply(x, dt, A.T.contiguous(), B, C, state, min(chunk_size, x.size(1)))
    return y.to(dtype), state


def selective_scan_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`selective_scan`, token by token."""
    h = torch.zeros(x.size(0), A.size(1), x.size(2), device=x.device, dtype=x.dtype) if state is None else state
    y = []
    for x_t, dt_t, b_t, c_t in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(dt_t[:, None, :] * A.T) * h + b_t[:, :, None] * (dt_t * x_t)[:, None, :]
        y.append((c_t[:, :, None] * h).sum(1))
    return torch.stack(y, 1).to(x.dtype), h


class SelectiveScan(torch.autograd.Function):
    """The chunked scan: y, the states at the chunks' beginnings (no gradient), the state after the last token.

    To the compiler and to vmap each kernel is one operation, as in `scan`.
    `rates` is A transposed, (n, d), so that the channels lie next to each other in every array.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, dt, rates, b, c, state, chunk_size):
        return opaque_forward(x, dt, rates, b, c, state, chunk_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, dt, rates, b, c, _, ctx.chunk_size = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, dt, rates, b, c, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Any, after: Tensor) -> Any:
        return *opaque_backward(*ctx.saved_tensors, dy, after, ctx.chunk_size), None


def forward_kernel(
    x: Tensor, dt: Tensor, rates: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the states at the chunks' beginnings (batch, chunks, n, d), the state after the last token."""
    weighted = dt * x
    y, begun, room = [], [], rooms(2, state, chunk_size)
    for part in parts(x.size(1), chunk_size):
        begun.append(state)
        _, h = states(rates, dt[:, part], weighted[:, part], b[:, part], state, *room)
        y.append((c[:, part, None] @ h).squeeze(2))
        state = h[:, -1].clone(memory_format=torch.contiguous_format)
    return torch.cat(y, 1), torch.stack(begun, 1), state


def backward_kernel(
    x: Tensor,
    dt: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    begun: Tensor,
    dy: Tensor,
    after: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, dt, rates, b, c and the state before the first token, from those of y and the last state.

    With g_t the gradient of h_t:  g_t = C_t dy_t^T + exp(dt_{t+1} A) g_{t+1}, chunk by chunk from the end.
    """
    weighted, d_rates, found = dt * x, torch.zeros_like(rates), []
    (decays,), room = rooms(1, after, chunk_size + 1), rooms(3, after, chunk_size)
    for part, before in reversed(list(zip(parts(x.size(1), chunk_size), begun.unbind(1), strict=True))):
        decay, h = states(rates, dt[:, part], weighted[:, part], b[:, part], before, decays, room[0])
        g, product = (z[:, : h.size(1)] for z in room[1:])
        torch.mul(c[:, part, :, None], dy[:, part, None], out=g)
        following = decays[:, 1 : h.size(1) + 1]
        following[:, -1] = 1  # what comes from behind the chunk is decayed already
        scan_(following, g, after, True)
        d_weighted = (b[:, part, None] @ g).squeeze(2)
        d_log_decay = decay.mul_(g)
        after = d_log_decay[:, 0].clone()
        d_log_decay[:, 0] *= before
        d_log_decay[:, 1:] *= h[:, :-1]
        d_dt = torch.mul(d_log_decay, rates, out=product).sum(2) + d_weighted * x[:, part]
        d_rates += torch.mul(d_log_decay, dt[:, part, None], out=product).sum((0, 1))
        # Products and sums: on a CPU batched products of a matrix and a vector take four times as long.
        d_b = g.mul_(weighted[:, part, None]).sum(3)
        d_c = h.mul_(dy[:, part, None]).sum(3)
        found.append((d_weighted * dt[:, part], d_dt, d_b, d_c))
    d_x, d_dt, d_b, d_c = (torch.cat(pieces[::-1], 1) for pieces in zip(*found, strict=True))
    return d_x, d_dt, d_rates, d_b, d_c, after


opaque_forward = torch.library.custom_op("icll_zoo_ssm::selective_scan", forward_kernel, mutates_args=())
opaque_backward = torch.library.custom_op("icll_zoo_ssm::selective_scan_backward", backward_kernel, mutates_args=())
for opaque in (opaque_forward, opaque_backward):
    opaque.register_vmap(one_by_one(opaque))


@opaque_forward.register_fake
def _(x, dt, rates, b, c, state, chunk_size):
    chunks = -(-x.size(1) // chunk_size)
    begun = state.new_empty(state.size(0), chunks, *state.shape[1:])
    return x.new_empty(x.shape), begun, state.new_empty(state.shape)


@opaque_backward.register_fake
def _(x, dt, rates, b, c, begun, dy, after, chunk_size):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, dt, rates, b, c, after))


@register_flop_formula(torch.ops.icll_zoo_ssm.selective_scan)
def _(x, dt, rates, *_others, **_more):
    return 2 * math.prod(x) * rates[0]  # y = C h, of the shapes


def parts(length: int, chunk_size: int) -> list[slice]:
    """The chunks of a sequence."""
    return [slice(begin, min(begin + chunk_size, length)) for begin in range(0, length, chunk_size)]


def rooms(count: int, state: Tensor, tokens: int) -> list[Tensor]:
    """Memory for arrays of states, (batch, tokens, n, d): on a CPU fresh memory costs more than writing into it."""
    return [state.new_empty(state.size(0), tokens, *state.shape[1:]) for _ in range(count)]


def states(
    rates: Tensor, dt: Tensor, weighted: Tensor, b: Tensor, before: Tensor, decay: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """The decays exp(dt A) and the states h of one chunk, (batch, tokens, n, d) each, in the memory of these names."""
    decay, h = decay[:, : dt.size(1)], h[:, : dt.size(1)]
    # A power of 2 is several times as fast as exp on a CPU.
    torch.mul(dt[:, :, None], rates * LOG2_E, out=decay).exp2_()
    torch.mul(b[..., None], weighted[:, :, None], out=h)
    return decay, scan_(decay, h, before, False)


BACKENDS = {"auto": selective_scan, "fast": selective_scan, "reference": selective_scan_reference}


def inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y > 0."""
    return y + torch.log(-torch.expm1(-y))


def at_least(name: str, value: int, least: int = 1) -> int:
    """`value`; InputError if it is below `least`."""
    if value < least:
        raise InputError(f"{name} {value} is not at least {least}")
    return value


class Mamba(nn.Module):
    """Mamba, (batch, length, d_model) -> same; its state is h and the short convolution's last inputs.

    d_state: the numbers of state a channel. d_conv: tokens that the short convolution sees. expand: channels over
    d_model. dt_rank: of the projection of dt; None is d_model / 16, rounded up. dt_min, dt_max: the initial steps.
    bias: in the first and the last projection. conv_bias: in the short convolution.
    backend: "fast" (auto) works in chunks, "reference" token by token; one function.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        bias: bool = False,
        conv_bias: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.d_inner = at_least("expand", expand) * d_model
        self.d_state = at_least("d_state", d_state)
        self.dt_rank = at_least("dt_rank", math.ceil(d_model / 16) if dt_rank is None else dt_rank)
        self.ssm = BACKENDS[backend]
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.short = ShortConv(self.d_inner, at_least("d_conv", d_conv), conv_bias)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        # Keeps the variance of its input, around steps between dt_min and dt_max.
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            steps = log_uniform(self.d_inner, dt_min, dt_max).exp()
            self.dt_proj.bias.copy_(inverse_softplus(steps.clamp(min=1e-4)))
        # S4D-Real: the decay rates 1, 2, 3 ... in every channel.
        self.a_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.d = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        with torch.no_grad():
            # n_layers blocks add to the residual stream, one part each.
            self.out_proj.weight /= math.sqrt(n_layers)

    def no_weight_decay(self) -> set[str]:
        """What the authors train without weight decay, beside all biases."""
        return {"a_log", "d"}

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, self.init_state(x.size(0), x.device, x.dtype))[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """h, (b, d_state, d_inner), and the last d_conv - 1 inputs, (b, d_conv - 1, d_inner); zeros."""
        return {
            "h": torch.zeros(batch_size, self.d_state, self.d_inner, device=device, dtype=at_least_float32(dtype)),
            "short": self.short.nothing(batch_size, device, dtype),
        }

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next n tokens, x (b, n, d_model); `state` is left as it was."""
        u, z = self.in_proj(x).chunk(2, -1)
        u, short = self.short(u, state["short"])
        u = F.silu(u)
        dt, b, c = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], -1)
        dt = F.softplus(self.dt_proj(dt))
        y, h = self.ssm(u, dt, -self.a_log.exp(), b, c, state["h"])
        return self.out_proj((y + self.d * u) * F.silu(z)), {"h": h, "short": short}
