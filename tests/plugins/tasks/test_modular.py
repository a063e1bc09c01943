"""Parity and modular counting: layout, sums, the oracle by hand, bad options."""

from __future__ import annotations

import math

import pytest
import torch

from icll_zoo import IGNORED, InputError, create_dataset
from icll_zoo_tasks.modular import ARROW_ID, ModularCounting, parity


@pytest.mark.parametrize(("modulus", "digits"), [(2, 2), (3, 2), (5, 5), (2, 7)])
def test_the_answer_is_the_sum(modulus, digits):
    dataset = ModularCounting(modulus, digits, length_min=3, length_max=9)
    assert dataset.vocabulary == (".", "=>", *map(str, range(max(modulus, digits))))
    batch = dataset.batch("train", 0, 300, 0)
    assert batch.tokens.shape == (300, 10)
    lengths = []
    for row, valid, targets in zip(batch.tokens.tolist(), batch.valid.tolist(), batch.targets.tolist(), strict=True):
        place = row.index(ARROW_ID)
        lengths.append(place)
        given = [int(dataset.vocabulary[i]) for i in row[:place]]
        assert max(given) < digits
        assert row[place + 1 :] == [0] * (9 - place)
        assert valid == [True] * (place + 1) + [False] * (9 - place)
        expected = [IGNORED] * 10
        expected[place] = dataset.vocabulary.index(str(sum(given) % modulus))
        assert targets == expected
    assert set(lengths) == set(range(3, 10))
    assert abs(sum(lengths) / 300 - 6) < 5 * math.sqrt(4 / 300)


def test_parity_is_the_modulus_two():
    one, other = parity(length_min=5, seed=4), ModularCounting(2, 2, length_min=5, seed=4)
    assert torch.equal(one.batch("train", 0, 9, 1).tokens, other.batch("train", 0, 9, 1).tokens)
    assert one.vocabulary == (".", "=>", "0", "1")


def test_the_oracle_by_hand():
    dataset = ModularCounting(3, 2, length_min=2, length_max=4)
    batch = dataset.batch("train", 0, 400, 0)
    index = next(i for i, row in enumerate(batch.tokens.tolist()) if row == [3, 3, 2, ARROW_ID, 0])  # 1 1 0 =>
    wanted = [
        [0, 0, 1 / 2, 1 / 2, 0],
        [0, 1 / 3, 1 / 3, 1 / 3, 0],  # two, three or four digits
        [0, 1 / 2, 1 / 4, 1 / 4, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(dataset.oracle(batch)[index], torch.tensor(wanted))
    full = next(i for i, row in enumerate(batch.tokens.tolist()) if row[4] == ARROW_ID)
    assert dataset.oracle(batch)[full, 3].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("modular-counting", {"modulus": 1}, "data.modulus: 1"),
        ("modular-counting", {"digits": 1}, "data.digits: 1"),
        ("modular-counting", {"modulus": 5000}, "data.modulus: 5000 is more"),
        ("parity", {"length_min": 0}, "data.length_min: 0"),
        ("parity", {"length_max": 0}, "data.length_max: 0 is less than data.length_min=1"),
        ("parity", {"length_max": 10**6}, "data.length_max: 1000000 is more"),
    ],
)
def test_impossible_options(name, options, says):
    with pytest.raises(InputError, match=says):
        create_dataset(name, **options)


def test_a_split_that_gets_no_sequence_is_an_error():
    """Two sequences, and three splits that share none: some split has none."""
    dataset = ModularCounting(2, 2, length_min=1, length_max=1, held_out=1)  # 0 => 0 and 1 => 1
    with pytest.raises(InputError, match="hardly any sequence"):
        [dataset.batch(split, 0, 1, 0) for split in ("train", "validation", "test")]
