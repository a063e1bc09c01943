from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from icll_zoo.data import Batch, Split, epoch_indices
from icll_zoo.errors import InputError
from icll_zoo.evaluation import evaluate, loss_sum, mean_loss
from icll_zoo.zoo import Zoo


@dataclass
class Coins:
    """Sequences of a coin whose true probability of heads (token 1) is 0.8; token 0 is padding, 2 is tails."""

    vocabulary = (".", "H", "T")
    pad_id = 0
    separator_id = None
    truth = True

    def size(self, split: Split) -> int | None:
        return {"test": 13, "validation": 0, "train": None}[split]

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        chosen = epoch_indices(13, k, batch_size, seed)
        rows = []
        for index in chosen.tolist():
            generator = torch.Generator().manual_seed(index)
            rows.append(2 - (torch.rand(5 + index, generator=generator) < 0.8).long())
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        tokens, targets = ids[:, :-1], ids[:, 1:].clone()
        targets[targets == 0] = -100
        return Batch(tokens, targets, targets != -100, chosen)

    def oracle(self, batch: Batch) -> Tensor | None:
        if not self.truth:
            return None
        return batch.valid[..., None] * torch.tensor([0.0, 0.8, 0.2])


class Constant(nn.Module):
    output = "probabilities"

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.probabilities = torch.tensor(probabilities)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.probabilities.expand(*tokens.shape, 3)


class Hits:
    direction, needs_oracle, beside_oracle = "higher", False, True

    def __call__(self, probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> tuple[Tensor, Tensor]:
        hit = (probabilities.argmax(-1) == batch.targets) & batch.valid
        return hit.sum(1), batch.valid.sum(1)


class Curve(Hits):
    beside_oracle = False

    def __call__(self, probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> tuple[Tensor, Tensor]:
        hit = (probabilities.argmax(-1) == batch.targets) & batch.valid
        return hit.long(), batch.valid.long()


class Surprise:
    direction, needs_oracle, transform = "lower", True, "exp"

    def __call__(self, probabilities: Tensor, batch: Batch, oracle: Tensor | None) -> tuple[Tensor, Tensor]:
        assert oracle is not None
        nats = -(oracle * probabilities.clamp(min=1e-9).log()).sum(-1)
        return (nats * batch.valid).sum(1), batch.valid.sum(1)


METRICS = {"hits": Hits(), "curve": Curve(), "surprise": Surprise()}


@pytest.mark.parametrize("batch_size", [1, 4, 13, 64])
def test_a_result_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    whole = evaluate(Constant(0.0, 0.6, 0.4), Coins(), METRICS, batch_size=13)
    parts = evaluate(Constant(0.0, 0.6, 0.4), Coins(), METRICS, batch_size=batch_size)
    assert whole["hits"] == parts["hits"]
    assert whole["curve"] == parts["curve"]
    assert parts["surprise"].value == pytest.approx(whole["surprise"].value, rel=1e-6)


def test_values_are_what_counting_by_hand_gives() -> None:
    coins = Coins()
    tokens = torch.cat([coins.batch("test", k, 1, None).targets[0] for k in range(13)])
    heads = (tokens == 1).double().mean().item()
    scores = evaluate(Constant(0.0, 0.6, 0.4), coins, METRICS)
    hits = scores["hits"]
    assert hits.value == pytest.approx(heads, abs=1e-12)
    assert isinstance(hits.low, float)
    assert isinstance(hits.high, float)
    assert hits.low < heads < hits.high
    assert hits.n == 13
    assert hits.oracle == pytest.approx(heads)
    exact = math.exp(-(0.8 * math.log(0.6) + 0.2 * math.log(0.4)))
    assert scores["surprise"].value == pytest.approx(exact, rel=1e-5)
    curve = scores["curve"].value
    assert isinstance(curve, list)
    assert len(curve) == 16


def test_the_oracle_is_a_predictor() -> None:
    best = evaluate("oracle", Coins(), METRICS)["surprise"].value
    assert best == pytest.approx(math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))), rel=1e-5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # 200 sets of 60 groups of one coin each: 95 % intervals that cover 0.8 less than 85 % of the time are wrong.
    from icll_zoo.evaluation import Accumulator

    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        sums = Accumulator()
        hits = torch.rand(60, 20, generator=generator) < 0.8
        sums.add(torch.arange(60), hits.sum(1), torch.full((60,), 20))
        score = sums.score(None, 400, 0)
        covered += score.low <= 0.8 <= score.high  # type: ignore[operator]
    assert 170 <= covered <= 200


