"""Runs of a sweep as tasks of a Ray cluster whose machines see the sweep's folder under the same path.

Ray places the tasks and notices machines that die; what a run is, and that it goes on from its checkpoint elsewhere, is
ours. Ray core and not Tune: Tune starts a process and imports torch for each trial, and wants checkpoints of its own.
"""

from __future__ import annotations

import collections
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icll_zoo.errors import EnvironmentFault, Interrupted, printable
from icll_zoo.machine import signals
from icll_zoo.sweeps.board import Board, Job
from icll_zoo.sweeps.processes import RUNS_A_GPU, TICK, environment, settle

DEATHS = 3
"""How often the process or machine under a run may die before the run itself is suspected of it."""

loaded: set[str] = set()
"""The scripts that this process, a worker of Ray's, has run."""


def train_one(order: dict[str, Any]) -> dict[str, Any]:
    """The task: one run to its end, in the folder that the order names; see `worker.perform`."""
    from icll_zoo.sweeps.worker import perform, redirect, tidy
    from icll_zoo.zoo import default_zoo

    if not Path(order["folder"]).parent.is_dir():
        reason = f"{order['folder']!r} is not on a file system that all machines of the cluster share"
        return {"event": "failed", "reason": reason, "again": False}
    before = [os.dup(1), os.dup(2)]
    redirect(order["log"])
    try:
        if Path(order["cwd"]).is_dir():
            os.chdir(order["cwd"])  # where a description's own relative paths begin
        zoo = default_zoo()
        for script in order["scripts"]:
            if script not in loaded:
                zoo.load_script(script)
                loaded.add(script)
        answer = perform(order["description"], order["folder"], zoo)
        tidy()
        return answer
    finally:
        for number, handle in enumerate(before, 1):
            os.dup2(handle, number)
            os.close(handle)


def connect(address: str | None, threads: int) -> Any:
    """The module ray, connected. Nothing is reported to anybody outside.

    Raises EnvironmentFault if there is no cluster at the address.
    """
    # Read by ray when it is imported and by the processes that it starts.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    inherited = environment(threads)
    ours = ("PYTHONPATH", "OMP_NUM_THREADS", *(name for name in inherited if name.startswith("ICLL_ZOO_")))
    runtime = {"env_vars": {name: inherited[name] for name in ours}}
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():  # ray itself tries for minutes
            socket.create_connection((host, int(port)), 10).close()
        ray.init(address=address, runtime_env=runtime, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        message = f"no Ray cluster at {address!r}: {printable(first, 200)}"
        raise EnvironmentFault(message, hint="see `ray start`") from error
    return ray


def run_ray(
    jobs: Sequence[Job],
    board: Board,
    *,
    count: int | None,
    address: str | None,
    threads: int,
    scripts: Sequence[str],
    retries: int,
) -> None:
    """Train the jobs wherever the cluster has room, at most `count` at a time. Raises Interrupted after saving."""
    ray = connect(address, threads)
    try:
        with signals(patient=True) as noted:
            Tasks(ray, board, scripts, retries).run(jobs, count, noted)
        if noted:
            raise Interrupted(signal.Signals(noted[0]).name, 128 + noted[0])
    finally:
        ray.shutdown()


class Tasks:
    """The tasks that are under way."""

    def __init__(self, ray: Any, board: Board, scripts: Sequence[str], retries: int) -> None:
        self.ray, self.board, self.retries = ray, board, retries
        self.scripts = [str(Path(script).resolve()) for script in scripts]
        self.jobs: dict[Any, Job] = {}  # by the reference to the task's answer
        self.deaths: collections.Counter[str] = collections.Counter()

    def run(self, jobs: Sequence[Job], count: int | None, noted: list[int]) -> None:
        waiting, told = collections.deque(jobs), 0
        while self.jobs or (waiting and not noted):
            while waiting and not noted and self.room(waiting[0]) and (count is None or len(self.jobs) < count):
                self.submit(waiting.popleft())
            if len(noted) > told:
                if told == 0:
                    self.board.say(f"stopping: {len(self.jobs)} runs save first; once more stops at once")
                for reference in self.jobs:
                    # Without force, Ray raises what Ctrl-C would in the process, and the trainer saves.
                    self.ray.cancel(reference, force=told > 0)
                told = len(noted)
            ready: list[Any] = []
            if self.jobs:
                ready, _ = self.ray.wait(list(self.jobs), timeout=TICK)
            else:
                time.sleep(TICK)  # no machine has room yet
            for reference in ready:
                job = self.jobs.pop(reference)
                if self.ended(job, reference, bool(noted)):
                    waiting.append(job)
            self.board.tick()

    def room(self, job: Job) -> bool:
        """Whether the machines that the cluster has now have room for one more: what is submitted, runs."""
        cpus = sum(needs(other)["num_cpus"] for other in [*self.jobs.values(), job])
        gpus = sum(needs(other)["num_gpus"] for other in [*self.jobs.values(), job])
        has = self.ray.cluster_resources()
        return bool(cpus <= has.get("CPU", 0) and gpus <= has.get("GPU", 0))

    def submit(self, job: Job) -> None:
        settings = job.resolved.description["train"]
        order = {
            "description": job.resolved.description,
            "folder": str(job.folder.resolve()),
            "log": str(job.log.resolve()),
            "cwd": str(Path.cwd()),
            "scripts": self.scripts,
        }
        # A process is used again only where nothing of a run stays in it: see `worker.main`.
        calls = 0 if settings["device"] == "cpu" and not settings["compile"] else 1
        task = self.ray.remote(max_calls=calls, max_retries=0, **needs(job))(train_one)
        self.jobs[task.remote(order)] = job
        self.board.started(job)

    def ended(self, job: Job, reference: Any, stopping: bool) -> bool:
        """Settle the job whose task is over. Whether it is to be tried again."""
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.TaskCancelledError:
            answer = {"event": "stopped", "reason": "cancelled"}
        except self.ray.exceptions.RayTaskError as error:
            answer = {"event": "failed", "reason": printable(error.cause), "again": True}
        except self.ray.exceptions.RayError as error:
            self.deaths[job.resolved.hash] += 1
            reason = f"its process or machine died ({type(error).__name__})"
            if not stopping and self.deaths[job.resolved.hash] < DEATHS:
                self.board.failed(job, reason, again=True)
                return True
            answer = {"event": "failed", "reason": f"{reason}, {self.deaths[job.resolved.hash]} times", "again": False}
        return settle(job, answer, self.board, self.retries, stopping)


def needs(job: Job) -> dict[str, float]:
    """What a run takes of a machine."""
    settings = job.resolved.description["train"]
    if settings["device"].startswith("cuda"):
        return {"num_cpus": 1, "num_gpus": 1 / RUNS_A_GPU}
    return {"num_cpus": settings["threads"], "num_gpus": 0}
