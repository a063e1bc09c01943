"""Every metric against its definition in plain Python, and at the values that one knows beforehand."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icll_zoo import Batch, Score, Vocabulary, create_metric, create_model, evaluate, list_metrics
from icll_zoo.evaluation import loss_sum
from icll_zoo_dfa import METRICS
from icll_zoo_dfa.dataset import DfaLanguages

SCALARS = ("accuracy", "accuracy-loop", "token-accuracy", "tvd", "kl", "cross-entropy", "perplexity")
CURVES = ("accuracy-curve", "tvd-curve", "cross-entropy-curve")


@pytest.fixture(scope="module")
def dataset() -> DfaLanguages:
    return DfaLanguages(held_out=24, seed=1, strings_min=3, strings_max=6, length_max=20)


class Guess(nn.Module):
    """Fixed random rows by position and token; some all zero, some that sum to less than one, some certain."""

    output = "probabilities"

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.rand(200, 20, 20, generator=generator, dtype=torch.float64) ** 4
        table /= table.sum(-1, keepdim=True)
        kind = torch.randint(6, (200, 20), generator=generator)
        table[kind == 0] = 0
        table[kind == 1] *= 0.7
        table[kind == 2] = torch.eye(20, dtype=torch.float64)[torch.arange(int((kind == 2).sum())) % 20]
        self.table = table.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[torch.arange(tokens.size(1)), tokens]


class Uniform(nn.Module):
    output = "probabilities"

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.full((*tokens.shape, 20), 0.05, dtype=torch.float64)


class Nothing(nn.Module):
    output = "probabilities"

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, 20)


def argmax(row: list[float]) -> int | None:
    """The first token of the largest probability; None if nothing is predicted."""
    return row.index(max(row)) if max(row) > 0 else None


def plain(name: str, p: list[float], q: list[float], target: int) -> float | None:
    """One position's part of a metric, or None if it does not count there."""
    in_loss = target != -100
    if name in ("accuracy", "accuracy-loop", "accuracy-curve"):
        best = argmax(p)
        counts = in_loss or name != "accuracy-loop"
        return float(best is not None and q[best] > 0) if counts else None
    if name in ("tvd", "tvd-curve"):
        return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    if name == "kl":
        return sum(b * (log(b + 1e-7) - log(a + 1e-7)) for a, b in zip(p, q, strict=True))
    if name == "token-accuracy":
        return float(argmax(p) == target) if in_loss else None
    return -log(max(p[target], 1e-10)) if in_loss else None  # cross-entropy, its curve, perplexity


def by_definition(name: str, model: nn.Module, dataset: DfaLanguages) -> list[list[float | None]]:
    """By row and position; nothing behind a row's end."""
    rows = []
    for k in range(24):
        batch = dataset.batch("test", k, 1, None)
        assert batch.valid.all()
        p, q = model(batch.tokens)[0].tolist(), dataset.oracle(batch)[0].double().tolist()
        # float32 holds 1/3 to eight digits; the definition is with the exact one.
        q = [[1 / round(1 / x) if x else 0.0 for x in row] for row in q]
        rows.append([plain(name, a, b, t) for a, b, t in zip(p, q, batch.targets[0].tolist(), strict=True)])
    return rows


def score(model: Any, dataset: DfaLanguages, name: str, **more: Any) -> Score:
    return evaluate(model, dataset, [name], **more)[name]


def test_all_are_registered() -> None:
    assert set(SCALARS + CURVES) == set(METRICS) <= set(list_metrics())


@pytest.mark.parametrize("name", SCALARS)
def test_scalars_are_what_their_definition_says(name: str, dataset: DfaLanguages) -> None:
    rows = by_definition(name, Guess(), dataset)
    values = [value for row in rows for value in row if value is not None]
    wanted = sum(values) / len(values)
    if name == "perplexity":
        wanted = exp(wanted)
    found = score(Guess(), dataset, name)
    assert found.value == pytest.approx(wanted, rel=1e-7)
    assert 0.01 < wanted < 1e6
    assert found.n == 24
    assert found.low <= found.value <= found.high  # type: ignore[operator]


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_the_same_by_position(name: str, dataset: DfaLanguages) -> None:
    rows = by_definition(name, Guess(), dataset)
    longest = max(map(len, rows))
    columns = [[row[t] for row in rows if t < len(row) and row[t] is not None] for t in range(longest)]
    found = score(Guess(), dataset, name)
    assert isinstance(found.value, list)
    assert isinstance(found.low, list)
    assert isinstance(found.high, list)
    assert len(found.value) == len(found.low) == len(found.high) == longest
    for value, column in zip(found.value, columns, strict=True):
        if column:
            assert value == pytest.approx(sum(column) / len(column), rel=1e-6)  # type: ignore[arg-type]
        else:
            assert value is None


