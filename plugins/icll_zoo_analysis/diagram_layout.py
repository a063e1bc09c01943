"""Where the states, edges and labels of an automaton go, so that a person can read them; lengths are inches.

States stand on a staggered grid, moved by simulated annealing until few edges cross, none passes through a state and no
two leave a state in nearly the same direction. Then single edges bend where that frees them of states, and labels slide
along their edges until none covers a state or another label. The same automaton always gives the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from icll_zoo_analysis.diagram_labels import RADIUS, Edge, bezier, place_notes, sample, slide_labels

SPACING = 1.6
BEND = 0.16
"""How far an edge bends to its right, in parts of its length, where another leads back."""
STEPS = 4000


@dataclass(frozen=True)
class Layout:
    """place[state]: (2,). curve[edge]: (3, 2), the points of a quadratic Bézier curve from rim to rim, of loops (4, 2)
    of a cubic one. label[edge]: (2,). start: (2, 2), the arrow to the start. side[state]: (2,), for a note on it."""

    place: dict[int, np.ndarray]
    curve: dict[Edge, np.ndarray]
    label: dict[Edge, np.ndarray]
    start: np.ndarray
    side: dict[int, np.ndarray]
    low: np.ndarray
    high: np.ndarray


def lay_out(states: Sequence[int], edges: Mapping[Edge, tuple[float, float]], start: int) -> Layout:
    """edges: the width and height of each edge's label; two states have at most one edge each way."""
    place = dict(zip(states, arrange(states, list(edges), start), strict=True))
    curve = bend_edges(place, list(edges))
    arrow = start_arrow(place, curve, start)
    label, taken = slide_labels(place, curve, edges, arrow)
    side = place_notes(place, curve, list(taken.values()), arrow)
    points = np.concatenate([np.stack(list(place.values())), *(sample(c) for c in curve.values()), arrow])
    low, high = points.min(0) - RADIUS - 0.35, points.max(0) + RADIUS + 0.35
    return Layout(place, curve, label, arrow, side, low, high)


# -- states ------------------------------------------------------------------------------------------------------------


def grid(n: int) -> np.ndarray:
    """(spots, 2): about twice as many spots as states, every other row moved by half a step."""
    width = max(2, ceil(sqrt(1.6 * n)))
    height = max(1, ceil(1.5 * n / width))
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    moved = x + 0.5 * (y % 2)
    return np.stack([moved, y * 0.87], -1).reshape(-1, 2) * SPACING


def arrange(states: Sequence[int], edges: Sequence[Edge], start: int) -> np.ndarray:
    """(states, 2): the best of a few annealed arrangements."""
    number = {state: i for i, state in enumerate(states)}
    pairs = sorted({(min(number[a], number[b]), max(number[a], number[b])) for a, b in edges if a != b})
    spots = grid(len(states))
    if not pairs:
        return spots[: len(states)]
    ends = np.array(pairs)
    found = [anneal(len(states), ends, spots, number[start], seed) for seed in range(3)]
    return min(found, key=lambda one: one[0])[1]


def anneal(n: int, ends: np.ndarray, spots: np.ndarray, start: int, seed: int) -> tuple[float, np.ndarray]:
    """The least ugly of the arrangements that are gone through, and how ugly it is."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(spots))  # the first n are the states', the others are free
    alike = shared_ends(ends)
    cost = ugliness(spots[chosen[:n]], ends, alike, start)
    best = cost, spots[chosen[:n]]
    for step in range(STEPS):
        heat = 3.0 * (0.01 ** (step / STEPS))
        one, other = random.integers(n), random.integers(len(spots))
        chosen[[one, other]] = chosen[[other, one]]
        changed = ugliness(spots[chosen[:n]], ends, alike, start)
        if changed <= cost or random.random() < np.exp((cost - changed) / heat):
            cost = changed
            if cost < best[0]:
                best = cost, spots[chosen[:n]]
        else:
            chosen[[one, other]] = chosen[[other, one]]
    return best


def shared_ends(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(edges, edges) both: pairs that begin or end at the same state, and pairs of which one begins where one ends."""
    first, second = ends.T
    same = np.triu((first[:, None] == first) | (second[:, None] == second), 1)
    return same.astype(float), (first[:, None] == second).astype(float)


def ugliness(place: np.ndarray, ends: np.ndarray, alike: tuple[np.ndarray, np.ndarray], start: int) -> float:
    """Crossings, edges through states, edges that leave a state side by side, long edges; the start belongs left."""
    a, b = place[ends[:, 0]], place[ends[:, 1]]
    along = b - a
    length = np.sqrt((along**2).sum(1))
    unit = along / length[:, None]
    # Every state along and across every edge that it does not end.
    offset = place[None] - a[:, None]
    ahead = (offset * unit[:, None]).sum(-1)
    across = unit[:, None, 0] * offset[..., 1] - unit[:, None, 1] * offset[..., 0]
    away = np.hypot(across, np.maximum(0, np.maximum(-ahead, ahead - length[:, None])))
    rows = np.arange(len(ends))
    away[rows, ends[:, 0]] = away[rows, ends[:, 1]] = np.inf
    through = np.maximum(0, 1 - away / (2.2 * RADIUS)).sum()
    # Edges cross if each has the ends of the other on both its sides.
    side = np.sign(np.round(across, 9))
    apart = side[:, ends[:, 0]] * side[:, ends[:, 1]] < 0
    crossings = (apart & apart.T).sum() / 2
    cosine = unit @ unit.T
    same, turned = alike
    close = (same * np.maximum(0, cosine - 0.85) + turned * np.maximum(0, -cosine - 0.85)).sum() / 0.15
    return float(crossings + 6 * through + 2 * close + 0.25 * length.sum() / SPACING + 0.5 * place[start, 0])


