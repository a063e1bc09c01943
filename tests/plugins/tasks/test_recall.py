"""Associative recall: layout, loss, the oracle by hand, bad options."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from icll_zoo import IGNORED, InputError, create_dataset, create_model, evaluate
from icll_zoo_tasks.recall import AssociativeRecall


def texts(dataset, batch):
    ids = torch.cat([batch.tokens, batch.extra["following"][:, -1:]], 1)
    return [[dataset.vocabulary[i] for i in row] for row in ids.tolist()]


def test_the_default_is_the_paper_s():
    """387 tokens out of 40, 5,000 sequences to train on and 500 to test on."""
    dataset = AssociativeRecall()
    assert len(set(dataset.vocabulary)) == 40
    assert (dataset.n_keys, dataset.n_values) == (19, 19)
    assert [dataset.size(split) for split in ("train", "validation", "test")] == [5000, 500, 500]
    batch = AssociativeRecall(sequences=32).batch("train", 0, 32, 0)
    assert batch.tokens.shape == (32, 386)
    assert (batch.targets != IGNORED).all()


def test_pairs_of_one_map_and_a_query_of_a_key_that_came():
    dataset = AssociativeRecall(pairs=30, vocab_size=12, sequences=200)
    for row in texts(dataset, dataset.batch("train", 0, 200, 0)):
        assert len(row) == 63
        keys, values = row[0:60:2], row[1:60:2]
        assert all(int(k) < 5 <= int(v) for k, v in zip(keys, values, strict=True))
        value_of = {}
        for k, v in zip(keys, values, strict=True):
            assert value_of.setdefault(k, v) == v
        assert row[60] == "=>"
        assert row[62] == value_of[row[61]]


def test_what_is_in_the_loss():
    for loss, split, count in (("all", "train", 10), ("answer", "train", 1), ("all", "test", 1)):
        batch = AssociativeRecall(pairs=4, vocab_size=20, loss=loss, held_out=5, sequences=5).batch(split, 0, 5, 0)
        assert (batch.targets != IGNORED).sum(1).tolist() == [count] * 5
        assert (batch.targets[:, -1] == batch.extra["following"][:, -1]).all()


def test_keys_values_and_queries_are_uniform():
    dataset = AssociativeRecall(pairs=3, vocab_size=10, sequences=8000)
    rows = texts(dataset, dataset.batch("train", 0, 8000, 0))
    for place in (0, 1, 4, 5):
        shares = [n / 8000 for n in Counter(row[place] for row in rows).values()]
        assert len(shares) == 4
        assert max(abs(share - 1 / 4) for share in shares) < 5 * math.sqrt(3 / 16 / 8000)
    # Twice the same key, once another: each is asked for half of the time.
    uneven = [row[7] == row[4] for row in rows if row[0] == row[2] != row[4]]
    assert abs(sum(uneven) / len(uneven) - 1 / 2) < 5 * 0.5 / math.sqrt(len(uneven))


def test_the_oracle_by_hand():
    dataset = AssociativeRecall(pairs=3, vocab_size=10, sequences=500)  # keys 0 ... 3, values 4 ... 7
    batch = dataset.batch("train", 0, 500, 0)
    rows = texts(dataset, batch)
    index = next(i for i, row in enumerate(rows) if row[0] == row[4] != row[2])
    row = rows[index]
    truth = [
        {dataset.vocabulary[i]: round(p, 3) for i, p in enumerate(line) if p}
        for line in dataset.oracle(batch)[index].tolist()
    ]
    any_key, any_value = dict.fromkeys("0123", 0.25), dict.fromkeys("4567", 0.25)
    assert truth == [
        any_value, any_key, any_value, any_key, {row[1]: 1.0}, {"=>": 1.0},
        dict.fromkeys({row[0], row[2]}, 0.5), {row[8]: 1.0},
    ]  # fmt: skip


def test_a_bigram_learner_answers_as_the_context_says():
    dataset = AssociativeRecall(pairs=40, vocab_size=12, sequences=1, held_out=50)
    scores = evaluate(create_model("ngram-2", vocab_size=12), dataset, ["token-accuracy"])
    assert scores["token-accuracy"].value == 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pairs": 0}, "data.pairs: 0"),
        ({"pairs": 10_000}, "data.pairs: 10000 make more than"),
        ({"vocab_size": 3}, "data.vocab_size: 3"),
        ({"vocab_size": 2000}, "data.vocab_size: 2000 is more than"),
        ({"loss": "some"}, "loss"),
    ],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        create_dataset("associative-recall", **options)
