"""What a run asks of the machine it runs on: threads, precision, freed memory, signals, and how its lack shows."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def machine(settings: dict[str, Any], device: torch.device) -> Iterator[torch.device]:
    """Threads, matmul precision and what becomes of freed memory as the description says, and torch's random state,
    all put back afterwards."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    devices = [device] if device.type == "cuda" else []
    try:
        if settings["threads"] is not None:
            torch.set_num_threads(settings["threads"])
        torch.set_float32_matmul_precision("high" if settings["precision"] == "tf32" else "highest")
        kept = settings["keep_freed"] and device.type == "cpu"
        with keeping_freed_memory() if kept else contextlib.nullcontext(), torch.random.fork_rng(devices):
            yield device
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def keeping_freed_memory() -> Iterator[bool]:
    """Let glibc keep what is freed for what comes next, and hand it back at the end; whether it does.

    By itself it gives large freed blocks back to the kernel, which hands them out again page by page, cleared: most of
    the time of an element-wise operation on a large tensor. Another C library is left as it is, and so are settings of
    malloc that the user made.
    """
    mallopt = None if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") else glibc("mallopt")
    if mallopt is None:
        yield False
        return
    set_all(mallopt, {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26})
    try:
        yield True
    finally:
        # Where glibc's own adjustment ends once large blocks were freed; it makes none after it was told anything.
        set_all(mallopt, {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 2**17})
        glibc("malloc_trim")(0)


# Of malloc.h, which has no other form.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4


def glibc(name: str) -> Any:
    """A function of the C library; None where it has none of this name."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # Windows has no library that is None
        return None


def set_all(mallopt: Any, settings: dict[int, int]) -> None:
    for option, value in settings.items():
        mallopt(option, value)


@contextmanager
def signals(patient: bool = False) -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT instead of dying of them. A second SIGINT interrupts at once, unless patient.

    Outside the main thread none is noted: whoever runs us there handles signals.
    """
    noted: list[int] = []

    def note(number: int, _frame: Any) -> None:
        noted.append(number)
        if not patient:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread
        yield noted
        return
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; of a CPU's, torch says so in words only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
