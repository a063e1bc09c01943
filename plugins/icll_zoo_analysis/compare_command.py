"""icll-zoo compare: the table of distances between predictors, its picture, and the numbers behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icll_zoo_analysis.words import choose_metrics, open_all, options, read_words, reporting, short, total

if TYPE_CHECKING:
    from icll_zoo import Split
    from icll_zoo_analysis.compare import Comparison

USAGE = "icll-zoo compare NAME NAME... DATASET, such as icll-zoo compare ngram-2 ngram-3 oracle dfa"


@click.command()
@click.argument("words", nargs=-1, metavar="NAME NAME... DATASET [KEY=VALUE]...")
@click.option("--metrics", metavar="A,B", help="Metrics by name; by default those that the dataset names.")
@click.option("--first", type=click.IntRange(1), help="Count only so many positions of each sequence.")
@click.option("--output", type=Path, metavar="FOLDER", help="Write the picture and the numbers into a folder.")
@options
def compare(
    words: tuple[str, ...],
    metrics: str | None,
    first: int | None,
    output: Path | None,
    split: Split,
    batch_size: int,
    limit: int | None,
    device: str,
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Compare predictors: pairwise total variation distance, and each one's metrics.

    Each NAME is a catalogue name, local-dir:PATH, hf-hub:ORG/NAME@REVISION, a learner such as ngram-3, or oracle.

    Intervals are of 95 %, over languages or documents, the same ones for all; differences are paired. The paper's
    tables are of --first 100. Keys are data.*
    """
    from icll_zoo import emit, open_zoo
    from icll_zoo_analysis import compare as comparing
    from icll_zoo_analysis import pictures, tables

    names, dataset, given = read_words(words, 2, USAGE)
    pictures.output_folder(output)
    zoo = open_zoo(load)
    data = zoo.create_dataset(dataset, **given)
    measured = choose_metrics(zoo, metrics, data)
    predictors = open_all(zoo, names, data, device)
    with reporting("compare", total(data, split, limit)) as report:
        found = comparing.compare(
            predictors, data, measured,
            split=split, batch_size=batch_size, limit=limit, first=first, device=device, report=report,
        )  # fmt: skip
    about = {"dataset": dataset, "split": split, "first": first}
    if output is not None:
        title = f"Mean total variation distance, {found.sequences:,} sequences of {dataset} ({split})"
        shown = {"names": short(names), "matrix": found.matrix(), "title": title, "first": first}
        written = [
            *pictures.save(output, "compare", draw, shown, title),
            *tables.write(output / "compare-pairs", pair_columns(found)),
            *tables.write(output / "compare-scores", score_columns(found)),
        ]
        about["files"] = [str(path) for path in written]
    if json:
        emit({**about, **comparing.to_json(found)})
        return
    which = "all positions" if first is None else f"the first {first} positions of each"
    print(
        f"{found.sequences:,} sequences, {found.groups:,} groups (languages, documents) of {dataset} ({split}), {which}"
    )
    print(f"{found.positions:,} positions\n\nmean total variation distance")
    rows = found.matrix()
    print(tables.text({"": names, **{name: [row[i] for row in rows] for i, name in enumerate(names)}}))
    print("\npredictors, with 95 % intervals over groups")
    print(tables.text(printed({"predictor": names}, found.scores, list(names), signed=False)))
    print("\npairs, and the first's value minus the second's, paired")
    pairs = list(found.tvd)
    labels = {"first": [a for a, _ in pairs], "second": [b for _, b in pairs]}
    print(tables.text(printed(printed(labels, {"TVD": found.tvd}, pairs, signed=False), found.differences, pairs)))
    for path in about.get("files", []):
        print(f"wrote {path}")


def printed(columns: dict[str, Any], by: dict[str, Any], keys: list[Any], *, signed: bool = True) -> dict[str, Any]:
    """Further columns of a printed table: each value with its interval as one text."""
    sign = "+" if signed else ""
    texts = {
        name: [f"{v:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]" for v, low, high in (found[key] for key in keys)]
        for name, found in by.items()
    }
    return {**columns, **texts}


def pair_columns(found: Comparison) -> dict[str, list[Any]]:
    """A row a pair: the distance and the differences of the metrics, each with its interval."""
    pairs = list(found.tvd)
    columns: dict[str, list[Any]] = {"first": [a for a, _ in pairs], "second": [b for _, b in pairs]}
    for name, by in {"tvd_between": found.tvd, **{f"{m}_difference": d for m, d in found.differences.items()}}.items():
        for i, end in enumerate(("", "_low", "_high")):
            columns[name + end] = [by[pair][i] for pair in pairs]
    return columns


def score_columns(found: Comparison) -> dict[str, list[Any]]:
    """A row a predictor: its metrics with their intervals."""
    columns: dict[str, list[Any]] = {"predictor": list(found.names)}
    for metric, by in found.scores.items():
        for i, end in enumerate(("", "_low", "_high")):
            columns[metric + end] = [by[name][i] for name in found.names]
    return {**columns, "groups": [found.groups] * len(found.names)}


def draw(figure: Any, shown: Any) -> None:
    """The heat map, its numbers in the cells."""
    from icll_zoo_analysis import pictures

    names, matrix = shown["names"], shown["matrix"]
    n = len(names)
    longest = max(map(len, names))
    side = 0.72 * n
    # Room for the names below, turned, and at the left, for the colour bar and for the title above.
    figure.set_size_inches(max(side + 0.085 * longest + 1.6, 5.0), side + 0.06 * longest + 1.1)
    axes = figure.add_subplot()
    largest = max(max(row) for row in matrix)
    cells = pictures.heat_map(axes, matrix, low=0.0, high=max(largest, 1e-3), numbers=2)
    axes.set_aspect("equal")
    axes.set_xticks(range(n), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), names)
    some = "" if shown["first"] is None else f"\nfirst {shown['first']} positions of each sequence"
    figure.suptitle(shown["title"].replace(", ", "\n", 1) + some, fontsize=10)
    bar = figure.colorbar(cells, ax=axes, shrink=0.8)
    bar.set_label("mean TVD")
    bar.outline.set_visible(False)
