"""Build a model again from its description, and check by a fingerprint that it computes what was saved.

The fingerprint is some tokens and what the model's reference path answers to them in float32 on a CPU: it stands for
the options, the weights and the plugin's code at once.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from icll_zoo import options, tensors
from icll_zoo.errors import EnvironmentFault, IntegrityError, printable
from icll_zoo.tensors import Shape
from icll_zoo.zoo import ModelSpec, Vocabulary, Zoo

LENGTH = 64
# Operations whose result is as large as a number says that they are given: too late to look once it is there.
ALLOCATING = {"zeros", "ones", "full", "empty", "eye", "arange", "linspace", "logspace", "rand", "randn", "randint"}
ALLOCATING |= {"randperm", "tril_indices", "triu_indices", "repeat", "constant_pad_nd"}
ALLOCATING |= {"new_zeros", "new_ones", "new_full", "new_empty"}
ONE_AT_A_TIME = threading.RLock()
TOLERANCE = 1e-4  # of the largest |output|: between machines and releases of torch, float32 sums differ by this much


def skeleton(zoo: Zoo, spec: ModelSpec, vocabulary: Vocabulary, held: Mapping[str, Shape] | None = None) -> nn.Module:
    """The model without memory, on the meta device; the global generator is left as it was.

    An architecture that reads values while it is built cannot be built there, and is built on the CPU instead.
    held: the tensors of the weights file, where it is known. Raises IntegrityError as soon as building takes more than
    it takes to build what these fill.
    """

    def build(device: str) -> nn.Module:
        # Warnings are for whoever builds the real one: a description that is refused here is refused in one line.
        with torch.random.fork_rng(devices=[]), torch.device(device), warnings.catch_warnings(action="ignore"):
            if held is None:
                return zoo.build_model(spec, vocabulary)
            with bounded(held):
                return zoo.build_model(spec, vocabulary)

    # torch walks through the hooks of `bounded` while it builds, and one thread must not change them under another.
    with ONE_AT_A_TIME:
        try:
            return build("meta")
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
        return build("cpu")


@contextmanager
def bounded(held: Mapping[str, Shape]) -> Iterator[None]:
    """Raise IntegrityError in the middle of building what these tensors cannot fill. Other threads are left alone.

    A description may ask for more than a machine could ever list, so it is too late once the model is built.
    """
    size = sum(shape.bytes for shape in held.values())
    # A tied parameter is registered before it is tied, and each once more where it is tied: hence the margins.
    modules, count, parameters = 64 * len(held) + 10_000, 16 * len(held) + 256, 16 * size + 2**20
    thread = threading.get_ident()

    def on_module(*_: object) -> None:
        nonlocal modules
        modules -= threading.get_ident() == thread
        if modules < 0:
            raise IntegrityError("config.json asks for more modules than its weights file can fill")

    def on_parameter(_module: nn.Module, _name: str, parameter: Tensor | None) -> None:
        nonlocal count, parameters
        if threading.get_ident() == thread and parameter is not None:
            count -= 1
            parameters -= Shape.of(parameter).bytes
        if count < 0 or parameters < 0:
            raise IntegrityError("config.json asks for more parameters than its weights file holds")

    handles = [
        module_hooks.register_module_module_registration_hook(on_module),
        module_hooks.register_module_parameter_registration_hook(on_parameter),
    ]
    try:
        with Budget(len(held), 2**28 + 64 * size):
            yield
    finally:
        for handle in handles:
            handle.remove()


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raise IntegrityError for more operations than a model of so many tensors takes, or a result of too many bytes.

    Options can make a constructor or a forward pass loop for ever, or ask for gigabytes that no weight shows: the
    iterations of a solver, the length of a table. Of our architectures, forward passes over 64 tokens take at most
    170 operations a tensor, and constructors 6; of our learners, which have no tensors, Baum-Welch takes 54,000.
    """

    def __init__(self, tensors: int, max_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 100_000 + 2_000 * tensors
        self.max_bytes = max_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations -= 1
        if self.operations < 0:
            raise IntegrityError("the options of config.json ask for more operations than its model can need")
        if func.overloadpacket.__name__ in ALLOCATING:
            self.check(self.on_meta(func, args, kwargs))
        return self.check(func(*args, **kwargs))

    def check(self, made: Any) -> Any:
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.numel() * tensor.element_size() > self.max_bytes:
                raise IntegrityError("the options of config.json ask for more memory than its model can need")
        return made

    @staticmethod
    def on_meta(func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation would give, without its memory; None if that cannot be told."""
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        if any(argument.name == "device" for argument in func._schema.arguments):
            kwargs = {**kwargs, "device": torch.device("meta")}
        try:
            return func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):
            return None


def build_with(zoo: Zoo, spec: ModelSpec, vocabulary: Vocabulary, stored: Mapping[str, Tensor]) -> nn.Module:
    """The model on the CPU with these tensors, in evaluation mode; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = zoo.build_model(spec, vocabulary)
    own, _ = tensors.stored_tensors(model)
    tensors.compare(tensors.shapes(stored), tensors.shapes(own), f"model {spec.architecture!r}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])
    return model.eval()


# -- fingerprint -----------------------------------------------------------------------------------------------------


def fingerprint_shapes(spec: ModelSpec, vocabulary: Vocabulary) -> dict[str, Shape]:
    """Tokens (2, 64), or as many as the model takes, and the reference path's output for them."""
    length = min(LENGTH, spec.options.get("max_length") or LENGTH)
    return {
        "tokens": Shape(torch.int64, (2, length)),
        "output": Shape(torch.float32, (2, length, vocabulary.size)),
    }


def make_fingerprint(
    zoo: Zoo, spec: ModelSpec, vocabulary: Vocabulary, stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The fingerprint of the model with these tensors.

    Raises IntegrityError if its output has another form than a model's, EnvironmentFault if it is not finite.
    """
    allowed = torch.tensor([i for i in range(vocabulary.size) if i != vocabulary.pad_id or vocabulary.size == 1])
    wanted = fingerprint_shapes(spec, vocabulary)
    tokens = allowed[torch.randint(len(allowed), wanted["tokens"].sizes, generator=torch.Generator().manual_seed(0))]
    output = answer(build_with(zoo, reference_spec(zoo, spec), vocabulary, stored), tokens)
    made = {"tokens": tokens, "output": output}
    tensors.compare(tensors.shapes(made), wanted, f"the fingerprint of model {spec.architecture!r}")
    if not output.isfinite().all():
        raise EnvironmentFault(f"model {spec.architecture!r} gives outputs that are not finite")
    return made


def verify_fingerprint(zoo: Zoo, model: nn.Module, kept: Mapping[str, Tensor], where: str) -> None:
    """Raise IntegrityError unless the reference path still answers as when the model was saved."""
    made: Any = model
    spec, vocabulary = made.zoo_spec, made.zoo_vocabulary
    tokens, wanted = kept["tokens"], kept["output"]
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary.size or not wanted.isfinite().all():
        raise IntegrityError(f"{where} has a fingerprint with impossible values")
    slow = reference_spec(zoo, spec)
    try:
        if slow != spec:
            model = build_with(zoo, slow, vocabulary, tensors.stored_tensors(model)[0])
        found = answer(model, tokens)
    except IntegrityError as error:
        raise IntegrityError(f"{where}: {error}") from error
    except Exception as error:  # the options are a stranger's, so whatever they make the plugin raise is theirs
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise IntegrityError(f"{where} cannot answer with the options of its config.json: {reason}") from error
    off = (found - wanted).abs().max().item() if found.shape == wanted.shape else math.inf
    bound = TOLERANCE * wanted.abs().max().item()
    if not off <= bound:  # so that NaN fails too
        raise IntegrityError(
            f"{where} does not answer as when it was saved: off by {off:.3g}, allowed {bound:.3g}",
            hint="the weights, the options or the plugin's code have changed",
        )


@torch.no_grad()
def answer(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's output for the tokens in float32. IntegrityError if that takes absurdly many operations or bytes."""
    made: Any = model
    held = tensors.shapes(tensors.stored_tensors(model)[0]).values()
    size = sum(shape.bytes for shape in held) + 8 * tokens.numel() * made.zoo_vocabulary.size
    with Budget(len(held), 2**26 + 64 * size):
        output: Tensor = model(tokens)
        return output.float().contiguous()


def reference_spec(zoo: Zoo, spec: ModelSpec) -> ModelSpec:
    """The same model with every `backend` option that knows it set to "reference"."""

    def slow(given: Mapping[str, Any], name: str, distribution: str | None = None) -> dict[str, Any]:
        entry = zoo.entry("model", name, distribution)
        takes = options.signature(entry.load()) if "backend" in given and entry.target is not None else {}
        if "backend" in takes and options.check(takes["backend"], "reference", name)[1] is None:
            return {**given, "backend": "reference"}
        return dict(given)

    changed = slow(spec.options, spec.architecture, spec.distribution)
    if changed.get("layers"):
        changed["layers"] = [slow(layer, layer["mixer"]) for layer in changed["layers"]]
    return ModelSpec(spec.architecture, spec.version, changed, spec.distribution)
