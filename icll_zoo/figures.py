"""Pictures whose bytes depend on their numbers alone, and those of a model card: the learning curve, and the model
beside the learners, oracle and paper.

The same numbers and the same matplotlib give the same bytes: no date, no random identifiers, nobody's own settings.
matplotlib comes with the extra `plots` and is imported only when something is drawn.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from icll_zoo import files
from icll_zoo.errors import InputError

LEARNING, COMPARISON = FIGURES = ("figures/learning-curve.svg", "figures/comparison.svg")
ROWS, PANELS, POINTS = 24, 4, 2000  # as much as a picture shows; a stranger's config.json may hold more
OURS, BESIDE, QUOTED = "#b2182b", "#4d4d4d", "#2166ac"
DPI = 150  # of a PNG
LOCK = threading.Lock()  # matplotlib's settings are the whole process's


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(learning: Any, comparison: Any) -> dict[str, bytes]:
    """The pictures by their path in the folder; one that has nothing to show is left out.

    learning: {series: [(step, loss), ...]}. comparison: {metric: [(predictor, value, low, high, kind), ...]}, the kind
    "model", "beside" or "quoted".
    """
    drawn = {}
    if learning:
        drawn[LEARNING] = render_figure(learning_curve, learning, "Learning curve", "svg")
    if comparison:
        drawn[COMPARISON] = render_figure(comparison_panels, comparison, "Comparison on held-out data", "svg")
    return drawn


def digest(data: Any) -> str:
    """What identifies the numbers in a picture, whichever matplotlib drew them."""
    return hashlib.sha256(files.canonical_json(data).encode()).hexdigest()


def same_picture(found: bytes, wanted: bytes) -> bool:
    """Whether a picture is the wanted one: the same bytes or, from another release of matplotlib, the same numbers."""
    if found == wanted:
        return True
    marks = [
        re.search(rb"<dc:description>(.*?)</dc:description>.*?<dc:title>(Matplotlib v[^<]*)", b, re.S)
        for b in (found, wanted)
    ]
    if not all(marks):
        return False
    ours, theirs = (mark.groups() for mark in marks if mark)
    return ours[0] == theirs[0] and ours[1] != theirs[1]


def render_figure(plot: Callable[[Any, Any], None], data: Any, title: str, kind: Literal["svg", "png"]) -> bytes:
    """The picture that `plot(figure, data)` makes of an empty matplotlib figure, as SVG or PNG.

    data: what JSON holds; its digest goes into the picture. Text in an SVG stays text, so that it can be read aloud,
    searched and compared. Raises InputError if matplotlib is not installed.
    """
    if not can_draw():
        raise InputError("pictures need matplotlib", hint="pip install 'icll-zoo[plots]'")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    settings |= {"svg.hashsalt": "icll-zoo", "svg.fonttype": "none", "text.parse_math": False, "font.size": 9}
    about = {"Title": title, "Description": digest(data)}
    with LOCK, matplotlib.rc_context(settings):
        figure = Figure(layout="constrained")
        (FigureCanvasSVG if kind == "svg" else FigureCanvasAgg)(figure)
        plot(figure, data)
        written = io.BytesIO()
        if kind == "svg":
            figure.savefig(written, format="svg", metadata={"Date": None, **about})
        else:
            figure.savefig(written, format="png", metadata=about, dpi=DPI)
    return written.getvalue()


def learning_curve(figure: Any, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Losses by updates."""
    figure.set_size_inches(6, 3.2)
    axes = figure.add_subplot()
    for (name, points), color in zip(series.items(), (BESIDE, OURS, QUOTED), strict=False):
        few = len(points) <= 30
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, color=color, label=name, marker="o" if few else "", markersize=3, linewidth=1.2)
    axes.set_xlabel("updates")
    axes.set_ylabel("cross-entropy (nats a token)")
    axes.legend(frameon=False)
    tidy_axes(axes, "both")


def comparison_panels(figure: Any, metrics: Mapping[str, Sequence[tuple[str, float, float, float, str]]]) -> None:
    """A panel for each metric, a row for each predictor: the value and its interval."""
    names = list(dict.fromkeys(row[0] for rows in metrics.values() for row in rows))
    figure.set_size_inches(2.2 + 2.4 * len(metrics), 0.9 + 0.26 * len(names))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, (metric, rows) in zip(panels, metrics.items(), strict=True):
        for name, value, low, high, kind in rows:
            color = {"model": OURS, "quoted": QUOTED}.get(kind, BESIDE)
            y = names.index(name)
            axes.plot([low, high], [y, y], color=color, linewidth=1.5)
            face = "white" if kind == "quoted" else color
            axes.plot([value], [y], marker="o", color=color, markerfacecolor=face, markersize=5)
        axes.set_title(metric, fontsize=9)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=4)
        tidy_axes(axes, "x")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)


def tidy_axes(axes: Any, grid: Literal["x", "y", "both"]) -> None:
    """The quiet style: a pale grid behind, no frame on top and to the right."""
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
