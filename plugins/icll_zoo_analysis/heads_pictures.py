"""The pictures of `icll-zoo heads`, each with its numbers: scores, attention on one sequence, and heads taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from icll_zoo import Batch, Dataset, Split
    from icll_zoo_analysis.heads import HeadScore
    from icll_zoo_analysis.heads_ablation import Ablation, Head

NAMES = {"previous": "previous token"}
"""Of measures, where they have no order."""


def label(heads: tuple[Head, ...]) -> str:
    from icll_zoo_analysis.heads import layer_of

    return " ".join(f"{layer_of(module)}.{head}" for module, head in heads) or "none"


def write_scores(folder: Path, scores: list[HeadScore], title: str) -> list[Path]:
    """head-scores: the table, and a picture of scores beside uniform attention."""
    from icll_zoo_analysis import pictures, tables

    measures = list(dict.fromkeys(score.measure for score in scores))
    names = list(dict.fromkeys(score.name for score in scores))
    of = {(score.name, score.measure): score for score in scores}
    drawn = {
        "title": title,
        "heads": names,
        "measures": [NAMES.get(measure, f"order {measure}") for measure in measures],
        "scores": [[of[name, measure].score for measure in measures] for name in names],
        "uniform": [of[names[0], measure].uniform for measure in measures],
    }
    # vars keeps the fields' order.
    columns = {key: [vars(score)[key] for score in scores] for key in vars(scores[0])}
    return [
        *pictures.save(folder, "head-scores", draw_scores, drawn, f"n-gram head scores of {title}"),
        *tables.write(folder / "head-scores", columns),
    ]


def draw_scores(figure: Any, drawn: Any) -> None:
    """Heads by measures, with the numbers in the cells; below them what uniform attention has."""
    from icll_zoo_analysis import pictures

    names, measures = drawn["heads"], drawn["measures"]
    figure.set_size_inches(2.2 + 1.05 * len(measures), 1.5 + 0.3 * len(names) + 0.5)
    rows = [*drawn["scores"], drawn["uniform"]]
    axes = figure.add_subplot()
    cells = pictures.heat_map(axes, rows, numbers=2)
    axes.axhline(len(names) - 0.5, color="white", linewidth=4)
    axes.set_xticks(range(len(measures)), measures)
    axes.set_yticks(range(len(rows)), [*names, "uniform"])
    axes.set_ylabel("layer.head")
    figure.suptitle(f"{drawn['title']}:\nshare of attention on the targets", fontsize=10)
    bar = figure.colorbar(cells, ax=axes)
    bar.set_label("share of attention")
    bar.outline.set_visible(False)


def write_attention(
    folder: Path,
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    sequence: int,
    shown: int,
    orders: tuple[int, ...],
    device: str,
) -> list[Path]:
    """attention: the weights of all heads on the start of one sequence, with tokens and states as labels."""
    from icll_zoo import trace
    from icll_zoo_analysis import pictures, tables
    from icll_zoo_analysis.attention import successors
    from icll_zoo_analysis.heads import PATTERN, layer_of

    size = dataset.size(split)
    batch = dataset.batch(split, sequence, 1, None if size is not None else 0).to(device)
    length = min(shown, int(batch.valid.sum()))
    weights = trace(model, batch.tokens[:, :length], PATTERN)
    labels = token_labels(dataset, batch, length)
    targets = successors(batch.tokens[:, :length], orders[0])[0]
    panels = [
        {"layer": layer, "head": head, "rows": in_shares(tensor[0, head])}
        for layer, tensor in enumerate(weights.values())
        for head in range(tensor.size(1))
    ]
    drawn = {
        "labels": labels,
        "states": "state" in batch.extra,
        "order": orders[0],
        "layers": [layer_of(name) for name in weights],
        "heads": max(tensor.size(1) for tensor in weights.values()),
        "panels": panels,
        "targets": targets.nonzero().tolist(),
        "sequence": sequence,
    }
    where = targets.new_ones(length, length).tril().nonzero().tolist()
    columns: dict[str, list[Any]] = {
        "layer": [],
        "head": [],
        "query": [],
        "key": [],
        "query_token": [],
        "key_token": [],
        "weight": [],
    }
    for name, tensor in weights.items():
        for head in range(tensor.size(1)):
            columns["layer"] += [layer_of(name)] * len(where)
            columns["head"] += [head] * len(where)
            columns["query"] += [t for t, _ in where]
            columns["key"] += [s for _, s in where]
            columns["query_token"] += [labels[t] for t, _ in where]
            columns["key_token"] += [labels[s] for _, s in where]
            columns["weight"] += [float(tensor[0, head, t, s]) for t, s in where]
    title = f"Attention on sequence {sequence}"
    return [
        *pictures.save(folder, "attention", draw_attention, drawn, title),
        *tables.write(folder / "attention", columns),
    ]


def token_labels(dataset: Dataset, batch: Batch, length: int) -> list[str]:
    """The tokens of the first row, each with the state after it where the dataset knows states: "a 3"."""
    texts = [dataset.vocabulary[i] for i in batch.tokens[0, :length].tolist()]
    if "state" not in batch.extra:
        return texts
    return [f"{text} {state}" for text, state in zip(texts, batch.extra["state"][0, :length].tolist(), strict=True)]


def in_shares(panel: Any) -> list[list[float | None]]:
    """A head's weights (l, l) for a picture: in parts of the sum of their magnitudes, nothing above the diagonal."""
    parts = (panel / panel.abs().sum(-1, keepdim=True).clamp(min=1e-30)).tolist()
    return [[round(value, 4) if s <= t else None for s, value in enumerate(row)] for t, row in enumerate(parts)]