def test_faults_are_input_errors() -> None:
    blind = Coins()
    blind.truth = False
    with pytest.raises(InputError, match="metric 'surprise' needs an oracle"):
        evaluate(Constant(0.0, 0.6, 0.4), blind, METRICS)
    with pytest.raises(InputError, match="predictor 'oracle' needs an oracle"):
        evaluate("oracle", blind, METRICS)
    with pytest.raises(InputError, match="validation split is empty"):
        evaluate(Constant(0.0, 0.6, 0.4), Coins(), METRICS, split="validation")
    with pytest.raises(InputError, match="unknown metric 'hits'"):
        evaluate(Constant(0.0, 0.6, 0.4), Coins(), ["hits"], zoo=Zoo())


def test_loss_ignores_what_is_no_target_and_takes_both_kinds_of_output() -> None:
    batch = Coins().batch("test", 0, 13, None)
    probabilities = Constant(0.1, 0.6, 0.3)(batch.tokens)
    nats = loss_sum(probabilities, batch.targets, "probabilities")
    assert loss_sum(probabilities.log(), batch.targets).item() == pytest.approx(nats.item(), rel=1e-5)
    count = int((batch.targets != -100).sum())
    mean = mean_loss(Constant(0.1, 0.6, 0.3), Coins(), "test", batch_size=4)
    assert mean == pytest.approx(nats.item() / count, rel=1e-5)


def test_the_mean_loss_reads_hardly_any_padding() -> None:
    class Counting(Constant):
        read, rows = 0, 0

        def forward(self, tokens: Tensor) -> Tensor:
            self.read, self.rows = self.read + tokens.numel(), self.rows + len(tokens)
            return super().forward(tokens)

    model, batch = Counting(0.1, 0.6, 0.3), Coins().batch("test", 0, 13, None)
    mean_loss(model, Coins(), "test", batch_size=2)
    assert model.rows == 13
    # Two neighbours of 13 lengths differ by one token: 6 pairs, 6 tokens of padding.
    assert model.read == int(batch.valid.sum()) + 6


@pytest.mark.parametrize("lengths", [None, torch.arange(37).flip(0)])
@pytest.mark.parametrize("size", [1, 5, 37])
def test_every_pass_visits_each_sequence_once(size: int, lengths: Tensor | None) -> None:
    known = None if lengths is None else lengths[:size]
    count = -(-size // 8)
    passes = [
        torch.cat([epoch_indices(size, e * count + k, 8, 3, known, pool=2) for k in range(count)]) for e in range(3)
    ]
    for order in passes:
        assert sorted(order.tolist()) == list(range(size))
    if size == 37:
        assert not torch.equal(passes[0], passes[1])
        assert torch.equal(epoch_indices(size, 7, 8, 3, known, 2), epoch_indices(size, 7, 8, 3, known, 2))


def test_length_pools_pad_less() -> None:
    lengths = torch.randint(10, 600, (512,), generator=torch.Generator().manual_seed(0))

    def padded(known: Tensor | None) -> int:
        chosen = [epoch_indices(512, k, 16, 0, known) for k in range(32)]
        return sum(int(lengths[c].max()) * len(c) for c in chosen)

    assert padded(lengths) < 1.15 * int(lengths.sum()) < padded(None)
