"""A dataset through a model into metrics, each with a bootstrap interval over languages or documents.

Everything works on probabilities and nothing is ever renormalised: a learner may give less than one in all. A metric
returns sums and counts per sequence; they are added up by group and divided once, so that a result does not depend on
the size of the batches or on their padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo.data import IGNORED, Batch, Dataset, Split, passes
from icll_zoo.distributed import ALONE, Ranks
from icll_zoo.errors import InputError
from icll_zoo.zoo import Zoo, default_zoo

Predictor = Callable[[Batch], Tensor]

TOGETHER = 8
"""Batches that are sorted by length together where order does not matter."""


class Metric(Protocol):
    """What the core asks of a metric.

    direction: "higher" or "lower" is better. needs_oracle: whether it reads the true probabilities.
    Optional: `transform = "exp"` is applied to the ratio (perplexity); `beside_oracle = True` asks for the oracle's
    own value beside the model's.
    """

    direction: Literal["higher", "lower"]
    needs_oracle: bool

    def __call__(self, probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums and counts of each sequence, (b,) both; (b, l) both for a curve over positions.

        probabilities, oracle: (b, l, v).
        """


@dataclass(frozen=True)
class Score:
    """A metric's value with its 95 % bootstrap interval over the n groups; lists by position for a curve.

    oracle: the oracle's own value, for a metric that asks for it.
    """

    value: float | list[float | None]
    low: float | list[float | None]
    high: float | list[float | None]
    n: int
    oracle: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


class Accumulator:
    """Sums and counts of one metric by group, added up over batches in float64."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    def add(self, group: Tensor, sums: Tensor, counts: Tensor) -> None:
        """group (b,); sums and counts (b,) or (b, l)."""
        rows = zip(group.tolist(), sums.double().cpu(), counts.double().cpu(), strict=True)
        for key, row_sum, row_count in rows:
            self.sums[key] = longer_sum(self.sums.get(key), row_sum)
            self.counts[key] = longer_sum(self.counts.get(key), row_count)

    def gather(self, ranks: Ranks) -> None:
        """Add up what all processes of a run have counted; each then has all of it."""
        if ranks.size == 1:
            return
        own = [[key, self.sums[key].tolist(), self.counts[key].tolist()] for key in self.sums]
        self.sums, self.counts = {}, {}
        for key, row_sum, row_count in (row for rows in ranks.gather(own) for row in rows):
            self.sums[key] = longer_sum(self.sums.get(key), torch.tensor(row_sum, dtype=torch.float64))
            self.counts[key] = longer_sum(self.counts.get(key), torch.tensor(row_count, dtype=torch.float64))

    def table(self) -> tuple[Tensor, Tensor]:
        """Sums and counts, (groups, 1) of scalars or (groups, l), in the order of the groups' numbers."""
        keys = sorted(self.sums)
        return stack([self.sums[k] for k in keys]), stack([self.counts[k] for k in keys])

    def score(self, transform: str | None, resamples: int, seed: int, oracle: float | None = None) -> Score:
        """The ratio of the totals, and the percentiles of the same ratio over resampled groups."""
        value, means = bootstrap(*self.table(), resamples, seed)
        if transform == "exp":
            value, means = value.exp(), means.exp()
        low, high = interval(means)
        return Score(plain(value), plain(low), plain(high), len(self.sums), oracle)


