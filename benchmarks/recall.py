"""How many updates architectures need for multi-query associative recall: 16 pairs, 64 tokens, two layers of width 64.

    python benchmarks/recall.py transformer lstm gla --seeds 0,1,2,3,4
    python benchmarks/recall.py transformer --steps 200 data.pairs=4 model.n_heads=4 train.device=cpu

Each architecture and seed is a run of `icll_zoo.train`, stopped at the first validation (500 sequences that are not in
training) whose token-accuracy reaches the threshold. Runs lie in --output: the same command again only does what is
missing. The brackets are the least and the most over the seeds; they hold the median of all seeds with probability
1 - 2^(1 - n). One architecture is called faster than another only where these do not overlap.

Dropout is off, that of attention weights too: recall must be exact, and with a tenth of the weights dropped the
Transformer stayed where guessing stays, H(pairs) / pairs (see icll_zoo_tasks.mqar).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from icll_zoo import Interrupted, Run, Zoo, ZooError, hookimpl, parse_words, train
from icll_zoo.plugins import Plugin, register_all
from icll_zoo.run import merge
from icll_zoo.training import check_folder

METRIC = "token-accuracy"
LOGGED = f"validation_{METRIC}"
TRACKER = "stop-at"
SIZES = {"d_model": 64, "n_layers": 2}
DROPOUTS = ("dropout", "attention_dropout")


@dataclass(frozen=True)
class Outcome:
    """One run. steps: updates until the threshold, None if it was not reached. accuracy: the best validation's."""

    seed: int
    steps: int | None
    accuracy: float
    folder: str


class StopAt:
    """A tracker that asks its own process to stop once a validation reaches the threshold: the run saves, and ends."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    @hookimpl
    def on_log(self, run: Any, step: int, values: dict[str, float]) -> None:
        if values.get(LOGGED, 0.0) >= self.threshold:
            os.kill(os.getpid(), signal.SIGTERM)


def zoo_that_stops(threshold: float) -> Zoo:
    """The installed plugins and the tracker."""
    zoo = Zoo.discover()
    plugin = Plugin(TRACKER, "benchmarks", "0", __name__)
    register_all(plugin, StopAt(threshold))
    zoo.plugins.append(plugin)
    return zoo


def read_outcome(folder: Path, seed: int, threshold: float) -> Outcome | None:
    """What the log of a run says, if the run reached the threshold or its end."""
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    curve = {line["step"]: line[LOGGED] or 0.0 for line in lines if LOGGED in line}
    steps = next((step for step, value in curve.items() if value >= threshold), None)
    if steps is None and not (folder / "result.json").exists():
        return None
    return Outcome(seed, steps, max(curve.values()), str(folder))


def run_once(zoo: Zoo, description: dict[str, Any], threshold: float) -> Outcome:
    """Train until the threshold or the end, or read what an earlier call did."""
    run = Run.parse(description)
    check_folder(run.resolve(zoo))  # an error if another description's run lies there
    folder, seed = Path(run.output), run.seed
    known = read_outcome(folder, seed, threshold)
    if known is not None:
        return known
    try:
        train(run, zoo=zoo, quiet=True)
    except Interrupted:
        if read_outcome(folder, seed, threshold) is None:  # somebody else said stop
            raise
    found = read_outcome(folder, seed, threshold)
    assert found is not None
    return found


def takes(zoo: Zoo, name: str) -> set[str]:
    """The options of an architecture, those of its backbone and of its layers included."""
    options = zoo.resolve_model(name).options
    return set(options).union(*(options.get("layers") or []))


def bracket(values: Sequence[float], form: str) -> str:
    """Median [least, most]; infinity is a run that did not get there."""
    middle, low, high = (
        form.format(value) if math.isfinite(value) else "never"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} [{low}, {high}]"


def steps_of(outcomes: Sequence[Outcome]) -> list[float]:
    return [math.inf if o.steps is None else o.steps for o in outcomes]


def faster(rows: dict[str, list[Outcome]]) -> list[str]:
    """Pairs of rows whose brackets of steps do not overlap."""
    return [
        f"{one} before {two}"
        for one, two in permutations(rows, 2)
        if max(steps_of(rows[one])) < min(steps_of(rows[two]))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="ARCHITECTURE | KEY=VALUE")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--lrs", default="1e-3", help="learning rates, each a row of its own")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=int, default=50, help="updates between validations")
    parser.add_argument("--threshold", type=float, default=0.99)
    parser.add_argument("--output", default="recall-runs", help="the folder of the runs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_intermixed_args()  # names and keys may stand anywhere
    names = [word for word in given.words if "=" not in word]
    seeds, rates = [int(s) for s in given.seeds.split(",")], [float(r) for r in given.lrs.split(",")]
    if not names:
        parser.error("name at least one architecture")
    own = parse_words([word for word in given.words if "=" in word])
    zoo = zoo_that_stops(given.threshold)
    rows: dict[str, list[Outcome]] = {}
    for name in names:
        for rate in rates:
            row = name if len(rates) == 1 else f"{name} lr {rate:g}"
            common = {
                "architecture": name,
                "dataset": "mqar",
                "steps": given.steps,
                "metrics": [METRIC],
                "model": {**SIZES, **{key: 0.0 for key in DROPOUTS if key in takes(zoo, name)}},
                "optimizer": {"lr": rate},
                "train": {"batch_size": 256, "validate_every": given.every, "trackers": [TRACKER]},
            }
            for seed in seeds:
                folder = Path(given.output) / f"{name.replace(':', '-')}-lr{rate:g}-seed{seed}"
                description = merge(merge(common, own), {"seed": seed, "output": str(folder)})
                outcome = run_once(zoo, description, given.threshold)
                rows.setdefault(row, []).append(outcome)
                print(f"{row} seed {seed}: {outcome.steps or 'never'}, {outcome.accuracy:.4f}", file=sys.stderr)
    if given.json:
        shown = {row: [asdict(outcome) for outcome in outcomes] for row, outcomes in rows.items()}
        print(json.dumps({"rows": shown, "faster": faster(rows), "settings": vars(given)}))
        return
    width = max(map(len, rows))
    print(f"{'architecture':<{width}}  reached  steps to {given.threshold:g}  best accuracy  steps by seed")
    for row, outcomes in rows.items():
        steps = steps_of(outcomes)
        reached = f"{sum(map(math.isfinite, steps))}/{len(steps)}"
        accuracy = bracket([o.accuracy for o in outcomes], "{:.4f}")
        by_seed = ", ".join(f"{o.seed}: {o.steps or 'never'}" for o in outcomes)
        print(f"{row:<{width}}  {reached:>7}  {bracket(steps, '{:.0f}')}  {accuracy}  {by_seed}")
    print("brackets do not overlap: " + ("; ".join(faster(rows)) or "no two of them"))


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
