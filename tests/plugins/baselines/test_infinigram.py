"""The infinite-gram against a search for the longest earlier suffix at every position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learner_cases import PAD, SEPARATOR, V, answers, padded, sequences
from torch import Tensor

from icll_zoo import InputError, Vocabulary, create_dataset, create_model, evaluate
from icll_zoo_baselines import infinigram
from icll_zoo_baselines.infinigram import InfinigramLearner

SMOOTHINGS = ("longest", "backoff")


def search(read: str, smoothing: str) -> dict[str, float]:
    """What follows a text of strings joined by "|"; "^" is the start symbol."""
    strings = ["^" + string for string in read.split("|")]
    support = sorted(set(read) - {"|"})
    last = strings[-1]

    def followers(context: str) -> dict[str, int]:
        found = dict.fromkeys(support, 0)
        for string in strings:
            for i in range(len(string) - len(context)):
                if string.startswith(context, i) and (context or i):
                    found[string[i + len(context)]] += 1
        return found

    def symbols_read() -> dict[str, float]:
        letters = [c for c in read if c != "|"]
        return {c: letters.count(c) / len(letters) for c in support}

    result = symbols_read()
    for start in range(len(last) - 1, -1, -1):
        counts = followers(last[start:])
        total = sum(counts.values())
        if not total:
            break
        if smoothing == "longest":
            result = {c: counts[c] / total for c in support}
            continue
        new = {c: result[c] for c in support if not counts[c]}
        mass = sum(new.values())
        shares = {c: p / mass for c, p in new.items()}
        result = {c: (counts[c] + shares.get(c, 0.0)) / (total + bool(new)) for c in support}
    return result


def searched(tokens: list[int], smoothing: str) -> Tensor:
    return answers(tokens, lambda read: search(read, smoothing))


def learner(smoothing: Any = "longest", **options: Any) -> InfinigramLearner:
    return InfinigramLearner(
        **{"vocab_size": V, "separator_id": SEPARATOR, "pad_id": PAD, "smoothing": smoothing} | options
    )


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_search_at_every_position(seed: int, smoothing: str) -> None:
    rows = [
        *sequences(seed, [48, 31], separators=0.15),
        *sequences(seed + 50, [60, 23], symbols=2, separators=0.05),
        *sequences(seed + 99, [30], symbols=1, separators=0.2),
        [1, 2, 3] * 12,  # every suffix of one string that goes round
        [1, 2, 2, 3, 1, 2, 2, SEPARATOR] * 4,  # whole strings again
        [SEPARATOR, SEPARATOR, 1, 2],
        [3],
    ]
    found = learner(smoothing)(padded(rows, to=62))
    assert found.dtype == torch.float64
    for row, tokens in zip(found, rows, strict=True):
        assert_same(row[: len(tokens)], searched(tokens, smoothing))


def test_one_sequence_by_hand() -> None:
    # "abcab": "ab" was followed by c alone, and "b" too; "cab" is new.
    tokens = torch.tensor([[1, 2, 3, 1, 2]])
    assert_same(learner()(tokens)[0, -1, 1:4], torch.tensor([0, 0, 1.0], dtype=torch.float64))
    # Of the open string's symbols a and b have two thirds less c: after "b" and after "ab" half is c's.
    assert_same(learner("backoff")(tokens)[0, -1, 1:4], torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_rows_are_probabilities_over_the_symbols_read(smoothing: str) -> None:
    (tokens,) = sequences(14, [100])
    found = learner(smoothing)(torch.tensor([[SEPARATOR, *tokens]]))[0]
    assert (found >= 0).all()
    assert (found[0] == 0).all()
    assert_same(found[2:].sum(1), torch.ones(len(tokens) - 1, dtype=torch.float64))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_size_of_the_chunks_changes_nothing(smoothing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = padded(sequences(12, [30] * 9))
    whole = learner(smoothing)(tokens)
    monkeypatch.setattr(infinigram, "CHUNK", 2 * 30 * V)
    assert_same(learner(smoothing)(tokens), whole)


def test_without_a_separator_a_row_is_one_string() -> None:
    tokens = torch.randint(3, (2, 40), generator=torch.Generator().manual_seed(1))
    found = learner(separator_id=None, pad_id=None)(tokens)
    for row, ids in zip(found, tokens.tolist(), strict=True):
        assert_same(row, searched(ids, "longest"))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)])
def test_small_batches(shape: tuple[int, int]) -> None:
    assert learner()(torch.ones(shape, dtype=torch.int64)).shape == (*shape, V)


def test_registered_and_better_at_legal_symbols_than_trigrams() -> None:
    dataset = create_dataset("dfa", held_out=100)
    vocabulary = Vocabulary.of(dataset)
    accuracy = {
        name: evaluate(create_model(name, vocabulary=vocabulary), dataset, ["accuracy"], resamples=2)["accuracy"].value
        for name in ("infinigram", "infinigram-backoff", "ngram-3")
    }
    assert accuracy["infinigram"] > accuracy["ngram-3"]
    assert accuracy["infinigram-backoff"] > accuracy["ngram-3"]


def test_a_pad_is_no_symbol() -> None:
    found = learner()(torch.tensor([[1, 2, PAD, 2, PAD, PAD]]))[0]
    assert (found[:, PAD] == 0).all()
    assert_same(found[:4], learner()(torch.tensor([[1, 2, SEPARATOR, 2]]))[0])


def test_bad_options() -> None:
    with pytest.raises(InputError, match="smoothing"):
        learner("kneser-ney")
