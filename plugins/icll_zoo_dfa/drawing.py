"""A picture of a language: its automaton, states on a circle."""

from __future__ import annotations

from math import atan2, cos, dist, pi, sin
from pathlib import Path

from icll_zoo import InputError
from icll_zoo_dfa.language import Language

RADIUS = 0.09
"""Of a state, in units of the circle's for up to `ROOM` states; more get a larger sheet."""
ROOM = 14
BEND = 0.15
"""How far an edge bends to its right, in parts of its length, so that the two between two states lie side by side."""
COLOURS = ("#1b5e97", "#b3421b", "#2e7d32", "#7b3fa0", "#8a6d00", "#00727d", "#b0175b", "#4a4a4a")
"""An edge and its label have the colour of the state that they leave."""

Point = tuple[float, float]


def draw(language: Language, path: Path) -> None:
    """Draw the automaton into a file whose suffix says which format: .png, .svg or .pdf.

    Raises InputError if matplotlib (the extra `plots`) is not installed, or if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Circle, FancyArrowPatch
    except ImportError as error:
        raise InputError("drawing needs matplotlib", hint="pip install 'icll-zoo[plots]'") from error
    scale = max(1.0, len(language.delta) / ROOM)
    radius = RADIUS / scale
    figure = Figure(figsize=(7 * scale, 7 * scale + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    axes.set_axis_off()
    axes.set_title(
        "Start: the arrow from outside. Every state accepts.\n"
        "The k symbols that leave a state are equally probable, 1/k each.",
        fontsize=10,
    )
    # Clockwise from the left, where one looks for the start.
    order = {state: i for i, state in enumerate(language.delta)}
    angle = {state: pi - 2 * pi * i / len(order) for state, i in order.items()}
    place = {state: (cos(a), sin(a)) for state, a in angle.items()}

    def arrow(begin: Point, end: Point, colour: str, rad: float) -> None:
        style = f"arc3,rad={rad}"
        axes.add_patch(
            FancyArrowPatch(
                begin, end, connectionstyle=style, arrowstyle="-|>", mutation_scale=14,
                color=colour, linewidth=1.3, shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip

    def label(at: Point, text: str, colour: str) -> None:
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
        axes.text(*at, text, color=colour, fontsize=13, weight="bold", ha="center", va="center", bbox=box, zorder=4)

    for number, (state, edges) in enumerate(language.delta.items()):
        colour, here = COLOURS[number % len(COLOURS)], place[state]
        symbols: dict[int, str] = {}
        for symbol, target in edges.items():
            symbols[target] = f"{symbols[target]}, {symbol}" if target in symbols else symbol
        for target, text in symbols.items():
            if target == state:
                # Outwards, but beside where the arrow of the start comes in.
                out = angle[state] - 1
                arrow(step(here, out + 0.7, radius), step(here, out - 0.7, radius), colour, -1.9)
                label(step(here, out, 2.3 * radius), text, colour)
                continue
            there = place[target]
            bend = bend_of(order[target] - order[state], len(order))
            begin, end = rim(here, there, bend, radius), rim(there, here, -bend, radius)
            arrow(begin, end, colour, bend)
            # Near the state that it leaves, but not behind the middle of a short edge.
            label(along(begin, end, bend, min(0.5, 0.3 / scale / dist(begin, end))), text, colour)
    for number, (state, (x, y)) in enumerate(place.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=colour, linewidth=2, zorder=5))
        axes.text(x, y, str(state), color=colour, fontsize=13, ha="center", va="center", zorder=6)
    start, a = place[language.start], angle[language.start]
    arrow(step(start, a, radius + 0.2), step(start, a, radius), "black", 0)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot draw to {str(path)!r}: {reason}", hint="a name such as language.png") from error


def step(here: Point, angle: float, length: float) -> Point:
    return here[0] + length * cos(angle), here[1] + length * sin(angle)


def bend_of(steps: int, n: int) -> float:
    """How far an edge to the state so many steps on, of n, bends: against the clock, right is outwards, where the
    states between stand, and the edge is straight instead."""
    steps %= n
    return BEND if 2 * steps <= n or steps == n - 1 else 0.0


def rim(here: Point, there: Point, bend: float, radius: float) -> Point:
    """Where an edge between two states meets the rim of the one `here`."""
    dx, dy = there[0] - here[0], there[1] - here[1]
    # An arc of this bend begins towards its control point.
    return step(here, atan2(dy / 2 - bend * dx, dx / 2 + bend * dy), radius)


def along(begin: Point, end: Point, bend: float, t: float) -> Point:
    """The point at t in [0, 1] of the quadratic curve that matplotlib's `arc3` draws."""
    (x0, y0), (x2, y2) = begin, end
    x1, y1 = (x0 + x2) / 2 + bend * (y2 - y0), (y0 + y2) / 2 - bend * (x2 - x0)
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
    return a * x0 + b * x1 + c * x2, a * y0 + b * y1 + c * y2
