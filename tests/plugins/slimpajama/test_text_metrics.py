"""Metrics of language modelling against their definitions, written out position by position."""

from __future__ import annotations

import math

import pytest
import torch

from icll_zoo import IGNORED, Batch, create_metric
from icll_zoo.testing.runner import run_checks
from icll_zoo.zoo import default_zoo
from icll_zoo_slimpajama import NGRAMS, metrics

NAMES = [
    "bits-per-byte",
    "induction-score",
    *(f"{kind}-{n}gram-loss" for n in NGRAMS for kind in ("in-context", "new")),
]


def some_batch(seed: int) -> Batch:
    """Few symbols, so that contexts recur; padding, and positions that are in no loss."""
    g = torch.Generator().manual_seed(seed)
    b, length, v = (int(torch.randint(*bounds, (), generator=g)) for bounds in ((1, 5), (1, 40), (2, 6)))
    whole = torch.randint(0, v, (b, length + 1), generator=g)
    valid = torch.arange(length) < torch.randint(1, length + 1, (b, 1), generator=g)
    dropped = ~valid | (torch.rand(b, length, generator=g) < 0.1)
    return Batch(
        whole[:, :-1].masked_fill(~valid, 0), whole[:, 1:].masked_fill(dropped, IGNORED), valid, torch.arange(b)
    )


def sequence(batch: Batch, row: int) -> list[int]:
    """The tokens of a row and the one that follows the last."""
    tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
    return tokens[:1] + [
        target if target != IGNORED else (tokens[t + 1] if t + 1 < len(tokens) else 0)
        for t, target in enumerate(targets)
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_repeats_by_definition(n: int) -> None:
    for seed in range(60):
        batch = some_batch(seed)
        found = metrics.repeats(batch, n)
        for row in range(len(batch)):
            s = sequence(batch, row)
            grams = [tuple(s[i : i + n]) for i in range(len(s) - n + 1)]
            for t in range(batch.tokens.size(1)):
                own = t + 2 - n  # where the n-gram that ends with the target begins
                wanted = own >= 0 and bool(batch.targets[row, t] != IGNORED) and grams[own] in grams[:own]
                assert bool(found[row, t]) == wanted


def test_induction_by_definition() -> None:
    for seed in range(60):
        batch = some_batch(seed)
        found = metrics.induced(batch)
        for row in range(len(batch)):
            s = sequence(batch, row)
            for t in range(batch.tokens.size(1)):
                earlier = [j for j in range(t) if batch.tokens[row, j] == batch.tokens[row, t]]
                wanted = bool(earlier) and bool(batch.targets[row, t] != IGNORED) and s[earlier[-1] + 1] == s[t + 1]
                assert bool(found[row, t]) == wanted


def test_ngram_losses_share_the_targets_between_them() -> None:
    for seed in range(10):
        batch = some_batch(seed)
        p = torch.rand(*batch.tokens.shape, 6, generator=torch.Generator().manual_seed(seed)).softmax(-1)
        whole = metrics.nats(p, batch).masked_fill(batch.targets == IGNORED, 0).sum(1)
        for n in NGRAMS:
            parts = [create_metric(f"{kind}-{n}gram-loss")(p, batch, None) for kind in ("in-context", "new")]
            assert (parts[0][0] + parts[1][0] - whole).abs().max() < 1e-9
            assert (parts[0][1] + parts[1][1]).equal((batch.targets != IGNORED).sum(1))


def test_who_copies_is_found_out() -> None:
    """On a random half that comes twice, a copier has no loss where n-grams repeat and a score of one."""
    half = torch.randint(0, 50, (4, 30), generator=torch.Generator().manual_seed(0))
    whole = torch.cat([half, half], 1)
    tokens, targets = whole[:, :-1], whole[:, 1:]
    batch = Batch(tokens, targets, torch.ones_like(tokens, dtype=torch.bool), torch.arange(4))
    even = torch.full((4, 59, 50), 1 / 50)
    copier = even.clone()
    # The first 3-gram of the second half that is all of that half ends with the target at position 31.
    copier[:, 31:] = torch.nn.functional.one_hot(targets[:, 31:], 50).float()

    def value(name: str, p: torch.Tensor) -> float:
        total, count = create_metric(name)(p, batch, None)
        return float(total.sum() / count.sum())

    assert value("in-context-3gram-loss", copier) == 0
    assert value("in-context-3gram-loss", even) == pytest.approx(math.log(50), rel=1e-5)
    assert value("new-3gram-loss", copier) == pytest.approx(math.log(50), rel=1e-5)
    assert value("induction-score", copier) > 0.9 > 0.05 > value("induction-score", even)


def test_bits_per_byte_counts_bytes_where_they_are_known() -> None:
    batch = some_batch(3)
    p = torch.full((*batch.tokens.shape, 6), 1 / 4)
    total, count = metrics.bits_per_byte(p, batch, None)
    counted = (batch.targets != IGNORED).sum(1)
    assert total.tolist() == pytest.approx((2.0 * counted).tolist())
    assert count.equal(counted)
    batch.extra["bytes"] = torch.arange(len(batch)) + 7.5
    assert metrics.bits_per_byte(p, batch, None)[1].equal(batch.extra["bytes"])


@pytest.mark.parametrize("name", NAMES)
def test_they_pass_the_kit(name: str) -> None:
    report = run_checks(default_zoo(), name)
    assert report.ok, [outcome.reason for outcome in report.failures]
