"""A sweep of 16 small runs at its default number of jobs, against the same runs one after the other in one process.

    python benchmarks/sweep.py [--pairs N] [--threads N] [--json]

One after the other they have `--threads` (1, as the sweep gives each run; 0 for what torch finds, which waits for cores
that others hold on a busy machine), and torch is imported already; the sweep starts its processes each time. The target
is that of a CPU, where there are no idle parts of a chip to win: no slower.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from side_by_side import compare, report

import icll_zoo as zoo
from icll_zoo.run import merge
from icll_zoo.sweeps.sweeping import shares

BASE = {
    "architecture": "transformer",
    "dataset": "dfa",
    "steps": 200,
    "model": {"d_model": 32, "n_layers": 2},
    "data": {"languages": 200, "held_out": 20, "length_max": 20},
    "train": {"batch_size": 8, "validate_every": 100, "checkpoint_every": 100},
}
RUNS = [merge(BASE, {"seed": seed, "optimizer": {"lr": lr}}) for seed in range(4) for lr in (5e-4, 1e-3, 2e-3, 4e-3)]


def number(option: str, default: int) -> int:
    """The value of an option on the command line."""
    return int(sys.argv[sys.argv.index(option) + 1]) if option in sys.argv else default


def main() -> None:
    pairs, threads_in_turn = number("--pairs", 1), number("--threads", 1) or None
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)

        def swept() -> None:
            shutil.rmtree(folder / "sweep", ignore_errors=True)
            rows = zoo.sweep(RUNS, folder / "sweep", quiet=True)
            assert [row["status"] for row in rows] == ["finished"] * len(RUNS)

        def in_turn() -> None:
            for place, run in enumerate(RUNS):
                output = folder / str(place)
                shutil.rmtree(output, ignore_errors=True)
                settings = {"output": str(output), "train": {"threads": threads_in_turn}}
                zoo.train(zoo.Run.parse(merge(run, settings)), quiet=True)

        zoo.train(zoo.Run.parse({**BASE, "steps": 2, "output": str(folder / "warm")}), quiet=True)
        target = 3.0 if torch.cuda.is_available() else 1.0
        ratio = compare(swept, in_turn, pairs, target=target, warm_up=False)
        jobs, threads = shares(RUNS, None, "processes", None)
        facts = {
            "runs": len(RUNS),
            "jobs": jobs,
            "threads of each": threads,
            "threads in turn": threads_in_turn or torch.get_num_threads(),
        }
        report({"sweep of 16 runs": ratio}, facts)


if __name__ == "__main__":
    main()
