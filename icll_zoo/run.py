"""What a run is: one typed, JSON-able description, the same object from Python, a YAML file or `key=value` words.

A description is resolved before anything happens: every option written out, the device, precision and number of
threads made explicit. The resolved description, without `output`, is what the hash is taken of, and what the bits of
the result depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from icll_zoo import files
from icll_zoo.errors import InputError, did_you_mean, printable
from icll_zoo.zoo import Zoo


class Part(BaseModel):
    """A part of a description: no unknown keys, no silent conversions, never changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False)


class Optimizer(Part):
    """`timm.optim.create_optimizer_v2`.

    lr: the peak learning rate. decay_all: weight decay also on norms, biases and other vectors (the reference does).
    clip: the largest gradient norm, None for no clipping.
    """

    name: str = "adamw"
    lr: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    decay_all: bool = False
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.9, 0.99]
    eps: Annotated[float, Field(gt=0)] = 1e-8
    clip: Annotated[float | None, Field(gt=0)] = 1.0


class Schedule(Part):
    """`timm.scheduler`, one step an update.

    warmup: the fraction of all updates spent rising linearly from `warmup_lr` to the peak.
    min_lr: where the schedule ends, as a fraction of the peak.
    warmup_prefix: count the cosine from the end of the warm-up, so that the peak is reached; off, as the reference ran.
    """

    name: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    min_lr: Annotated[float, Field(ge=0, le=1)] = 0.1
    warmup_prefix: bool = True


class Training(Part):
    """How the updates are made.

    batch_size: sequences in a forward pass; `accumulate` of those make one update.
    validate_every, checkpoint_every, log_every: in updates; 0 for the first two means ten times a run.
    keep_last: checkpoints kept besides the best one. ema: decay of the averaged weights, None for none.
    precision: "fp32", "fp64", "tf32" (CUDA only) or "bf16" (autocast). device: "auto" is CUDA where there is one.
    pad_to: pad the sequences of every micro-batch to a multiple of this many tokens, so that there are few shapes.
    parallel: how several processes under torchrun share the run: "ddp", each with the whole model, or "fsdp".
    compile: by torch.compile, in a mode of its own if named: "reduce-overhead" replays an update's kernels from CUDA
        graphs, one a shape.
    threads: of torch on a CPU, None for what torch finds. on_nan: "skip" leaves out the batch that gave a NaN.
    keep_freed: on a CPU, let the C library keep freed memory for the next update.
    trackers: plugins told by name to record this run. strict_resume: refuse to resume under other settings.
    """

    batch_size: Annotated[int, Field(ge=1)] = 32
    accumulate: Annotated[int, Field(ge=1)] = 1
    pad_to: Annotated[int | None, Field(ge=2)] = None
    validate_every: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    log_every: Annotated[int, Field(ge=1)] = 10
    keep_last: Annotated[int, Field(ge=1)] = 2
    ema: Annotated[float | None, Field(gt=0, lt=1)] = None
    precision: Literal["fp32", "fp64", "tf32", "bf16"] = "fp32"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool | Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False
    device: str = "auto"
    threads: Annotated[int | None, Field(ge=1)] = None
    on_nan: Literal["stop", "skip"] = "stop"
    strict_resume: bool = False
    keep_freed: bool = True
    trackers: list[str] = []


RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # What the paper's code ran (its section of configs; the paper's own table says betas 0.9/0.99).
    "paper": {
        "epochs": 200.0,
        "optimizer": {"lr": 2.5e-4, "betas": [0.9, 0.999], "decay_all": True, "clip": None},
        "schedule": {"warmup_prefix": False},
    },
    # The same without weight decay on norms, biases and other vectors.
    "paper-grouped": {
        "epochs": 200.0,
        "optimizer": {"lr": 2.5e-4, "betas": [0.9, 0.999], "decay_all": False, "clip": None},
        "schedule": {"warmup_prefix": False},
    },
    # The paper's language models of 340 million parameters: 15 billion tokens in rows of 2,048 (data.length=2048), half
    # a million an update. From memory of its text and of the GLA paper's (arXiv:2312.06635), whose set-up it says it
    # takes; no code was released. The batch is cut into parts that fit one accelerator.
    "paper-text": {
        "steps": 28_610,
        "optimizer": {"lr": 3e-4, "weight_decay": 0.01, "betas": [0.9, 0.95], "clip": 1.0},
        "schedule": {"warmup": 1 / 30, "warmup_lr": 3e-5, "min_lr": 0.1},
        "train": {"batch_size": 16, "accumulate": 16, "precision": "bf16"},
    },
}


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `under`, mapping by mapping."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def split_list(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`given` with a text under `key`, such as "a,b", as a list."""
    value = given.get(key)
    return {**given, key: value.split(",")} if isinstance(value, str) else dict(given)


