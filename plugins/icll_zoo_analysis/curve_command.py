"""icll-zoo curve: in-context learning curves of several predictors in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icll_zoo_analysis.words import open_all, options, read_words, reporting, short, total

if TYPE_CHECKING:
    from icll_zoo import Dataset, Metric, Split, Zoo
    from icll_zoo_analysis.curve import Curve

USAGE = "icll-zoo curve NAME... DATASET, such as icll-zoo curve ngram-2 ngram-3 dfa"
FEW = 20
"""Groups that a bin of the picture must have, where the whole has so many: fewer say little, and jump about."""
ENDS = ("low", "high")
SHOWN = 10
"""Rows of the printed table of a curve."""


@click.command()
@click.argument("words", nargs=-1, metavar="NAME... DATASET [KEY=VALUE]...")
@click.option("--metrics", metavar="A,B", help="Metrics with a curve form; by default accuracy and tvd, if they are.")
@click.option("--width", type=click.IntRange(1), default=10, show_default=True, help="Tokens of a bin.")
@click.option("--output", type=Path, metavar="FOLDER", help="Write the picture and the numbers into a folder.")
@options
def curve(
    words: tuple[str, ...],
    metrics: str | None,
    width: int,
    output: Path | None,
    split: Split,
    batch_size: int,
    limit: int | None,
    device: str,
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Draw in-context learning curves: metrics by the tokens and by the strings of a language that were seen.

    Each NAME is a catalogue name, local-dir:PATH, hf-hub:ORG/NAME@REVISION, a learner such as ngram-3, or oracle.

    Metrics are named with or without -curve: accuracy, tvd, cross-entropy. Bands are 95 % intervals over languages or
    documents. Keys are data.*
    """
    from icll_zoo import emit, open_zoo
    from icll_zoo_analysis import pictures, tables
    from icll_zoo_analysis.curve import columns, curves

    names, dataset, given = read_words(words, 1, USAGE)
    pictures.output_folder(output)
    zoo = open_zoo(load)
    data = zoo.create_dataset(dataset, **given)
    measured = curve_metrics(zoo, metrics, data)
    predictors = open_all(zoo, names, data, device)
    sequences = total(data, split, limit)
    with reporting("curve", sequences) as report:
        found = curves(
            predictors, data, measured,
            width=width, split=split, batch_size=batch_size, limit=limit, device=device, report=report,
        )  # fmt: skip
    files = []
    if output is not None:
        title = f"In-context learning on {dataset} ({split}, {sequences:,} sequences)"
        shown = {
            "title": title,
            "width": width,
            "names": short(names),
            "direction": {name: metric.direction for name, metric in measured.items()},
            "curves": [[*key[:2], names.index(key[2]), vars(curve)] for key, curve in found.items()],
        }
        files = [*pictures.save(output, "curve", draw, shown, title), *tables.write(output / "curve", columns(found))]
    if json:
        about = {"dataset": dataset, "split": split, "predictors": names, "sequences": sequences, "width": width}
        emit({**about, "curves": tables.rows(columns(found)), "files": [str(path) for path in files]})
        return
    print(f"{sequences:,} sequences of {dataset} ({split}), 95 % intervals over groups (languages, documents)")
    for metric, by in dict.fromkeys(key[:2] for key in found):
        some = {name: found[metric, by, name] for name in names}
        print(f"\n{metric} by {by}s read" if by == "token" else f"\n{metric} by complete strings seen")
        print(tables.text(printed(some, width if by == "token" else 1)))
    for path in files:
        print(f"wrote {path}")


