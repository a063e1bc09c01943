"""icll-zoo states: hidden states in two dimensions, coloured by the automaton's, and how far they tell these apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icll_zoo_analysis.words import SPLITS, common, read_words, reporting, short

if TYPE_CHECKING:
    from icll_zoo import Split
    from icll_zoo_analysis.states import Reading

USAGE = "icll-zoo states SOURCE DATASET, such as icll-zoo states local-dir:runs/mine/model dfa"
TITLED = ("same state", "shuffled", "shuffled within tokens")
MOST = 4
"""Layers side by side, unless some are asked for."""
PALETTE = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf",
    "#e377c2", "#8c564b", "#bcbd22", "#000000", "#7fc97f", "#7f7f7f",
)  # fmt: skip


@click.command()
@click.argument("words", nargs=-1, metavar="SOURCE DATASET [KEY=VALUE]...")
@click.option("--layer", "layers", type=click.IntRange(0), multiple=True, help="0 embedding, k block k; repeatable.")
@click.option("--language", "drawn", type=click.IntRange(0), multiple=True, help="Drawn; repeatable.  [default: 0, 1]")
@click.option("--method", type=click.Choice(["pca", "tsne", "umap"]), default="pca", show_default=True)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Sequences that rates are of.")
@click.option("--skip", type=click.IntRange(0), default=50, show_default=True, help="First positions not counted.")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of shuffles, intervals and t-SNE.")
@click.option("--output", type=Path, metavar="FOLDER", help="Write the picture and the numbers into a folder.")
@common
def states(
    words: tuple[str, ...],
    layers: tuple[int, ...],
    drawn: tuple[int, ...],
    method: str,
    limit: int,
    skip: int,
    split: Split,
    seed: int,
    output: Path | None,
    device: str,
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Show whether a model's hidden states lie together by state of the automaton that it reads.

    For every layer: how often the nearest other position of the sequence is in the same state, beside the same with
    states shuffled, over all positions and among those of equal token. SOURCE is a saved model. Keys are data.*
    """
    from icll_zoo import InputError, check_device, emit, load_model_for, open_zoo
    from icll_zoo_analysis import pictures, tables
    from icll_zoo_analysis import states as hidden

    names, dataset, given = read_words(words, 1, USAGE)
    if len(names) > 1:
        raise InputError(f"one model is looked into, not {len(names)}", hint=USAGE)
    pictures.output_folder(output)
    check_device(device, "--device ")
    if output is not None and method != "pca":
        hidden.check_method(method)
    zoo = open_zoo(load)
    data = zoo.create_dataset(dataset, **given)
    model = load_model_for(names[0], data, device=device, zoo=zoo)
    size = data.size(split)
    number = limit if size is None else min(limit, size)
    shown = drawn or tuple(range(min(2, number)))
    if beyond := [i for i in shown if size is not None and i >= size]:
        raise InputError(f"there is no language {beyond[0]}: the {split} split has 0 to {size - 1 if size else 0}")

    def read(index: int) -> Reading:
        return hidden.read(model, data, index, split=split, skip=skip, device=device)

    kept = {index: read(index) for index in shown}
    known = list(next(iter(kept.values())).hidden)
    if beyond := [layer for layer in layers if layer >= len(known)]:
        raise InputError(f"there is no layer {beyond[0]}: they are 0 to {len(known) - 1}")
    summed = hidden.Rates()
    with reporting("states", number) as report:
        for index in range(number):
            summed.add(kept.get(index) or read(index), seed)
            report(index + 1)
    table = summed.table(seed=seed)
    files: list[Path] = []
    if output is not None:
        some = [known[i] for i in sorted(set(layers)) or spread(len(known))]
        points, shares = projected(kept, some, list(data.vocabulary), method, seed)
        title = f"Hidden states of {short(names)[0]} on {dataset} ({split}), coloured by state of the automaton"
        about = {"title": title, "method": method, "rates": table, "points": points, "shares": shares}
        files = pictures.save(output, "states", draw, {**about, "sequences": number}, title)
        files += tables.write(output / "states-points", points) + tables.write(output / "states-rates", table)
    if json:
        about = {"source": names[0], "dataset": dataset, "split": split, "sequences": number, "skip": skip}
        emit({**about, "layers": tables.rows(table), "files": [str(path) for path in files]})
        return
    print(f"{names[0]} on {number:,} sequences of {dataset} ({split}), from position {skip} on, without separators")
    print("how often the nearest hidden state is of the same state, with 95 % intervals over sequences")
    printed = {"layer": table["layer"]}
    for name in hidden.RATES:
        ends = zip(table[name], table[f"{name} low"], table[f"{name} high"], strict=True)
        printed[name] = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in ends]
    print(tables.text(printed))
    for path in files:
        print(f"wrote {path}")


