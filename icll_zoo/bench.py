"""How fast architectures are, side by side: tokens/s of a forward pass, an update and generation, memory, and MFU.

    rows, facts = bench(["transformer-rope", "gla"], lengths=[512], train=Training(batch_size=8, threads=1))

A model that fails a check of the conformance kit is not timed: a wrong one can be as fast as it likes. The others take
turns in one process, so that whatever else the machine does meets all of them; ratios are taken within a turn. Peak
memory is that of a fresh process for each row. A peer of another library takes part once a script registers it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from icll_zoo import flops
from icll_zoo.distributed import Ranks
from icll_zoo.errors import EnvironmentFault, InputError, UnknownName, ZooError
from icll_zoo.generation import stream
from icll_zoo.machine import glibc, is_out_of_memory, machine
from icll_zoo.run import Optimizer, Schedule, Training, model_options, resolve_machine
from icll_zoo.testing.runner import process_zoo, processes, run_all
from icll_zoo.updates import Updates, Work, compiled
from icll_zoo.weights import count_parameters
from icll_zoo.zoo import Vocabulary, Zoo, default_zoo

What = Literal["forward", "step", "generate"]
WHATS: tuple[What, ...] = get_args(What)
TURN_S = 0.2
"""Seconds of a turn at least: what is shorter is repeated within it."""
USED = ("batch_size", "precision", "compile", "device", "threads")
"""The settings of training that a benchmark has a use for."""
STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Case:
    """What is timed of one model; everything that a fresh process must be told to do the same."""

    name: str
    what: What
    length: int
    options: dict[str, Any]
    train: dict[str, Any]
    optimizer: dict[str, Any]
    vocab_size: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of one call: those that are read, or those that are generated."""
        return int(self.train["batch_size"]) * (self.new_tokens if self.what == "generate" else self.length)

    def __str__(self) -> str:
        return f"{self.what} of {self.name!r} at {self.train['batch_size']} x {self.length} tokens"


