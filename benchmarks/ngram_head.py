"""The n-gram head's attention against its T x T forms: forward and backward, float32, one thread, on a CPU.

    python benchmarks/ngram_head.py [--rows 6,7,8] [--pairs 7] [--order 1] [--mallopt] [--json]

Each side first has to agree with the definition. Our time includes the plan, made anew each time. Peak memory is of a
fresh process each, above what it held with its inputs ready.

published: the T x T form as the paper's reference implementation computes it: 64-bit masks of every order, stacked and
    counted, a float matrix of weights, a product.
lean: our `ngram_attend_reference`, the same with one boolean mask.
--mallopt: tells glibc to keep freed memory instead of handing it back page by page, for every side.

The targets are against the published form. Exits 1 if a side is wrong; a missed target is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from side_by_side import compare, report
from torch import Tensor

from icll_zoo.bench import growth
from icll_zoo.machine import keeping_freed_memory
from icll_zoo_ngram.attention import ngram_attend, ngram_attend_reference
from icll_zoo_ngram.plan import ngram_plan

Side = Callable[[Tensor, Tensor, int], Tensor]
FOR_GOOD = contextlib.ExitStack()

BATCH, VOCAB_SIZE = 4, 20
# row: (T, d, least ratio of time, least ratio of memory)
ROWS = {6: (2048, 128, 30, 8), 7: (2048, 1024, 6, None), 8: (8192, 128, 100, 20)}
SLOPE = 1.15


def ours(h: Tensor, tokens: Tensor, order: int) -> Tensor:
    return ngram_attend(h, ngram_plan(tokens.clone(), order))  # a clone's plan is not known yet


def published(h: Tensor, tokens: Tensor, order: int) -> Tensor:
    length = tokens.size(1)
    earlier = torch.ones(length, length, dtype=torch.bool).tril(-1)
    same = (tokens[:, :, None] == tokens[:, None, :]) & earlier
    masks = [same.long()]
    for _ in range(1, order):
        same = torch.nn.functional.pad(same, (1, -1, 1, -1))
        masks.append(same.long())
    match = torch.stack(masks, -1).sum(-1) >= order
    match = torch.nn.functional.pad(match, (1, -1)) & earlier
    weight = (match / match.sum(-1, keepdim=True)).nan_to_num(0)
    return weight.to(h.dtype) @ h


SIDES: dict[str, Side] = {"ours": ours, "published": published, "lean": ngram_attend_reference}


def inputs(length: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB_SIZE, (BATCH, length), generator=generator)
    h = torch.randn(BATCH, length, d, generator=generator, dtype=dtype).requires_grad_()
    return h, tokens, torch.randn(BATCH, length, d, generator=generator, dtype=dtype)


def once(side: Side, h: Tensor, tokens: Tensor, grad: Tensor, order: int) -> None:
    """One forward and backward."""
    h.grad = None
    side(h, tokens, order).backward(grad)


def check() -> float:
    """The largest difference of ours from the lean T x T form in float64; exits 1 above 1e-12."""
    worst = {"ours": 0.0, "published": 0.0}
    for length in (65, 512):
        for order in (1, 2, 3):
            h, tokens, grad = inputs(length, 8, torch.float64)
            once(ngram_attend_reference, h, tokens, grad, order)
            wanted = ngram_attend_reference(h, tokens, order).detach(), h.grad
            for side in worst:
                once(SIDES[side], h, tokens, grad, order)
                found = SIDES[side](h, tokens, order).detach(), h.grad
                for a, b in zip(found, wanted, strict=True):
                    worst[side] = max(worst[side], (a - b).abs().max().item())
    # The published form divides in float32 before it multiplies.
    if not (worst["ours"] <= 1e-12 and worst["published"] <= 1e-5):
        sys.exit(f"a side is wrong: {worst}")
    return worst["ours"]


def peak_memory(side: str, row: int, order: int, mallopt: bool) -> float:
    """MB that a fresh process needs beyond its inputs; nan where the kernel does not say."""
    words = [sys.executable, __file__, "--memory", side, "--rows", str(row), "--order", str(order)]
    done = subprocess.run([*words, *["--mallopt"] * mallopt], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(side: Side, row: int, order: int) -> None:
    length, d, *_ = ROWS[row]
    once(side, *inputs(64, d), order)
    h, tokens, grad = inputs(length, d)
    more = growth(lambda: once(side, h, tokens, grad, order))
    print("nan" if more is None else more / 1e6)


def keep_freed_memory() -> None:
    """Until this process ends, as a training run on a CPU does."""
    if not FOR_GOOD.enter_context(keeping_freed_memory()):
        sys.exit("the C library here is not glibc, or GLIBC_TUNABLES sets its malloc")


def measure_slope(order: int) -> tuple[float, dict[int, float]]:
    """The slope of log time against log T at d = 128, and the seconds by T."""
    seconds = {}
    for length in (512, 1024, 2048, 4096, 8192):
        given = inputs(length, 128)
        once(ours, *given, order)
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            once(ours, *given, order)
            times.append(time.perf_counter() - begin)
        seconds[length] = statistics.median(times)
    logs = [(math.log(length), math.log(taken)) for length, taken in seconds.items()]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="6,7,8", help="which of 6, 7, 8")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--order", type=int, default=1)
    parser.add_argument("--mallopt", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = [int(row) for row in given.rows.split(",")]
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"no row {unknown[0]}: choose from {', '.join(map(str, ROWS))}")
    if given.pairs < 1:
        parser.error("--pairs is at least 1")
    torch.set_num_threads(1)
    if given.mallopt:
        keep_freed_memory()
    if given.memory:
        print_peak(SIDES[given.memory], rows[0], given.order)
        return

    facts: dict[str, object] = {"torch": torch.__version__, "order": given.order, "mallopt": given.mallopt}
    facts["largest difference from the T x T form in float64"] = check()
    ratios = {}
    for row in rows:
        length, d, least_time, least_memory = ROWS[row]
        data = inputs(length, d)
        memory = {side: peak_memory(side, row, given.order, given.mallopt) for side in SIDES}
        for side in ("published", "lean"):
            ratios[f"row {row}, T {length}, d {d}, against {side}"] = compare(
                functools.partial(once, ours, *data, given.order),
                functools.partial(once, SIDES[side], *data, given.order),
                given.pairs,
                target=least_time if side == "published" else None,
                calls=5,
            )
        peaks = ", ".join(f"{side} {megabytes:.1f}" for side, megabytes in memory.items())
        less = memory["published"] / memory["ours"]
        facts[f"row {row}, peak MB"] = f"{peaks}; {less:.1f}x less than published" + verdict(less, least_memory)
    slope, seconds = measure_slope(given.order)
    facts["slope of log time against log T, d 128"] = f"{slope:.3f}{verdict(-slope, -SLOPE)}"
    facts["milliseconds by T"] = ", ".join(f"{length}: {taken * 1e3:.2f}" for length, taken in seconds.items())
    report(ratios, facts)


def verdict(value: float, least: float | None) -> str:
    return "" if least is None else f", target {abs(least):g} {'met' if value >= least else 'MISSED'}"


if __name__ == "__main__":
    main()
