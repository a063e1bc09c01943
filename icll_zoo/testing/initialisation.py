"""Where a model's numbers come from: its own initialisation, one seed, and nothing that lay about in memory."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icll_zoo import options as opts
from icll_zoo.backbone import INJECTED, BackboneOptions
from icll_zoo.generation import can_step
from icll_zoo.registry import Entry
from icll_zoo.testing.kit import CheckFailed, NotApplicable, require
from icll_zoo.testing.subject import (
    VOCABULARY,
    Model,
    check,
    everything_of,
    identical,
    next_token_loss,
    off,
    read,
    same_tensors,
    seed_everything,
    some_tokens,
)


@check
def check_keeps_its_own_init(model: Model) -> None:
    """Each mixer in the backbone equals, bit for bit, the same mixer built alone from the same generator's state."""
    if model.entry.kind != "mixer":
        raise NotApplicable("it is a whole model: there is no backbone around it")
    net: Any = model.build(seed=3)
    layers = layers_of(model)
    seed_everything(3)
    for index, (entry, own) in enumerate(layers):
        target = entry.load()
        options = model.spec.options
        values = (options["d_model"], len(layers), index, VOCABULARY.size, options["max_length"])
        given = {key: value for key, value in zip(INJECTED, values, strict=True) if key in opts.signature(target)}
        alone: nn.Module = target(**given, **own)
        odd = same_tensors(everything_of(net.blocks[index].mixer), everything_of(alone))
        require(odd is None, f"{odd!r} of mixer {index} ({entry.name}) is not as its constructor made it")


def layers_of(model: Model) -> list[tuple[Entry, dict[str, Any]]]:
    """The mixer of every block and its own options."""
    options = model.spec.options
    if options.get("layers"):
        return [
            (model.zoo.entry("model", layer["mixer"]), {k: v for k, v in layer.items() if k not in OUTER})
            for layer in options["layers"]
        ]
    root = model.zoo.entry("model", model.spec.architecture, model.spec.distribution)
    known = {field.name for field in dataclasses.fields(BackboneOptions)}
    return [(root, {k: v for k, v in options.items() if k not in known})] * options["n_layers"]


OUTER = ("mixer", "mlp_ratio")


@check
def check_seeded(model: Model) -> None:
    """One seed of torch gives the same weights whatever other generators say; another seed gives others."""
    built = []
    spec = model.spec
    for seed, other in ((5, 0), (5, 1), (6, 0)):
        seed_everything(other)
        torch.manual_seed(seed)
        built.append(everything_of(model.zoo.build_model(spec, VOCABULARY)))
    odd = same_tensors(built[0], built[1])
    require(odd is None, f"two models of one seed differ in {odd!r}: use torch's global generator alone")
    if any(True for _ in model.build().parameters()):
        require(same_tensors(built[0], built[2]) is not None, "another seed gives the same weights")


@check
def check_eval_is_deterministic(model: Model) -> None:
    """In evaluation the output is the same every time, and no global generator is touched."""
    net = model.build()
    tokens = some_tokens(2, 33)

    def states() -> tuple[Tensor, object, object]:
        return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index]

    outputs = []
    for seed in (1, 2):
        seed_everything(seed)
        before = states()
        with torch.no_grad():
            outputs.append(net(tokens))
        after = states()
        for which, a, b in zip(("torch", "random", "numpy"), before, after, strict=True):
            same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
            require(same, f"a forward pass in evaluation draws from the global generator of {which}")
    require(identical(*outputs), f"two forward passes differ by {off(outputs[1], outputs[0]):.3g} of the largest")


@check
def check_no_uninitialised_memory(model: Model) -> None:
    """With NaN in all memory that torch hands out unfilled, nothing changes: weights, output, gradients, state."""
    tokens = some_tokens(2, 34)
    wanted = results(model, tokens)
    try:
        with poisoned():
            found = results(model, tokens)
    except Exception as error:
        raise CheckFailed(f"with poisoned memory it fails: {type(error).__name__}: {error}") from error
    for name, tensor in wanted.items():
        require(name in found, f"{name} is missing with poisoned memory")
        if tensor.is_floating_point():
            finite = bool(found[name].isfinite().all() | (found[name].isnan() == tensor.isnan()).all())
            require(finite, f"{name} is not finite: memory is read that nothing was written to")
        worst = off(found[name], tensor)
        require(worst <= 1e-5, f"{name} changes by {worst:.3g} when unfilled memory holds other values")


def results(model: Model, tokens: Tensor) -> dict[str, Tensor]:
    """Everything that a model makes: its weights, an output, gradients, and a state."""
    net: Any = model.build()
    made = {f"tensor {name!r}": tensor.detach().clone() for name, tensor in everything_of(net).items()}
    made["the output"] = read(net, tokens)
    if any(True for _ in net.parameters()):
        torch.manual_seed(0)
        torch.autograd.backward(next_token_loss(net, tokens))
        made |= {f"the gradient of {n!r}": p.grad for n, p in net.named_parameters() if p.grad is not None}
        if can_step(net):
            with torch.no_grad():
                stepped, state = net.step(tokens, net.init_state(len(tokens), torch.device("cpu"), torch.float32))
                stepped, state = net.step(tokens[:, :1], state)
            made |= {"the output of a step": stepped, **{f"state {name!r}": t for name, t in state.items()}}
    return made


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch allocates without filling it holds NaN, or the largest integer."""
    settings: Any = torch.utils.deterministic
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = settings.fill_uninitialized_memory
    # Filling is a part of torch's deterministic mode, whose other rules are of no concern here.
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