@pytest.mark.parametrize("name", ["accuracy", "tvd", "cross-entropy"])
def test_a_curve_and_its_scalar_have_the_same_sums(name: str, dataset: DfaLanguages) -> None:
    batch = dataset.batch("test", 0, 24, None)
    truth, p = dataset.oracle(batch), Guess()(batch.tokens)
    sums, counts = create_metric(name)(p, batch, truth)
    curve_sums, curve_counts = create_metric(f"{name}-curve")(p, batch, truth)
    assert torch.equal(curve_counts.sum(1), counts)
    torch.testing.assert_close(curve_sums.sum(1), sums, rtol=1e-12, atol=1e-12)


def padded(batch: Batch, more: int) -> Batch:
    def wider(tensor: Tensor, value: float) -> Tensor:
        return nn.functional.pad(tensor, (0, more), value=value)

    return Batch(
        wider(batch.tokens, 0), wider(batch.targets, -100), wider(batch.valid, False), batch.group,
        {**batch.extra, "state": wider(batch.extra["state"], 0)},
    )  # fmt: skip


@pytest.mark.parametrize("name", [*SCALARS, *CURVES])
def test_padding_and_the_size_of_batches_do_not_matter(name: str, dataset: DfaLanguages) -> None:
    metric, model = create_metric(name), Guess()
    whole = dataset.batch("test", 0, 24, None)
    sums, counts = metric(model(whole.tokens), whole, dataset.oracle(whole))
    more = padded(whole, 37)
    # Whatever is predicted where there is padding.
    anything = model(more.tokens) + (~more.valid[..., None]) * 3.0
    wide_sums, wide_counts = metric(anything, more, dataset.oracle(more))
    curve = sums.ndim == 2
    assert torch.equal(wide_counts[:, : counts.size(1)] if curve else wide_counts, counts)
    torch.testing.assert_close(wide_sums[:, : sums.size(1)] if curve else wide_sums, sums, rtol=1e-12, atol=1e-12)
    if curve:
        assert not wide_counts[:, counts.size(1) :].any()
    for row in range(24):
        alone = dataset.batch("test", row, 1, None)
        own_sums, own_counts = metric(model(alone.tokens), alone, dataset.oracle(alone))
        length = alone.tokens.size(1)
        assert torch.equal(own_counts[0], counts[row, :length] if curve else counts[row])
        torch.testing.assert_close(own_sums[0], sums[row, :length] if curve else sums[row], rtol=1e-12, atol=1e-12)


def test_results_are_the_same_for_every_batch_size(dataset: DfaLanguages) -> None:
    results = [evaluate(Guess(), dataset, [*SCALARS, *CURVES], batch_size=size) for size in (1, 7, 24, 64)]
    for other in results[1:]:
        for name, wanted in results[0].items():
            found = other[name]
            assert found.value == pytest.approx(wanted.value, rel=1e-12)
            assert found.low == pytest.approx(wanted.low, rel=1e-12)
            assert (found.oracle is None) == (wanted.oracle is None)
            assert found.oracle is None or found.oracle == pytest.approx(wanted.oracle, rel=1e-12)
    assert results[0] == evaluate(Guess(), dataset, [*SCALARS, *CURVES], batch_size=1)


def test_sums_are_doubles_whatever_is_predicted(dataset: DfaLanguages) -> None:
    batch = dataset.batch("test", 0, 24, None)
    truth = dataset.oracle(batch)
    for name in (*SCALARS, *CURVES):
        sums, counts = create_metric(name)(Guess(torch.float32)(batch.tokens), batch, truth)
        assert (sums.dtype, counts.dtype) == (torch.float64, torch.int64)
        wanted, _ = create_metric(name)(Guess()(batch.tokens), batch, truth)
        torch.testing.assert_close(sums, wanted, rtol=1e-5, atol=1e-5)


