"""A dataset's truth: probabilities that sum to one, and that no other predictor can beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from icll_zoo.data import IGNORED, Batch, Dataset
from icll_zoo.testing.datasets import live_splits
from icll_zoo.testing.kit import CheckFailed, NotApplicable, require
from icll_zoo.testing.subject import Data, check

BATCH, BATCHES = 64, 4
LEAST = 1e-12
# Standard errors by which a right oracle may miss its own entropy; the data are fixed, so nothing flickers.
ERRORS = 5.0


def truths(dataset: Dataset) -> list[tuple[Batch, Tensor]]:
    """Some batches of a split with their true probabilities. NotApplicable for a dataset that knows none."""
    split = live_splits(dataset)[-1]
    size = dataset.size(split)
    count = BATCHES if size is None else min(BATCHES, -(-size // BATCH))
    found = []
    for k in range(count):
        batch = dataset.batch(split, k, BATCH, None if size is not None else 0)
        truth = dataset.oracle(batch)
        if truth is None:
            raise NotApplicable("it has no oracle")
        found.append((batch, truth))
    return found


@check
def check_oracle_sums_to_one(data: Data) -> None:
    """At every valid position the oracle's probabilities sum to 1; at padding they are 0."""
    dataset = data.dataset
    count = len(list(dataset.vocabulary))
    for batch, truth in truths(dataset):
        wanted = (*batch.tokens.shape, count)
        require(tuple(truth.shape) == wanted, f"the oracle has shape {tuple(truth.shape)}, not {wanted}")
        require(bool((truth >= 0).all()), f"the oracle has the probability {truth.min():.3g}")
        total = truth.double().sum(-1)
        worst = (total - 1).abs().masked_fill(~batch.valid, 0)
        if worst.max() > 1e-5:
            row, at = divmod(int(worst.argmax()), worst.size(1))
            raise CheckFailed(f"at row {row}, position {at} the oracle's probabilities sum to {total[row, at]:.6g}")
        require(not truth[~batch.valid].any(), "the oracle predicts something at padding")


@check
def check_oracle_is_the_best_scorer(data: Data) -> None:
    """By cross-entropy the oracle beats every change to it, and its surprise is what it expects it to be."""
    nats: dict[str, list[Tensor]] = {}
    surprise = []
    for batch, truth in truths(data.dataset):
        counted = batch.targets != IGNORED
        p = truth[counted].double()
        p = p / p.sum(1, keepdim=True)  # whether they sum to one is the business of check_oracle_sums_to_one
        targets = batch.targets[counted]
        chosen = p.gather(1, targets[:, None])[:, 0]
        if (chosen <= 0).any():
            row, at = (counted.nonzero()[(chosen <= 0).nonzero()[0, 0]]).tolist()
            raise CheckFailed(f"at row {row}, position {at} the oracle says that what follows is impossible")
        for name, other in {"the oracle": p, **changes(p)}.items():
            nats.setdefault(name, []).append(-other.gather(1, targets[:, None])[:, 0].clamp(min=LEAST).log())
        entropy = -(p * p.clamp(min=LEAST).log()).sum(1)
        surprise.append(-chosen.log() - entropy)
    means = {name: torch.cat(values).mean().item() for name, values in nats.items()}
    own = means.pop("the oracle")
    for name, mean in means.items():
        require(own <= mean + 1e-9, f"{name} has cross-entropy {mean:.4f}, less than the oracle's {own:.4f}")
    gap = torch.cat(surprise)
    error = gap.std().item() / math.sqrt(len(gap)) if len(gap) > 1 else 0.0
    require(
        abs(gap.mean().item()) <= ERRORS * error + 1e-6,
        f"what follows surprises the oracle by {gap.mean().item():+.4f} nats more than it expects ({error:.4f} is the "
        "standard error)",
    )


def changes(p: Tensor) -> dict[str, Tensor]:
    """Other predictors, (n, v): nearer to the uniform one, bolder, and the truth of another position."""
    uniform = torch.full_like(p, 1 / p.size(1))
    return {
        "the uniform predictor": uniform,
        "nine tenths of the oracle and a tenth of the uniform predictor": 0.9 * p + 0.1 * uniform,
        "the oracle squared and normalised": p.square() / p.square().sum(1, keepdim=True),
        "the oracle's root, normalised": p.sqrt() / p.sqrt().sum(1, keepdim=True),
        "the oracle one position later": 0.9 * p.roll(-1, 0) + 0.1 * uniform,
    }
