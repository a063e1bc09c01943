"""Dropout whose masks are a function of (seed, update, layer, row of the whole batch, position), and of nothing else.

    word(row, position, c) = mix64(key(seed, update, row, layer, position) + (c + 1) GOLDEN),   SplitMix64, hashing.py
    x[row, position, i] is kept where the i-th 16 bits of its words are below round((1 - p) 2^16)

So it does not matter how many processes share a batch, how it is cut into micro-batches, how far it is padded or on
which device it lies, and a recomputed forward pass meets the same mask. `adopt` puts it in the place of every
`nn.Dropout` of a model, whoever wrote that; dropout inside a fused kernel stays with torch's own generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from icll_zoo.hashing import splitmix64, stream_key

LANES = 4
"""Elements of 16 bits that one word decides about; a probability of keeping is a multiple of 2^-16."""


def kept_lanes(p: float) -> int:
    """How many of the 2^16 values of a lane keep: at least one and not all, so that the threshold fits 16 bits."""
    return min(max(round((1 - p) * 2**16), 1), 2**16 - 1)


def factor(p: float) -> float:
    """What is kept is multiplied by this, so that the expectation stays."""
    return 2**16 / kept_lanes(p)


# One opaque operation to a compiler: torch's own looks for the prime factors of the hash's constants, for minutes.
@torch.library.custom_op("icll_zoo::keep_mask", mutates_args=())
def keep_mask(keys: Tensor, shape: list[int], p: float) -> Tensor:
    """What to keep of a tensor whose rows have these keys, bool of its shape.

    keys: (b,) int64. shape: (b, ...), of any number of dimensions. The mask at (r, i, ..., j) depends on keys[r] and on
    (i, ..., j) alone.
    """
    keys = spread(keys, shape[1:-1])
    last = shape[-1] if len(shape) > 1 else 1
    words = splitmix64(keys[..., None], torch.arange(-(-last // LANES), device=keys.device))
    # int16 counts from -2^15.
    return (words.view(torch.int16)[..., :last] < kept_lanes(p) - 2**15).view(shape)


def spread(keys: Tensor, sizes: Sequence[int]) -> Tensor:
    """One key for every index below some sizes, (b, *sizes); keys (b,)."""
    for size in sizes:
        keys = splitmix64(keys[..., None], torch.arange(size, device=keys.device))
    return keys


@keep_mask.register_fake
def _(keys: Tensor, shape: list[int], p: float) -> Tensor:
    return keys.new_empty(shape, dtype=torch.bool)


class Dropout(nn.Dropout):
    """`nn.Dropout` that takes its mask from `keys` (b,) int64, one a row of its input, where it has been given some.

    Without keys, and for an input that is not one entry a row, it is `nn.Dropout` with torch's own generator.
    """

    keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keys = self.next_keys(x.size(0)) if x.ndim and self.p != 1 else None
        if keys is None:
            return super().forward(x)
        return x * keep_mask(keys, list(x.shape), self.p) * factor(self.p)

    def next_keys(self, rows: int) -> Tensor | None:
        """The keys of so many rows, once: called again in the same pass it drops something else. None without them."""
        keys = self.keys
        if keys is None or keys.size(0) != rows:
            return None
        self.keys = splitmix64(keys, 1)
        return keys


def dropout_keys(layer: nn.Module, shape: Sequence[int], device: torch.device) -> Tensor:
    """What a dropout layer would drop of an input of `shape`, for `kept` to say, where the layer cannot be called.

    One key, int64, for each of its vectors: (b, ...) as `shape` but for the last dimension. The layer goes on as if it
    had been called. layer: an `nn.Dropout`; without keys for b rows, as outside of a run, they are random.
    """
    keys = layer.next_keys(shape[0]) if isinstance(layer, Dropout) else None
    if keys is None:
        keys = torch.randint(-(2**63), 2**63 - 1, shape[:1], device=device)
    return spread(keys, shape[1:-1])


def kept(keys: Tensor, size: int, p: float) -> tuple[Tensor, float]:
    """What vectors of some keys (...) keep of their first `size` elements, (..., size) bool, and its factor.

    p: the probability of dropping, 0 < p < 1. The factor makes up for what is dropped. See `dropout_keys`.
    """
    mask: Tensor = keep_mask(keys.flatten(), [keys.numel(), size], p)
    return mask.view(*keys.shape, size), factor(p)


def adopt(model: nn.Module) -> list[Dropout]:
    """Put a `Dropout` in the place of every `nn.Dropout` inside a model; all of them, in the order of the modules."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p, child.inplace).train(child.training))
    return [module for module in model.modules() if isinstance(module, Dropout)]


@contextmanager
def masks(layers: list[Dropout], seed: int, update: int, rows: Tensor) -> Iterator[None]:
    """Within, the layers drop what belongs to these rows of an update's batch. rows: (b,) int64, where the model is."""
    keys = splitmix64(rows ^ stream_key(seed, update))
    for index, layer in enumerate(layers):
        layer.keys = splitmix64(keys ^ index)
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None
