"""What a person sees of a run: a bar with loss, speed and time left, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """Reports on stderr; a context manager. `quiet` shows nothing but notes that matter.

    plain_every: seconds between plain lines. share: of the chip's peak that one token a second uses, if it is known.
    """

    def __init__(
        self, total: int, start: int = 0, *, quiet: bool = False, plain_every: float = 10.0, share: float | None = None
    ) -> None:
        self.total, self.step, self.quiet, self.plain_every, self.share = total, start, quiet, plain_every, share
        self.began = self.shown = time.perf_counter()
        self.first, self.tokens = start, 0
        self.bar = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("", total=total, completed=start, loss="-", speed="- tokens/s")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    @property
    def speed(self) -> float:
        """Tokens per second of this session."""
        return self.tokens / max(time.perf_counter() - self.began, 1e-9)

    @property
    def mfu(self) -> float | None:
        """The part of the chip's peak that this session's speed is; see flops.py."""
        return None if self.share is None else self.speed * self.share

    @property
    def shown_speed(self) -> str:
        return f"{self.speed:,.0f} tokens/s" + ("" if self.mfu is None else f", {self.mfu:.1%} of peak")

    def advance(self, tokens: int, loss: float) -> None:
        """One update was made, on so many tokens."""
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.update(self.task, advance=1, loss=f"{loss:.4f}", speed=self.shown_speed)
            return
        now = time.perf_counter()
        if now - self.shown >= self.plain_every or self.step == self.total:
            self.shown = now
            left = (now - self.began) / (self.step - self.first) * (self.total - self.step)
            self.say(f"step {self.step}/{self.total}  loss {loss:.4f}  {self.shown_speed}  {clock(left)} left")

    def note(self, line: str) -> None:
        """A line of its own: a validation, say."""
        if not self.quiet:
            self.say(line)

    def say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
