"""Several ways to compute one function: the fast and the reference form, the compiler, the GPU."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from icll_zoo import options as opts
from icll_zoo.errors import InputError
from icll_zoo.testing.kit import CheckFailed, NotApplicable, require
from icll_zoo.testing.subject import VOCABULARY, Model, check, next_token_loss, off, read, seed_everything, some_tokens
from icll_zoo.zoo import ModelSpec

REFERENCE = "reference"
FLOAT64, FLOAT32, BFLOAT16 = 1e-9, 1e-4, 5e-2
"""Sums in another order differ by a few roundings of the type; gradients of deep sums by some more."""


def backends_of(model: Model) -> list[str]:
    """Every value that a `backend` option of the model or of its layers may have, "reference" last."""
    _ = model.spec  # not applicable if it cannot be built
    found: list[str] = []
    for target in model.targets:
        takes = opts.signature(target)
        if "backend" in takes:
            found += [value for value in get_args(takes["backend"].annotation) if value not in found]
    if not found:
        raise NotApplicable("it has no `backend` option: there is one form of it")
    require(REFERENCE in found, f"its backends are {', '.join(found)}, none of them 'reference'")
    return [value for value in found if value != REFERENCE] + [REFERENCE]


def with_backend(model: Model, backend: str) -> ModelSpec:
    """The small model with one backend, wherever there is a choice that includes it."""

    def changed(options: dict[str, Any], target: Any) -> dict[str, Any]:
        takes = opts.signature(target)
        if "backend" in takes and opts.check(takes["backend"], backend, "")[1] is None:
            return {**options, "backend": backend}
        return options

    spec = model.spec
    if spec.options.get("layers"):
        layers = [changed(layer, model.zoo.entry("model", layer["mixer"]).load()) for layer in spec.options["layers"]]
        options = {**spec.options, "layers": layers}
    else:
        options = changed(spec.options, model.targets[0])
    return ModelSpec(spec.architecture, spec.version, options, spec.distribution)


def answers(
    model: Model, backend: str, dtype: torch.dtype, device: str = "cpu", bf16: bool = False
) -> dict[str, Tensor]:
    """The output and the gradients with a backend; InputError if it cannot be had here."""
    spec = with_backend(model, backend)
    seed_everything(0)
    net = model.zoo.build_model(spec, VOCABULARY).to(device).eval()
    net = net.double() if dtype == torch.float64 else net
    tokens = some_tokens(3, 131).to(device)
    with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
        output = read(net, tokens[:, :-1])
        if any(True for _ in net.parameters()):
            torch.manual_seed(0)
            torch.autograd.backward(next_token_loss(net, tokens))
    found = {"the output": output}
    found |= {f"the gradient of {n!r}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    return {name: tensor.cpu() for name, tensor in found.items()}


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, what: str) -> None:
    """Outputs by their largest, gradients by the largest of all: a tiny one is known to no more digits than the rest.

    In a gradient that is a difference of large terms the roundings of those terms stay.
    """
    missing = sorted(set(wanted) ^ set(found))
    require(not missing, f"{what}: only one of them has {missing[:1]}")
    largest = max((t.abs().max().item() for name, t in wanted.items() if name != "the output"), default=0.0)
    for name, tensor in wanted.items():
        gap = (found[name].double() - tensor.double()).abs().max().item()
        scale = tensor.abs().max().item()
        if name != "the output":
            scale = max(scale, 0.01 * largest)
        if not gap <= tolerance * max(scale, 1e-30):
            raise CheckFailed(f"{what}: {name} differs by {gap / max(scale, 1e-30):.3g} of the largest")


@check
def check_fast_equals_reference(model: Model) -> None:
    """Every backend gives the output and the gradients of "reference", in float64 and float32 on a CPU."""
    *others, reference = backends_of(model)
    compared = []
    for dtype, tolerance in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
        wanted = answers(model, reference, dtype)
        for backend in others:
            try:
                found = answers(model, backend, dtype)
            except InputError:
                continue  # it says itself that it needs a GPU or a library that is not here
            compared.append(backend)
            compare(found, wanted, tolerance, f"backend {backend!r} against 'reference' in {dtype}")
    require(bool(compared), "no backend but 'reference' runs on a CPU")


@check
def check_compiles(model: Model) -> None:
    """torch.compile takes it whole (`fullgraph`), and output and gradients stay the same."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise NotApplicable("torch.compile needs a C++ compiler, and there is none")
    tokens = some_tokens(3, 66)
    silent = logging.root.manager.disable
    wanted: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for compiled, kept in ((False, wanted), (True, found)):
        # One layer: the second would be compiled as the first is, and compiling is what takes the time.
        net = model.trainable(dropout=0.0, n_layers=1)
        call: Any = net
        try:
            if compiled:
                torch.compiler.reset()
                logging.disable()  # the compiler's own account of a failure would bury ours
                call = torch.compile(net, fullgraph=True)
            kept["the output"] = read(call, tokens[:, :-1])
            torch.autograd.backward(next_token_loss(call, tokens))
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckFailed(
                f"it cannot be compiled ({blamed(str(error))}): {type(error).__name__}: {reason}"
            ) from error
        finally:
            logging.disable(silent)
            torch.compiler.reset()
        kept.update({f"the gradient of {n!r}": p.grad for n, p in net.named_parameters() if p.grad is not None})
    compare(found, wanted, FLOAT32, "compiled")


def blamed(text: str) -> str:
    """The last file and line in the compiler's account of a failure that is not torch's own."""
    places = [(Path(file), line) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    own = [f"{file.name}:{line}" for file, line in places if "torch" not in file.parts]
    return own[-1] if own else "nowhere in its own code"


def need_cuda() -> None:
    if not torch.cuda.is_available():
        raise NotApplicable("there is no CUDA device")


@check
def check_gpu_equals_cpu(model: Model) -> None:
    """On a GPU in float32 it gives what it gives on a CPU."""
    need_cuda()
    net: nn.Module = model.build()
    tokens = some_tokens(3, 130)
    wanted = read(net, tokens)
    found = read(net.cuda(), tokens.cuda()).cpu()
    worst = off(found, wanted)
    # tf32 is off unless the user turns it on, so that float32's roundings are all there is.
    require(worst <= 1e-3, f"on the GPU the output differs by {worst:.3g} of the largest")


@check
def check_fast_equals_reference_on_gpu(model: Model) -> None:
    """On a GPU every backend gives the output and the gradients of "reference", in float32 and under bfloat16."""
    need_cuda()
    *others, reference = backends_of(model)
    for bf16, tolerance in ((False, 10 * FLOAT32), (True, BFLOAT16)):
        wanted = answers(model, reference, torch.float32, "cuda", bf16)
        for backend in others:
            try:
                found = answers(model, backend, torch.float32, "cuda", bf16)
            except InputError:
                continue  # its library is not installed
            compare(found, wanted, tolerance, f"backend {backend!r} on a GPU{' in bfloat16' if bf16 else ''}")
