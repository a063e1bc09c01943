"""RWKV-4's time mixing (Peng et al. 2023, arXiv:2305.13048, equations 11 to 15 and appendix D), "rwkv-4".

    r_t, k_t, v_t = W x'_t,   x'_t = mu x_t + (1 - mu) x_{t-1}, with a mu for each of the three
    o_t = (sum over s < t of e^(k_s - (t - 1 - s) w) v_s + e^(u + k_t) v_t) / (the same sums without v)
    y_t = W_o (sigmoid(r_t) o_t),   w = e^time_decay > 0 and u one value a channel

The sums are two scalars a channel, n_t = e^-w n_{t-1} + e^(k_t) v_t and d_t likewise. They are kept in units of e^m_t,
m_t the largest exponent among their terms, so that neither overflows: n_t = e^(m_{t-1} - w - m_t) n_{t-1} + ... with
factors <= 1. The m_t of a whole sequence are one running maximum; n and d are then a linear recurrence, `_scan`.

The backbone's MLP is RWKV-4's channel mixing. The paper of in-context language learning (arXiv:2401.12973) ran another
variant, which the preset `rwkv-4-paper` repeats, faults included: see `RwkvTimeMixing`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from icll_zoo_linear.parts import State, linear, out_std, shift

NOTHING = -1e30  # the logarithm of a sum without terms; infinity would make a difference of two of them NaN


def wkv(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: Tensor | None = None, chunk_size: int = 32
) -> tuple[Tensor, Tensor]:
    """The weighted means o (b, l, d), and the state (b, 3, d) after the last token: n, d and m.

    k, v (b, l, d); decay w and bonus u (d,); of any size and sign. state: before the first token, nothing if None.
    Sums are float32, or float64 if an input is; o has v's dtype. The time is about chunk_size + l / chunk_size steps.
    """
    dtype, (k, v, decay, bonus, state) = v.dtype, _widened(k, v, decay, bonus, state)
    start, unit_of_start = state[:, :2], state[:, 2:]
    with torch.no_grad():  # a unit cancels in o, so that it has no gradient
        lost = torch.arange(1, k.size(1) + 1, device=k.device, dtype=k.dtype)[:, None] * decay
        units = torch.maximum((k + lost).cummax(1).values, unit_of_start) - lost
        units_before = torch.cat([unit_of_start, units[:, :-1]], 1)
        unit = torch.maximum(units_before, bonus + k)
    kept, weight = (units_before - decay - units).exp(), (k - units).exp()
    sums = _scan(kept[:, :, None], torch.stack([weight * v, weight], 2), start, chunk_size)
    n_before, d_before = torch.cat([start[:, None], sums[:, :-1]], 1).unbind(2)
    past, now = (units_before - unit).exp(), (bonus + k - unit).exp()
    o = (past * n_before + now * v) / (past * d_before + now)
    return o.to(dtype), torch.cat([sums[:, -1], units[:, -1:]], 1)


def wkv_recurrent(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `wkv` computes, by the recurrence, one token after the other."""
    dtype, (k, v, decay, bonus, state) = v.dtype, _widened(k, v, decay, bonus, state)
    n, d, m = state.unbind(1)
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        unit = torch.maximum(m, bonus + k_t).detach()
        past, now = (m - unit).exp(), (bonus + k_t - unit).exp()
        outputs.append((past * n + now * v_t) / (past * d + now))
        unit = torch.maximum(m - decay, k_t).detach()
        past, now = (m - decay - unit).exp(), (k_t - unit).exp()
        n, d, m = past * n + now * v_t, past * d + now, unit
    return torch.stack(outputs, 1).to(dtype), torch.stack([n, d, m], 1)


OPS = {"auto": wkv, "fast": wkv, "reference": wkv_recurrent}