def draw_attention(figure: Any, drawn: Any) -> None:
    """A panel a head, the heads of a layer side by side; circles mark the successors."""
    from icll_zoo_analysis import pictures

    labels, panels, heads = drawn["labels"], drawn["panels"], drawn["heads"]
    n, layers = len(labels), len(drawn["layers"])
    beside = min(max(1, 4 // heads), layers)  # layers in one row of panels
    down = -(-layers // beside)
    side = max(2.6, 0.105 * n + 0.6)
    figure.set_size_inches(beside * heads * side + 1.0, down * (side + 0.2) + 0.7)
    grid = figure.subplots(down, beside * heads, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    signed = any(value is not None and value < 0 for panel in panels for row in panel["rows"] for value in row)
    for panel in panels:
        down_here, beside_here = divmod(panel["layer"], beside)
        axes = grid[down_here, beside_here * heads + panel["head"]]
        axes.set_axis_on()
        cells = pictures.heat_map(
            axes, panel["rows"], low=-1.0 if signed else 0.0, colors="RdBu" if signed else pictures.MAP
        )
        axes.set_aspect("equal")
        axes.scatter(
            [s for _, s in drawn["targets"]], [t for t, _ in drawn["targets"]],
            s=7, facecolors="none", edgecolors="#1b7837" if signed else "#b2182b", linewidths=0.5,
        )  # fmt: skip
        axes.set_title(f"layer {drawn['layers'][panel['layer']]}, head {panel['head']}", fontsize=9)
        axes.set_xticks(range(n), labels, rotation=90, fontsize=5, family="monospace")
        axes.set_yticks(range(n), labels, fontsize=5, family="monospace")
    what = "token and the state after it" if drawn["states"] else "token"
    figure.supxlabel(f"attended to ({what})", fontsize=10)
    figure.supylabel(f"attending ({what})", fontsize=10)
    last = "token" if drawn["order"] == 1 else f"{drawn['order']} tokens"
    figure.suptitle(
        f"Attention on sequence {drawn['sequence']}\ncircles: what followed earlier occurrences of the last {last}",
        fontsize=10,
    )
    bar = figure.colorbar(cells, ax=list(grid.flat), shrink=0.6, aspect=20 * down, pad=0.01)
    bar.set_label("share of attention, with the weight's sign" if signed else "attention weight")
    bar.outline.set_visible(False)


def write_ablation(folder: Path, ablation: Ablation, by: str) -> list[Path]:
    """ablation: each set of heads with its values and costs, and a picture of the costs."""
    from icll_zoo_analysis import pictures, tables

    sets = [(), ablation.best, *ablation.random]
    metrics = list(ablation.random_costs)
    columns: dict[str, list[Any]] = {
        "kind": ["whole", "best", *["random"] * len(ablation.random)],
        "heads": [label(chosen) for chosen in sets],
    }
    for name in metrics:
        for what, found in (("", ablation.values), ("_cost", ablation.costs)):
            for place, end in enumerate(("", "_low", "_high")):
                columns[f"{name}{what}{end}"] = [found[chosen][name][place] for chosen in sets]
    drawn = {
        "by": NAMES.get(by, f"order {by}"),
        "heads": [label(chosen) for chosen in sets[1:]],
        "costs": {name: [ablation.costs[chosen][name] for chosen in sets[1:]] for name in metrics},
    }
    return [
        *pictures.save(folder, "ablation", draw_ablation, drawn, "What the best heads are worth"),
        *tables.write(folder / "ablation", columns),
    ]


def draw_ablation(figure: Any, drawn: Any) -> None:
    """A panel a metric, a row a set of heads: its cost and interval; the best set in red, on top."""
    from icll_zoo import tidy_axes
    from icll_zoo_analysis import pictures

    metrics, sets = drawn["costs"], drawn["heads"]
    figure.set_size_inches(1.6 + 2.3 * len(metrics), 1.4 + 0.25 * len(sets))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, (name, costs) in zip(panels, metrics.items(), strict=True):
        for y, (value, low, high) in enumerate(costs):
            color = pictures.COLORS[1] if y == 0 else pictures.COLORS[5]
            axes.plot([low, high], [y, y], color=color, linewidth=1.5)
            axes.plot([value], [y], marker="o", markersize=5, color=color)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(f"cost in {name}")
        axes.locator_params(axis="x", nbins=4)
        tidy_axes(axes, "x")
    panels[0].set_yticks(range(len(sets)), sets)
    panels[0].set_ylim(len(sets) - 0.5, -0.5)
    panels[0].set_ylabel("heads taken out (layer.head)")
    figure.suptitle(f"Without the best heads by {drawn['by']} (red), and without as many others", fontsize=10)
