"""MesaNet: the least-squares fit of values to keys so far (von Oswald et al. 2025, arXiv:2506.05233), "mesanet".

    H_t = a_t H_{t-1} + beta_t k_t^T k_t,   G_t = a_t G_{t-1} + beta_t k_t^T v_t
    o_t = q_t (H_t + diag(lambda))^{-1} G_t
    log a_t = log sigmoid(W_a x_t + b),   beta_t = sigmoid(W_b x_t + b);   y_t = W_o [RMSNorm(o_t), all heads]

Of all matrices W, (H_t + diag(lambda))^{-1} G_t has the least loss so far, the sum over s <= t of (a_{s+1} ... a_t)
beta_s |v_s - k_s W|^2, plus |diag(lambda)^{1/2} W|^2. The delta rule takes one step towards it. q_t and k_t are W_q x
and W_k x after the short convolution, of length 1; v_t = W_v x_t.

The system of each token is solved by conjugate gradients, as in the paper. They ask for H_t p only, which is a decayed
linear attention with p for its query: H_t is never formed, and chunks serve all tokens at once. The gradient is that of
the exact solution, by one more solve with the same matrix, and nothing of the iterations is kept for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError
from icll_zoo_linear.delta import norm_wide, segment_sums, unit
from icll_zoo_linear.ops import FEW, Backend, Op, fla_kernel, initial, widen
from icll_zoo_linear.parts import State, head_size, linear, matrix_state, out_std
from icll_zoo_linear.shortconv import ShortConv


def mesa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    penalty: Tensor,
    state: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-10,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The mesa layer in chunks: (o, state), o (b, l, h, d_v), state (b, h, d_k, d_k + d_v), [H, G] side by side.

    q, k (b, l, h, d_k); v (b, l, h, d_v); beta, log_decay (b, l, h), beta >= 0, log_decay finite and <= 0; penalty
    (h, d_k), lambda > 0. state: [H, G] before the first token, H symmetric and not negative; zeros if None.
    iterations: of the solver, at most; it rests for a token once its residual is at most tolerance * |q|. Few are
    enough where H_t is of low rank or lambda large. Where they are not, the solution is as good as they make it, and
    magnifies roundings: `mesa` and `mesa_recurrent` then agree to about as much as both miss the exact solution by.
    Sums, solver and state are float32, or float64 if an input is; o has v's dtype.
    Raises InputError for less than 1 iteration, and for a chunk_size below 1.
    """
    _check(iterations, tolerance)
    if chunk_size < 1:
        raise InputError(f"chunk_size {chunk_size} is not at least 1", hint="64 suits most sizes")
    if q.size(1) <= FEW:
        return mesa_recurrent(q, k, v, beta, log_decay, penalty, state, iterations, tolerance)
    length, d_k, dtype = q.size(1), q.size(-1), v.dtype
    q, k, v, beta, log_decay, penalty = widen(q, k, v, beta, log_decay, penalty)
    size = min(chunk_size, length)
    n = -(-length // size)

    def chunks(x: Tensor) -> Tensor:  # (b, l, h, d) -> (b, n, h, size, d); padding is neutral: no decay, keys of zero
        return F.pad(x, (0, 0, 0, 0, 0, n * size - length)).unflatten(1, (n, size)).transpose(2, 3)

    with torch.autocast(q.device.type, enabled=False):
        state = initial(state, k, torch.cat([k, v], -1))
        q, k, v = chunks(q), chunks(k), chunks(v)
        beta, log_decay = chunks(beta[..., None]), chunks(log_decay[..., None])
        sums = segment_sums(log_decay)
        later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
        within = sums.masked_fill(later, -torch.inf).exp() * beta.mT
        since = log_decay.cumsum(-2).exp()
        kept = since[..., -1:, :]
        updates = (k * within[..., -1:, :].mT).mT @ torch.cat([k, v], -1)
        states = []
        for update, factor in zip(updates.unbind(1), kept.unbind(1), strict=True):
            states.append(state)
            state = torch.addcmul(update, state, factor)
        h_start, g_start = torch.stack(states, 1).split([d_k, v.size(-1)], -1)
        x = solve(_chunk_product, q, (k, within, since, h_start, penalty[:, None]), iterations, tolerance)
        o = (x * since) @ g_start + ((x @ k.mT) * within) @ v
    return o.transpose(2, 3).flatten(1, 2)[:, :length].to(dtype), state


def mesa_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    penalty: Tensor,
    state: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-10,
) -> tuple[Tensor, Tensor]:
    """What `mesa` computes, with H_t and G_t of every token from the recurrence, and the same solver."""
    _check(iterations, tolerance)
    dtype, (q, k, v, beta, log_decay, penalty) = v.dtype, widen(q, k, v, beta, log_decay, penalty)
    with torch.autocast(q.device.type, enabled=False):
        fits, state = _fits(k, v, beta, log_decay, state)
        x = solve(_product, q, (fits[..., : k.size(-1)], penalty), iterations, tolerance)
        o = (x[..., None, :] @ fits[..., k.size(-1) :])[..., 0, :]
    return o.to(dtype), state


