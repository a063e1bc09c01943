"""Interpolated Kneser-Ney against a recount of grams at every position, written from its formulas alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learner_cases import PAD, SEPARATOR, V, answers, padded, sequences
from torch import Tensor

from icll_zoo import InputError, Vocabulary, create_dataset, create_model, evaluate
from icll_zoo_baselines import kneser_ney
from icll_zoo_baselines.kneser_ney import KneserNeyLearner

ORDERS = range(1, 9)


def recount(read: str, order: int, discount: float) -> dict[str, float]:
    """What follows a text of strings joined by "|"; "^" is the start symbol."""
    strings = ["^" + string for string in read.split("|")]
    support = sorted(set(read) - {"|"})

    def occurrences(gram: str) -> int:
        return sum(string.startswith(gram, i) for string in strings for i in range(len(string)))

    def left_kinds(gram: str) -> int:
        return len({s[i - 1] for s in strings for i in range(1, len(s)) if s.startswith(gram, i)})

    def predict(context: str, longest: bool) -> dict[str, float]:
        number = occurrences if longest or context.startswith("^") else left_kinds
        counts = {symbol: number(context + symbol) for symbol in support}
        total, kinds = sum(counts.values()), sum(n > 0 for n in counts.values())
        lower = predict(context[1:], False) if context else {symbol: 1 / len(support) for symbol in support}
        if not total:
            return lower
        return {c: (max(counts[c] - discount, 0) + discount * kinds * lower[c]) / total for c in support}

    last = strings[-1]
    return predict(last[max(0, len(last) - (order - 1)) :] if order > 1 else "", longest=order <= len(last) + 1)


def recounted(tokens: list[int], order: int, discount: float) -> Tensor:
    return answers(tokens, lambda read: recount(read, order, discount))


def learner(order: int = 4, **options: Any) -> KneserNeyLearner:
    return KneserNeyLearner(**{"vocab_size": V, "separator_id": SEPARATOR, "order": order} | options)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_equals_a_recount_at_every_position(order: int) -> None:
    discount = 0.3 + 0.1 * (order % 7)
    rows = [
        *sequences(order, [48, 31], separators=0.15),
        *sequences(order + 50, [40, 23], symbols=2, separators=0.1),
        *sequences(order + 99, [12], symbols=1, separators=0.4),
        [SEPARATOR, SEPARATOR, 1, 2],
        [3],
    ]
    found = learner(order, discount=discount)(padded(rows, to=50))
    assert found.dtype == torch.float64
    for row, tokens in zip(found, rows, strict=True):
        assert_same(row[: len(tokens)], recounted(tokens, order, discount))


def test_one_sequence_by_hand() -> None:
    # "ab|a": after "a", "b" came once: (1 - D + D * P_1(b)). Left of a stood "^", left of b stood "a": P_1 is even.
    found = learner(2, discount=0.5)(torch.tensor([[1, 2, SEPARATOR, 1]]))[0, -1, [1, 2]]
    assert_same(found, torch.tensor([0.25, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("order", [1, 2, 4, 8])
def test_rows_are_probabilities_over_the_symbols_read(order: int) -> None:
    (tokens,) = sequences(14, [100])
    found = learner(order)(torch.tensor([[SEPARATOR, *tokens]]))[0]
    assert (found >= 0).all()
    assert (found[0] == 0).all()
    assert_same(found[2:].sum(1), torch.ones(len(tokens) - 1, dtype=torch.float64))
    for t, row in enumerate(found):
        assert set(row.nonzero().flatten().tolist()) <= set(tokens[:t])


def test_the_size_of_the_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = padded(sequences(12, [30] * 9))
    whole = learner()(tokens)
    monkeypatch.setattr(kneser_ney, "CHUNK", 2 * 30 * V)
    assert_same(learner()(tokens), whole)


def test_without_a_separator_a_row_is_one_string() -> None:
    tokens = torch.randint(V - 1, (2, 30), generator=torch.Generator().manual_seed(1))
    found = learner(separator_id=None)(tokens)
    for row, ids in zip(found, tokens.tolist(), strict=True):
        assert_same(row, recounted(ids, 4, 0.75))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)])
def test_small_batches(shape: tuple[int, int]) -> None:
    assert learner()(torch.ones(shape, dtype=torch.int64)).shape == (*shape, V)


def test_registered_with_a_preset_for_each_order() -> None:
    vocabulary = Vocabulary(V, pad_id=PAD, separator_id=SEPARATOR)
    tokens = torch.tensor(sequences(15, [20]))
    for order in range(2, 9):
        assert torch.equal(create_model(f"kneser-ney-{order}", vocabulary=vocabulary)(tokens), learner(order)(tokens))


def test_is_nearer_to_the_languages_than_back_off_of_the_same_order() -> None:
    dataset = create_dataset("dfa", held_out=100)
    vocabulary = Vocabulary.of(dataset)
    tvd = {
        name: evaluate(create_model(name, vocabulary=vocabulary), dataset, ["tvd"], resamples=2)["tvd"].value
        for name in ("kneser-ney-4", "ngram-4")
    }
    assert tvd["kneser-ney-4"] < tvd["ngram-4"] - 0.02


def test_bad_options() -> None:
    with pytest.raises(InputError, match="order 0"):
        learner(order=0)
    with pytest.raises(InputError, match="discount"):
        learner(discount=0.0)
