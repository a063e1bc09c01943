"""icll-zoo heads: n-gram head scores of a model, its attention on one sequence, and what its best heads are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icll_zoo import InputError
from icll_zoo_analysis.heads_pictures import NAMES, label, write_ablation, write_attention, write_scores
from icll_zoo_analysis.words import (
    choose_metrics,
    data_options,
    options,
    reporting,
    short,
    total,
)

if TYPE_CHECKING:
    from icll_zoo import Split
    from icll_zoo_analysis.heads import HeadScore
    from icll_zoo_analysis.heads_ablation import Ablation, Head, Value

ORDERS = 8
HIGH = 0.5
"""A head that spends more of its attention on the successors counts as an n-gram head."""


@click.command()
@click.argument("source")
@click.argument("dataset")
@click.argument("words", nargs=-1, metavar="[data.KEY=VALUE]...")
@click.option("--orders", default="1,2,3", show_default=True, metavar="N,N", help="Orders of the n-grams.")
@click.option(
    "--ablate", "k", type=click.IntRange(0), help="Take out so many heads; 0: none.  [default: those above 0.5]"
)
@click.option("--by", default=None, metavar="N", help="The best by this order, or by `previous`.  [default: the first]")
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True, help="So many random sets beside them.")
@click.option("--mean", is_flag=True, help="Replace a head that is taken out by its mean instead of zeros.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the control and the draws.")
@click.option("--sequence", type=click.IntRange(0), default=0, show_default=True, help="Whose attention is drawn.")
@click.option("--tokens", "shown", type=click.IntRange(2, 100), default=40, show_default=True, help="How many of it.")
@click.option("--output", type=Path, metavar="FOLDER", help="Write the pictures and the numbers into a folder.")
@options
def heads(
    source: str,
    dataset: str,
    words: tuple[str, ...],
    orders: str,
    k: int | None,
    by: str | None,
    draws: int,
    mean: bool,
    seed: int,
    sequence: int,
    shown: int,
    output: Path | None,
    split: Split,
    batch_size: int,
    limit: int | None,
    device: str,
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Score every attention head of a saved model as an n-gram head.

    The score of order n is the share of attention on what followed the earlier occurrences of the last n tokens, at
    the positions where there are some; beside it that of uniform attention, and of a control that asks for the
    context of another position. Intervals are of 95 %, over languages or documents. Keys are data.*

    SOURCE is local-dir:PATH, hf-hub:ORG/NAME@REVISION or a catalogue name.
    """
    from icll_zoo import check_device, emit, load_model_for, open_zoo
    from icll_zoo_analysis import pictures, tables
    from icll_zoo_analysis.heads import head_scores, ranked
    from icll_zoo_analysis.heads_ablation import ablate

    asked = read_orders(orders)
    by = str(asked[0]) if by is None else by
    if by not in (*map(str, asked), "previous"):
        raise InputError(f"--by {by} is not among the measures", hint=f"one of {orders} or previous")
    pictures.output_folder(output)
    check_device(device, "--device ")
    zoo = open_zoo(load)
    data = zoo.create_dataset(dataset, **data_options(words))
    size = data.size(split)
    if output is not None and size is not None and sequence >= size:
        raise InputError(f"--sequence {sequence} of a {split} split of {size} sequences")
    model = load_model_for(source, data, device=device, zoo=zoo)
    settings: dict[str, Any] = {
        "split": split,
        "batch_size": batch_size,
        "limit": limit,
        "device": device,
        "seed": seed,
    }
    count = total(data, split, limit)
    with reporting("heads", count) as report:
        scores = head_scores(model, data, orders=asked, report=report, **settings)
    ablation = None
    every = list(dict.fromkeys((score.module, score.head) for score in scores))
    if k is None and len(every) == 1:
        k = 0  # there are no others to compare it with
    if k != 0:
        order = ranked(scores, by)
        # Without a number: all that are n-gram heads, one at least, and not all heads of the model.
        many = sum(score.score > HIGH for score in order)
        k = max(1, min(many, len(order) - 1)) if k is None else k
        best = [(score.module, score.head) for score in order[:k]]
        metrics = choose_metrics(zoo, None, data)
        with reporting("ablation", count) as report:
            ablation = ablate(model, data, best, every, metrics, draws=draws, mean=mean, report=report, **settings)
    written = []
    if output is not None:
        written += write_scores(output, scores, f"{short([source])[0]} on {dataset}")
        written += write_attention(output, model, data, split, sequence, shown, asked, device)
        written += [] if ablation is None else write_ablation(output, ablation, by)
    if json:
        about = {"model": source, "dataset": dataset, "split": split, "sequences": count}
        emit({
            **about,
            "heads": [{**vars(score), "name": score.name} for score in scores],
            "ablation": None if ablation is None else ablation_json(ablation, by),
            "files": [str(path) for path in written],
        })  # fmt: skip
        return
    print(f"{source} on {dataset} ({split}), {count:,} sequences: share of attention on successors\n")
    print(tables.text(printed_scores(scores)))
    if ablation is not None:
        print_ablation(ablation, by, mean)
    for path in written:
        print(f"wrote {path}")


