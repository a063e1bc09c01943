"""Any number of predictors on the same data: how far apart they are, pair by pair, and how good each one is.

The distance of two predictors p and q is their mean total variation distance, 1/2 sum_v |p_t(v) - q_t(v)|, over all
positions t of all sequences that are not padding (arXiv:2401.12973; its tables count only the first 100 positions of a
sequence). Nothing is renormalised. Languages are resampled for intervals, the same ones for every predictor: what is
said of a difference is paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from icll_zoo import IGNORED, Accumulator, InputError, bootstrap, interval, stored_batches

if TYPE_CHECKING:
    from icll_zoo import Batch, Dataset, Metric, Predictor, Split

Ranged = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


@dataclass(frozen=True)
class Comparison:
    """tvd: of every pair of names, in their order. scores[metric][name]. differences[metric][pair]: the first's value
    minus the second's. groups: languages or documents. positions: those counted."""

    names: tuple[str, ...]
    tvd: dict[tuple[str, str], Ranged]
    scores: dict[str, dict[str, Ranged]]
    differences: dict[str, dict[tuple[str, str], Ranged]]
    sequences: int
    groups: int
    positions: int

    def matrix(self) -> list[list[float]]:
        """All distances, symmetric, zero on the diagonal."""
        known = {(a, a): 0.0 for a in self.names}
        for (a, b), (value, _, _) in self.tvd.items():
            known[a, b] = known[b, a] = value
        return [[known[a, b] for b in self.names] for a in self.names]


def compare(
    predictors: Mapping[str, Predictor],
    dataset: Dataset,
    metrics: Mapping[str, Metric],
    *,
    split: Split = "test",
    batch_size: int = 64,
    limit: int | None = None,
    first: int | None = None,
    device: torch.device | str = "cpu",
    resamples: int = 1000,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """One pass over a split with every predictor; what is kept of a batch is a few sums for each language in it.

    first: count only so many positions of each sequence. limit: sequences. seed: of the bootstrap. report: is told how
    many sequences are done.
    Raises InputError for fewer than two predictors, a metric of single positions, one that needs an oracle where there
    is none, or predictors of other vocabularies than the dataset's.
    """
    names = tuple(predictors)
    if len(names) < 2:
        raise InputError("a comparison takes at least two predictors")
    apart = Accumulator()
    sums = {name: Accumulator() for name in metrics}
    sequences = positions = 0
    for batch in stored_batches(dataset, split, batch_size, limit):
        batch = batch.to(device)
        given = {name: checked(name, predict(batch), batch, dataset) for name, predict in predictors.items()}
        truth = dataset.oracle(batch) if any(metric.needs_oracle for metric in metrics.values()) else None
        counted = batch if first is None else only_first(batch, first)
        distances = [mean_parts(given[a], given[b], counted.valid) for a, b in combinations(names, 2)]
        number = counted.valid.sum(1)
        apart.add(batch.group, torch.stack(distances, 1), number[:, None].expand(-1, len(distances)))
        for name, metric in metrics.items():
            if metric.needs_oracle and truth is None:
                raise InputError(f"metric {name!r} needs an oracle, and this dataset has none")
            parts = [metric(given[key], counted, truth) for key in names]
            if parts[0][0].ndim != 1:
                raise InputError(f"metric {name!r} is a curve over positions", hint="icll-zoo curve draws it")
            sums[name].add(batch.group, *(torch.stack(column, 1) for column in zip(*parts, strict=True)))
        sequences, positions = sequences + len(batch), positions + int(number.sum())
        report(sequences)
    pairs = list(combinations(names, 2))
    scores: dict[str, dict[str, Ranged]] = {}
    differences: dict[str, dict[tuple[str, str], Ranged]] = {}
    for name, metric in metrics.items():
        value, draws = bootstrap(*sums[name].table(), resamples, seed)
        if getattr(metric, "transform", None) == "exp":
            value, draws = value.exp(), draws.exp()
        scores[name] = dict(zip(names, ranged(value, draws), strict=True))
        one, other = torch.combinations(torch.arange(len(names))).T
        between = ranged(value[one] - value[other], draws[:, one] - draws[:, other])
        differences[name] = dict(zip(pairs, between, strict=True))
    tvd = dict(zip(pairs, ranged(*bootstrap(*apart.table(), resamples, seed)), strict=True))
    return Comparison(names, tvd, scores, differences, sequences, len(apart.sums), positions)


def mean_parts(one: Tensor, other: Tensor, counted: Tensor) -> Tensor:
    """The total variation distance of two predictions (b, l, v), summed over the counted positions: (b,) float64."""
    apart = (one - other).abs().sum(-1) / 2
    return apart.double().masked_fill(~counted, 0).sum(1)


def only_first(batch: Batch, first: int) -> Batch:
    """The batch with all positions but the first ones made to look like padding to whoever counts."""
    late = torch.arange(batch.tokens.size(1), device=batch.tokens.device) >= first
    return replace(batch, valid=batch.valid & ~late, targets=batch.targets.masked_fill(late, IGNORED))


def checked(name: str, probabilities: Tensor, batch: Batch, dataset: Dataset) -> Tensor:
    """What a predictor gives. InputError if it is not a probability of each token of the dataset at each position."""
    wanted = (*batch.tokens.shape, len(dataset.vocabulary))
    if tuple(probabilities.shape) != wanted:
        raise InputError(
            f"predictor {name!r} gives {tuple(probabilities.shape)}, not {wanted} (sequences, positions, tokens)"
        )
    return probabilities


def ranged(value: Tensor, draws: Tensor) -> list[Ranged]:
    """(c,) values and (resamples, c) draws as values with their intervals."""
    low, high = interval(draws)
    return [(float(v), float(a), float(b)) for v, a, b in zip(value, low, high, strict=True)]


def to_json(found: Comparison) -> dict[str, Any]:
    """All numbers, as plain data."""
    keys = ("value", "low", "high")
    return {
        "predictors": list(found.names),
        "sequences": found.sequences,
        "groups": found.groups,
        "positions": found.positions,
        "scores": {
            name: {metric: dict(zip(keys, by[name], strict=True)) for metric, by in found.scores.items()}
            for name in found.names
        },
        "pairs": [
            {
                "first": a,
                "second": b,
                "tvd": dict(zip(keys, at, strict=True)),
                "differences": {m: dict(zip(keys, by[a, b], strict=True)) for m, by in found.differences.items()},
            }
            for (a, b), at in found.tvd.items()
        ],
    }