def mesa_direct(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    penalty: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `mesa` approaches, by the equations: every token's system is formed and solved by elimination."""
    dtype, (q, k, v, beta, log_decay, penalty) = v.dtype, widen(q, k, v, beta, log_decay, penalty)
    with torch.autocast(q.device.type, enabled=False):
        fits, state = _fits(k, v, beta, log_decay, state)
        h, g = fits[..., : k.size(-1)], fits[..., k.size(-1) :]
        o = q[..., None, :] @ torch.linalg.solve(h + torch.diag_embed(penalty), g)
    return o[..., 0, :].to(dtype), state


def mesa_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    penalty: Tensor,
    state: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-10,
) -> tuple[Tensor, Tensor]:
    """The same by flash-linear-attention; InputError without that package or off CUDA. It knows no tolerance."""
    kernel: Callable[..., Any] = fla_kernel("mesa_net", "chunk_mesa_net", q)
    d_k = k.size(-1)
    h, g = (None, None) if state is None else (state[..., :d_k].contiguous(), state[..., d_k:].contiguous())
    q, k = q.to(v.dtype), k.to(v.dtype)
    o, h, g = kernel(q, k, v, log_decay, beta, penalty, h, g, output_final_state=True, max_CG_iteration=iterations)
    return o, torch.cat([h, g], -1)


OPS: dict[Backend, Op] = {"auto": mesa, "fast": mesa, "reference": mesa_recurrent, "fla": mesa_fla}


def _check(iterations: int, tolerance: float) -> None:
    if iterations < 1 or tolerance < 0:
        raise InputError(f"iterations {iterations} must be at least 1 and tolerance {tolerance} at least 0")


