"""What the checks look at: a small model, a dataset or a metric, by its name; and the decorator that makes a check."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from icll_zoo import options as opts
from icll_zoo.data import Batch, Dataset
from icll_zoo.errors import InputError, UnknownName, printable
from icll_zoo.registry import Entry, Space
from icll_zoo.testing.kit import CheckFailed, NotApplicable
from icll_zoo.zoo import CONTEXT, ModelSpec, Vocabulary, Zoo

VOCABULARY = Vocabulary(12, [".", *"abcdefghij", "|"], 0, 11)
SMALL = {"d_model": 32, "n_layers": 2}
WIDTHS = (32, 64, 128, 256)
"""Tried one after the other: heads of a fixed size need a model that is wide enough for them."""
LENGTH = 70
"""Past 64, the size of chunk that most chunked forms use."""

Of = TypeVar("Of", bound="Subject")


class Subject:
    """A registered name under check. space: "model", "dataset" or "metric"."""

    space: Space

    def __init__(self, zoo: Zoo, name: str) -> None:
        self.zoo, self.name = zoo, name
        self.entry: Entry = zoo.entry(self.space, name)

    @property
    def listed(self) -> Any:
        """The layers that the registration itself lists, if it does."""
        return {**self.entry.backbone, **self.entry.options}.get("layers")

    @functools.cached_property
    def targets(self) -> list[Callable[..., Any]]:
        """The class or function behind the name; those of its layers, if it is a composition."""
        if self.entry.target is not None and not self.listed:
            return [self.entry.load()]
        named = self.zoo.resolve_model(self.name).mixers()
        return list(dict.fromkeys(self.zoo.entry("model", mixer).load() for mixer in named))

    def stated(self, attribute: str) -> dict[str, Any]:
        """A mapping that the classes carry as an attribute, together."""
        merged: dict[str, Any] = {}
        for target in self.targets:
            merged |= getattr(target, attribute, {})
        return merged

    @property
    def check_options(self) -> dict[str, Any]:
        return self.stated("icll_zoo_check_options")


class Model(Subject):
    """A model, small: d_model 32 or the next width that its options allow, and 2 layers or the layers that it lists."""

    space = "model"

    def small(self) -> ModelSpec:
        """The complete description of the small model. Raises whatever building it raised at the last width."""
        takes = self.takes()
        sizes = {key: value for key, value in SMALL.items() if key in takes and not (key == "n_layers" and self.listed)}
        last: Exception | None = None
        for width in WIDTHS if "d_model" in sizes else WIDTHS[:1]:
            given = {**sizes, **({"d_model": width} if "d_model" in sizes else {}), **self.check_options}
            try:
                spec = self.zoo.resolve_model(self.name, given)
                # What is written down of it must be taken back, as loading does.
                self.zoo.resolve_model(spec.architecture, spec.options)
                self.zoo.build_model(spec, VOCABULARY)
                return spec
            except InputError as error:
                last = error
        assert last is not None
        raise last

    def takes(self) -> dict[str, opts.Option]:
        """The options that the model as a whole takes."""
        if self.entry.kind == "mixer":
            return self.zoo.backbone_options()
        return {k: v for k, v in opts.signature(self.entry.load()).items() if k not in CONTEXT}

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """As `small`; a model that cannot be built is the business of check_signature_is_config alone."""
        try:
            return self.small()
        except Exception as error:
            raise NotApplicable(f"no small model can be built ({printable(error, 200)})") from error

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
        """A fresh model in evaluation mode, float32 or float64; `changes` replace options of the model as a whole."""
        spec = self.spec
        if changes:
            known = {key: value for key, value in changes.items() if key in spec.options}
            spec = ModelSpec(spec.architecture, spec.version, {**spec.options, **known}, spec.distribution)
        seed_everything(seed)
        net = self.zoo.build_model(spec, VOCABULARY).eval()
        return net.double() if dtype == torch.float64 else net

    def trainable(self, **changes: Any) -> nn.Module:
        """As `build`; NotApplicable for a learner that has no parameters."""
        model = self.build(**changes)
        if not any(True for _ in model.parameters()):
            raise NotApplicable("it has no parameters")
        return model


class Data(Subject):
    """A dataset."""

    space = "dataset"

    def create(self) -> Dataset:
        """A fresh instance with the options that it states for checks.

        One that cannot be created is the business of check_signature_is_config alone.
        """
        try:
            return self.zoo.create_dataset(self.name, **self.check_options)
        except CheckFailed:
            raise
        except Exception as error:
            raise NotApplicable(f"it cannot be created ({printable(error, 200)})") from error

    @functools.cached_property
    def dataset(self) -> Dataset:
        """One instance for all that a check asks."""
        return self.create()


class Score(Subject):
    """A metric."""

    space = "metric"

    def create(self) -> Callable[..., Any]:
        """The function itself, or a fresh instance of the class.

        One that cannot be created is the business of check_signature_is_config alone.
        """
        try:
            return self.zoo.create_metric(self.name, **self.check_options)
        except Exception as error:
            raise NotApplicable(f"it cannot be created ({printable(error, 200)})") from error

    def sums(self, probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> tuple[Tensor, Tensor]:
        """What a fresh instance answers, in float64."""
        sums, counts = self.create()(probabilities, batch, oracle)
        return sums.double(), counts.double()


SUBJECTS: dict[Space, type[Subject]] = {"model": Model, "dataset": Data, "metric": Score}


def space_of(zoo: Zoo, name: str) -> Space:
    """The first space that has the name. UnknownName, with the nearest one, if none has."""
    for space in SUBJECTS:
        try:
            zoo.entry(space, name)
        except UnknownName:
            continue
        return space
    zoo.entry("model", name)
    raise AssertionError("an unknown name was found")


def check(function: Callable[[Any], None]) -> Callable[..., None]:
    """Make `check_x(subject)` a public `check_x(zoo, name)` that leaves the process as it was.

    space: which of the things called `name` is meant, if there are several.
    """
    called = function.__name__.removeprefix("check_")

    @functools.wraps(function)
    def checked(zoo: Zoo, name: str, space: Space | None = None) -> None:
        subject = SUBJECTS[space or space_of(zoo, name)](zoo, name)
        try:
            with undisturbed():
                function(subject)
        except CheckFailed as failure:
            raise CheckFailed(f"{name}: {called}: {failure}") from failure.__cause__

    return checked


@contextmanager
def undisturbed() -> Iterator[None]:
    """One thread and seeded generators inside; threads, generators and default type as they were outside."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    python, numpy = random.getstate(), np.random.get_state()
    # Small models are faster on one thread, and sums come in one order.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a check finds must not depend on the caller's filters
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        random.setstate(python)
        np.random.set_state(numpy)


