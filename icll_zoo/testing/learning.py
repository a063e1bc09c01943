"""Training: every parameter takes part, recomputing gives the same gradients, and something small is learned."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from icll_zoo.testing.kit import require
from icll_zoo.testing.subject import Model, check, next_token_loss, same_tensors, some_tokens

ROUNDS = 8
STEPS, BATCH, LENGTH, LOOK = 200, 16, 24, 20
FIRST = 2
"""Where the tiny language's loss begins to count: two tokens tell which way round it goes."""
ENOUGH = 0.9 * math.log(2)
"""ln 2 is the best that can be said from the last token alone; a tenth less needs what came before it."""


@check
def check_every_parameter_learns(model: Model) -> None:
    """Within a few updates every parameter has a gradient, finite and not zero; none is frozen.

    A few, because what lies behind a weight that starts at zero has no gradient before that weight has moved.
    """
    net = model.trainable().train()
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    require(not frozen, f"parameter {frozen[:1]} is frozen: make it a buffer")
    waiting = {name for name, _ in net.named_parameters()}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for round_number in range(ROUNDS):
        optimizer.zero_grad()
        torch.autograd.backward(next_token_loss(net, some_tokens(8, 34, seed=round_number)))
        for name, parameter in net.named_parameters():
            if parameter.grad is None:
                continue
            require(bool(parameter.grad.isfinite().all()), f"the gradient of {name!r} is not finite")
            if parameter.grad.any():
                waiting.discard(name)
        if not waiting:
            return
        optimizer.step()
    require(not waiting, f"no gradient ever reaches {sorted(waiting)[0]!r} ({len(waiting)} such in {ROUNDS} updates)")


@check
def check_checkpointing_is_exact(model: Model) -> None:
    """With every block recomputed in the backward pass, gradients and buffers are the same, bit for bit."""
    tokens = some_tokens(4, 34)
    left = []
    for again in (False, True):
        net: Any = model.trainable().train()
        if again:
            recompute(net)
        torch.manual_seed(0)
        torch.autograd.backward(next_token_loss(net, tokens))
        grads = {f"the gradient of {n!r}": p.grad for n, p in net.named_parameters() if p.grad is not None}
        left.append({**grads, **{f"buffer {name!r}": tensor for name, tensor in net.named_buffers()}})
    odd = same_tensors(left[1], left[0])
    require(odd is None, f"{odd} changes when the forward pass is computed a second time")


def recompute(net: Any) -> None:
    """Make every block of a backbone, or the whole of another model, keep no activations."""
    for part in getattr(net, "blocks", [net]):
        part.forward = functools.partial(checkpoint, part.forward, use_reentrant=False)


@check
def check_learns_a_tiny_language(model: Model) -> None:
    """200 updates teach it more than the last token tells, in a language of three symbols that go round in a ring.

    Each sequence runs round the ring in a direction of its own: an automaton of three states, whose direction shows
    in any earlier pair. By single symbols the loss is ln 3, by the last one ln 2, and with the context 0.
    """
    net = model.trainable(dropout=0.0)
    held_out = ring(256, seed=-1)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    loss = math.inf
    for step in range(STEPS):
        net.train()
        optimizer.zero_grad()
        torch.autograd.backward(ring_loss(net, ring(BATCH, seed=step)))
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % LOOK == 0:
            with torch.no_grad():
                loss = ring_loss(net.eval(), held_out).item()
            if loss < ENOUGH:
                return
    require(
        loss < ENOUGH,
        f"after {STEPS} updates its loss is {loss:.3f} nats; the last token alone gives ln 2 = 0.693, and under "
        f"{ENOUGH:.3f} shows that it uses more",
    )


def ring(batch: int, seed: int) -> Tensor:
    """Sequences 1 2 3 1 2 3 ... or 1 3 2 1 3 2 ..., from a random place on, (batch, LENGTH + 1)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    start = torch.randint(3, (batch, 1), generator=generator)
    forward = torch.randint(1, 3, (batch, 1), generator=generator)
    return 1 + (start + forward * torch.arange(LENGTH + 1)) % 3


def ring_loss(net: nn.Module, tokens: Tensor) -> Tensor:
    return next_token_loss(net, tokens, FIRST)