def _fits(k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """[H_t, G_t] after each token, (b, l, h, d_k, d_k + d_v), and after the last."""
    kv = torch.cat([k, v], -1)
    state = initial(state, k, kv)
    fits = []
    for t in range(k.size(1)):
        update = (beta[:, t, :, None] * k[:, t])[..., None] * kv[:, t, :, None]
        state = log_decay[:, t, :, None, None].exp() * state + update
        fits.append(state)
    return torch.stack(fits, 1), state


def _product(p: Tensor, h: Tensor, penalty: Tensor) -> Tensor:
    """p (..., d_k) times each token's H + diag(lambda)."""
    return (p[..., None, :] @ h)[..., 0, :] + penalty * p


def _chunk_product(p: Tensor, k: Tensor, within: Tensor, since: Tensor, h_start: Tensor, penalty: Tensor) -> Tensor:
    """The same for p (..., size, d_k) in chunks: what came before the chunk, what came within, and the penalty."""
    return (p * since) @ h_start + ((p @ k.mT) * within) @ k + penalty * p


def conjugate_gradient(product: Callable[[Tensor], Tensor], y: Tensor, iterations: int, tolerance: float) -> Tensor:
    """x with product(x) = y, for many systems at once: y (..., d), each system one symmetric positive matrix.

    Hestenes and Stiefel 1952, from x = 0. A system rests once its residual's norm is at most tolerance * |y|.
    """
    x, residual, direction = torch.zeros_like(y), y, y
    square = y.square().sum(-1, keepdim=True)
    enough = square * tolerance**2
    for _ in range(iterations):
        ahead = product(direction)
        curvature = (direction * ahead).sum(-1, keepdim=True)
        # A system that rests takes steps of 0. Where y is 0 the quotients are not numbers, and not used.
        active = (square > enough) & (curvature > 0)
        # Nothing would change any more. On a CPU it costs nothing to look; a GPU would wait, a compiler give up.
        if y.device.type == "cpu" and not torch.compiler.is_compiling() and not active.any():
            break
        step = torch.where(active, square / curvature, 0)
        x = x + step * direction
        residual = residual - step * ahead
        new = residual.square().sum(-1, keepdim=True)
        direction = torch.where(active, residual + (new / square) * direction, direction)
        square = torch.where(active, new, square)
    return x


def solve(
    product: Callable[..., Tensor], y: Tensor, parts: tuple[Tensor, ...], iterations: int, tolerance: float
) -> Tensor:
    """x of product(x, *parts) = y, by conjugate gradients, with the exact solution's gradients.

    With M the symmetric matrix of the product, x = M^{-1} y and dx = M^{-1} (dy - dM x): at a solution, x moves as
    M^{-1} times the residual y - product(x, *parts) does. No iteration is kept for the backward pass.
    """
    with torch.no_grad():
        x = conjugate_gradient(lambda p: product(p, *parts), y, iterations, tolerance)
    residual = y - product(x, *parts)
    return Solved.apply(product, iterations, tolerance, residual, x, *(part.detach() for part in parts))


class Solved(torch.autograd.Function):
    """x itself; its gradient g goes to the residual, as the solution of product(z, *parts) = g."""

    @staticmethod
    def forward(
        ctx: Any,
        product: Callable[..., Tensor],
        iterations: int,
        tolerance: float,
        residual: Tensor,
        x: Tensor,
        *parts: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*parts)
        ctx.product, ctx.iterations, ctx.tolerance = product, iterations, tolerance
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        parts = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            z = conjugate_gradient(lambda p: ctx.product(p, *parts), grad, ctx.iterations, ctx.tolerance)
        return None, None, None, z, None, *(None for _ in parts)


class MesaNet(nn.Module):
    """MesaNet's token mixer, (b, l, d_model) -> same; its state is H and G, a matrix each a head, and the last inputs.

    iterations, tolerance: of the solver, forwards and backwards; see `mesa`.
    min_penalty: the least lambda, which bounds how badly conditioned a system can be. lambda starts at 1.
    gate: multiply the normed outputs by silu(W_g x_t).
    backend: "fast" works in chunks, "reference" forms every token's matrices, "fla" with Triton kernels on CUDA;
        "auto" is "fast".
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int = 2,
        iterations: int = 30,
        tolerance: float = 1e-10,
        min_penalty: float = 0.25,
        conv_size: int = 4,
        gate: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        _check(iterations, tolerance)
        if not 0 < min_penalty < 1:
            raise InputError(f"min_penalty {min_penalty} is not between 0 and 1", hint="lambda starts at 1, above it")
        self.n_heads = n_heads
        self.d_head = head_size(d_model, n_heads)
        self.iterations, self.tolerance, self.min_penalty = iterations, tolerance, min_penalty
        self.op = OPS[backend]
        self.qk_proj, self.v_proj = linear(d_model, 2 * d_model), linear(d_model, d_model)
        self.conv = ShortConv(2 * d_model, conv_size)
        self.decay_proj, self.beta_proj = linear(d_model, n_heads, bias=True), linear(d_model, n_heads, bias=True)
        # softplus of this is 1 - min_penalty, so that lambda starts at 1.
        self.penalty = nn.Parameter(torch.full((n_heads, self.d_head), 1 - min_penalty).expm1().log())
        self.gate_proj = linear(d_model, d_model) if gate else None
        self.norm = nn.RMSNorm(self.d_head, eps=1e-5)
        self.out_proj = linear(d_model, d_model, std=out_std(n_layers))

    def no_weight_decay(self) -> set[str]:
        """lambda, which weight decay would pull to another size."""
        return {"penalty"}

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """[H, G], (b, h, d_head, 2 d_head), and what the convolution still sees: zeros before the first token."""
        return {
            "fit": matrix_state(batch_size, self.n_heads, self.d_head, 2 * self.d_head, device, dtype),
            "conv": self.conv.init_state(batch_size, device, dtype),
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        return self._mix(x, state["fit"], state["conv"])

    def _mix(self, x: Tensor, fit: Tensor | None, before: Tensor | None) -> tuple[Tensor, State]:
        heads = (self.n_heads, self.d_head)
        qk, before = self.conv(self.qk_proj(x), before)
        q, k = (unit(y) for y in qk.unflatten(-1, (2, *heads)).unbind(2))
        v = self.v_proj(x).unflatten(-1, heads)
        wide = torch.promote_types(x.dtype, torch.float32)
        beta, log_decay = self.beta_proj(x).to(wide).sigmoid(), F.logsigmoid(self.decay_proj(x).to(wide))
        penalty = F.softplus(self.penalty.to(wide)) + self.min_penalty
        o, fit = self.op(q, k, v, beta, log_decay, penalty, fit, self.iterations, self.tolerance)
        o = norm_wide(self.norm, o).flatten(2)
        if self.gate_proj is not None:
            o = o * F.silu(self.gate_proj(x))
        return self.out_proj(o), {"fit": fit, "conv": before}
