"""The n-gram learner against a recount of substrings at every position, written from its description alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learner_cases import PAD, SEPARATOR, V, answers, padded, sequences
from torch import Tensor

from icll_zoo import InputError, Vocabulary, create_dataset, create_model, evaluate
from icll_zoo_baselines import ngram
from icll_zoo_baselines.ngram import NGramLearner
from icll_zoo_baselines.ngram_reference import ngram_reference

ORDERS = range(1, 9)
SMOOTHINGS = ("backoff", "katz", "none", "add-one")


def recount(read: str, order: int, smoothing: str) -> dict[str, float]:
    """What follows a non-empty text of strings joined by "|"."""
    strings = ["_" * (order - 1) + string for string in read.split("|")]
    support = sorted(set(read) - {"|"})
    one = 1 if smoothing == "add-one" else 0

    def occurrences(gram: str) -> int:
        return sum(string.startswith(gram, i) for string in strings for i in range(len(string)))

    def probability(context: str, symbol: str) -> float:
        if context:
            return (occurrences(context + symbol) + one) / (occurrences(context) + one * len(support))
        symbols = "".join(strings)
        return (symbols.count(symbol) + one) / (len(symbols) + one * len(set(symbols)))

    def predict(context: str) -> dict[str, float]:
        found = {symbol: probability(context, symbol) for symbol in support if occurrences(context + symbol)}
        rest = [symbol for symbol in support if symbol not in found]
        if rest and smoothing != "none":
            beta = 1 - sum(found.values())
            shorter = predict(context[1:])
            share = sum(shorter[symbol] for symbol in rest)
            found |= {symbol: beta * shorter[symbol] / share for symbol in rest}
        total = sum(found.values()) if smoothing == "katz" else 1.0
        return {symbol: p / total for symbol, p in found.items()}

    return predict(strings[-1][len(strings[-1]) - (order - 1) :])


def recounted(tokens: list[int], order: int, smoothing: str) -> Tensor:
    return answers(tokens, lambda read: recount(read, order, smoothing))


def learner(order: int = 3, smoothing: Any = "backoff", **options: Any) -> NGramLearner:
    return NGramLearner(
        **{"vocab_size": V, "separator_id": SEPARATOR, "order": order, "smoothing": smoothing} | options
    )


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_equals_a_recount_at_every_position(order: int, smoothing: str) -> None:
    rows = [
        *sequences(order, [48, 31, 17], separators=0.15),
        *sequences(order + 50, [40, 23], symbols=2, separators=0.1),  # few symbols: long contexts recur
        *sequences(order + 99, [12], symbols=1, separators=0.4),  # one symbol, and empty strings
        [SEPARATOR, SEPARATOR, 1, 2],
        [3],
    ]
    found = learner(order, smoothing)(padded(rows, to=50))
    assert found.dtype == torch.float64
    assert found.shape == (len(rows), 50, V)
    for row, tokens in zip(found, rows, strict=True):
        assert_same(row[: len(tokens)], recounted(tokens, order, smoothing))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_plugins_own_reference_equals_the_recount(order: int, smoothing: str) -> None:
    for tokens in sequences(7, [30, 1], symbols=3):
        found = ngram_reference(tokens, V, SEPARATOR, order, smoothing)
        assert_same(torch.tensor(found, dtype=torch.float64), recounted(tokens, order, smoothing))


def test_one_sequence_by_hand() -> None:
    a, b = 1, 2
    found = learner(order=2)(torch.tensor([[a, b, SEPARATOR, a]]))[0, :, [a, b]]
    # a: the open a counts, nothing followed it, and b was not read yet, so a gets all of beta = 1.
    # ab: nothing followed b; the unigrams are 1/3 each of "_ab", so half of beta each.
    # ab|: two strings started, one with a: 1/2, and the other half is beta, for b.
    # ab|a: a occurred twice and was followed by b once: 1/2, and beta = 1/2 goes to a.
    wanted = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    assert_same(found, wanted)
    unigrams = learner(order=1)(torch.tensor([[a, b, SEPARATOR, a]]))[0, -1, [a, b]]
    assert_same(unigrams, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))


def test_what_is_left_is_lost_when_every_symbol_has_followed() -> None:
    found = learner(order=2)(torch.tensor([[1, 1, 1]]))[0, :, 1]
    # "_a", "_aa", "_aaa": a was followed by a 0, 1, 2 times of 1, 2, 3.
    assert_same(found, torch.tensor([1, 1 / 2, 2 / 3], dtype=torch.float64))


def test_katz_shares_what_is_left_among_those_that_followed() -> None:
    # "_aabab": a was followed by a once and by b twice; the open string's b by a once. Nobody is left over after a.
    found = learner(2, "katz")(torch.tensor([[1, 1, 2, 1, 2, 1]]))[0, -1, [1, 2]]
    assert_same(found, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))


@pytest.mark.parametrize("order", ORDERS)
def test_katz_rows_sum_to_one_once_a_symbol_was_read(order: int) -> None:
    found = learner(order, "katz")(padded([[SEPARATOR, *tokens] for tokens in sequences(16, [60, 60], symbols=2)]))
    assert (found[:, 0] == 0).all()
    totals = found.sum(-1)[:, 2:]
    assert_same(totals, torch.ones_like(totals))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_long_sequence_equals_the_plugins_reference(smoothing: str) -> None:
    (tokens,) = sequences(3, [160], separators=0.05)
    wanted = torch.tensor(ngram_reference(tokens, V, SEPARATOR, 4, smoothing), dtype=torch.float64)
    assert_same(learner(4, smoothing)(torch.tensor([tokens]))[0], wanted)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_row_does_not_depend_on_its_company_or_padding(smoothing: str) -> None:
    rows = sequences(11, [60, 20, 33])
    together = learner(3, smoothing)(padded(rows, to=80))
    for row, tokens in zip(together, rows, strict=True):
        alone = learner(3, smoothing)(torch.tensor([tokens]))[0]
        assert_same(row[: len(tokens)], alone)


def test_the_size_of_the_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = padded(sequences(12, [30] * 9))
    whole = learner()(tokens)
    monkeypatch.setattr(ngram, "CHUNK", 2 * 30 * V)
    assert_same(learner()(tokens), whole)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_causal(smoothing: str) -> None:
    (before,) = sequences(13, [40])
    after = [*before[:25], 1, SEPARATOR, 2]
    changed = learner(3, smoothing)(padded([before, after]))
    assert_same(changed[0, :25], changed[1, :25])


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_rows_are_sub_probabilities_over_the_symbols_read(order: int, smoothing: str) -> None:
    (tokens,) = sequences(14, [100])
    found = learner(order, smoothing)(torch.tensor([tokens]))[0]
    assert (found >= 0).all()
    assert (found.sum(1) <= 1 + 1e-12).all()
    assert (found[:, [PAD, SEPARATOR]] == 0).all()
    for t, row in enumerate(found):
        assert set(row.nonzero().flatten().tolist()) <= set(tokens[: t + 1])


def test_without_a_separator_a_row_is_one_string() -> None:
    tokens = torch.randint(V, (2, 40), generator=torch.Generator().manual_seed(1))
    found = learner(separator_id=None)(tokens)
    for row, ids in zip(found, tokens.tolist(), strict=True):
        assert_same(row, torch.tensor(ngram_reference(ids, V, None), dtype=torch.float64))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)])
def test_small_batches(shape: tuple[int, int]) -> None:
    assert learner()(torch.ones(shape, dtype=torch.int64)).shape == (*shape, V)


def test_registered_with_a_preset_for_each_order() -> None:
    vocabulary = Vocabulary(V, pad_id=PAD, separator_id=SEPARATOR)
    tokens = torch.tensor(sequences(15, [20]))
    for order in ORDERS:
        model = create_model(f"ngram-{order}", vocabulary=vocabulary)
        assert model.output == "probabilities"
        assert not list(model.parameters())
        assert torch.equal(model(tokens), learner(order)(tokens))
    assert torch.equal(create_model("ngram", vocabulary=vocabulary)(tokens), learner(3)(tokens))


@pytest.mark.parametrize(
    ("order", "smoothing", "accuracy", "tvd"),
    [
        (2, "backoff", 0.826, 0.327),
        (3, "backoff", 0.934, 0.258),
        (3, "none", 0.903, 0.193),
        (4, "backoff", 0.951, 0.269),
    ],
)
def test_scores_on_random_languages_as_in_the_paper(order: int, smoothing: str, accuracy: float, tvd: float) -> None:
    dataset = create_dataset("dfa", held_out=500)
    model = create_model("ngram", vocabulary=Vocabulary.of(dataset), order=order, smoothing=smoothing)
    found = evaluate(model, dataset, ["accuracy", "tvd"], resamples=10)
    # Three standard deviations between sets of 500 languages, for the order where they are largest.
    assert found["accuracy"].value == pytest.approx(accuracy, abs=0.015)
    assert found["tvd"].value == pytest.approx(tvd, abs=0.016)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "smoothing", "accuracy", "tvd"),
    [
        (1, "backoff", 0.4755, 0.6270),
        (2, "backoff", 0.8255, 0.3275),
        (3, "backoff", 0.9336, 0.2575),
        (3, "none", 0.9023, 0.1947),
        (4, "backoff", 0.9500, 0.2708),
        (5, "backoff", 0.9520, 0.2892),
        (8, "backoff", 0.9512, 0.3170),
    ],
)
def test_scores_on_5000_languages_are_the_means_of_the_papers_six_sets(
    order: int, smoothing: str, accuracy: float, tvd: float
) -> None:
    dataset = create_dataset("dfa", held_out=5000)
    model = create_model("ngram", vocabulary=Vocabulary.of(dataset), order=order, smoothing=smoothing)
    found = evaluate(model, dataset, ["accuracy", "tvd"], resamples=10)
    # The mean of six sets of 500 that scatter by 0.006 has an error of 0.003, as much as 5,000 languages have.
    assert found["accuracy"].value == pytest.approx(accuracy, abs=0.008)
    assert found["tvd"].value == pytest.approx(tvd, abs=0.008)


def test_bad_options() -> None:
    with pytest.raises(InputError, match="order 0"):
        learner(order=0)
    with pytest.raises(InputError, match="smoothing"):
        learner(smoothing="kneser-ney")
    with pytest.raises(InputError, match="smoothing"):
        create_model("ngram", smoothing="kneser-ney")
