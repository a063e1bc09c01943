"""Dyck languages: nesting, depth, the oracle by hand and against a plain stack, bad options."""

from __future__ import annotations

import math

import pytest
import torch

from icll_zoo import InputError, create_dataset
from icll_zoo_tasks.dyck import Dyck


def texts(dataset, batch):
    ids = torch.cat([batch.tokens, batch.targets[:, -1:]], 1)
    return [[dataset.vocabulary[i] for i in row] for row in ids.tolist()]


@pytest.mark.parametrize(("kinds", "depth"), [(1, 1), (1, 3), (2, 4), (4, 2), (7, 5)])
def test_brackets_are_nested_and_no_deeper_than_allowed(kinds, depth):
    dataset = Dyck(kinds, depth, length=40)
    assert len(set(dataset.vocabulary)) == 2 * kinds + 1
    pair = dict(zip(dataset.vocabulary[1 : kinds + 1], dataset.vocabulary[kinds + 1 :], strict=True))
    batch = dataset.batch("train", 0, 60, 0) if depth > 1 or kinds > 1 else None
    if batch is None:  # ()()() is the only sequence, and it is in one split
        return
    deepest = 0
    for row in texts(dataset, batch):
        assert len(row) == 40
        stack = []
        for bracket in row:
            if bracket in pair:
                stack.append(bracket)
            else:
                assert pair[stack.pop()] == bracket
            deepest = max(deepest, len(stack))
    assert deepest == depth


def test_the_default_has_two_kinds_up_to_depth_four():
    dataset = Dyck()
    assert dataset.vocabulary == (".", "(", "[", ")", "]")
    assert dataset.batch("train", 0, 3, 0).tokens.shape == (3, 127)


def test_the_oracle_by_hand():
    dataset = Dyck(kinds=2, depth=2, open=0.4, length=6)
    batch = dataset.batch("train", 0, 800, 0)
    index = next(i for i, row in enumerate(texts(dataset, batch)) if "".join(row[:5]) == "([])[")
    wanted = [
        [0, 0.2, 0.2, 0.6, 0],  # ( is open: another may open, or it closes
        [0, 0, 0, 0, 1],  # two are open, and [ is the inner one
        [0, 0.2, 0.2, 0.6, 0],
        [0, 0.5, 0.5, 0, 0],  # nothing is open
        [0, 0.2, 0.2, 0, 0.6],
    ]
    torch.testing.assert_close(dataset.oracle(batch)[index], torch.tensor(wanted))


def test_it_opens_as_often_as_it_should():
    dataset = Dyck(kinds=3, depth=9, open=0.3, length=16)
    batch = dataset.batch("train", 0, 9000, 0)
    share = batch.tokens[:, 1].bincount(minlength=7)[1:4] / 9000
    assert (share - 0.1).abs().max() < 5 * math.sqrt(0.09 / 9000)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kinds": 0}, "data.kinds: 0"),
        ({"kinds": 300}, "data.kinds: 300 is more"),
        ({"depth": 0}, "data.depth: 0"),
        ({"depth": 5000}, "data.depth: 5000 is more"),
        ({"open": 1.0}, r"data.open: 1.0 is not in \(0, 1\)"),
        ({"length": 1}, "data.length: 1"),
    ],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        create_dataset("dyck", **options)
