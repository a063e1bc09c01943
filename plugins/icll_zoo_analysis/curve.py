"""In-context learning curves: how well predictors do after so many tokens, and after so many strings, of a language.

Position t of a sequence is what is predicted from its first t + 1 tokens; tokens are put together in bins. The number
of strings seen at t is that of separators among those tokens: after a separator the next string begins. Within a bin
sums are divided by counts once, over all languages; languages are resampled for intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from icll_zoo import Accumulator, InputError, bootstrap, interval, stored_batches

if TYPE_CHECKING:
    from icll_zoo import Batch, Dataset, Metric, Predictor, Split


@dataclass(frozen=True)
class Curve:
    """One predictor's values by bin: at is where a bin begins (tokens read, from 1; or complete strings seen).

    groups: how many languages or documents have anything in the bin; a single one gives no interval.
    """

    at: list[int]
    value: list[float]
    low: list[float | None]
    high: list[float | None]
    groups: list[int]


Curves = dict[tuple[str, str, str], Curve]
"""By metric, by what it is counted ("token" or "string"), by predictor."""


def curves(
    predictors: Mapping[str, Predictor],
    dataset: Dataset,
    metrics: Mapping[str, Metric],
    *,
    width: int = 10,
    split: Split = "test",
    batch_size: int = 64,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    resamples: int = 1000,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Curves:
    """The curves of metrics with a curve form, in one pass over a split.

    width: tokens of a bin. Without a separator in the dataset there are only curves by token.
    Raises InputError for a metric that gives one number a sequence, or that needs an oracle where there is none.
    """
    kept: dict[tuple[str, str, str], Accumulator] = {}
    done = 0
    for batch in stored_batches(dataset, split, batch_size, limit):
        batch = batch.to(device)
        truth = dataset.oracle(batch) if any(metric.needs_oracle for metric in metrics.values()) else None
        bins = bins_of(batch, dataset.separator_id, width)
        for name, predict in predictors.items():
            probabilities = predict(batch)
            for metric, measure in metrics.items():
                if measure.needs_oracle and truth is None:
                    raise InputError(f"metric {metric!r} needs an oracle, and this dataset has none")
                sums, counts = measure(probabilities, batch, truth)
                if sums.ndim != 2:
                    raise InputError(
                        f"metric {metric!r} gives one number a sequence", hint="name one whose name ends in -curve"
                    )
                for by, index in bins.items():
                    summed = kept.setdefault((metric, by, name), Accumulator())
                    summed.add(batch.group, in_bins(sums, index), in_bins(counts, index))
        done += len(batch)
        report(done)
    exp = {name for name, metric in metrics.items() if getattr(metric, "transform", None) == "exp"}
    begins = {"token": (1, width), "string": (0, 1)}
    return {key: finished(summed, *begins[key[1]], key[0] in exp, resamples, seed) for key, summed in kept.items()}


def bins_of(batch: Batch, separator: int | None, width: int) -> dict[str, Tensor]:
    """(b, l) the number of each position's bin, by token and, where there is a separator, by string."""
    place = torch.arange(batch.tokens.size(1), device=batch.tokens.device).expand_as(batch.tokens)
    bins = {"token": place // width}
    if separator is not None:
        bins["string"] = (batch.tokens == separator).cumsum(1)
    return bins


def in_bins(values: Tensor, index: Tensor) -> Tensor:
    """(b, l) values added up by bin: (b, bins) float64."""
    summed = torch.zeros(len(values), int(index.max()) + 1, dtype=torch.float64, device=values.device)
    return summed.scatter_add_(1, index, values.double())


def finished(summed: Accumulator, first: int, step: int, exp: bool, resamples: int, seed: int) -> Curve:
    """Ratios and intervals of the bins in which anything was counted; bins begin at first, first + step ..."""
    sums, counts = summed.table()
    filled = (counts.sum(0) > 0).nonzero()[:, 0]
    sums, counts = sums[:, filled], counts[:, filled]
    value, draws = bootstrap(sums, counts, resamples, seed)
    if exp:
        value, draws = value.exp(), draws.exp()
    groups = (counts > 0).sum(0).tolist()
    low, high = (
        [end if n > 1 else None for end, n in zip(ends.tolist(), groups, strict=True)] for ends in interval(draws)
    )
    return Curve((filled * step + first).tolist(), value.tolist(), low, high, groups)


def columns(found: Curves) -> dict[str, list[Any]]:
    """All curves as one long table: a row a predictor, metric and bin."""
    rows = [
        (metric, by, at, name, value, low, high, groups)
        for (metric, by, name), curve in found.items()
        for at, value, low, high, groups in zip(curve.at, curve.value, curve.low, curve.high, curve.groups, strict=True)
    ]
    heads = ("metric", "by", "at", "predictor", "value", "low", "high", "groups")
    return {head: [row[i] for row in rows] for i, head in enumerate(heads)}