def spread(layers: int) -> list[int]:
    """At most `MOST` of so many layers, the first and the last among them."""
    some = min(MOST, layers)
    return sorted({round(i * (layers - 1) / max(some - 1, 1)) for i in range(some)})


def projected(
    kept: dict[int, Reading], layers: list[str], texts: list[str], method: str, seed: int
) -> tuple[dict[str, list[Any]], list[list[float] | None]]:
    """A row for every position drawn, and the shares of the variance for each language and layer in turn."""
    from icll_zoo_analysis.states import project

    heads = ("language", "layer", "position", "token", "state", "x", "y")
    points: dict[str, list[Any]] = {head: [] for head in heads}
    shares = []
    for index, reading in kept.items():
        for layer in layers:
            flat, share = project(reading.hidden[layer], method, seed)
            shares.append(share)
            tokens = [texts[token] for token in reading.token.tolist()]
            places = (reading.position.tolist(), tokens, reading.state.tolist(), *flat.T.tolist())
            for head, column in zip(heads, ([index] * len(flat), [layer] * len(flat), *places), strict=True):
                points[head] += column
    return points, shares


def draw(figure: Any, shown: Any) -> None:
    """A row of panels a language, a column a layer; every position is its token, in the colour of its state."""
    points = list(zip(*shown["points"].values(), strict=True))
    languages, layers = (list(dict.fromkeys(shown["points"][key])) for key in ("language", "layer"))
    figure.set_size_inches(max(3.1 * len(layers) + 1.3, 6.5), 3.2 * len(languages) + 0.8)
    grid = figure.subplots(len(languages), len(layers), squeeze=False)
    shares = iter(shown["shares"])
    for row, language in enumerate(languages):
        for column, layer in enumerate(layers):
            here = [point[3:] for point in points if point[:2] == (language, layer)]
            panel(grid[row][column], here, shown["method"], next(shares))
        legend(grid[row][-1], language, sorted({state for number, *_, state, _, _ in points if number == language}))
    rates = shown["rates"]
    for axes, layer in zip(grid[0], layers, strict=True):
        same, shuffled, within = (rates[name][rates["layer"].index(layer)] for name in rates if name in TITLED)
        text = f"{layer}\nsame state {same:.2f} (shuffled {shuffled:.2f}, in tokens {within:.2f})"
        axes.set_title(text, fontsize=8)
    about = f"letters are tokens; above: nearest neighbours of the same state, over {shown['sequences']} sequences"
    figure.suptitle(f"{shown['title']}\n{about}", fontsize=10)


def panel(axes: Any, here: list[Any], method: str, shares: list[float] | None) -> None:
    """here: the token, the state and the place of each position."""
    # Limits first: text does not count for them.
    axes.scatter([x for *_, x, _ in here], [y for *_, y in here], s=0)
    axes.margins(0.06)
    for token, state, x, y in here:
        axes.text(x, y, token, color=colour(state), fontsize=6.5, ha="center", va="center", clip_on=True)
    name = {"pca": "PC", "tsne": "t-SNE", "umap": "UMAP"}[method]
    ends = ["", ""] if shares is None else [f" ({share:.0%} of variance)" for share in shares]
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{name} 1{ends[0]}", fontsize=7.5)
    axes.set_ylabel(f"{name} 2{ends[1]}", fontsize=7.5)


def legend(axes: Any, language: int, states: list[int]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker="o", linestyle="", color=colour(state), markersize=5) for state in states]
    axes.legend(
        marks, [str(state) for state in states], title=f"language {language}\nstate", loc="center left",
        bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8, title_fontsize=8,
    )  # fmt: skip


def colour(state: int) -> str:
    return PALETTE[state % len(PALETTE)]
