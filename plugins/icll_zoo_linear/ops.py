"""What the ops of this plugin share: how one is chosen, in which dtype it sums, and where its state begins."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from icll_zoo import InputError

Op = Callable[..., tuple[Tensor, Tensor]]
Backend = Literal["auto", "fast", "reference", "fla"]

FEW = 4  # up to so many tokens, the recurrence itself is faster than preparing a chunk


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of sums and states: float64 if any of the tensors has it, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def widen(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype of sums and states."""
    wide = wide_dtype(*tensors)
    return [x.to(wide) for x in tensors]


def initial(state: Tensor | None, k: Tensor, v: Tensor) -> Tensor:
    """The state to begin with, (b, h, d_k, d_v), in v's dtype; k, v (b, l, h, d)."""
    if state is None:
        return v.new_zeros(v.size(0), v.size(2), k.size(-1), v.size(-1))
    return state.to(v.dtype)


def fla_kernel(module: str, name: str, x: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """A Triton kernel of flash-linear-attention; InputError without that package or if x is not on CUDA."""
    if not x.is_cuda:
        raise InputError(f"backend 'fla' needs CUDA tensors, not {x.device.type}", hint="backend='fast' runs anywhere")
    try:
        return getattr(importlib.import_module(f"fla.ops.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"backend 'fla' cannot import {name} of flash-linear-attention: {error}",
            hint="backend='fast' needs no package",
        ) from error
