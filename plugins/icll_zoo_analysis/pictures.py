"""Pictures of an analysis: each as PNG for the eye and as SVG for a page, the same numbers giving the same bytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from icll_zoo import InputError, render_figure

COLORS = ("#2166ac", "#b2182b", "#1b7837", "#8c510a", "#762a83", "#4d4d4d", "#35978f", "#c51b7d")
"""For series side by side; told apart also in grey for the first few, and by people who do not see all colours."""
MAP = "Blues"
"""Of heat maps of what is not negative."""


def output_folder(folder: Path | None) -> None:
    """Make the folder of --output now, and ask for what draws into it, rather than after minutes of work.

    Raises InputError if it is a file, or if matplotlib is not installed.
    """
    if folder is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("pictures need matplotlib", hint="pip install 'icll-zoo[plots]'")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {str(folder)!r} is a file", hint="name a folder")
    folder.mkdir(parents=True, exist_ok=True)


def save(folder: Path, name: str, plot: Callable[[Any, Any], None], data: Any, title: str) -> list[Path]:
    """Draw `plot(figure, data)` into NAME.png and NAME.svg of a folder; returns both paths.

    plot: sizes the empty matplotlib figure and fills it; it is called once a format. data: what JSON holds.
    title: of the file, for readers of its metadata; what the eye shall read is the plot's own business.
    Raises InputError if matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in ("png", "svg"):
        path = folder / f"{name}.{kind}"
        path.write_bytes(render_figure(plot, data, title, kind))
        written.append(path)
    return written


def heat_map(
    axes: Any,
    values: Sequence[Sequence[float | None]],
    *,
    low: float = 0.0,
    high: float = 1.0,
    colors: str = MAP,
    numbers: int | None = None,
) -> Any:
    """A matrix as coloured cells, row 0 on top, with its numbers to so many digits in the cells if that is given.

    A missing value (None) stays white. Returns what a colour bar is made of.
    """
    grid = [[float("nan") if value is None else value for value in row] for row in values]
    shown = axes.imshow(grid, cmap=colors, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for y, row in enumerate(values if numbers is not None else []):
        for x, value in enumerate(row):
            if value is None or value != value:
                continue
            red, green, blue, _ = shown.cmap(shown.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axes.text(x, y, f"{value:.{numbers}f}", ha="center", va="center", color="white" if dark else "black")
    return shown
