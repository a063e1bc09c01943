"""The process that trains runs of a sweep, one after the other: `python -m icll_zoo.sweeps.worker [SCRIPT]...`.

It is told what to do by lines of JSON on stdin and answers by lines of JSON on what was stdout; what a run prints goes
to that run's log. When stdin ends while it trains, whoever started it is dead, by whatever way: it saves and leaves.
"""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from icll_zoo.errors import InputError, Interrupted, ZooError
from icll_zoo.zoo import Zoo, default_zoo

GRACE = 120.0
"""Seconds that a worker without a parent has to save; checkpoints are atomic, so what comes after harms nothing."""


def main() -> None:
    # What a plugin prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=listen, args=(orders, busy), daemon=True).start()
    zoo = default_zoo()
    for script in sys.argv[1:]:
        zoo.load_script(script)
    while (line := orders.get()) is not None:
        order = json.loads(line)
        redirect(order["log"])
        answer = perform(order["description"], order["folder"], zoo)
        busy.clear()
        # A process is used again only after a run that ended well: what a failure leaves behind (memory, a broken CUDA
        # context) and what torch.compile does (it gives up on a function after some recompilations) would reach others.
        answer["leaving"] = answer["event"] != "finished" or order["description"]["train"]["compile"]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer["leaving"]:
            break
        tidy()


def listen(orders: queue.SimpleQueue[bytes | None], busy: threading.Event) -> None:
    """Pass on the lines of stdin. At its end, let a run that is under way save."""
    rest = b""
    # Not sys.stdin: a thread that waits in its buffer would hold a lock that the interpreter takes at exit.
    while data := os.read(0, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            busy.set()  # here and not where it is taken: between the two, nobody would be told of the end
            orders.put(line)
    orders.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(143)


def redirect(log: str) -> None:
    """Send what is printed from here on, by Python or by C, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def perform(description: dict[str, Any], folder: str, zoo: Zoo) -> dict[str, Any]:
    """Train one run to its end, and say how that was: finished, failed or stopped. Raises nothing."""
    from icll_zoo.run import Resolved
    from icll_zoo.training import execute

    try:
        wait_for_lock(Path(folder))
        return {"event": "finished", "result": execute(Resolved(description, Path(folder)), zoo, quiet=False)}
    except (Interrupted, KeyboardInterrupt) as stop:
        return {"event": "stopped", "reason": str(stop)}
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return {"event": "failed", "reason": str(error), "again": not isinstance(error, InputError)}
    except BaseException as error:  # noqa: BLE001  a plugin may raise anything, and the other runs go on
        traceback.print_exc()
        return {"event": "failed", "reason": f"{type(error).__name__}: {error}", "again": True}


def wait_for_lock(folder: Path, seconds: float = GRACE + 10) -> None:
    """Wait while another process holds a run's folder: after a kill, the worker of the sweep before may still save."""
    if not (folder / "lock").exists():
        return
    handle = os.open(folder / "lock", os.O_RDWR)
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.2)
    finally:
        os.close(handle)


def tidy() -> None:
    """Give back the memory of the run before."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
