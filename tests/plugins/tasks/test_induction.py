"""Induction head: layout, loss, the oracle by hand, bad options."""

from __future__ import annotations

import pytest
import torch

from icll_zoo import IGNORED, InputError, create_dataset
from icll_zoo_tasks.induction import TRIGGER_ID, InductionHead


def test_the_default_has_256_tokens_of_16():
    dataset = InductionHead()
    assert len(set(dataset.vocabulary)) == 16
    assert dataset.batch("train", 0, 4, 0).tokens.shape == (4, 255)


def test_the_answer_stood_behind_the_first_trigger():
    dataset = InductionHead(length=9, vocab_size=6, held_out=5)
    batch = dataset.batch("train", 0, 700, 0)
    places = []
    for row, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        place = row.index(TRIGGER_ID)
        places.append(place)
        assert row.count(TRIGGER_ID) == 2
        assert row[-1] == TRIGGER_ID
        assert place < 6
        assert targets == [IGNORED] * 7 + [row[place + 1]]
    share = torch.tensor(places).bincount() / 700
    assert (share - 1 / 6).abs().max() < 5 * (5 / 36 / 700) ** 0.5


def test_all_tokens_may_be_in_the_loss_of_training_alone():
    dataset = InductionHead(length=9, loss="all", held_out=5)
    assert (dataset.batch("train", 0, 5, 0).targets != IGNORED).all()
    assert (dataset.batch("test", 0, 5, 0).targets != IGNORED).sum() == 5


def test_the_oracle_by_hand():
    dataset = InductionHead(length=7, vocab_size=4)  # five tokens, the trigger among the first four; letters a, b
    batch = dataset.batch("train", 0, 200, 0)
    index = (batch.tokens[:, 2] == TRIGGER_ID).nonzero()[0, 0]
    truth = dataset.oracle(batch)[index]
    letters, end = [0.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0]
    torch.testing.assert_close(
        truth[:5], torch.tensor([[0, 1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 4, 1 / 4], letters, letters, end])
    )
    answer = batch.tokens[index, 3]
    assert truth[5].argmax() == answer == batch.targets[index, 5]
    assert truth[5].max() == 1
    last = (batch.tokens[:, 3] == TRIGGER_ID).nonzero()[0, 0]
    assert dataset.oracle(batch)[last, 2].tolist() == end  # there is no other place left


@pytest.mark.parametrize(
    ("options", "says"),
    [({"length": 3}, "data.length: 3"), ({"vocab_size": 3}, "data.vocab_size: 3"), ({"length": 10**6}, "is more than")],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        create_dataset("induction-head", **options)
