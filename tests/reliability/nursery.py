"""A process that has imported everything and forks one child a command line, so that being killed costs no import.

Each line on stdin is JSON: {"words": [...], "said": file for stdout and stderr, "limits": {"RLIMIT_FSIZE": bytes}}.
Answers on stdout: the child's process id when it begins, and its exit code, negative for a signal, when it has ended.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def serve() -> None:

    import icll_zoo.cli
    import icll_zoo.training
    from icll_zoo.zoo import default_zoo

    default_zoo()
    for line in sys.stdin:
        given = json.loads(line)
        pid = os.fork()
        if pid == 0:
            handle = os.open(given["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            for name, limit in given["limits"].items():
                # What is mapped already counts, too.
                mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                most = limit + (mapped if name == "RLIMIT_AS" else 0)
                resource.setrlimit(getattr(resource, name), (most, most))
            sys.argv[1:] = given["words"]
            try:
                icll_zoo.cli.main()
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code if isinstance(end.code, int) else 0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Nursery:
    """The other end: one child at a time. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said.txt"
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def start(self, *words: str, **limits: int) -> int:
        """Begin a command, and give its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"words": words, "said": str(self.said), "limits": limits}) + "\n")
        self.process.stdin.flush()
        return self._number()

    def end(self) -> int:
        """Wait for its end, and give its exit code."""
        return self._number()

    def run(self, *words: str, **limits: int) -> tuple[int, str]:
        """A whole command: its exit code and what it said."""
        self.start(*words, **limits)
        code = self.end()
        return code, self.said.read_text()

    def _number(self) -> int:
        assert self.process.stdout is not None
        line: Any = self.process.stdout.readline()
        assert line, "the nursery is gone"
        return int(line)


if __name__ == "__main__":
    serve()
