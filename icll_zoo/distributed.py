"""One run in several processes, by plain torch.distributed: how they share a batch, add up, and end together.

    torchrun --nproc-per-node 2 -m icll_zoo train transformer dfa steps=1000

Process r of R takes rows r, r + R, ... of every batch, and all add up their sums, so that an update is that of one
process but for the order of additions. "ddp": every process has the whole model, and the gradients are added once an
update, in one piece; torch's DistributedDataParallel adds them during the backward pass, but once a micro-batch, and
has to be told of parameters that the loss does not reach. "fsdp": each has a part of every parameter and of the
optimizer's state (`torch.distributed.fsdp.fully_shard`).

Only the first process writes. What they tell each other besides tensors is JSON; nothing is pickled.
"""

from __future__ import annotations

import atexit
import datetime
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from icll_zoo.data import Batch
from icll_zoo.errors import EnvironmentFault, InputError, ZooError

T = TypeVar("T")
PATIENCE = datetime.timedelta(minutes=10)
"""How long a process waits for one that neither answers nor closes its connection."""
LEAVING = 5.0
"""Seconds that a process waits at most for its threads before it ends."""
GONE = re.compile("gloo|nccl|peer|timed? ?out|socket", re.IGNORECASE)
"""What torch's collectives speak of when another process is gone."""
SHARDED_OPTIMIZERS = ("adam", "adamw", "nadam", "radam", "sgd", "momentum", "nesterov")
"""Those that treat every element by itself, and so do not notice that they see a part of a parameter."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one run, and which of them this is. Alone, everything here is free and changes nothing."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def rows(self, count: int) -> Tensor:
        """Which of `count` rows are this process's, int64; one of them where there are fewer rows than processes."""
        own = torch.arange(count)[self.rank :: self.size]
        return own if len(own) else torch.zeros(1, dtype=torch.int64)

    def share(self, batch: Batch) -> Batch:
        """This process's rows, with all their padding; where none is left for it, a row that counts for nothing.

        Every process goes through the model as often as the others, as a sharded one can only be gone through together.
        """
        if self.size == 1:
            return batch
        part = batch.take(self.rows(len(batch)))
        return part if self.rank < len(batch) else part.uncounted()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            with self.answering():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up the gradients of a model that every process has whole, those of one type in one piece."""
        if self.size == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in model.parameters():
            if parameter.grad is not None:
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def largest(self, number: int) -> int:
        """The largest of a number that each process has."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        with self.answering():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def gather(self, value: Any) -> list[Any]:
        """What JSON can say, from each process, in their order."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self.answering():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(text)]))
            longest = max(int(size) for size in sizes)
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, nn.functional.pad(text, (0, longest - len(text))))
        return [json.loads(bytes(t[: int(n)].tolist())) for t, n in zip(texts, sizes, strict=True)]

    def together(self, action: Callable[[], T]) -> T:
        """Do something in every process. If it is refused in any, none goes on, and one of them says why.

        Raises what was refused in the first process, or there an EnvironmentFault about another one; in the others
        SystemExit with the same exit code.
        """
        if self.size == 1:
            return action()
        value, fault = None, None
        try:
            value = action()
        except ZooError as error:
            fault = error
        faults = self.gather(None if fault is None else [fault.exit_code, str(fault)])
        refused = [(rank, *found) for rank, found in enumerate(faults) if found is not None]
        if refused:
            rank, code, message = refused[0]
            if not self.first:
                raise SystemExit(code)
            raise fault or (InputError if code == 2 else EnvironmentFault)(f"process {rank}: {message}")
        return value  # type: ignore[return-value]  # what `action` gave

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Say in one line that another process is gone, where torch's collectives speak of sockets."""
        try:
            yield
        except RuntimeError as error:
            gone = isinstance(error, dist.DistError) or GONE.search(str(error)) is not None
            if self.size == 1 or not gone:
                raise
            raise EnvironmentFault(
                f"process {self.rank} of {self.size}: another process of this run ended or does not answer",
                hint="the same command goes on from the last checkpoint",
            ) from error


ALONE = Ranks()


def launched() -> int:
    """The number of processes that torchrun started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the one that speaks for its run."""
    return launched() == 1 or os.environ.get("RANK") == "0"


def join(device: str) -> Ranks:
    """Meet the other processes that torchrun started, once for all runs of this process; without it this one is alone.

    A group of the caller's own is taken as it is.
    """
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    if launched() == 1:
        return ALONE
    # Small facts travel beside a GPU's own traffic, so that asking for them does not wait for it.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    atexit.register(leave)
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Part from the other processes, and wait until no thread of gloo's is at work; called at the interpreter's end.

    Caches of fully_shard keep the group, and so its threads, alive. One that drops the last reference to a tensor
    while the interpreter ends is ended by it, before Python 3.14, in a way that aborts the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    deadline = time.monotonic() + LEAVING
    quiet = 0
    # Twice in a row: at the first look a thread may wait for the interpreter, which sleeping lets it have.
    while quiet < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
        quiet = 0 if "R" in gloo_states() else quiet + 1


def gloo_states() -> list[str]:
    """What each of gloo's threads in this process does, as Linux tells it ("R": runs or could); elsewhere nothing."""
    states = []
    for stat in Path("/proc/self/task").glob("*/stat"):
        with suppress(OSError):  # it ended meanwhile
            name, _, rest = stat.read_text().rpartition(")")
            if "gloo" in name:
                states.append(rest.split()[0])
    return states


def local_device(device: str, ranks: Ranks) -> torch.device:
    """The device of this process: with several processes a GPU each, counted on each machine."""
    if device != "cuda" or ranks.size == 1:
        return torch.device(device)
    found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(found)
    return found


def shard(model: nn.Module, optimizer: str, device: torch.device) -> None:
    """Leave this process its part of every parameter: block by block where a model has `blocks`, and the rest.

    Raises InputError for an optimizer that has to see whole parameters.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if optimizer not in SHARDED_OPTIMIZERS:
        raise InputError(
            f"optimizer.name={optimizer} has to see whole parameters, and train.parallel=fsdp cuts them",
            hint=f"train.parallel=ddp, or one of {', '.join(SHARDED_OPTIMIZERS)}",
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = getattr(model, "blocks", None)
    for block in blocks if isinstance(blocks, nn.ModuleList) else ():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be cut over processes; all of them have to ask for it."""
    # Asked by its method, as importing DTensor takes longer than many a run.
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def cut_as(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut over processes as another of its shape is, if that one is."""
    if not hasattr(like, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
