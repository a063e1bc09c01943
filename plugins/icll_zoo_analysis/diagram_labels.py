"""Where labels and notes go: along their edges and beside their states, where they hide least; lengths are inches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RADIUS = 0.25
"""Of a state."""
NOTE = np.array([0.34, 0.09])
"""Half the size of a note on a state."""
CURVE = np.linspace(0, 1, 25)
"""Where a curve is looked at."""
Edge = tuple[int, int]
Box = tuple[np.ndarray, np.ndarray]
"""The centre of a rectangle and half its size."""


def bezier(points: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(t, 2): a Bézier curve of any degree at some places, by de Casteljau's rule."""
    levels = np.repeat(points[:, None], len(t), 1)
    while len(levels) > 1:
        levels = levels[:-1] * (1 - t[:, None]) + levels[1:] * t[:, None]
    return levels[0]


def sample(points: np.ndarray) -> np.ndarray:
    return bezier(points, CURVE)


def slide_labels(
    place: dict[int, np.ndarray],
    curves: dict[Edge, np.ndarray],
    sizes: Mapping[Edge, tuple[float, float]],
    arrow: np.ndarray,
) -> tuple[dict[Edge, np.ndarray], dict[Edge, Box]]:
    """The place of each label on its edge, and all their rectangles: in a few rounds each takes the best place left."""
    spots = {edge: bezier(curve, np.linspace(0.12, 0.8, 18)) for edge, curve in curves.items()}
    lines = {edge: bezier(curve, np.linspace(0, 1, 60)) for edge, curve in curves.items()}
    lines[-1, -1] = bezier(arrow, CURVE)
    half = {edge: np.array(sizes[edge]) / 2 for edge in curves}
    chosen = dict.fromkeys(curves, 6)
    for _ in range(6):
        before = dict(chosen)
        for edge in curves:
            taken = [(spots[e][chosen[e]], half[e]) for e in curves if e != edge]
            others = np.concatenate([line for e, line in lines.items() if e != edge])
            # Where the edge itself comes to a state must be seen, and better also where it leaves one.
            tip, root = lines[edge][-8:], lines[edge][:5]
            costs = [
                covering((spot, half[edge]), taken, place, others)
                + 2 * hides((spot, half[edge]), tip)
                + hides((spot, half[edge]), root)
                + 0.04 * abs(i - 6)
                for i, spot in enumerate(spots[edge])
            ]
            chosen[edge] = int(np.argmin(costs))
        if chosen == before:
            break
    label = {edge: spots[edge][chosen[edge]] for edge in curves}
    return label, {edge: (label[edge], half[edge]) for edge in curves}


def covering(box: Box, taken: Sequence[Box], place: Mapping[int, np.ndarray], points: np.ndarray) -> float:
    """What a rectangle would hide: other labels and states above all, points of edges less."""
    center, half = box
    cost = 0.0
    if taken:
        centers, halves = np.stack([c for c, _ in taken]), np.stack([h for _, h in taken])
        overlap = np.clip(half + halves + 0.03 - np.abs(centers - center), 0, None)
        cost += 60 * float((overlap[:, 0] * overlap[:, 1]).sum() / (4 * half[0] * half[1]))
    gap = np.clip(np.abs(np.stack(list(place.values())) - center) - half, 0, None)
    cost += 40 * float(np.clip(1 - np.hypot(*gap.T) / (RADIUS + 0.04), 0, None).sum())
    return cost + 0.5 * hides(box, points)


def hides(box: Box, points: np.ndarray) -> float:
    """How many points a rectangle covers."""
    center, half = box
    return float((np.abs(points - center) < half + 0.02).all(1).sum())


def place_notes(
    place: dict[int, np.ndarray], curves: dict[Edge, np.ndarray], taken: list[Box], arrow: np.ndarray
) -> dict[int, np.ndarray]:
    """Where a short note beside each state hides least, other notes included."""
    points = np.concatenate([*(bezier(c, np.linspace(0, 1, 60)) for c in curves.values()), bezier(arrow, CURVE)])
    angles = np.linspace(-np.pi, np.pi, 48, endpoint=False)
    ways = np.stack([np.cos(angles), np.sin(angles)], 1)
    # From a note's middle to its rim, in each direction.
    reach = (NOTE / np.maximum(np.abs(ways), 1e-9)).min(1, keepdims=True)
    found = {}
    for state, at in place.items():
        spots = at + ways * (RADIUS + 0.05 + reach)
        costs = [covering((spot, NOTE), taken, place, points) for spot in spots]
        found[state] = spots[int(np.argmin(costs))]
        taken = [*taken, (found[state], NOTE)]
    return found
