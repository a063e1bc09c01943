"""Two ways to do the same, timed in turns in one process: the helper of the benchmarks beside it.

    ratio = compare(fast, slow, target=100)
    report({"n-gram learner": ratio}, {"largest difference": 3e-16})

A ratio is the median over the pairs, with its quartiles; a target is met if the lower quartile meets it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from icll_zoo.bench import quartiles, watch_others


@dataclass(frozen=True)
class Ratio:
    """How many times faster `fast` is: median, lower and upper quartile over the pairs, and what it was taken from.

    fast_s ... cpu_slow_s: medians of wall and CPU seconds of one call.
    load: the machine's one-minute load average, before and after. others: how many cores other processes kept busy.
    """

    median: float
    low: float
    high: float
    fast_s: float
    slow_s: float
    cpu_fast_s: float
    cpu_slow_s: float
    pairs: int
    load: tuple[float, float]
    others: float
    busy: bool
    target: float | None = None
    met: bool | None = None


def compare(
    fast: Callable[[], Any], slow: Callable[[], Any], pairs: int = 7, *,
    target: float | None = None, work: float = 1.0, calls: int = 1, warm_up: bool = True,
) -> Ratio:  # fmt: skip
    """Time both in turns. work: how many times as much one call of `fast` does as one of `slow`. calls: how often
    `fast` is called in its turn, where one call is too short to time."""
    if warm_up:
        fast(), slow()
    load, watch = os.getloadavg()[0], watch_others()
    times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for pair in range(pairs):
        # Who goes first alternates too, so that neither always finds the other's caches.
        for side in (pair % 2, 1 - pair % 2):
            n, wall, cpu = (calls, 1)[side], time.perf_counter(), time.process_time()
            for _ in range(n):
                (fast, slow)[side]()
            times[side].append(((time.perf_counter() - wall) / n, (time.process_time() - cpu) / n))
    others = watch()
    low, median, high = quartiles([work * s[0] / f[0] for f, s in zip(*times, strict=True)])
    medians = [statistics.median(t[kind] for t in side) for kind in (0, 1) for side in times]
    met = None if target is None else low >= target
    return Ratio(median, low, high, *medians, pairs, (load, os.getloadavg()[0]), others, others > 0.25, target, met)


def report(rows: Mapping[str, Ratio], facts: Mapping[str, Any] | None = None) -> None:
    """Print a table and the facts below it; with --json on the command line, one object instead."""
    if "--json" in sys.argv:
        print(json.dumps({"rows": {name: asdict(ratio) for name, ratio in rows.items()}, "facts": facts or {}}))
        return
    for name, r in rows.items():
        verdict = "" if r.target is None else f"  target {r.target:g}x {'met' if r.met else 'MISSED'}"
        print(f"{name}  {r.median:.1f}x [{r.low:.1f}, {r.high:.1f}] of {r.pairs} pairs{verdict}")
        print(f"    fast {1e3 * r.fast_s:.2f} ms (CPU {1e3 * r.cpu_fast_s:.2f}), ", end="")
        print(f"slow {1e3 * r.slow_s:.2f} ms (CPU {1e3 * r.cpu_slow_s:.2f}), ", end="")
        print(f"load {r.load[0]:.2f} -> {r.load[1]:.2f}" + f", BUSY: others used {r.others:.2f} cores" * r.busy)
    for name, fact in (facts or {}).items():
        print(f"{name}: {fact}")
