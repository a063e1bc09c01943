"""What one update does: the mean loss over the targets of its whole batch, backwards, clipped, and one step.

    loss = sum of cross-entropy over the targets of all micro-batches of all processes / their number

Nothing here waits for a GPU: what is measured stays there until somebody reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo.data import IGNORED, Batch, Dataset, passes
from icll_zoo.distributed import Ranks, shard, whole
from icll_zoo.dropout import adopt, masks
from icll_zoo.evaluation import loss_sum
from icll_zoo.optimizers import create_optimizer, create_schedule


@dataclass(frozen=True)
class Work:
    """The batch of one update as this process needs it.

    parts: tokens (b, l), targets (b, l) and the rows' numbers in the whole batch (b,), one entry a micro-batch.
    targets, read: of all processes, the targets in the loss and the tokens. groups: (n,) languages or documents.
    """

    parts: list[tuple[Tensor, Tensor, Tensor]]
    targets: int
    read: int
    groups: Tensor


def prepare(dataset: Dataset, settings: dict[str, Any], seed: int, ranks: Ranks, pin: bool, update: int) -> Work:
    """The batch of an update: a function of its number. pin: lay it where a GPU can fetch it by itself."""
    size, count, multiple = settings["batch_size"], settings["accumulate"], settings["pad_to"]
    batches = [dataset.batch("train", update * count + part, size, seed) for part in range(count)]
    if multiple is not None:
        batches = [widened(batch, multiple, getattr(dataset, "max_length", None), dataset.pad_id) for batch in batches]
    parts = []
    for part, batch in enumerate(batches):
        mine = ranks.share(batch)
        tensors = (mine.tokens, mine.targets, ranks.rows(len(batch)) + part * size)
        parts.append(tuple(t.pin_memory() for t in tensors) if pin else tensors)
    return Work(
        parts,  # type: ignore[arg-type]  # three tensors each
        targets=sum(int((batch.targets != IGNORED).sum()) for batch in batches),
        read=sum(int(batch.valid.sum()) for batch in batches),
        groups=torch.cat([batch.group for batch in batches]),
    )


def widened(batch: Batch, multiple: int, longest: int | None, pad_id: int) -> Batch:
    """The same rows padded to a multiple of so many tokens, but not to more than `longest`. Extra tensors are left out.

    What is compiled, or recorded as a CUDA graph, once for every shape then meets few of them.
    """
    length = batch.tokens.size(1)
    wanted = passes(length, multiple) * multiple
    more = max(0, (wanted if longest is None else min(wanted, longest)) - length)
    return Batch(
        tokens=F.pad(batch.tokens, (0, more), value=pad_id),
        targets=F.pad(batch.targets, (0, more), value=IGNORED),
        valid=F.pad(batch.valid, (0, more), value=False),
        group=batch.group,
    )


class Ahead:
    """Gives the work of one update after the other; with `ahead`, the next is made while this one is worked on."""

    def __init__(self, make: Callable[[int], Work], ahead: bool) -> None:
        self.make = make
        self.pool = ThreadPoolExecutor(1, "batches") if ahead else None
        self.coming: tuple[int, Future[Work]] | None = None

    def take(self, update: int) -> Work:
        """The work of an update."""
        coming, self.coming = self.coming, None
        work = coming[1].result() if coming is not None and coming[0] == update else self.make(update)
        if self.pool is not None:
            self.coming = update + 1, self.pool.submit(self.make, update + 1)
        return work

    def settle(self) -> None:
        """Until nothing is being made: a dataset is asked for one thing at a time."""
        if self.coming is not None:
            self.coming[1].exception()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


class Updates:
    """A model, its optimizer, its schedule and perhaps the average of its weights, going through updates.

    model: as the zoo built it, on a CPU; it is moved, cast and perhaps cut over the processes.
    """

    def __init__(self, model: nn.Module, description: dict[str, Any], device: torch.device, ranks: Ranks) -> None:
        settings = description["train"]
        self.device, self.ranks, self.seed = device, ranks, description["seed"]
        self.bf16, self.clip = settings["precision"] == "bf16", description["optimizer"]["clip"]
        self.sharded = ranks.size > 1 and settings["parallel"] == "fsdp"
        self.model = model.to(device, torch.float64 if settings["precision"] == "fp64" else None)
        self.layers = adopt(self.model)
        self.ema = None
        if settings["ema"] is not None:
            from timm.utils import ModelEmaV3

            # Parameters are averaged once each; with its buffers timm would average tied weights twice.
            self.ema = ModelEmaV3(self.model, decay=settings["ema"], exclude_buffers=True)
        if self.sharded:
            for sharded in (self.model, *([self.ema.module] if self.ema is not None else [])):
                shard(sharded, description["optimizer"]["name"], device)
        self.forward = compiled(self.model, settings["compile"])
        self.optimizer = create_optimizer(description["optimizer"], self.model, fused=device.type == "cuda")
        lr = description["optimizer"]["lr"]
        self.schedule = create_schedule(description["schedule"], description["steps"], lr, self.optimizer)
        # A fused optimizer leaves out on the device an update that is not finite; of another one has to ask first.
        self.deferred = device.type == "cuda" and all(group.get("fused") for group in self.optimizer.param_groups)

    @property
    def averaged(self) -> nn.Module:
        """The model that is measured and kept: the average of the weights if there is one."""
        return self.model if self.ema is None else self.ema.module

    def make(self, update: int, work: Work) -> Tensor:
        """One update; (2,) float64 on the device, the summed loss and the gradient's norm before it was clipped.

        If they are not finite, the weights are left as they were.
        """
        self.schedule.step_update(update)
        self.optimizer.zero_grad()
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        # fully_shard takes the mean over processes, where the loss is a sum.
        scale = max(work.targets, 1) / (self.ranks.size if self.sharded else 1)
        with self.ranks.answering():
            for part, tensors in enumerate(work.parts):
                tokens, targets, rows = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
                torch.manual_seed(generator_seed(self.seed, update, part, self.ranks.rank))
                with (
                    torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
                    masks(self.layers, self.seed, update, rows),
                ):
                    output = self.forward(tokens)
                loss = loss_sum(output, targets, getattr(self.model, "output", "logits"))
                (loss / scale).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            if not self.sharded:
                self.ranks.sum_gradients(self.model)
            total = self.ranks.sum(total)
            limit = math.inf if self.clip is None else self.clip
            norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        measured = torch.stack([total, norm.double()])
        if self.deferred:
            self.optimizer.found_inf = (~measured.isfinite().all()).float()  # type: ignore[attr-defined]
        elif not measured.isfinite().all():
            return measured
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        return measured


def compiled(model: nn.Module, setting: bool | str) -> Any:
    """A model as `train.compile` says: as it is, compiled, or compiled in a mode of torch.compile's."""
    if not setting:
        return model
    return torch.compile(model, mode=None if setting is True else setting)


def generator_seed(seed: int, update: int, part: int, rank: int) -> int:
    """A seed of its own for torch's generator in every micro-batch and process: for what draws from it by itself."""
    words = seed * 0x9E3779B97F4A7C15 + update * 0xBF58476D1CE4E5B9 + part * 0x94D049BB133111EB
    return (words + rank * 0xD6E8FEB86659FD93 + 1) % 2**63
