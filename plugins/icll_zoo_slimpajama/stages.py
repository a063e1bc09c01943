"""The stages of a preparation as steps of datatrove, which runs them on this machine's cores, on Slurm or on Ray.

What is done is known by the corpus's own folder and not by datatrove's record of completed tasks, so that the same
command goes on after any kill and under any executor. On a cluster that folder lies on a file system that all see.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Read when these libraries are first used, here and in every process that imports this module to unpickle a step:
# datatrove logs at DEBUG, processes are as many as there are cores already, each fetches a file at a time, and a corpus
# would go through hf_xet's cache once and for nothing.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")

import multiprocess
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from icll_zoo import InputError
from icll_zoo_slimpajama import prepare
from icll_zoo_slimpajama.layout import name_of

EXECUTORS = ("local", "slurm", "ray")
MOST_JOBS = 1000
"""Of a Slurm array, as most clusters are set up; tasks beyond that share jobs."""
_encoders: dict[str, Any] = {}


class Stage(PipelineStep):
    """One stage; task `rank` of `world_size` does its share of the files, `work(folder, index)` each."""

    type = "text"

    def __init__(self, output: str, indices: list[int], keep: bool = False) -> None:
        super().__init__()
        self.output, self.indices, self.keep = output, indices, keep

    def work(self, output: Path, index: int) -> None:
        raise NotImplementedError

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        for index in self.indices[rank::world_size]:
            self.work(Path(self.output), index)
            self.stat_update("files")
        yield from ()


class Scan(Stage):
    name = "scan"

    def work(self, output: Path, index: int) -> None:
        prepare.scan_file(output, index, self.keep)


class Duplicates(Stage):
    name = "duplicates"

    def work(self, output: Path, index: int) -> None:
        prepare.find_duplicates(output)


class Tokenize(Stage):
    name = "tokenize"

    def work(self, output: Path, index: int) -> None:
        # Once a process: its words are remembered from file to file.
        if self.output not in _encoders:
            _encoders[self.output] = prepare.open_encoder(output)
        prepare.tokenize_file(output, index, _encoders[self.output], self.keep)


class Finish(Stage):
    name = "finish"

    def work(self, output: Path, index: int) -> None:
        prepare.finish(output)


class Local(LocalPipelineExecutor):
    """datatrove's own, which logs to its folder alone: the terminal gets one line of the first failure."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):  # where it would log every traceback too
            return super()._run_for_rank(rank, local_rank, node_rank)


def missing(output: Path, count: int, folder: str, suffix: str = "") -> list[int]:
    """The files whose part of a stage is not done."""
    return [i for i in range(count) if not (output / folder / f"{name_of(i)}{suffix}").exists()]


def run(
    output: Path,
    executor: str,
    workers: int,
    options: Mapping[str, Any],
    say: Callable[[str], None] = lambda line: None,
    keep: bool = False,
) -> bool:
    """Run what is missing of all stages. Whether it is finished: on Slurm it is queued, and goes on by itself.

    workers: processes, or tasks at a time. options: further arguments of datatrove's executor (partition, time, ...).
    keep: whether files of the Hub stay on the disk.
    """
    count = len(prepare.read_plan(output)["files"])
    shared = str(output.resolve())
    stages: list[tuple[type[Stage], list[int]]] = [
        (Scan, missing(output, count, "scan", ".json")),
        (Duplicates, [0] if not (output / "duplicates.json").exists() else []),
        (Tokenize, missing(output, count, "shards")),
        (Finish, [0]),
    ]
    before = None
    for kind, indices in stages:
        if not indices:
            continue
        say(f"{kind.name}: {len(indices)} of {count} files" if kind in (Scan, Tokenize) else f"{kind.name}")
        if executor == "local" and len(indices) == 1:
            kind(shared, indices, keep).work(Path(shared), indices[0])  # no pool for one task
            continue
        before = executor_of(executor, kind(shared, indices, keep), workers, options, before)
        if executor != "slurm":
            before.run()
    if executor == "slurm" and before is not None:
        before.run()
        return False
    return True


def executor_of(executor: str, step: Stage, workers: int, options: Mapping[str, Any], before: Any) -> Any:
    """datatrove's executor for one stage. InputError for options that it does not take, or for a missing package."""
    tasks = len(step.indices)
    common = {"tasks": tasks, "logging_dir": str(Path(step.output) / "logs" / step.name), "skip_completed": False}
    try:
        if executor == "slurm":
            from datatrove.executor import SlurmPipelineExecutor

            own = {"workers": workers, "tasks_per_job": -(-tasks // MOST_JOBS), "job_name": f"text-{step.name}"}
            return SlurmPipelineExecutor([step], depends=before, **{**common, **own, **options})
        if executor == "ray":
            import ray
            from datatrove.executor.ray import RayPipelineExecutor

            ray.init(ignore_reinit_error=True)  # RAY_ADDRESS says where, as always
            return RayPipelineExecutor([step], **{**common, "workers": workers, **options})
        # The server that workers are forked from imports once what each of them needs.
        multiprocess.set_forkserver_preload([__name__])
        return Local([step], **{**common, "workers": min(workers, tasks), **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"the {executor} executor says: {error}", hint="cluster.KEY=VALUE are its options") from error
    except ImportError as error:
        raise InputError(f"the {executor} executor needs a package: {error}", hint=f"pip install {executor}") from error
