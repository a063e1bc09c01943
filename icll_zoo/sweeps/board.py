"""The runs of a sweep while it is under way: where each stands, and what a person sees of that.

A run's place is read from the log in its folder, so it does not matter in which process or on which machine it trains.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from icll_zoo.errors import printable
from icll_zoo.progress import clock
from icll_zoo.run import Resolved
from icll_zoo.run_folder import LOG
from icll_zoo.sweeps.ledger import Ledger

Status = Literal["waiting", "running", "finished", "failed", "stopped"]
TAIL = 4096  # bytes of a log's end, in which its last lines are


@dataclass(eq=False)
class Job:
    """A run of a sweep. varied: what it says of the keys in which the runs differ. step, loss: as last seen."""

    resolved: Resolved
    label: str
    varied: dict[str, Any] = field(default_factory=dict)
    status: Status = "waiting"
    result: dict[str, Any] | None = None
    reason: str | None = None
    attempts: int = 0
    step: int = 0
    loss: float | None = None
    began: float = 0.0
    first: int | None = None  # the step at which this session found it

    @property
    def folder(self) -> Path:
        return self.resolved.output

    @property
    def log(self) -> Path:
        """What the run prints; beside its folder, which holds nothing but the run."""
        return self.folder.parent.parent / "logs" / f"{self.folder.name}.txt"

    @property
    def steps(self) -> int:
        steps: int = self.resolved.description["steps"]
        return steps

    def look(self) -> None:
        """Read step and loss from the end of the run's log."""
        try:
            with (self.folder / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                lines = file.read().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                values = json.loads(line)
                self.step = values["step"]
                self.loss = values.get("loss", self.loss)
            except (ValueError, KeyError, TypeError):  # the cut first line, or one that is being written
                continue
        if self.first is None:
            self.first, self.began = self.step, time.monotonic()

    def left(self) -> float | None:
        """Seconds to its end at the speed so far; None before there is a speed."""
        if self.first is None or self.step <= self.first:
            return None
        return (time.monotonic() - self.began) / (self.step - self.first) * (self.steps - self.step)


class Board:
    """What has happened, told to the ledger and to a person; a context manager. The engines call its methods.

    On a terminal a table that lives; elsewhere a line for each event and a summary every `plain_every` seconds.
    """

    def __init__(self, jobs: list[Job], ledger: Ledger, *, quiet: bool = False, plain_every: float = 30.0) -> None:
        self.jobs, self.ledger, self.quiet, self.plain_every = jobs, ledger, quiet, plain_every
        self.began = self.shown = time.monotonic()
        self.looked = 0.0
        self.live: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            # Refreshed by `tick` and by nothing else: no second thread reads the jobs.
            self.live = Live(
                get_renderable=self.render, console=Console(stderr=True), auto_refresh=False, transient=True
            )

    def __enter__(self) -> Board:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    # -- what the engines tell ---------------------------------------------------------------------------------

    def started(self, job: Job, **where: Any) -> None:
        job.status, job.attempts, job.first = "running", job.attempts + 1, None
        job.look()
        self.ledger.add("start", run=job.resolved.hash, folder=job.folder.name, attempt=job.attempts, **where)
        self.say(f"started   {job.label}" + (f" from step {job.step}" if job.step else ""), only_plain=True)

    def finished(self, job: Job, result: dict[str, Any]) -> None:
        job.status, job.result, job.reason = "finished", result, None
        job.step = job.steps
        self.ledger.add("finish", run=job.resolved.hash, folder=job.folder.name, seconds=result["seconds"])
        loss = result["validation_loss"]
        shown = "-" if loss is None else f"{loss:.4f}"
        self.say(f"finished  {job.label}  validation loss {shown}  {clock(result['seconds'])}")

    def failed(self, job: Job, reason: str, *, again: bool) -> None:
        """again: it will be tried once more."""
        reason = printable(reason)
        job.status, job.reason = "waiting" if again else "failed", reason
        self.ledger.add("fail", run=job.resolved.hash, folder=job.folder.name, reason=reason, attempt=job.attempts)
        self.say(f"failed    {job.label}: {reason}" + ("; it is tried again" if again else ""))

    def stopped(self, job: Job) -> None:
        job.status = "stopped"
        names = (path.name.removeprefix("step-") for path in (job.folder / "checkpoints").glob("step-*"))
        job.step = max((int(name) for name in names if name.isdecimal()), default=0)  # where it will go on
        self.ledger.add("stop", run=job.resolved.hash, folder=job.folder.name, step=job.step)
        self.say(f"stopped   {job.label} at step {job.step} of {job.steps}")

    # -- what a person sees ------------------------------------------------------------------------------------

    def say(self, line: str, *, only_plain: bool = False) -> None:
        """A line of its own, above the table."""
        if self.quiet or (only_plain and self.live is not None):
            return
        if self.live is not None:
            self.live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def tick(self) -> None:
        """Look at the running runs and show where they stand; called often, does so twice a second."""
        now = time.monotonic()
        if now - self.looked < 0.5:
            return
        self.looked = now
        for job in self.jobs:
            if job.status == "running":
                job.look()
        if self.live is not None:
            self.live.refresh()
        elif now - self.shown >= self.plain_every:
            self.shown = now
            self.say(self.summary())

    def summary(self) -> str:
        """How many runs are where, and the time left."""
        counts = [f"{n} {s}" for s in ("finished", "failed", "running", "waiting", "stopped") if (n := self.count(s))]
        left = self.left()
        time_left = "time left unknown" if left is None else f"{clock(left)} left"
        return f"{', '.join(counts)} of {len(self.jobs)} runs, {time_left}"

    def count(self, status: str) -> int:
        return sum(job.status == status for job in self.jobs)

    def left(self) -> float | None:
        """Seconds until all is done, at the updates a second of all runs together so far."""
        made = sum(job.step - job.first for job in self.jobs if job.first is not None)
        to_make = sum(job.steps - job.step for job in self.jobs if job.status in ("running", "waiting"))
        return (time.monotonic() - self.began) / made * to_make if made else None

    def render(self) -> Any:
        """The table of the runs that are under way, and the summary below it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("run", no_wrap=True, max_width=48)
        table.add_column("")
        for name in ("step", "loss", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for job in self.jobs:
            if job.status == "running":
                left = job.left()
                table.add_row(
                    Text(job.label, overflow="ellipsis"),
                    ProgressBar(job.steps, job.step, width=24),
                    f"{job.step}/{job.steps}",
                    "-" if job.loss is None else f"{job.loss:.4f}",
                    "-" if left is None else clock(left),
                )
        return Group(table, Text(self.summary(), style="bold"))
