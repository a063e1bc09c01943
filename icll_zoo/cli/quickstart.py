"""quickstart: the main job on real input, on a laptop's processor, in under three minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import as_json, open_zoo

if TYPE_CHECKING:
    from icll_zoo.evaluation import Score

STEPS, BATCH = 1000, 16
ROWS = ("oracle", "ngram-2", "ngram-3")


@app.command()
@click.option("--output", metavar="FOLDER", help="The run's folder; a new one by default.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="Updates.")
@as_json
def quickstart(output: str | None, seed: int, steps: int, json: bool) -> None:
    """Train a small stack of n-gram heads on random languages and compare it with the classical learners.

    Every number of the table is measured in this run, on held-out languages; the paper's are quoted beside them.
    """
    import torch

    from icll_zoo.evaluation import evaluate
    from icll_zoo.run import Run
    from icll_zoo.training import train
    from icll_zoo.weights import load_model
    from icll_zoo.zoo import Vocabulary

    start = time.perf_counter()
    # Two threads gain a third where nothing else runs, and lose a factor of ten where they wait for a busy core.
    torch.set_num_threads(1)
    zoo = open_zoo()
    run = Run.parse(
        {
            "architecture": "ngram-head-stack",
            "dataset": "dfa",
            "steps": steps,
            "seed": seed,
            "output": output or str(fresh_folder("icll-zoo-quickstart")),
            "optimizer": {"lr": 3e-3},
            "train": {"batch_size": BATCH, "validate_every": max(1, steps // 3)},
        }
    )
    if not json:
        print(f"Training {run.architecture} on random regular languages: {steps} steps of {BATCH} sequences.")
    result = train(run, zoo=zoo, quiet=json)
    source = f"local-dir:{result['folder']}/model"
    dataset: Any = zoo.create_dataset("dfa")
    loaded = load_model(source, zoo=zoo)
    vocabulary = Vocabulary.of(dataset)
    scores = {"model": evaluate(loaded, dataset, zoo=zoo)}
    for name in ROWS:
        predictor: Any = name if name == "oracle" else zoo.create_model(name, vocabulary=vocabulary)
        scores[name] = evaluate(predictor, dataset, zoo=zoo)
    paper: dict[str, dict[str, float]] = {}
    for metric in ("accuracy", "tvd"):
        for name, said in dataset.published(metric, run.architecture).items():
            paper.setdefault(name, {})[metric] = said["value"]
    seconds = round(time.perf_counter() - start, 1)
    if json:
        rows = {name: {metric: s.to_json() for metric, s in row.items()} for name, row in scores.items()}
        emit({**rows, "paper": paper, "parameters": result["parameters"], "seconds": seconds, "folder": source})
        return
    show_table(scores, paper, result["parameters"], seconds)
    print(f"Saved and loaded back from {source}")
    print(f"Next: icll-zoo generate {source} --prompt 'a b c | a b' --tokens 20")


def fresh_folder(name: str) -> Path:
    """`name`, or `name-2` ... if there is one already: what is measured is measured now."""
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder


def show_table(
    scores: dict[str, dict[str, Score]], paper: dict[str, dict[str, float]], parameters: int, seconds: float
) -> None:
    """The comparison, with 95 % intervals over languages, and the paper's figures."""
    from rich.console import Console
    from rich.table import Table

    n = scores["model"]["accuracy"].n
    table = Table(title=f"{n} held-out languages; {parameters:,} parameters trained; {seconds:.0f} s in all")
    headings = (("predictor (training languages)", "left"), ("greedy accuracy", "right"), ("TVD to the truth", "right"))
    for heading, side in headings:
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for name, row in scores.items():
        title = "n-gram heads 1, 2, 3 (endless)" if name == "model" else name
        table.add_row(title, *(interval(row[metric]) for metric in ("accuracy", "tvd")))
    table.add_section()
    for name, published in paper.items():
        table.add_row(
            f"{name.removesuffix(' languages')} (paper)", f"{published['accuracy']:.3f}", f"{published['tvd']:.3f}"
        )
    Console().print(table)


def interval(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
