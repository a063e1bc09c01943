"""In-context Markov chains: the matrix behind a sequence, both oracles by hand, any order, bad options."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from icll_zoo import IGNORED, InputError, create_dataset, evaluate, stream_key
from icll_zoo_tasks import markov
from icll_zoo_tasks.markov import MarkovChains, contexts


def whole(batch):
    return torch.cat([batch.tokens, batch.targets[:, -1:]], 1)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_a_sequence_follows_its_matrix(order, alpha):
    """In one long sequence of few symbols, what follows each context has the frequencies of the matrix's row."""
    dataset = MarkovChains(symbols=3, order=order, alpha=alpha, length=6000, held_out=1)
    batch = dataset.batch("test", 0, 1, None)
    x = whole(batch)[0] - 1
    for code in range(3**order):
        digits = [code // 3**i % 3 for i in range(order)]  # the last symbol first
        row = dataset.rows(stream_key(batch.extra["key"], *digits))[0]
        at = torch.ones(6000 - order, dtype=torch.bool)
        for i, digit in enumerate(digits):
            at &= x[order - 1 - i : 6000 - 1 - i] == digit
        n = int(at.sum())
        if n:
            share = x[order:][at].bincount(minlength=3) / n
            assert (share - row).abs().max() <= 5 * (row * (1 - row)).max().sqrt() / math.sqrt(n) + 1e-9
    # The oracle knows the same rows.
    truth = dataset.oracle(batch)[0, :, 1:].double()
    for t in range(order - 1, 50):
        row = dataset.rows(stream_key(batch.extra["key"], *(x[t - i] for i in range(order))))[0]
        torch.testing.assert_close(truth[t], row, rtol=0, atol=1e-6)


def test_rows_made_where_they_are_needed_are_those_of_the_whole_matrix(monkeypatch):
    options = {"symbols": 4, "order": 2, "length": 30}
    tokens = MarkovChains(**options).batch("train", 0, 20, 0).tokens
    monkeypatch.setattr(markov, "MOST_ENTRIES", 0)
    assert torch.equal(MarkovChains(**options).batch("train", 0, 20, 0).tokens, tokens)


def test_any_order():
    dataset = MarkovChains(symbols=8, order=20, length=30, held_out=3)  # 8^20 rows
    batch = dataset.batch("train", 0, 5, 0)
    assert (batch.targets != IGNORED).sum(1).tolist() == [10] * 5  # the first twenty symbols are not in the loss
    truth = dataset.oracle(batch)
    torch.testing.assert_close(truth[:, :19, 1:], torch.full((5, 19, 8), 1 / 8))
    assert truth[:, 19:].std() > 0.05


def test_contexts_are_counted_with_the_last_symbol_lowest():
    last, earlier = contexts(3, 2)
    assert last.tolist() == [0, 1, 2] * 3
    assert earlier.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("order", [1, 2])
def test_who_knows_the_prior_counts(order):
    """Against counting in a plain loop."""
    dataset = MarkovChains(symbols=3, order=order, alpha=0.5, length=25, oracle_knows="prior")
    batch = dataset.batch("train", 0, 4, 0)
    truth = dataset.oracle(batch)
    for row, p in zip(whole(batch).tolist(), truth, strict=True):
        for t in range(24):
            if t < order - 1:
                continue
            context = row[t - order + 1 : t + 1]
            count = [0.5] * 3
            for s in range(order - 1, t):
                if row[s - order + 1 : s + 1] == context:
                    count[row[s + 1] - 1] += 1
            torch.testing.assert_close(p[t, 1:], torch.tensor(count) / sum(count))


def test_by_hand():
    """After a b a b a, with alpha 1: `a` was followed by b twice, so b has (2 + 1) / (2 + 3)."""
    dataset = MarkovChains(symbols=3, length=6, oracle_knows="prior")
    batch = dataset.batch("train", 0, 1, 0)
    batch.tokens[0] = torch.tensor([1, 2, 1, 2, 1])
    torch.testing.assert_close(dataset.oracle(batch)[0, 4], torch.tensor([0, 0.2, 0.6, 0.2]))
    torch.testing.assert_close(dataset.oracle(batch)[0, 1], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]))


def test_the_matrix_is_worth_more_than_the_prior_and_this_more_than_nothing():
    data = {"symbols": 4, "length": 60, "held_out": 200}
    nats = {
        knows: evaluate("oracle", MarkovChains(**data, oracle_knows=knows), ["cross-entropy"])["cross-entropy"].value
        for knows in ("matrix", "prior")
    }
    # The entropy of a row of four, Dirichlet(1): psi(5) - psi(2) = 1/2 + 1/3 + 1/4.
    assert nats["matrix"] == pytest.approx(13 / 12, abs=0.03)
    assert nats["matrix"] + 0.05 < nats["prior"] < math.log(4) - 0.05


def test_rows_have_the_prior_s_entropy():
    dataset = MarkovChains(symbols=4, alpha=1.0)
    p = dataset.rows(stream_key(torch.arange(20_000)))
    assert -(p * p.log()).sum(1).mean().item() == pytest.approx(13 / 12, abs=0.01)
    assert F.one_hot(p.argmax(1), 4).double().mean(0).max() < 0.27


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"symbols": 1}, "data.symbols: 1"),
        ({"symbols": 5000}, "data.symbols: 5000 is more"),
        ({"order": 0}, "data.order: 0"),
        ({"order": 8, "length": 8}, "data.length: 8 is less than the 9"),
        ({"alpha": 0.0}, "data.alpha: 0.0"),
        ({"oracle_knows": "nothing"}, "oracle_knows"),
    ],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        create_dataset("markov-chains", **options)