def curve_metrics(zoo: Zoo, asked: str | None, dataset: Dataset) -> dict[str, Metric]:
    """Metrics by their names without `-curve`. InputError for one that has no curve form."""
    from icll_zoo import InputError
    from icll_zoo_analysis.words import has_oracle

    known = {entry.name for entry in zoo.list("metric")}
    if asked:
        found = {}
        for name in asked.split(","):
            bare = name.removesuffix("-curve")
            if bare in known and f"{bare}-curve" not in known:
                forms = sorted(n.removesuffix("-curve") for n in known if n.endswith("-curve"))
                raise InputError(f"metric {name!r} has no curve form", hint=f"those that have: {', '.join(forms)}")
            found[bare] = zoo.create_metric(f"{bare}-curve")
        return found
    named = [name for name in getattr(dataset, "metrics", ("cross-entropy",)) if f"{name}-curve" in known]
    metrics = {name: zoo.create_metric(f"{name}-curve") for name in named or ("cross-entropy",)}
    if has_oracle(dataset):
        # The cross-entropy says the same as both and has no bounds.
        return {n: m for n, m in metrics.items() if m.needs_oracle} or metrics
    return {n: m for n, m in metrics.items() if not m.needs_oracle}


def printed(some: dict[str, Curve], step: int) -> dict[str, list[Any]]:
    """Some bins of a curve as a table, closer together where it begins, and the last."""
    longest = max(some.values(), key=lambda curve: len(curve.at))
    last = len(longest.at) - 1
    kept = sorted({round(last * (i / (SHOWN - 1)) ** 2) for i in range(SHOWN)})
    ends = [longest.at[i] for i in kept]
    table: dict[str, list[Any]] = {
        "from": ends,
        "groups": [longest.groups[i] for i in kept],
    }
    if step > 1:
        table = {"from": ends, "to": [at + step - 1 for at in ends], "groups": table["groups"]}
    for name, curve in some.items():
        place = {at: i for i, at in enumerate(curve.at)}
        table[name] = [cell(curve, place[at]) if at in place else None for at in ends]
    return table


def cell(curve: Curve, i: int) -> str:
    low, high = curve.low[i], curve.high[i]
    return f"{curve.value[i]:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def draw(figure: Any, shown: Any) -> None:
    """A row of panels for each metric: by token, by string."""
    from icll_zoo import tidy_axes
    from icll_zoo_analysis.pictures import COLORS

    metrics = list(dict.fromkeys(metric for metric, *_ in shown["curves"]))
    kinds = list(dict.fromkeys(by for _, by, *_ in shown["curves"]))
    figure.set_size_inches(1 + 4.2 * len(kinds), 1.1 + 2.6 * len(metrics))
    grid = figure.subplots(len(metrics), len(kinds), squeeze=False, sharey="row")
    lines = {}
    for metric, by, number, curve in shown["curves"]:
        axes = grid[metrics.index(metric)][kinds.index(by)]
        least = min(FEW, max(curve["groups"]))
        kept = [i for i, groups in enumerate(curve["groups"]) if groups >= least]
        # A bin of tokens stands at its middle, a number of strings at itself.
        middle = (shown["width"] - 1) / 2 if by == "token" else 0
        x = [curve["at"][i] + middle for i in kept]
        value = [curve["value"][i] for i in kept]
        # Without an interval the band has no width.
        low, high = ([curve["value"][i] if curve[end][i] is None else curve[end][i] for i in kept] for end in ENDS)
        color = COLORS[number % len(COLORS)]
        style = ("-", "--", ":", "-.")[number // len(COLORS) % 4]
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        mark = "o" if by == "string" else None
        (lines[number],) = axes.plot(x, value, style, color=color, linewidth=1.4, marker=mark, markersize=3)
    for row, metric in enumerate(metrics):
        for column, by in enumerate(kinds):
            axes = grid[row][column]
            if row == len(metrics) - 1:
                axes.set_xlabel("tokens read" if by == "token" else "complete strings seen")
            if by == "string":
                axes.xaxis.get_major_locator().set_params(integer=True)
            tidy_axes(axes, "both")
            axes.margins(x=0.02)
        grid[row][0].set_ylabel(f"{metric} ({shown['direction'][metric]} is better)")
    figure.suptitle(shown["title"], fontsize=10)
    names = [shown["names"][number] for number in lines]
    figure.legend(lines.values(), names, loc="outside lower center", ncols=min(len(names), 5), frameon=False)
