"""`python -m icll_zoo`: the command `icll-zoo` where only a module can be named, as under torchrun."""

from __future__ import annotations

import atexit
import os
import sys

from icll_zoo.cli import main


def run() -> None:
    """The command; of several processes, each leaves before torch takes itself apart.

    After a group of processes has been destroyed, torch's own threads abort about one interpreter in sixty while it
    ends ("terminate called without an active exception", torch 2.14, gloo), and torchrun then reports a failure of a
    run whose result is written.
    """
    code = 1  # of what the interpreter itself prints
    if "TORCHELASTIC_RUN_ID" in os.environ:
        atexit.register(lambda: leave(code))  # the first one registered is called last
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise


def leave(code: int) -> None:
    """End the process at once, with all that it has said."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