def read_orders(text: str) -> tuple[int, ...]:
    """ "1,2,3" as numbers. InputError for what is none, twice the same, or above ORDERS."""
    parts = text.split(",")
    if not all(part.isdecimal() and 1 <= int(part) <= ORDERS for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"wrong value for --orders: {text!r}", hint=f"different numbers from 1 to {ORDERS}: 1,2,3")
    return tuple(map(int, parts))


def in_brackets(value: Value, signed: bool = False) -> str:
    middle, low, high = value
    return f"{middle:+.4f} [{low:+.4f}, {high:+.4f}]" if signed else f"{middle:.4f} [{low:.4f}, {high:.4f}]"


def printed_scores(scores: list[HeadScore]) -> dict[str, list[Any]]:
    """A row a head and measure."""
    return {
        "head": [score.name for score in scores],
        "measure": [NAMES.get(score.measure, f"order {score.measure}") for score in scores],
        "score": [f"{score.score:.3f} [{score.low:.3f}, {score.high:.3f}]" for score in scores],
        "uniform": [score.uniform for score in scores],
        "times": [score.score / score.uniform if score.uniform else None for score in scores],
        "control": [score.control for score in scores],
        "positions": [score.positions for score in scores],
    }


def print_ablation(ablation: Ablation, by: str, mean: bool) -> None:
    from icll_zoo_analysis import tables

    metrics = list(ablation.random_costs)
    sets = [(), ablation.best, *ablation.random]
    kinds = ["whole model", f"best by {NAMES.get(by, f'order {by}')}", *["random"] * len(ablation.random)]
    print(f"\nwithout some heads, replaced by {'their means' if mean else 'zeros'}")
    columns = {"": kinds, "heads": [label(chosen) for chosen in sets]}
    columns |= {name: [in_brackets(ablation.values[chosen][name]) for chosen in sets] for name in metrics}
    print(tables.text(columns))
    print("\nwhat that costs, above 0 where the model gets worse")
    costs = {
        "the best": ablation.costs[ablation.best],
        "the random ones, mean": ablation.random_costs,
        "difference, paired": ablation.excess,
    }
    rows = {name: [in_brackets(by_metric[name], signed=True) for by_metric in costs.values()] for name in metrics}
    print(tables.text({"": list(costs), **rows}))


def ablation_json(ablation: Ablation, by: str) -> dict[str, Any]:
    def entry(chosen: tuple[Head, ...]) -> dict[str, Any]:
        listed = [{"module": module, "head": head} for module, head in chosen]
        return {"heads": listed, "values": ablation.values[chosen], "costs": ablation.costs[chosen]}

    return {
        "by": by,
        "whole": entry(()),
        "best": entry(ablation.best),
        "random": [entry(chosen) for chosen in ablation.random],
        "random_costs": ablation.random_costs,
        "excess": ablation.excess,
    }
