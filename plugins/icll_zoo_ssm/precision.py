"""In which precision a recurrence runs: a state that adds up over a sequence needs more than half precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, and the type itself above that."""
    return torch.promote_types(dtype, torch.float32)


def widened(*tensors: Tensor) -> list[Tensor]:
    """The tensors in at least float32, all in one type."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which autocast does not round the products of a recurrence to half precision again."""
    # The meta device, on which shapes are tried out, knows no autocast.
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
