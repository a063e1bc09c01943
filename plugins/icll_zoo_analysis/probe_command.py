"""icll-zoo probe: what can be read from the residual stream of every layer of a model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icll_zoo import InputError, as_json, with_scripts
from icll_zoo_analysis.heads_command import read_orders
from icll_zoo_analysis.words import data_options, short

if TYPE_CHECKING:
    from icll_zoo_analysis.probe import Kind, ProbeScore

LABELS = {"dropout": "embeddings"}
"""Of a layer in the picture, where its name says little."""


@click.command()
@click.argument("source")
@click.argument("dataset")
@click.argument("words", nargs=-1, metavar="[data.KEY=VALUE]...")
@click.option("--probe", "kind", type=click.Choice(["linear", "mlp"]), default="linear", show_default=True)
@click.option("--orders", default="1,2,3", show_default=True, metavar="N,N", help="Orders of the n-grams.")
@click.option("--tasks", metavar="A,B", help="Only these, such as ratio-2,same-state.  [default: all]")
@click.option(
    "--of", "patterns", default="dropout,blocks.*", show_default=True, metavar="A,B", help="What is read, by name."
)
@click.option("--train", type=click.IntRange(1), default=2000, show_default=True, help="Sequences to fit on.")
@click.option("--test", type=click.IntRange(1), default=500, show_default=True, help="Sequences to score on.")
@click.option("--positions", type=click.IntRange(1), default=8, show_default=True, help="Questions of each sequence.")
@click.option("--start", type=click.IntRange(0), default=75, show_default=True, help="The first position probed.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of questions, controls and probes.")
@click.option("--output", type=Path, metavar="FOLDER", help="Write the picture and the numbers into a folder.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs; probes are fitted on the CPU.")
@with_scripts
@as_json
def probe(
    source: str,
    dataset: str,
    words: tuple[str, ...],
    kind: Kind,
    orders: str,
    tasks: str | None,
    patterns: str,
    train: int,
    test: int,
    positions: int,
    start: int,
    seed: int,
    device: str,
    output: Path | None,
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Probe the layers of a saved model for n-gram counts, ratios and existence, and for the automaton's state.

    Probes are fitted on sequences of the training split and scored on those of the test split: by accuracy where the
    answer is yes or no, else by R^2. Beside each stands its control, a task that can only be learned by heart, and
    `query`, a probe that sees no hidden state. Intervals are of 95 %, over languages or documents. Keys are data.*

    SOURCE is local-dir:PATH, hf-hub:ORG/NAME@REVISION or a catalogue name.
    """
    from icll_zoo import check_device, emit, load_model_for, open_zoo
    from icll_zoo_analysis import pictures, tables
    from icll_zoo_analysis.probe import probe_scores
    from icll_zoo_analysis.probe_samples import has_states, task_names

    asked = read_orders(orders)
    pictures.output_folder(output)
    check_device(device, "--device ")
    zoo = open_zoo(load)
    data = zoo.create_dataset(dataset, **data_options(words))
    known = task_names(asked, has_states(data))
    names = known if tasks is None else tasks.split(",")
    if wrong := [name for name in names if name not in known]:
        raise InputError(f"unknown task {wrong[0]!r} in --tasks", hint=f"of this dataset: {', '.join(known)}")
    model = load_model_for(source, data, device=device, zoo=zoo)
    scores = probe_scores(
        model, data,
        kind=kind, tasks=names, patterns=patterns.split(","), orders=asked, train=train, test=test,
        positions=positions, start=start, device=device, seed=seed, report=reporter(),
    )  # fmt: skip
    written: list[Path] = []
    if output is not None:
        title = f"{kind} probes of {short([source])[0]} on {dataset}"
        drawn = {"title": title, "scores": [vars(score) for score in scores]}
        written += pictures.save(output, "probe", draw, drawn, title)
        written += tables.write(
            output / "probe", {key: [vars(score)[key] for score in scores] for key in vars(scores[0])}
        )
    if json:
        about = {"model": source, "dataset": dataset, "probe": kind, "train": train, "test": test, "start": start}
        emit({**about, "probes": [vars(s) for s in scores], "files": [str(path) for path in written]})
        return
    print(f"{kind} probes of {source} on {dataset}: fitted on {train:,} sequences, scored on {test:,}\n")
    print(tables.text(printed(scores)))
    for path in written:
        print(f"wrote {path}")


def reporter(every: float = 5.0) -> Callable[[str, int, int], None]:
    """Says on stderr, now and then, what is being done and how much of it is."""
    shown = time.perf_counter()

    def report(what: str, done: int, total: int) -> None:
        nonlocal shown
        if time.perf_counter() - shown >= every:
            shown = time.perf_counter()
            print(f"probe: {what}  {done}/{total}", file=sys.stderr, flush=True)

    return report


def printed(scores: Sequence[ProbeScore]) -> dict[str, list[Any]]:
    """A row a task and layer."""
    from icll_zoo_analysis.probe_samples import is_binary

    return {
        "task": [score.task for score in scores],
        "layer": [score.layer for score in scores],
        "by": ["accuracy" if is_binary(score.task) else "R^2" for score in scores],
        "score": [f"{score.score:.3f} [{score.low:.3f}, {score.high:.3f}]" for score in scores],
        "control": [score.control for score in scores],
        "selectivity": [score.selectivity for score in scores],
        "error": [score.error for score in scores],
        "samples": [score.samples for score in scores],
    }


def draw(figure: Any, drawn: Any) -> None:
    """A panel a task: the score of each layer with its interval, and its control."""
    from icll_zoo import tidy_axes
    from icll_zoo_analysis import pictures
    from icll_zoo_analysis.probe_samples import is_binary

    tasks = list(dict.fromkeys(score["task"] for score in drawn["scores"]))
    layers = list(dict.fromkeys(score["layer"] for score in drawn["scores"]))
    across = min(3, len(tasks))
    down = -(-len(tasks) // across)
    figure.set_size_inches(max(across * max(2.4, 0.32 * len(layers) + 1.0), 4.0), down * 2.2 + 1.1)
    grid = figure.subplots(down, across, squeeze=False)
    at = range(len(layers))
    for axes, task in zip(grid.flat, tasks, strict=False):
        rows = [score for score in drawn["scores"] if score["task"] == task]
        own, control = pictures.COLORS[0], pictures.COLORS[1]
        axes.vlines(at, [row["low"] for row in rows], [row["high"] for row in rows], color=own, linewidth=1.5)
        axes.plot(at, [row["score"] for row in rows], color=own, marker="o", markersize=4, label="probe")
        axes.plot(
            at, [row["control"] for row in rows],
            color=control, marker="s", markersize=3, linestyle="--", linewidth=1, label="control task",
        )  # fmt: skip
        axes.set_title(task, fontsize=9)
        if is_binary(task):
            axes.axhline(0.5, color="black", linewidth=0.6, linestyle=":")
            axes.set_ylim(0.4, 1.03)
            axes.set_ylabel("accuracy")
        else:
            # A probe that is worse than the mean has no lowest R^2.
            axes.set_ylim(-0.25, 1.05)
            axes.set_ylabel("R²")
        axes.set_xticks(
            at,
            [LABELS.get(layer, layer) for layer in layers],
            rotation=45,
            ha="right",
            rotation_mode="anchor",
            fontsize=7,
        )
        tidy_axes(axes, "y")
    for axes in list(grid.flat)[len(tasks) :]:
        axes.set_axis_off()
    figure.suptitle(drawn["title"], fontsize=10)
    figure.supxlabel("read from (query: no hidden state)", fontsize=9, x=0.35)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
