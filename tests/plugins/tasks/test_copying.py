"""Copying and selective copying: layout, loss, the oracle by hand, bad options."""

from __future__ import annotations

import math

import pytest
import torch

from icll_zoo import IGNORED, InputError, create_dataset
from icll_zoo_tasks.copying import Copying


def texts(dataset, batch):
    ids = torch.cat([batch.tokens, batch.targets[:, -1:]], 1)
    return [[dataset.vocabulary[i] for i in row] for row in ids.tolist()]


def test_the_default_is_the_paper_s():
    """300 of 27 symbols, and their copy."""
    dataset = Copying()
    assert len(set(dataset.vocabulary)) == 30
    assert dataset.n_symbols == 27
    batch = dataset.batch("train", 0, 2, 0)
    assert batch.tokens.shape == (2, 601)
    assert (batch.targets != IGNORED).sum(1).tolist() == [300, 300]


@pytest.mark.parametrize("noise", [0, 1, 5])
def test_a_text_and_its_copy(noise):
    dataset = Copying(span=4, noise=noise, vocab_size=9)
    batch = dataset.batch("train", 0, 100, 0)
    n = 4 + noise
    for row in texts(dataset, batch):
        assert row[0] == "<s>"
        assert row[n + 1] == "=>"
        assert row[1 : n + 1].count("_") == noise
        assert [c for c in row[1 : n + 1] if c != "_"] == row[n + 2 :]
        assert len(row) == n + 6
    counted = batch.targets != IGNORED
    assert torch.equal(counted, (torch.arange(n + 5) >= n + 1).expand(100, -1))


def test_symbols_and_their_places_are_uniform():
    dataset = Copying(span=2, noise=2, vocab_size=104)  # enough sequences for every split to have all kinds
    batch = dataset.batch("train", 0, 6000, 0)
    patterns = ((batch.tokens[:, 1:5] > 3).long() * torch.tensor([8, 4, 2, 1])).sum(1).bincount()
    assert (patterns > 0).nonzero()[:, 0].tolist() == [3, 5, 6, 9, 10, 12]
    assert (patterns[patterns > 0] / 6000 - 1 / 6).abs().max() < 5 * math.sqrt(5 / 36 / 6000)
    tens = ((batch.targets[:, -1] - 4) // 10).bincount() / 6000
    assert (tens - 1 / 10).abs().max() < 5 * math.sqrt(0.09 / 6000)


def test_the_oracle_by_hand():
    dataset = Copying(span=2, noise=1, vocab_size=6)  # ids: . <s> => _ a b
    batch = dataset.batch("train", 0, 300, 0)
    index = (batch.tokens[:, 1] == 3).nonzero()[0, 0]  # <s> _ x y => x y
    truth = dataset.oracle(batch)[index]
    x, y = batch.targets[index, -2:].tolist()
    one = torch.eye(6)
    either = [0, 0, 0, 0, 1 / 2, 1 / 2]
    wanted = [[0, 0, 0, 1 / 3, 1 / 3, 1 / 3], either, either]
    torch.testing.assert_close(truth, torch.cat([torch.tensor(wanted), one[[2, x, y]]]))
    plain = Copying(span=2, vocab_size=5)
    truth = plain.oracle(plain.batch("train", 0, 1, 0))[0]
    torch.testing.assert_close(truth[0], torch.tensor([0, 0, 0, 0.5, 0.5]))
    assert truth[2].tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"span": 0}, "data.span: 0"),
        ({"span": 9000}, "data.span: 9000, with data.noise=0, makes over"),
        ({"noise": -1}, "data.noise: -1"),
        ({"vocab_size": 3}, "data.vocab_size: 3 is less than 4"),
        ({"vocab_size": 4, "noise": 1}, "data.vocab_size: 4 is less than 5"),
    ],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        create_dataset("copying", **options)
