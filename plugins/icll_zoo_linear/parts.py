"""What the mixers of this plugin share: linear layers with the zoo's initialisation, heads, and the token shift."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError

State = dict[str, Tensor]


def head_size(width: int, n_heads: int, name: str = "d_model") -> int:
    """width / n_heads; InputError unless that is a whole number. `name` is what the width is called in the message."""
    if n_heads < 1 or width % n_heads:
        raise InputError(
            f"n_heads {n_heads} does not divide {name} {width}", hint=f"every head has {name} / n_heads dimensions"
        )
    return width // n_heads


def linear(d_in: int, d_out: int, bias: bool = False, std: float = 0.02) -> nn.Linear:
    """A linear layer, weights N(0, std) and biases 0, as in the reference of arXiv:2401.12973."""
    layer = nn.Linear(d_in, d_out, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def out_std(n_layers: int) -> float:
    """The std of a mixer's last layer, by GPT-2's rule: 2 n_layers parts add to the stream, so each starts smaller."""
    return 0.02 / math.sqrt(2 * n_layers)


def norm_heads(o: Tensor, eps: float = 1e-5) -> Tensor:
    """o (b, l, h, d) -> (b, l, h d), each head normalised to mean 0 and variance 1: a group norm without weights."""
    return F.layer_norm(o, o.shape[-1:], eps=eps).flatten(2)


def shift(x: Tensor, before: Tensor | None) -> Tensor:
    """x (b, l, d) one token later; `before` (b, d) is what stood before x[:, 0], zeros if None."""
    first = x.new_zeros(x.size(0), 1, x.size(2)) if before is None else before[:, None].to(x.dtype)
    return torch.cat([first, x[:, :-1]], 1)


def unit_values(k: Tensor) -> Tensor:
    """Values that say which token they belong to, (b, l, h, l), for keys (b, l, h, d_k).

    An op that is linear in its values gives with them, at position t, the weight of each earlier one: its row of
    attention.
    """
    b, length, h, _ = k.shape
    return torch.eye(length, device=k.device, dtype=k.dtype)[None, :, None].expand(b, length, h, length)


def matrix_state(
    batch_size: int, n_heads: int, d_k: int, d_v: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> Tensor:
    """Zeros (b, h, d_k, d_v), float32 or better: a state sums over any number of tokens."""
    wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
    return torch.zeros(batch_size, n_heads, d_k, d_v, device=device, dtype=wide)
