"""The picture of an automaton, and beside it the same automaton as a model believes it to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icll_zoo_analysis.diagram import Automaton, Belief
from icll_zoo_analysis.diagram_labels import RADIUS, Edge
from icll_zoo_analysis.diagram_layout import Layout, lay_out

SIZE = 10.0
"""Of a label's text, in points; what follows is its extent in inches."""
CHARACTER, LINE = 0.62 * SIZE / 72, 1.3 * SIZE / 72
COLOURS = ("#1b5e97", "#b3421b", "#2e7d32", "#7b3fa0", "#8a6d00", "#00727d", "#b0175b", "#4a4a4a")
"""Without a model an edge and its label have the colour of the state that they leave."""
MORE, LESS, RIGHT, UNKNOWN = "#b2182b", "#2166ac", "#3c3c3c", "#9a9a9a"
MARKED = 0.05
"""Differences of probabilities from here on are coloured."""
TOP, BOTTOM = 0.35, 0.4
"""Inches for the titles and for what the signs mean."""


def merged(automaton: Automaton) -> dict[Edge, list[str]]:
    """The symbols of the edges between each two states."""
    found: dict[Edge, list[str]] = {}
    for state, edges in automaton.delta.items():
        for symbol, target in edges.items():
            found.setdefault((state, target), []).append(symbol)
    return found


def number(value: float) -> str:
    """A probability as .33, or 1."""
    text = f"{value:.2f}"
    return text.removeprefix("0") if text != "1.00" else "1"


def layout_of(automaton: Automaton) -> Layout:
    """Where everything goes, with room for every edge's label: a line a symbol and its probability."""
    sizes = {
        edge: ((max(map(len, symbols)) + 4.2) * CHARACTER, LINE * len(symbols))
        for edge, symbols in merged(automaton).items()
    }
    return lay_out(list(automaton.delta), sizes, automaton.start)


def draw(
    figure: Any,
    automaton: Automaton,
    beliefs: Mapping[int, Belief],
    layout: Layout,
    texts: list[str],
    titles: list[str],
    end: str | None,
) -> None:
    """texts: of all tokens. titles: of the one panel or the two. end: the token that ends a string, if it is one."""
    edges = merged(automaton)
    width, height = layout.high - layout.low
    width = max(width, 7.2)
    total = width * len(titles), height + TOP + BOTTOM
    figure.set_size_inches(*total)
    figure.set_layout_engine("none")  # the places are reckoned here
    for i, title in enumerate(titles):
        # Exactly an inch a unit, since the labels' places are reckoned in inches.
        axes = figure.add_axes((i / len(titles), BOTTOM / total[1], 1 / len(titles), height / total[1]))
        middle = (layout.low[0] + layout.high[0]) / 2
        axes.set(xlim=(middle - width / 2, middle + width / 2), ylim=(layout.low[1], layout.high[1]))
        axes.set_axis_off()
        axes.set_title(title, fontsize=11)
        panel(axes, automaton, beliefs, texts, layout, edges, model=i == 1, end=end)
    accepts = "Every state accepts." if automaton.accepting is None else "Two rims: the state accepts."
    line = 0.16 / total[1]
    figure.text(0.3 / total[0], line, f"The arrow from outside leads to the start. {accepts}", fontsize=9)
    if len(titles) == 2:
        legend(figure, width / total[0], line, total[0])


def legend(figure: Any, left: float, line: float, width: float) -> None:
    """What colours, numbers and crosses mean in a model's panel."""
    key = (
        ("more than true", MORE, 1.05),
        ("less than true", LESS, 1.0),
        (f"within {number(MARKED)}", RIGHT, 0.85),
        ("in a state: TVD of the mean", RIGHT, 1.85),
        ("✗: what cannot follow (most of it)", MORE, 0),
    )
    for text, colour, step in key:
        figure.text(left, line, text, color=colour, fontsize=9)
        left += step / width