def bench(
    names: Sequence[str],
    lengths: Sequence[int] = (512,),
    whats: Sequence[What] = WHATS,
    *,
    model: Mapping[str, Any] | None = None,
    train: Training | None = None,
    optimizer: Optimizer | None = None,
    vocab_size: int = 20,
    new_tokens: int = 32,
    rounds: int = 7,
    zoo: Zoo | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Check the models, time them in turns; a row for each name, length and what is timed, and facts of the machine.

    model: options of every architecture. train: batch_size, precision, compile, device and threads are used.
    whats: "forward", without gradients; "step", an update as the trainer makes it; "generate", `new_tokens` tokens
        after a prompt of the length, its reading not counted.
    said: is told what happens now. Rows hold tokens/s (median and quartiles of the rounds), seconds a call, how many
    times as fast as the first name (quartiles likewise), bytes of peak memory, MFU, parameters.
    Raises InputError for options that do not fit, ZooError for a model that fails its checks.
    """
    zoo, train, optimizer = zoo or default_zoo(), train or Training(), optimizer or Optimizer()
    for label, count in (("lengths", min(lengths, default=0)), ("rounds", rounds), ("new_tokens", new_tokens)):
        if count < 1:
            raise InputError(f"a benchmark of {label} {count}", hint="at least 1")
    settings = {**train.model_dump(), **resolve_machine(train)}
    device = torch.device(settings["device"])
    cases = []
    for what in whats:
        for length in lengths:
            longest = length + (new_tokens if what == "generate" else 0)
            for name in names:
                options = model_options(zoo, name, model or {}, longest)
                zoo.resolve_model(name, options)
                sizes = settings, optimizer.model_dump(), vocab_size, new_tokens
                cases.append(Case(name, what, length, options, *sizes))
    if "step" in whats:
        refuse_what_does_not_learn([case for case in cases if case.what == "step"][: len(names)], zoo)
    refuse_what_fails(names, zoo, device.type == "cuda", said)
    rows: list[dict[str, Any]] = []
    others = watch_others()
    with machine(settings, device):
        for first in range(0, len(cases), len(names)):
            together = cases[first : first + len(names)]
            said(f"{together[0].what} at length {together[0].length}")
            rows += time_together(together, rounds, zoo, device)
    busy = others()
    said(f"memory, in {len(rows)} processes one after the other")
    for row, case in zip(rows, cases, strict=True):
        row["peak_memory"] = memory_apart(case, zoo)
    return rows, {**facts_of(device, settings), "cores_used_by_others": round(busy, 2)}


def refuse_what_does_not_learn(cases: Sequence[Case], zoo: Zoo) -> None:
    for case in cases:
        with torch.random.fork_rng([]):
            built = build(case, zoo)
        if not count_parameters(built):
            raise InputError(f"{case.name!r} has no parameters, so there is no step to time", hint="--what forward")


def refuse_what_fails(names: Sequence[str], zoo: Zoo, gpu: bool, said: Callable[[str], None]) -> None:
    for name in names:
        said(f"checking {name}")
        (report,) = run_all(zoo, [("model", name)], gpu=gpu)
        if not report.ok:
            reason = report.failures[0].reason
            raise ZooError(f"{name!r} fails its checks, so it is not timed: {reason}", hint=f"icll-zoo check {name}")


# -- one case ----------------------------------------------------------------------------------------------------------


def build(case: Case, zoo: Zoo) -> nn.Module:
    torch.manual_seed(0)
    return zoo.build_model(zoo.resolve_model(case.name, case.options), Vocabulary(case.vocab_size))


def prepared(case: Case, zoo: Zoo, device: torch.device) -> tuple[nn.Module, Callable[[], float]]:
    """The model, and what does the case once and returns its seconds."""
    built = build(case, zoo)
    size, settings = case.train["batch_size"], case.train
    tokens = torch.randint(case.vocab_size, (size, case.length + 1), generator=torch.Generator().manual_seed(0))
    tokens, targets = tokens[:, :-1].contiguous().to(device), tokens[:, 1:].contiguous().to(device)
    if case.what == "step":
        description = {"seed": 0, "steps": 10**6, "train": settings, "optimizer": case.optimizer}
        updates = Updates(built, {**description, "schedule": Schedule().model_dump()}, device, Ranks())
        numbers = iter(range(10**6))

        def step() -> float:
            # A copy, since a model may know what it worked out for these very ids (the plan of an n-gram head).
            parts = [(tokens.clone(), targets, torch.arange(size))]
            work = Work(parts, tokens.numel(), tokens.numel(), torch.zeros(0))
            return seconds_of(lambda: updates.make(next(numbers), work), device)

        return built, step
    built = built.to(device, torch.float64 if settings["precision"] == "fp64" else None).eval()
    called = compiled(built, settings["compile"])
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16")

    def forward() -> float:
        fresh = tokens.clone()
        with torch.inference_mode(), autocast:
            return seconds_of(lambda: called(fresh), device)

    def generate() -> float:
        with autocast:
            columns = stream(built, tokens, case.new_tokens + 1, seed=0)
            next(columns)  # with the reading of the prompt, which `forward` times
            return seconds_of(lambda: [None for _ in columns], device)

    return built, generate if case.what == "generate" else forward


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


@contextlib.contextmanager
def naming(case: Case) -> Iterator[None]:
    """Say which case ran out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise EnvironmentFault(f"out of memory in the {case}", hint="a smaller train.batch_size") from error
        raise


# -- several in turns --------------------------------------------------------------------------------------------------


def time_together(cases: Sequence[Case], rounds: int, zoo: Zoo, device: torch.device) -> list[dict[str, Any]]:
    """A row a case; in every round each has a turn, and who begins changes."""
    models, calls, counts = [], [], []
    for case in cases:
        with naming(case):
            built, call = prepared(case, zoo, device)
            call()  # what is compiled, planned or allocated once
            counts.append(max(1, math.ceil(TURN_S / call())))
        models.append(built)
        calls.append(call)
    seconds: list[list[float]] = [[] for _ in cases]
    for turn in range(rounds):
        for i in (*range(turn % len(cases), len(cases)), *range(turn % len(cases))):
            with naming(cases[i]):
                seconds[i].append(sum(calls[i]() for _ in range(counts[i])) / counts[i])
    rows = [
        row_of(case, built, own, seconds[0], device) for case, built, own in zip(cases, models, seconds, strict=True)
    ]
    del models, calls, built, call
    gc.collect()
    return rows


def row_of(
    case: Case, model: nn.Module, seconds: Sequence[float], of_first: Sequence[float], device: torch.device
) -> dict[str, Any]:
    low, median, high = quartiles([case.tokens / s for s in seconds])
    times_low, times, times_high = quartiles([a / b for a, b in zip(of_first, seconds, strict=True)])
    # Of an update; a forward pass is one of the passes that it costs, and of generation nobody counts them.
    share = (
        None if case.what == "generate" else flops.share_of_peak(model, case.length, device, case.train["precision"])
    )
    passes = flops.PASSES if case.what == "forward" else 1
    return {
        "name": case.name,
        "what": case.what,
        "batch_size": case.train["batch_size"],
        "length": case.length,
        "precision": case.train["precision"],
        "parameters": count_parameters(model),
        "tokens_per_s": median,
        "tokens_per_s_low": low,
        "tokens_per_s_high": high,
        "seconds": statistics.median(seconds),
        "times": times,
        "times_low": times_low,
        "times_high": times_high,
        "peak_memory": None,
        "mfu": None if share is None else share * median / passes,
        "rounds": len(seconds),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return low, middle, high


# -- memory ------------------------------------------------------------------------------------------------------------


def memory_apart(case: Case, zoo: Zoo) -> int | None:
    """Bytes that a fresh process needs at most for a case: weights, optimizer, activations; None if nobody can say.

    On a GPU those that torch allocated, on a CPU what the kernel counts. A model that is registered in no file, as in
    a notebook, is nothing that another process knows.
    """
    with processes(1, zoo) as pool:
        try:
            return pool.submit(_peak, asdict(case)).result()
        except UnknownName:
            return None


def _peak(told: dict[str, Any]) -> int | None:
    case = Case(**told)
    device = torch.device(case.train["device"])
    # What the C library would keep is not what the model needs.
    with machine({**case.train, "keep_freed": False}, device), naming(case):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        _, call = prepared(case, process_zoo(), device)
        call()  # imports and compiles what it needs, which is not counted; makes the optimizer's state, which is
        if device.type == "cuda":
            call()
            return torch.cuda.max_memory_allocated(device)
        if (trim := glibc("malloc_trim")) is not None:
            trim(0)
        held, more = live_bytes(), growth(call)
        return None if more is None else max(0, held + more)


def live_bytes() -> int:
    """Bytes of every tensor on the CPU that is alive: weights, gradients, what an optimizer keeps."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def growth(call: Callable[[], Any]) -> int | None:
    """Bytes that this process takes at most during a call beyond what it took before; None if the kernel does not say.

    Not ru_maxrss: a child begins with its parent's.
    """
    if not Path("/proc/self/status").exists():
        return None
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = status_bytes("VmRSS")
    call()
    return status_bytes("VmHWM") - before


def status_bytes(key: str) -> int:
    """A line of /proc/self/status, which counts in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


# -- the machine -------------------------------------------------------------------------------------------------------


def facts_of(device: torch.device, settings: Mapping[str, Any]) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    facts = {"device": name, "threads": settings["threads"], "compile": settings["compile"]}
    return {**facts, "torch": torch.__version__, "python": platform.python_version()}


def processor() -> str:
    """The processor's name as the kernel has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def watch_others() -> Callable[[], float]:
    """From now on; what it returns says how many cores other processes have kept busy since.

    The load average, which takes a minute to forget what was before, stands in where the kernel does not say.
    """
    load, busy, own, began = os.getloadavg()[0], busy_seconds(), own_seconds(), time.perf_counter()

    def others() -> float:
        if not STAT.exists():
            return load
        return max(0.0, (busy_seconds() - busy - (own_seconds() - own)) / (time.perf_counter() - began))

    return others


def own_seconds() -> float:
    """CPU seconds of this process and of those it has waited for."""
    return sum(os.times()[:4])


def busy_seconds() -> float:
    """Seconds that the machine's cores have worked since it started, for anybody; 0 where the kernel does not say."""
    if not STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