def test_the_oracle_is_perfect(dataset: DfaLanguages) -> None:
    scores = evaluate("oracle", dataset, [*SCALARS, *CURVES])
    assert scores["accuracy"].value == scores["accuracy-loop"].value == 1
    assert scores["tvd"].value == scores["kl"].value == 0
    entropy, count = 0.0, 0
    for k in range(24):
        batch = dataset.batch("test", k, 1, None)
        legal = (dataset.oracle(batch) > 0).sum(-1).double()
        in_loss = batch.targets != -100
        entropy += float(legal.log()[in_loss].sum())
        count += int(in_loss.sum())
    ce = scores["cross-entropy"]
    assert ce.value == ce.oracle == pytest.approx(entropy / count, rel=1e-6)
    assert scores["perplexity"].value == pytest.approx(exp(entropy / count), rel=1e-6)
    assert scores["perplexity"].oracle == scores["perplexity"].value
    assert set(scores["accuracy-curve"].value) == {1.0}  # type: ignore[arg-type]
    assert set(scores["tvd-curve"].value) == {0.0}  # type: ignore[arg-type]
    # A prediction is beside the oracle's own value.
    assert score(Guess(), dataset, "cross-entropy").oracle == ce.value


def test_the_uniform_prediction(dataset: DfaLanguages) -> None:
    scores = evaluate(Uniform(), dataset, SCALARS)
    legal = [(dataset.oracle(b) > 0).sum(-1)[0] for b in (dataset.batch("test", k, 1, None) for k in range(24))]
    k = torch.cat(legal).double()
    # Token 0, the first of the largest, is padding, and never legal.
    assert scores["accuracy"].value == scores["accuracy-loop"].value == scores["token-accuracy"].value == 0
    # k tokens at 1/k against 20 at 1/20: half of k (1/k - 1/20) + (20 - k) / 20.
    assert scores["tvd"].value == pytest.approx(float((1 - k / 20).mean()), rel=1e-6)
    assert scores["kl"].value == pytest.approx(float((20 / k).log().mean()), rel=1e-5)
    assert scores["cross-entropy"].value == pytest.approx(log(20), rel=1e-12)
    assert scores["perplexity"].value == pytest.approx(20, rel=1e-12)


def test_predicting_nothing_is_wrong_and_half_a_distance(dataset: DfaLanguages) -> None:
    scores = evaluate(Nothing(), dataset, SCALARS)
    assert scores["accuracy"].value == scores["accuracy-loop"].value == scores["token-accuracy"].value == 0
    assert scores["tvd"].value == pytest.approx(0.5, abs=1e-7)
    assert scores["cross-entropy"].value == pytest.approx(-log(1e-10), rel=1e-6)
    # Also where the first token, which is what a row of zeros begins with, may follow and does.
    batch = Batch(torch.tensor([[1]]), torch.tensor([[0]]), torch.tensor([[True]]), torch.tensor([0]))
    truth = torch.eye(20)[None, :1]
    for name in ("accuracy", "accuracy-loop", "token-accuracy"):
        assert [int(x) for x in create_metric(name)(torch.zeros(1, 1, 20), batch, truth)] == [0, 1]
        assert [int(x) for x in create_metric(name)(truth, batch, truth)] == [1, 1]


