"""What goes on inside a model: activations of its parts by name, and parts replaced, without a hook left behind.

    trace(model, tokens, "blocks.*.mixer")                      # outputs of modules
    trace(model, tokens, "blocks.*.mixer.out_proj:input")       # what goes into them
    trace(model, tokens, "blocks.*.mixer:attention")            # their attention weights, (b, heads, l, l)

A pattern is a module's dotted name, as `model.named_modules()` gives it; in each part of it `*`, `?` and `[01]` stand
for characters other than dots; "" is the model itself. Attention weights are those of modules with a method
`attention_weights` that takes what `forward` takes: entry (t, s) is what position t multiplies the value of s with, 0
for s > t. The rows of a softmax add up to 1; those of other mixers may have any sign and sum.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo.errors import InputError

Replace = Mapping[str, Callable[[Any], Any]]
KINDS = ("output", "input", "attention")


def trace(
    model: nn.Module, tokens: Tensor, *patterns: str, detach: bool = True, replace: Replace | None = None
) -> dict[str, Any]:
    """What the parts of a model that match some patterns give for tokens (b, l): {name: tensor}, in order of running.

    detach: give copies without gradients; otherwise the very tensors of the graph. replace: see `replaced`; what is
    traced is what the model went on with. The model runs in evaluation mode, and is afterwards as it was, also when it
    raises. A part that gives a tuple or a dictionary of tensors is traced as one; what runs again in the same call
    has "#2", "#3" behind its name. A kind other than the output stays in the name: "blocks.0.mixer:attention".
    Raises InputError for a pattern that matches nothing that runs.
    """
    if not patterns:
        raise InputError("trace was given no pattern", hint="such as 'blocks.*.mixer'")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    found: dict[str, Any] = {}
    recording = True

    def keep(name: str, value: Any) -> None:
        if recording:
            times = sum(known.partition("#")[0] == name for known in found)
            found[f"{name}#{times + 1}" if times else name] = each(copied, value) if detach else value

    def attend(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], name: str) -> None:
        nonlocal recording
        if not recording:
            return
        recording = False  # the method runs parts of the module, which run again in forward
        try:
            weights = module.attention_weights(*arguments, **keywords)
        finally:
            recording = True
        keep(name, weights)

    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled() and not detach))
        stack.enter_context(evaluating(model))
        stack.enter_context(replaced(model, replace or {}))
        for name, module, kind in {key: hit for p in patterns for key, hit in hits(model, p).items()}.values():
            if kind == "output":
                handle = module.register_forward_hook(lambda _m, _a, output, name=name: keep(name, output))
            elif kind == "input":
                handle = module.register_forward_pre_hook(lambda _m, a, name=name: keep(name, first(name, a)))
            else:
                handle = module.register_forward_pre_hook(
                    lambda m, a, k, name=name: attend(m, a, k, name), with_kwargs=True
                )
            stack.callback(handle.remove)
        model(tokens)
    for pattern in patterns:
        if not {name.partition("#")[0] for name in found} & set(hits(model, pattern)):
            raise InputError(f"nothing that matches {pattern!r} ran", hint="a list of modules, say, never runs itself")
    return found


@contextmanager
def replaced(model: nn.Module, replace: Replace) -> Iterator[None]:
    """While inside, what matches a pattern gives `function(what it gave)` instead: {pattern: function}.

        with replaced(model, {"blocks.0.mixer": torch.zeros_like}):
            evaluate(model, dataset)

    "NAME:input" replaces the first argument of a module. Raises InputError for a pattern that matches nothing, and for
    a function that returns None.
    """
    model = getattr(model, "_orig_mod", model)
    with ExitStack() as stack:
        for pattern, function in replace.items():
            for name, module, kind in hits(model, pattern).values():

                def changed(value: Any, name: str = name, function: Callable[[Any], Any] = function) -> Any:
                    result = function(value)
                    if result is None:
                        raise InputError(f"the function that replaces {name!r} returned None")
                    return result

                if kind == "output":
                    handle = module.register_forward_hook(lambda _m, _a, output, changed=changed: changed(output))
                elif kind == "input":
                    handle = module.register_forward_pre_hook(
                        lambda _m, a, name=name, changed=changed: (changed(first(name, a)), *a[1:])
                    )
                else:
                    raise InputError(f"{name!r} cannot be replaced", hint="replace an output, or NAME:input")
                stack.callback(handle.remove)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while inside; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def hits(model: nn.Module, pattern: str) -> dict[str, tuple[str, nn.Module, str]]:
    """The modules that match a pattern, by the name of what is traced: (that name, module, kind).

    Raises InputError if there are none, with the nearest names, or none that has attention weights.
    """
    wanted, _, kind = pattern.partition(":")
    kind = kind or "output"
    if kind not in KINDS:
        raise InputError(f"{pattern!r} asks for {kind!r} of a module", hint="NAME, NAME:input or NAME:attention")
    modules = dict(model.named_modules())
    matching = {name: module for name, module in modules.items() if matches(name, wanted)}
    if not matching:
        near = difflib.get_close_matches(wanted, modules, n=3, cutoff=0.3)
        raise InputError(
            f"no module matches {wanted!r}",
            hint=f"the nearest are {', '.join(map(repr, near))}" if near else "model.named_modules() lists them",
        )
    if kind == "attention":
        matching = {name: m for name, m in matching.items() if callable(getattr(m, "attention_weights", None))}
        if not matching:
            raise InputError(f"no module that matches {wanted!r} has attention_weights")
    suffix = "" if kind == "output" else f":{kind}"
    return {name + suffix: (name + suffix, module, kind) for name, module in matching.items()}


def first(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a module was called with; InputError if that has no place but only a name."""
    if not arguments:
        raise InputError(f"{name!r} was called with arguments by name alone", hint="trace the output of what feeds it")
    return arguments[0]


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name matches a pattern, part by part."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A function of all tensors in tuples, lists and dictionaries; what is none of these stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: each(change, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        made = [each(change, item) for item in value]
        return made if isinstance(value, list) else tuple(made)
    return value


def copied(tensor: Tensor) -> Tensor:
    """Without gradients, and out of reach of what later writes into the original in place."""
    return tensor.detach().clone()