class Run(Part):
    """A training run.

        Run(architecture="transformer", dataset="dfa", steps=200, model={"d_model": 64}, output="run")

    model, data: options of the architecture and of the dataset. steps: updates; or `epochs`, passes over a finite
    training split. seed fixes initialisation, order and dropout; `data.seed` fixes languages and strings.
    recipe: named defaults for everything that is not said. metrics: measured on the validation split, with its loss.
    output: the run's folder.
    """

    architecture: str
    dataset: str
    model: dict[str, Any] = {}
    data: dict[str, Any] = {}
    metrics: list[str] = []
    recipe: str = "default"
    steps: Annotated[int | None, Field(ge=1)] = None
    epochs: Annotated[float | None, Field(gt=0)] = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    train: Training = Training()
    output: str = "run"

    @model_validator(mode="before")
    @classmethod
    def _with_recipe(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        name = given.get("recipe", "default")
        if name not in RECIPES:
            raise ValueError(f"unknown recipe {name!r}: choose from {', '.join(RECIPES)}")
        recipe = RECIPES[name]
        if given.get("steps") is not None or given.get("epochs") is not None:
            recipe = {key: value for key, value in recipe.items() if key not in ("steps", "epochs")}
        plain = {k: v.model_dump() if isinstance(v, BaseModel) else v for k, v in given.items()}
        merged = merge(recipe, plain)
        # `metrics=accuracy,tvd` and `train.trackers=tensorboard` on a command line are lists.
        if isinstance(merged.get("train"), dict):
            merged["train"] = split_list(merged["train"], "trackers")
        merged = split_list(merged, "metrics")
        if isinstance(merged.get("output"), int | float):  # `output=5` on a command line is the folder "5"
            merged["output"] = str(merged["output"])
        return merged

    @classmethod
    def parse(cls, given: Mapping[str, Any], where: str = "the run") -> Run:
        """A description from plain data. Raises InputError with every fault: unknown keys, wrong types, bad values."""
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            faults, hint = [], ""
            # Unknown keys first: the hint of the one line that is shown is about its first fault.
            for detail in sorted(error.errors(), key=lambda d: d["type"] != "extra_forbidden"):
                path = ".".join(str(part) for part in detail["loc"])
                if detail["type"] == "extra_forbidden":
                    faults.append(f"unknown key {path!r} in {where}")
                    hint = hint or did_you_mean(path, known_keys()) or "see `icll-zoo train --help`"
                elif detail["type"] == "missing":
                    faults.append(f"missing key {path!r} in {where}")
                else:
                    reason = detail["msg"].removeprefix("Value error, ")
                    shown = "" if not path else f", not {detail['input']!r}"
                    place = f"{where}: " if not path else f"{path} in {where}: "
                    faults.append(printable(f"wrong value for {place}{reason[0].lower()}{reason[1:]}{shown}", 300))
            raise InputError(faults[0], hint=hint or "see `icll-zoo train --help`", faults=faults) from error

    @classmethod
    def read(cls, path: str | Path) -> dict[str, Any]:
        """The plain data of a YAML description, not yet checked: `key=value` words may still be laid upon it."""
        given = files.read_yaml(Path(path), "description")
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise InputError(f"description {str(path)!r} is not a mapping of keys to values")
        return unfold(given, f"description {str(path)!r}")

    def resolve(self, zoo: Zoo) -> Resolved:
        """Write everything out and create the dataset to know its sizes. Raises InputError with every fault."""
        from icll_zoo.data import passes

        dataset_options = zoo.resolve_options("dataset", self.dataset, self.data)
        for metric in self.metrics:
            zoo.entry("metric", metric)
        dataset = zoo.create_dataset(self.dataset, **dataset_options)
        spec_options = model_options(zoo, self.architecture, self.model, getattr(dataset, "max_length", None))
        spec = zoo.resolve_model(self.architecture, spec_options)
        size = dataset.size("train")
        if size == 0:
            raise InputError(f"dataset {self.dataset!r} has no training split under these options")
        steps = self.steps
        if steps is None and self.epochs is not None:
            if size is None:
                raise InputError("epochs of an endless training split", hint="give steps=N, or data.languages=N")
            per_update = self.train.batch_size * self.train.accumulate
            steps = max(1, round(self.epochs * passes(size, per_update)))
        if steps is None:
            raise InputError("the run says neither steps nor epochs", hint="add steps=1000, say")
        if self.train.compile in ("reduce-overhead", "max-autotune") and self.train.accumulate > 1:
            raise InputError(
                f"train.compile={self.train.compile} with train.accumulate={self.train.accumulate}: a CUDA graph "
                "writes each micro-batch's gradients over those of the one before",
                hint="train.compile=true, or train.accumulate=1",
            )
        tenth = max(1, steps // 10)
        settings = self.train.model_dump()
        settings |= {
            "validate_every": self.train.validate_every or tenth,
            "checkpoint_every": self.train.checkpoint_every or tenth,
            **resolve_machine(self.train),
        }
        data_entry = zoo.entry("dataset", self.dataset)
        description = {
            "model": spec.to_json(),
            "data": {"dataset": data_entry.qualified, "version": data_entry.version, "options": dataset_options},
            "metrics": list(self.metrics),
            "steps": steps,
            "seed": self.seed,
            "optimizer": self.optimizer.model_dump(),
            "schedule": self.schedule.model_dump(),
            "train": settings,
        }
        return Resolved(description, Path(self.output))


class Resolved:
    """A complete description and its hash; `output` is where, not what, and stays out of the hash."""

    def __init__(self, description: dict[str, Any], output: Path) -> None:
        self.description: dict[str, Any] = json.loads(files.canonical_json(description))
        self.output = output

    @property
    def training(self) -> dict[str, Any]:
        """The settings under `train`; those that came later than a folder's description are as if left alone."""
        return {**Training().model_dump(), **self.description["train"]}

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON, in hex. Settings that change no bits are left out of it."""
        bits = dict(self.description)
        # Neither does the number of processes belong to a description: it may change on the way, to rounding.
        silent = ("log_every", "keep_last", "trackers", "strict_resume", "parallel", "keep_freed")
        bits["train"] = {key: value for key, value in bits["train"].items() if key not in silent}
        if bits["train"].get("pad_to") is None:  # which it was for every run before there was such a setting
            bits["train"].pop("pad_to", None)
        return hashlib.sha256(files.canonical_json(bits).encode()).hexdigest()


def model_options(zoo: Zoo, architecture: str, given: Mapping[str, Any], longest: int | None) -> dict[str, Any]:
    """The options of a model that is to read `longest` tokens: those given, and `max_length` where it must be more."""
    entry = zoo.entry("model", architecture)
    default = zoo.backbone_options()["max_length"].default
    if entry.kind != "mixer" or longest is None or "max_length" in {**entry.options, **given}:
        return dict(given)
    return {**given, "max_length": max(longest, entry.backbone.get("max_length", default))}


def resolve_machine(train: Training) -> dict[str, Any]:
    """The device, precision and threads that "auto" and None stand for here. InputError for what is not here."""
    import torch

    device = train.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = check_device(device)
    if train.precision == "tf32" and kind != "cuda":
        raise InputError("train.precision=tf32 needs a CUDA device", hint="use fp32")
    threads = train.threads or torch.get_num_threads()
    return {"device": device, "threads": threads if kind == "cpu" else None}


def check_device(device: str, said: str = "train.device=") -> str:
    """Whether a device is "cpu" or "cuda". InputError for one that is not here; said: how the user names it."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"wrong value for {said.rstrip('= ')}: {device!r}", hint="cpu, cuda, cuda:0 ...") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"{said}{device} is not available here", hint=f"use {said}cpu")
    return kind


def known_keys() -> list[str]:
    """Every dotted key of a description, for suggestions."""
    keys = list(Run.model_fields)
    for name, part in (("optimizer", Optimizer), ("schedule", Schedule), ("train", Training)):
        keys += [f"{name}.{key}" for key in part.model_fields]
    return keys


def parse_value(text: str) -> Any:
    """The value of a `key=value` word: JSON where it is JSON (numbers, true, null, lists), a number, or the text."""
    try:
        return json.loads(text, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        return text


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """`["steps=200", "model.d_model=64"]` as nested data. Raises InputError for a word that is not `key=value`."""
    flat: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InputError(f"{word!r} is not of the form key=value", hint="such as steps=200 or model.d_model=64")
        if key in flat:
            raise InputError(f"the key {key!r} is given twice")
        flat[key] = parse_value(text)
    return unfold(flat, "the command line")


def unfold(flat: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Dotted keys as nested mappings: {"model.d_model": 64} -> {"model": {"d_model": 64}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        level = nested
        for part in path:
            below = level.setdefault(part, {})
            if not isinstance(below, dict):
                raise InputError(f"{key!r} in {where} goes below {part!r}, which is a value")
            level = below
        if isinstance(value, Mapping) and isinstance(level.get(last), dict):
            level[last] = merge(level[last], value)
        elif last in level:
            raise InputError(f"the key {key!r} is given twice in {where}")
        else:
            level[last] = dict(value) if isinstance(value, Mapping) else value
    return nested


def environment() -> dict[str, Any]:
    """What the bits of a run may depend on beside its description: versions, and the processor."""
    import platform

    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