def empty_state(batch_size: int, d: int, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    """The state (b, 3, d) before the first token."""
    state = torch.zeros(batch_size, 3, d, device=device, dtype=dtype)
    state[:, 2] = NOTHING
    return state


def _widened(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: Tensor | None) -> list[Tensor]:
    wide = torch.float64 if torch.float64 in (k.dtype, v.dtype) else torch.float32
    if state is None:
        state = empty_state(k.size(0), k.size(2), k.device, wide)
    return [x.to(wide) for x in (k, v, decay, bonus, state)]


def _scan(a: Tensor, b: Tensor, h: Tensor, chunk_size: int) -> Tensor:
    """h_t = a_t h_{t-1} + b_t from h (b, ...) on: a, b (b, l, ...) -> (b, l, ...).

    All chunks take their steps together, from zero; then the chunks follow one another, and each adds what came in.
    """
    length = b.size(1)
    size = min(chunk_size, length)
    n = -(-length // size)
    if n * size > length:
        a, b = (torch.cat([x, x.new_zeros(x.size(0), n * size - length, *x.shape[2:])], 1) for x in (a, b))
    sums, products = [], []
    for a_t, b_t in zip(a.unflatten(1, (n, size)).unbind(2), b.unflatten(1, (n, size)).unbind(2), strict=True):
        sums.append(torch.addcmul(b_t, a_t, sums[-1]) if sums else b_t)
        products.append(a_t * products[-1] if products else a_t)
    incoming = []
    for factor, term in zip(products[-1].unbind(1), sums[-1].unbind(1), strict=True):
        incoming.append(h)
        h = torch.addcmul(term, factor, h)
    whole = torch.addcmul(torch.stack(sums, 2), torch.stack(products, 2), torch.stack(incoming, 1)[:, :, None])
    return whole.flatten(1, 2)[:, :length]


class RwkvTimeMixing(nn.Module):
    """RWKV-4's time mixing, (b, l, d_model) -> same; its state is three numbers a channel and the last input.

    backend: "fast" is the scan, "reference" goes token by token; "auto" is "fast".
    init: "rwkv" as in the paper of RWKV; "normal" draws time_decay, time_first and the three mu from N(0, 1), as the
        reference of arXiv:2401.12973 does: its mu are not within [0, 1].
    amplify: WARNING, a fault on purpose. That reference hands +w to a kernel that expects -w, so that its state grows
        by e^w a token, and old tokens outweigh new ones. Its published curve of RWKV was made so. True repeats it.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        layer_index: int,
        init: Literal["rwkv", "normal"] = "rwkv",
        amplify: bool = False,
        backend: Literal["auto", "fast", "reference"] = "auto",
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.amplify = amplify
        self.op = OPS[backend]
        self.mix = nn.Parameter(torch.empty(3, d_model))  # of k, v and r
        self.time_decay = nn.Parameter(torch.empty(d_model))
        self.time_first = nn.Parameter(torch.empty(d_model))
        self.k_proj, self.v_proj, self.r_proj = (linear(d_model, d_model) for _ in range(3))
        # The reference's rule for last layers goes by their name and misses this one.
        self.out_proj = linear(d_model, d_model, std=0.02 if init == "normal" else out_std(n_layers))
        if init == "normal":
            for parameter in (self.mix, self.time_decay, self.time_first):
                nn.init.normal_(parameter)
        else:
            self._init_by_place(layer_index / max(n_layers - 1, 1), 1 - layer_index / n_layers)

    @torch.no_grad()
    def _init_by_place(self, depth: float, height: float) -> None:
        """Appendix D of the paper: depth goes from 0 to 1 over the layers, height from 1 to nearly 0.

        Later channels forget faster and look back less, and lower layers look back more than upper ones.
        """
        i = torch.arange(self.d_model, dtype=torch.float32)
        place = i / self.d_model
        for mu, value in zip(
            self.mix, (place**height, place**height + 0.3 * depth, place ** (height / 2)), strict=True
        ):
            mu.copy_(value)
        self.time_decay.copy_(-5 + 8 * (i / max(self.d_model - 1, 1)) ** (0.7 + 1.3 * depth))
        self.time_first.copy_(math.log(0.3) + 0.5 * ((i + 1) % 3 - 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(x, None, None)[0]

    def init_state(self, batch_size: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The sums and their unit, (b, 3, d_model) float32 or better, and the input before the first, (b, d_model)."""
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "sums": empty_state(batch_size, self.d_model, device, wide),
            "before": torch.zeros(batch_size, self.d_model, device=device, dtype=dtype),
        }

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens, x (b, k, d_model); `state` is left as it was."""
        y, sums = self._mix(x, state["before"], state["sums"])
        return y, {"sums": sums, "before": x[:, -1]}

    def _mix(self, x: Tensor, before: Tensor | None, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        mix_k, mix_v, mix_r = self.mix
        shifted = shift(x, before)
        k = self.k_proj(torch.lerp(shifted, x, mix_k))
        v = self.v_proj(torch.lerp(shifted, x, mix_v))
        r = self.r_proj(torch.lerp(shifted, x, mix_r))
        w = self.time_decay.exp()
        o, sums = self.op(k, v, -w if self.amplify else w, self.time_first, sums)
        return self.out_proj(torch.sigmoid(r) * o), sums