def bootstrap(sums: Tensor, counts: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ratios of totals over groups, (c,), and the same of resampled groups, (resamples, c).

    sums, counts: (groups, c). The groups drawn depend on their number and the seed alone: differences between what two
    calls give are paired.
    """
    # How often each group is drawn in each resample; in float64, so that the order of batches cannot show.
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(sums), (resamples, len(sums)), generator=generator)
    weights = torch.zeros(resamples, len(sums), dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))
    return sums.sum(0) / counts.sum(0), (weights @ sums) / (weights @ counts)


def interval(means: Tensor) -> tuple[Tensor, Tensor]:
    """The central 95 % of resampled values, (resamples, c) -> (c,) both."""
    low, high = torch.nanquantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return low, high


def longer_sum(old: Tensor | None, new: Tensor) -> Tensor:
    """The sum of two vectors of possibly different length, or of two scalars."""
    if old is None:
        return new
    if old.ndim and len(old) != len(new):
        length = max(len(old), len(new))
        old, new = F.pad(old, (0, length - len(old))), F.pad(new, (0, length - len(new)))
    return old + new


def stack(rows: Sequence[Tensor]) -> Tensor:
    """Rows (g, 1) of scalars, or (g, l) of vectors padded with zeros to the longest."""
    if not rows[0].ndim:
        return torch.stack(list(rows))[:, None]
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def plain(values: Tensor) -> float | list[float | None]:
    """A scalar as a float, a curve as a list with None where nothing was counted."""
    listed = [None if math.isnan(v) else v for v in values.tolist()]
    if len(listed) > 1:
        return listed
    return math.nan if listed[0] is None else listed[0]


def probabilities_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """What the model predicts after each token, (b, l, v): its output, through a softmax if those are logits."""
    output: Tensor = model(tokens)
    if getattr(model, "output", "logits") == "logits":
        return output.float().softmax(-1)
    return output


def oracle_of(dataset: Dataset, name: str) -> Predictor:
    """The dataset's own truth as a predictor. InputError if the dataset knows none."""

    def predict(batch: Batch) -> Tensor:
        truth = dataset.oracle(batch)
        if truth is None:
            raise InputError(f"{name} needs an oracle, and this dataset has none")
        return truth

    return predict


def predictor_of(model: nn.Module) -> Predictor:
    """A model as a predictor: evaluation mode, no gradients."""

    def predict(batch: Batch) -> Tensor:
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                return probabilities_of(model, batch.tokens)
        finally:
            model.train(was_training)

    return predict


def stored_batches(dataset: Dataset, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """One pass over a split in the order of storage: all of a finite one, or the first `limit` sequences."""
    size = dataset.size(split)
    if size is None and limit is None:
        raise InputError(f"the {split} split is endless", hint="evaluate a finite split, or set a limit")
    total = min(s for s in (size, limit) if s is not None)
    if total == 0:
        raise InputError(f"the {split} split is empty")
    for k in range(passes(total, batch_size)):
        batch = dataset.batch(split, k, batch_size, None if size is not None else 0)
        yield batch.first(min(batch_size, total - k * batch_size))


def evaluate(
    model: nn.Module | Literal["oracle"],
    dataset: Dataset,
    metrics: Mapping[str, Callable[..., Any]] | Sequence[str] = ("accuracy", "tvd"),
    *,
    split: Split = "test",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    resamples: int = 1000,
    seed: int = 0,
    limit: int | None = None,
    zoo: Zoo | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Score]:
    """Every metric of a model on a split of a dataset.

    model: anything with forward(tokens) -> (b, l, v), or "oracle" for the dataset's own truth.
    metrics: names, or callables by name. seed: of the bootstrap. limit: the number of sequences of an endless split,
    or of the first ones of a finite split. ranks: the processes that share the work, each with all of the answer.
    Raises InputError for a metric that needs an oracle on a dataset that has none.
    """
    if not isinstance(metrics, Mapping):
        metrics = {name: (zoo or default_zoo()).create_metric(name) for name in metrics}
    predict = oracle_of(dataset, "the predictor 'oracle'") if isinstance(model, str) else predictor_of(model)
    sums = {name: Accumulator() for name in metrics}
    truths = {name: Accumulator() for name, m in metrics.items() if getattr(m, "beside_oracle", False)}
    needs = [name for name, metric in metrics.items() if getattr(metric, "needs_oracle", False)]
    for batch in stored_batches(dataset, split, batch_size, limit):
        batch = ranks.share(batch).to(device)
        probabilities = predict(batch)
        oracle = dataset.oracle(batch) if needs or truths else None
        if needs and oracle is None:
            raise InputError(f"metric {needs[0]!r} needs an oracle, and this dataset has none")
        for name, metric in metrics.items():
            sums[name].add(batch.group, *metric(probabilities, batch, oracle))
            if name in truths and oracle is not None:
                truths[name].add(batch.group, *metric(oracle, batch, oracle))
    scores = {}
    for name, metric in metrics.items():
        for counted in (sums[name], *([truths[name]] if name in truths else [])):
            counted.gather(ranks)
        transform = getattr(metric, "transform", None)
        beside = None
        if name in truths and truths[name].sums:
            own = truths[name].score(transform, 1, seed).value
            beside = own if isinstance(own, float) else None
        scores[name] = sums[name].score(transform, resamples, seed, beside)
    return scores


def loss_sum(output: Tensor, targets: Tensor, kind: str = "logits") -> Tensor:
    """The cross-entropy summed over targets != -100, in nats: a scalar. output: (b, l, v), logits or probabilities."""
    if kind == "probabilities":
        chosen = output.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        nats = -chosen.clamp(min=torch.finfo(chosen.dtype).tiny).log()
        return nats.masked_fill(targets == IGNORED, 0).sum()
    logits = output.flatten(0, 1)
    # Half precision would add up thousands of terms in few bits.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def by_length(batch: Batch, size: int) -> Iterator[Batch]:
    """Its rows, the longest first, by `size`, each batch padded to its own longest; extra tensors are left out."""
    lengths = batch.valid.sum(1)
    for rows in torch.split(lengths.argsort(descending=True, stable=True), size):
        longest = max(1, int(lengths[rows[0]]))
        yield Batch(
            tokens=batch.tokens[rows, :longest],
            targets=batch.targets[rows, :longest],
            valid=batch.valid[rows, :longest],
            group=batch.group[rows],
        )


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    ranks: Ranks = ALONE,
) -> float:
    """The mean cross-entropy over a split's targets, in nats; the model's own mode is kept, set to evaluation.

    ranks: the processes that share the work, each with all of the answer. Sequences of like length are read together.
    """
    was_training = model.training
    model.eval()
    sums, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for several in stored_batches(dataset, split, TOGETHER * batch_size, limit):
        for batch in by_length(several, batch_size):
            batch = ranks.share(batch)
            count += int((batch.targets != IGNORED).sum())
            tokens, targets = batch.tokens.to(device), batch.targets.to(device)
            sums += loss_sum(model(tokens), targets, getattr(model, "output", "logits"))
    model.train(was_training)
    total = sums.item()
    if ranks.size > 1:
        total, count = sum(ranks.gather(total)), sum(ranks.gather(count))
    return total / max(count, 1)
