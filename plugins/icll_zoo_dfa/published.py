"""What the paper reports on the same metrics, to stand beside what is measured here and never mixed with it.

Read off its main figure (arXiv:2401.12973, accuracy and total variation distance on held-out languages by the number
of training languages): within 0.003, and within 0.01 where marks hide each other, written `~` below.
"""

from __future__ import annotations

from typing import Any

SOURCE = "arXiv:2401.12973"
LANGUAGES = (1000, 2500, 5000, 10_000, 20_000, 40_000)
FIGURE = {
    "accuracy": """
        transformer         ~0.546  0.925  0.940  0.950  0.955  0.958
        mamba                0.692  0.843  0.893  0.911  0.920  0.917
        retnet               0.503  0.800  0.838  0.882 ~0.914 ~0.919
        linear-transformer  ~0.512  0.541  0.809  0.823      - ~0.917
        hyena                0.581  0.701  0.755  0.806  0.845  0.892
        h3                  ~0.525  0.652  0.708  0.764  0.795 ~0.835
        rwkv-4              ~0.498  0.491  0.608  0.733  0.773  0.830
        lstm                ~0.495  0.588  0.728  0.786  0.811  0.814
        s4d                  0.527 ~0.533  0.535  0.635  0.742  0.789
        2-gram               0.835
        3-gram               0.937
    """,
    "tvd": """
        transformer         ~0.625  0.208  0.175  0.155  0.139  0.127
        retnet               0.664  0.392 ~0.305 ~0.267  0.214  0.212
        linear-transformer   0.626  0.614  0.320  0.299      - ~0.208
        mamba                0.510  0.370  0.301  0.278  0.258  0.264
        hyena                0.591  0.490  0.444  0.393  0.325 ~0.253
        rwkv-4              ~0.663  0.640  0.561  0.461  0.421  0.319
        h3                  ~0.626  0.524  0.474  0.416  0.375 ~0.332
        lstm                ~0.635  0.562 ~0.457 ~0.405 ~0.371  0.369
        s4d                 ~0.627 ~0.617  0.594  0.528 ~0.438  0.402
        2-gram               0.337
        3-gram               0.265
    """,
}
"""metric -> a row for each model, a column for each of LANGUAGES; the n-gram learners, which do not train, have one."""


def beside(metric: str, architecture: str, languages: int | None) -> dict[str, dict[str, Any]]:
    """The paper's values of a metric, to quote beside a model: {"Transformer, 2,500 languages": {"value": ...}}.

    The architecture's own and the Transformer's at the same number of training languages, the Transformer's at most
    of them, and the n-gram learners'. For an endless stream the Transformer's at 2,500 too, where it first does well.
    """
    if metric not in FIGURE:
        return {}
    rows = {name: cells for name, *cells in (line.split() for line in FIGURE[metric].strip().splitlines())}
    found: dict[str, dict[str, Any]] = {}
    wanted = [(architecture, languages), ("transformer", languages or 2500), ("transformer", LANGUAGES[-1])]
    for name, number in wanted:
        if name in rows and number in LANGUAGES and (cell := rows[name][LANGUAGES.index(number)]) != "-":
            found[f"{name.capitalize()}, {number:,} languages"] = quoted(cell)
    return found | {name: quoted(rows[name][0]) for name in ("2-gram", "3-gram")}


def quoted(cell: str) -> dict[str, Any]:
    """A cell of the tables above: its value, how far off it may have been read, and where."""
    return {"value": float(cell.lstrip("~")), "within": 0.01 if cell[0] == "~" else 0.003, "source": SOURCE}
