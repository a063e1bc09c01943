"""In-context n-gram statistics: orders that resemble each other, the oracle, bad options."""

from __future__ import annotations

import pytest
import torch

from icll_zoo import InputError, create_dataset, create_model, evaluate, stream_key
from icll_zoo_tasks import ngrams
from icll_zoo_tasks.ngrams import NgramStatistics


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_whole_tables_are_what_is_made_where_it_is_needed(n, monkeypatch):
    dataset = NgramStatistics(symbols=3, n=n, length=20)
    key = stream_key(torch.arange(5))
    tables = dataset._tables(key)
    assert [table.shape for table in tables] == [(5, 3**j, 3) for j in range(n)]
    for code in range(3 ** (n - 1)):
        before = [torch.tensor(code // 3**i % 3) for i in range(n - 1)]
        assert torch.equal(tables[-1][:, code], dataset.probabilities(key, before))
    tokens = dataset.batch("train", 0, 9, 0).tokens
    monkeypatch.setattr(ngrams, "MOST_ENTRIES", 0)
    assert torch.equal(NgramStatistics(symbols=3, n=n, length=20).batch("train", 0, 9, 0).tokens, tokens)


def test_the_oracle_reads_the_row_of_the_context_and_shorter_ones_at_the_beginning():
    dataset = NgramStatistics(symbols=3, n=3, length=8)
    batch = dataset.batch("train", 0, 6, 0)
    tables = dataset._tables(batch.extra["key"])
    truth = dataset.oracle(batch)[..., 1:].double()
    x = (batch.tokens - 1).tolist()
    for row in range(6):
        torch.testing.assert_close(truth[row, 0], tables[1][row, x[row][0]], rtol=0, atol=1e-6)
        for t in range(1, 7):
            torch.testing.assert_close(truth[row, t], tables[2][row, x[row][t] + 3 * x[row][t - 1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("concentration", [1.0, 4.0, 64.0])
def test_a_longer_context_s_distribution_is_around_the_shorter_one_s(concentration):
    """Of a Dirichlet distribution with parameters c m the mean is m and the variance m (1 - m) / (c + 1)."""
    dataset = NgramStatistics(symbols=4, n=2, concentration=concentration)
    one, two = dataset._tables(stream_key(torch.arange(8000)))
    off = two - one
    assert off.mean((0, 1)).abs().max() < 0.01
    expected = (one * (1 - one)).mean() / (concentration + 1)
    torch.testing.assert_close(off.square().mean(), expected, rtol=0.05, atol=0)


def test_back_off_is_worth_something_here_and_nothing_where_rows_are_independent():
    """What a shorter context says of a longer one: the 1-gram of the language beats the uniform guess."""
    dataset = NgramStatistics(symbols=4, n=3, length=100)
    p = dataset._tables(stream_key(torch.arange(4000)))
    longest = p[2].view(4000, 4, 4, 4)  # (key, the symbol before last, the last one, next)
    two = p[1].view(4000, 1, 4, 4)
    for guess, other in ((two, p[0][:, :, None]), (p[0][:, :, None], torch.full_like(longest, 0.25))):
        assert (longest - guess).abs().mean() < (longest - other).abs().mean() - 0.01


def test_a_learner_of_the_right_order_beats_the_others():
    dataset = NgramStatistics(symbols=4, n=2, concentration=1.0, length=400, held_out=30)
    tvd = {n: evaluate(create_model(f"ngram-{n}", vocab_size=5), dataset, ["tvd"])["tvd"].value for n in (1, 2)}
    assert tvd[2] < tvd[1] / 2
    assert evaluate("oracle", dataset, ["tvd"])["tvd"].value == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"symbols": 1}, "data.symbols: 1"),
        ({"n": 0}, "data.n: 0"),
        ({"n": 99}, "data.n: 99"),
        ({"concentration": 0.0}, "data.concentration: 0.0"),
        ({"length": 1}, "data.length: 1"),
    ],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        create_dataset("ngram-statistics", **options)