# -- edges -------------------------------------------------------------------------------------------------------------


def arc(here: np.ndarray, there: np.ndarray, bend: float) -> np.ndarray:
    """(3, 2): from rim to rim of two states, bent to the right by a part of the length."""
    along = there - here
    middle = (here + there) / 2 + 2 * bend * np.array([along[1], -along[0]])
    whole = np.stack([here, middle, there])
    fine = np.linspace(0, 1, 401)
    points = bezier(whole, fine)
    out = np.hypot(*(points - here).T) >= RADIUS
    into = np.hypot(*(points - there).T) >= RADIUS
    first, last = fine[out.argmax()], fine[len(fine) - 1 - into[::-1].argmax()]
    # The part of a quadratic curve between two places is one again; its middle point is the blossom of both.
    blossom = (
        (1 - first) * (1 - last) * here + (first * (1 - last) + last * (1 - first)) * middle + first * last * there
    )
    return np.stack([*bezier(whole, np.array([first])), blossom, *bezier(whole, np.array([last]))])


def loop(here: np.ndarray, angle: float) -> np.ndarray:
    """(4, 2): from a state to itself, on the side of an angle."""

    def at(turn: float, length: float) -> np.ndarray:
        return here + length * np.array([np.cos(angle + turn), np.sin(angle + turn)])

    return np.stack([at(0.5, RADIUS), at(0.45, 4 * RADIUS), at(-0.45, 4 * RADIUS), at(-0.5, RADIUS)])


def bend_edges(place: dict[int, np.ndarray], edges: list[Edge]) -> dict[Edge, np.ndarray]:
    """Curves for all edges: two between the same states lie side by side, others bend past states and other edges."""
    tried: dict[Edge, list[tuple[float, np.ndarray]]] = {}
    for a, b in edges:
        if a != b:
            bends = (
                [BEND, 1.4 * BEND, 1.8 * BEND]
                if (b, a) in edges
                else [turn * BEND for turn in (0, 0.5, -0.5, 1, -1, 1.5, -1.5, 2, -2)]
            )
            others = [at for state, at in place.items() if state not in (a, b)]
            curves = [arc(place[a], place[b], bend) for bend in bends]
            # Above all clear of states, then as straight as can be.
            tried[a, b] = [(9 * crowd(sample(c), others) + abs(bend), c) for c, bend in zip(curves, bends, strict=True)]
    chosen = {edge: min(options, key=lambda option: option[0])[1] for edge, options in tried.items()}
    for _ in range(2):
        for edge, options in tried.items():
            points = [sample(curve) for other, curve in chosen.items() if other != edge]
            rest = np.concatenate(points) if points else np.full((1, 2), np.inf)
            chosen[edge] = min(options, key=lambda option: option[0] + 0.25 * beside(sample(option[1]), rest))[1]
    for a, b in edges:
        if a == b:
            chosen[a, b] = loop(place[a], free_angle(place[a], place, chosen, 3 * RADIUS))
    return chosen


def beside(points: np.ndarray, others: np.ndarray) -> float:
    """How many points of a curve lie on other curves; near its ends it must meet those of the same state."""
    inner = points[3:-3]
    away = np.hypot(*np.moveaxis(inner[:, None] - others[None], -1, 0)).min(1)
    return float((away < 0.1).sum())


def crowd(points: np.ndarray, states: Sequence[np.ndarray]) -> float:
    """How near a curve comes to some states, 0 if it keeps well away from all."""
    if not states:
        return 0.0
    away = np.hypot(*np.moveaxis(points[:, None] - np.stack(states)[None], -1, 0)).min(0)
    return float(np.clip(1 - away / (1.7 * RADIUS), 0, 1).sum())


def free_angle(
    here: np.ndarray, place: dict[int, np.ndarray], curves: Mapping[Edge, np.ndarray], reach: float
) -> float:
    """The direction in which a place at some distance is farthest from other states and from edges."""
    center = np.mean(list(place.values()), 0)
    angles = np.linspace(-np.pi, np.pi, 24, endpoint=False)
    spots = here + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
    others = [at for at in place.values() if not np.array_equal(at, here)]
    points = np.concatenate([*(sample(c) for c in curves.values()), *(at[None] for at in others), here[None]])
    gap = np.hypot(*np.moveaxis(spots[:, None] - points[None], -1, 0)).min(1)
    outwards = np.hypot(*(spots - center).T)
    return float(angles[int(np.argmax(np.minimum(gap, 0.5) + 0.05 * outwards))])


def start_arrow(place: dict[int, np.ndarray], curves: Mapping[Edge, np.ndarray], start: int) -> np.ndarray:
    """(2, 2): from outside to the rim of the start."""
    here = place[start]
    angle = free_angle(here, place, curves, 2.4 * RADIUS)
    way = np.array([np.cos(angle), np.sin(angle)])
    return np.stack([here + way * (RADIUS + 0.42), here + way * RADIUS])