def seed_everything(seed: int) -> None:
    """torch's generator, and those that a constructor should leave alone (check_seeded finds one that does not)."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


# -- what several checks do ------------------------------------------------------------------------------------------


def some_tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    """Token ids (batch, length) without padding. Every second row has three symbols only, so that contexts recur."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY.size, (batch, length), generator=generator)
    few = torch.randint(1, 4, (batch, length), generator=generator)
    return torch.where(torch.arange(batch)[:, None] % 2 == 1, few, tokens)


@torch.no_grad()
def read(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's output, with the global generator at the same place whenever it is asked."""
    torch.manual_seed(0)
    output: Tensor = model(tokens)
    return output


def off(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|; infinite for NaN. CheckFailed if the shapes differ."""
    if found.shape != wanted.shape:
        raise CheckFailed(f"shape {list(found.shape)} where {list(wanted.shape)} is right")
    if not found.numel():
        return 0.0
    distance = (found.double() - wanted.double()).abs().max().item()
    scale = wanted.double().abs().max().item()
    worst = distance / max(scale, 1e-30)
    return worst if worst == worst else float("inf")


def place_of(found: Tensor, wanted: Tensor) -> str:
    """Where two outputs (b, l, v) differ most: "row 0, position 7"."""
    gap = (found.double() - wanted.double()).abs().nan_to_num(nan=float("inf")).amax(-1)
    row, position = divmod(int(gap.argmax()), gap.size(1))
    return f"row {row}, position {position}"


def same_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first name whose tensors are not bit for bit the same, or None."""
    for name in sorted({*found, *wanted}):
        if name not in found or name not in wanted or not identical(found[name], wanted[name]):
            return name
    return None


def identical(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but for the sign of zeros; NaN equals NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def everything_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not saved included, by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def next_token_loss(model: nn.Module, tokens: Tensor, begin: int = 0) -> Tensor:
    """The mean cross-entropy of each token given those before it, from position `begin` on, in the output's type."""
    output = model(tokens[:, :-1])[:, begin:].flatten(0, 1)
    targets = tokens[:, begin + 1 :].flatten()
    if getattr(model, "output", "logits") == "probabilities":
        return nn.functional.nll_loss(output.clamp(min=torch.finfo(output.dtype).tiny).log(), targets)
    return nn.functional.cross_entropy(output, targets)