def panel(
    axes: Any,
    automaton: Automaton,
    beliefs: Mapping[int, Belief],
    texts: list[str],
    layout: Layout,
    edges: Mapping[Edge, list[str]],
    *,
    model: bool,
    end: str | None,
) -> None:
    """One automaton: the truth, coloured by state, or what a model believes, coloured by its difference from it."""
    id_of = {text: i for i, text in enumerate(texts)}
    for rank, (edge, symbols) in enumerate(sorted(edges.items())):
        belief = beliefs[edge[0]]
        colour = COLOURS[list(automaton.delta).index(edge[0]) % len(COLOURS)]
        values = belief.model if model else belief.truth
        lines, apart = [], 0.0
        for symbol in symbols:
            lines.append(f"{symbol} {number(float(values[id_of[symbol]])) if values is not None else '?'}")
            if model and belief.model is not None:
                gap = float(belief.model[id_of[symbol]] - belief.truth[id_of[symbol]])
                apart = gap if abs(gap) > abs(apart) else apart
        thick = 1.3
        if model:
            colour = UNKNOWN if values is None else colour_of(apart)
            chance = 0.0 if values is None else sum(float(values[id_of[s]]) for s in symbols)
            thick = 0.5 + 2.5 * min(chance, 1.0)
        arrow(axes, layout.curve[edge], colour, thick)
        label(axes, layout.label[edge], "\n".join(lines), colour, rank)
    for i, (state, at) in enumerate(layout.place.items()):
        colour = COLOURS[i % len(COLOURS)] if not model else RIGHT
        node(axes, at, colour, beliefs[state], str(state), automaton, state, model)
        note = note_of(beliefs[state], texts, end, model)
        if note:
            text, shade = note
            label(axes, layout.side[state], text, shade, 99, SIZE - 2)
    arrow(axes, layout.start, "black", 1.3)


def colour_of(apart: float) -> str:
    return RIGHT if abs(apart) < MARKED else MORE if apart > 0 else LESS


def note_of(belief: Belief, texts: list[str], end: str | None, model: bool) -> tuple[str, str] | None:
    """What stands beside a state: how probable an end is, and what the model expects that cannot follow."""
    values = belief.model if model else belief.truth
    if values is None:
        return None
    if end is not None and float(belief.truth[texts.index(end)]) > 0:
        chance = float(values[texts.index(end)])
        return f"end {number(chance)}", colour_of(chance - float(belief.truth[texts.index(end)])) if model else RIGHT
    wrong = belief.illegal or 0.0
    if model and wrong >= MARKED:
        worst = texts[int((belief.model * (belief.truth == 0)).argmax())]
        return f"✗ {number(wrong)} ({'end' if worst == end else worst})", MORE
    return None


def node(
    axes: Any, at: Any, colour: str, belief: Belief, name: str, automaton: Automaton, state: int, model: bool
) -> None:
    """A circle, two if only some states accept and this one does; of a model its distance, as a shade and a number."""
    from matplotlib.patches import Circle

    face: Any = "white"
    if model and belief.tvd is None:
        face = "#eeeeee"
    elif model and belief.tvd is not None:
        shade = 0.8 * min(belief.tvd / 0.5, 1.0)
        face = (1.0, 1.0 - shade, 1.0 - shade)
    axes.add_patch(Circle(at, RADIUS, facecolor=face, edgecolor=colour, linewidth=1.8, zorder=5))
    if automaton.accepting is not None and state in automaton.accepting:
        axes.add_patch(Circle(at, RADIUS - 0.05, facecolor="none", edgecolor=colour, linewidth=1.2, zorder=6))
    style = {"ha": "center", "va": "center", "zorder": 7}
    if model and belief.tvd is not None:
        axes.text(at[0], at[1] + 0.06, name, fontsize=12, color="black", **style)
        axes.text(at[0], at[1] - 0.1, number(belief.tvd), fontsize=7.5, color="black", **style)
    else:
        axes.text(*at, name, fontsize=12, color=colour, **style)


def arrow(axes: Any, points: Any, colour: str, thick: float) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    kinds = {2: [Path.LINETO], 3: [Path.CURVE3] * 2, 4: [Path.CURVE4] * 3}[len(points)]
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points, [Path.MOVETO, *kinds]), arrowstyle="-|>", mutation_scale=11, color=colour,
            linewidth=thick, shrinkA=0, shrinkB=0, zorder=3, joinstyle="miter", capstyle="butt",
        )
    )  # fmt: skip


def label(axes: Any, at: Any, text: str, colour: str, rank: int, size: float = SIZE) -> None:
    box = {"boxstyle": "square,pad=0.08", "facecolor": "white", "edgecolor": "none"}
    axes.text(
        *at, text, color=colour, fontsize=size, weight="bold", ha="center", va="center", bbox=box, linespacing=1.1,
        zorder=4 + rank / 1000,
    )  # fmt: skip