def test_positions_before_a_separator_count_where_they_should() -> None:
    """Strings "a", "a", "a" of a language that goes on with b: what precedes a separator is known, and no loss."""
    legal = torch.zeros(1, 5, 20)
    legal[0, [0, 2, 4], 2] = 1.0  # after an a
    legal[0, [1, 3], 1] = 1.0  # after a separator
    batch = Batch(
        tokens=torch.tensor([[1, 19, 1, 19, 1]]),
        targets=torch.tensor([[-100, 1, -100, 1, 2]]),
        valid=torch.ones(1, 5, dtype=torch.bool),
        group=torch.tensor([0]),
    )
    always_a = torch.zeros(1, 5, 20)
    always_a[..., 1] = 1.0
    found = {name: [int(x) for x in create_metric(name)(always_a, batch, legal)] for name in SCALARS[:4]}
    assert found == {"accuracy": [2, 5], "accuracy-loop": [2, 3], "token-accuracy": [2, 3], "tvd": [3, 5]}
    sums, counts = create_metric("accuracy-curve")(always_a, batch, legal)
    assert sums.tolist() == [[0, 1, 0, 1, 0]]
    assert counts.tolist() == [[1] * 5]
    sums, counts = create_metric("cross-entropy-curve")(always_a, batch, None)
    assert counts.tolist() == [[0, 1, 0, 1, 1]]
    assert sums[0, :4].tolist() == [0] * 4
    separator = torch.zeros(1, 5, 20)
    separator[..., 19] = 1.0
    assert int(create_metric("accuracy")(separator, batch, legal)[0]) == 0


def test_the_tie_goes_to_the_first_token() -> None:
    batch = Batch(torch.tensor([[1]]), torch.tensor([[3]]), torch.tensor([[True]]), torch.tensor([0]))
    tie, truth = torch.zeros(1, 1, 20), torch.zeros(1, 1, 20)
    tie[..., [3, 5]], truth[..., 3] = 0.5, 1.0
    assert int(create_metric("accuracy")(tie, batch, truth)[0]) == 1
    assert int(create_metric("token-accuracy")(tie, batch, truth)[0]) == 1
    assert int(create_metric("accuracy")(tie, batch, truth.roll(2, -1))[0]) == 0


@pytest.mark.parametrize(
    ("name", "direction", "needs_oracle", "beside_oracle"),
    [
        ("accuracy", "higher", True, False),
        ("accuracy-loop", "higher", True, False),
        ("token-accuracy", "higher", False, False),
        ("tvd", "lower", True, False),
        ("kl", "lower", True, False),
        ("cross-entropy", "lower", False, True),
        ("perplexity", "lower", False, True),
        ("accuracy-curve", "higher", True, False),
        ("tvd-curve", "lower", True, False),
        ("cross-entropy-curve", "lower", False, False),
    ],
)
def test_what_a_metric_says_of_itself(
    name: str, direction: str, needs_oracle: bool, beside_oracle: bool, dataset: DfaLanguages
) -> None:
    metric = create_metric(name)
    assert (metric.direction, metric.needs_oracle) == (direction, needs_oracle)
    assert getattr(metric, "beside_oracle", False) == beside_oracle
    assert getattr(metric, "transform", None) == ("exp" if name == "perplexity" else None)
    batch = dataset.batch("test", 0, 24, None)
    if not needs_oracle:
        metric(Guess()(batch.tokens), batch, None)
    # The better direction is the oracle's.
    if beside_oracle or name in ("accuracy", "tvd", "kl", "accuracy-loop"):
        best, other = score("oracle", dataset, name).value, score(Uniform(), dataset, name).value
        assert best > other if direction == "higher" else best < other  # type: ignore[operator]


def test_cross_entropy_is_the_loss_of_training(dataset: DfaLanguages) -> None:
    model = create_model("lstm", vocabulary=Vocabulary.of(dataset), d_model=16, n_layers=1).eval()
    batch = dataset.batch("test", 0, 24, None)
    with torch.no_grad():
        logits = model(batch.tokens)
    sums, counts = create_metric("cross-entropy")(logits.softmax(-1), batch, None)
    assert float(sums.sum()) == pytest.approx(float(loss_sum(logits, batch.targets)), rel=1e-5)
    assert int(counts.sum()) == int((batch.targets != -100).sum())


def test_intervals_contain_the_value_and_do_not_vary(dataset: DfaLanguages) -> None:
    first = evaluate(Guess(), dataset, SCALARS)
    assert evaluate(Guess(), dataset, SCALARS) == first
    assert evaluate(Guess(), dataset, SCALARS, seed=1)["tvd"].low != first["tvd"].low
    for found in first.values():
        assert isinstance(found.value, float)
        assert found.low < found.value < found.high  # type: ignore[operator]
        assert found.n == 24
    # Over languages, not positions: one language has no spread.
    alone = score(Guess(), DfaLanguages(held_out=1, strings_max=10, length_max=9), "tvd")
    assert alone.low == alone.value == alone.high
