"""Runs of a sweep in processes of this machine, several at a time; a process is used again for the next run.

Processes of our own and not a ProcessPoolExecutor: there, one process that is killed takes all the others with it.
"""

from __future__ import annotations

import collections
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from icll_zoo import files
from icll_zoo.errors import InputError, Interrupted
from icll_zoo.machine import signals
from icll_zoo.run_folder import check_folder
from icll_zoo.sweeps.board import Board, Job

TICK = 0.25
"""Seconds between two looks at processes that say nothing."""
RUNS_A_GPU = 4
"""Runs that share a GPU unless said: one small model leaves most of it idle. A choice, not a measurement."""


def environment(threads: int) -> dict[str, str]:
    """What a worker inherits: this process's import path, and numpy's libraries held to the threads of a run."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": path}


class Worker:
    """A process that trains, and the job that it is at."""

    def __init__(self, job: Job, scripts: Sequence[str], env: dict[str, str]) -> None:
        with files.disk_faults("log", job.log), job.log.open("ab") as log:
            # A process group of its own: Ctrl-C reaches the sweep alone, which tells each worker once.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "icll_zoo.sweeps.worker", *scripts],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, process_group=0,
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.orders, self.answers = self.process.stdin, self.process.stdout
        os.set_blocking(self.answers.fileno(), False)
        self.rest = b""
        self.job: Job | None = None
        self.leaving = False

    def take(self, job: Job) -> None:
        """Begin with a job. A process that has just died is found dead by whoever waits for its answer."""
        order = {"description": job.resolved.description, "folder": str(job.folder), "log": str(job.log)}
        self.job = job
        with suppress(BrokenPipeError):
            self.orders.write(files.canonical_json(order).encode() + b"\n")
            self.orders.flush()

    def heard(self) -> list[dict[str, Any]]:
        """The answers that have come."""
        data = b""
        with suppress(BlockingIOError):
            while chunk := os.read(self.answers.fileno(), 1 << 16):
                data += chunk
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Let an idle process go."""
        self.leaving = True
        with suppress(BrokenPipeError):
            self.orders.close()

    def end(self) -> None:
        """Whatever it does: ask it to save, wait, and kill it."""
        with suppress(BrokenPipeError):
            self.orders.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.answers.close()


def run_processes(
    jobs: Sequence[Job], board: Board, *, count: int, threads: int, scripts: Sequence[str], retries: int
) -> None:
    """Train the jobs, at most `count` at a time. Raises Interrupted when all that were under way have saved.

    retries: how often a run that failed, but for a wrong description, is tried again.
    """
    env, gpus = environment(threads), visible_gpus(jobs)
    waiting = collections.deque(jobs)
    slots: list[Worker | None] = [None] * min(count, len(jobs))
    told = 0
    with signals(patient=True) as noted, selectors.DefaultSelector() as selector:
        try:
            while waiting or any(worker is not None for worker in slots):
                for slot, worker in enumerate(slots):
                    if worker is None and waiting and not noted:
                        own = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
                        slots[slot] = worker = Worker(waiting[0], scripts, env | own)
                        selector.register(worker.answers, selectors.EVENT_READ)
                    if worker is None or worker.job is not None or worker.leaving:
                        continue
                    if waiting and not noted:
                        worker.take(job := waiting.popleft())
                        board.started(job, pid=worker.process.pid)
                    else:
                        worker.close()
                selector.select(TICK)
                if len(noted) > told:
                    # The first signal lets the runs save, the second does not wait for that.
                    tell(slots, signal.SIGTERM if told == 0 else signal.SIGKILL, board)
                    told = len(noted)
                for slot, worker in enumerate(slots):
                    if worker is None:
                        continue
                    # Looked at before listening: what a process said before it died must not be missed.
                    code = worker.process.poll()
                    for answer in worker.heard():
                        done, worker.job, worker.leaving = worker.job, None, answer["leaving"]
                        assert done is not None
                        if settle(done, answer, board, retries, bool(noted)):
                            waiting.append(done)
                    if code is not None:
                        selector.unregister(worker.answers)
                        worker.end()
                        slots[slot] = None
                        if worker.job is not None and settle(worker.job, died(code), board, retries, bool(noted)):
                            waiting.append(worker.job)
                if noted and not any(worker is not None for worker in slots):
                    break
                board.tick()
        finally:
            for worker in slots:
                if worker is not None:
                    worker.end()
    if noted:
        raise Interrupted(signal.Signals(noted[0]).name, 128 + noted[0])


def settle(job: Job, answer: dict[str, Any], board: Board, retries: int, stopping: bool) -> bool:
    """Tell the board how a job went. Whether it is to be tried again."""
    if answer["event"] != "finished":
        # A process may die, or be told to stop, between writing the result and saying so.
        try:
            result = check_folder(job.resolved)
        except InputError:  # files that the failure left broken
            result = None
        if result is not None:
            answer = {"event": "finished", "result": result}
        elif answer["event"] == "stopped" and not stopping:
            answer = {"event": "failed", "reason": answer["reason"], "again": True}
    if answer["event"] == "finished":
        board.finished(job, answer["result"])
    elif stopping:
        board.stopped(job)
    else:
        again = answer["again"] and job.attempts <= retries
        board.failed(job, answer["reason"], again=again)
        return bool(again)
    return False


def died(code: int) -> dict[str, Any]:
    """What the exit code of a process that died at work says."""
    reason = f"its process ended with exit code {code}"
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        reason = f"its process was killed by {known.get(-code, f'signal {-code}')}"
    if -code == signal.SIGKILL:
        reason += ", as the system does when memory runs out"
    return {"event": "failed", "reason": reason, "again": True}


def tell(slots: Sequence[Worker | None], number: signal.Signals, board: Board) -> None:
    """Send a signal to every process at work; those without work are let go."""
    busy = [worker for worker in slots if worker is not None and worker.job is not None]
    if busy and number == signal.SIGTERM:
        board.say(f"stopping: {len(busy)} runs save first; once more stops at once")
    for worker in slots:
        if worker is not None and worker.process.poll() is None:
            worker.process.send_signal(number)


def visible_gpus(jobs: Sequence[Job]) -> list[str]:
    """The GPUs among which the processes are dealt out, as CUDA_VISIBLE_DEVICES names them; none: leave it as it is.

    Where a description names a GPU by number, all of them see all.
    """
    devices = {job.resolved.description["train"]["device"] for job in jobs}
    if "cuda" not in devices or devices - {"cpu", "cuda"}:
        return []
    import torch

    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = said.split(",") if said else [str(index) for index in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]
