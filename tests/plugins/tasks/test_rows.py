"""What all tasks have in common: rows that are functions of their index, disjoint splits, calibrated oracles."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.nn import functional as F

import icll_zoo_tasks
from icll_zoo import IGNORED, InputError, Rows, create_dataset, list_datasets, split_codes, stream_key
from icll_zoo_tasks.rows import LONGEST, symbol_names
from icll_zoo_tasks.words import words

SMALL = {
    "associative-recall": {"pairs": 12, "vocab_size": 12, "sequences": 300},
    "induction-head": {"length": 12, "vocab_size": 7},
    "copying": {"span": 6, "vocab_size": 9},
    "copying-selective": {"span": 4, "noise": 7, "vocab_size": 9},
    "markov-chains": {"symbols": 4, "length": 20},
    "markov-chains-bayes": {"symbols": 3, "length": 20, "order": 2, "alpha": 0.5},
    "ngram-statistics": {"symbols": 4, "length": 20},
    "dyck": {"kinds": 2, "depth": 3, "length": 20},
    "parity": {"length_min": 10, "length_max": 14},
    "modular-counting": {"modulus": 3, "digits": 3, "length_min": 8, "length_max": 12},
    "hmm": {"states": 3, "symbols": 4, "length": 20},
}
NAMES = sorted(SMALL)


def small(name, **options):
    return create_dataset(name, **{"held_out": 30, **SMALL[name], **options})


def test_every_task_is_here():
    assert set(icll_zoo_tasks.TASKS) - {"mqar"} <= set(SMALL)
    assert set(SMALL) <= set(list_datasets())
    for target, paper, _ in icll_zoo_tasks.TASKS.values():
        module, _, name = target.partition(":")
        made = getattr(importlib.import_module(f"icll_zoo_tasks.{module}"), name)
        assert paper.removeprefix("arXiv:") in importlib.import_module(made.__module__).__doc__


@pytest.mark.parametrize("name", NAMES)
def test_a_row_depends_on_seeds_split_and_index_alone(name):
    endless = {"sequences": None}
    long = small(name, **endless).batch("train", 0, 60, 3)
    for batch_size in (1, 7, 20):
        k = 40 // batch_size
        batch = small(name, **endless).batch("train", k, batch_size, 3)
        where = slice(k * batch_size, (k + 1) * batch_size)
        assert torch.equal(batch.tokens, long.tokens[where])
        assert torch.equal(batch.group, long.group[where])
        for key, value in batch.extra.items():
            assert torch.equal(value, long.extra[key][where])
    held = small(name).batch("test", 0, 30, None).tokens
    assert torch.equal(small(name, held_out=23).batch("test", 1, 12, None).tokens, held[12:23])
    first = [
        small(name, seed=seed, **endless).batch(split, 0, 1, order).tokens[0].tolist()
        for seed, split, order in (
            (0, "train", 3), (0, "train", 4), (1, "train", 3), (0, "test", None), (1, "test", None),
            (0, "validation", None),
        )
    ]  # fmt: skip
    assert len(set(map(tuple, first))) == 6


@pytest.mark.parametrize("name", NAMES)
def test_training_of_a_fixed_size_is_the_same_for_every_seed_of_a_run(name):
    rows = [
        sorted(
            map(
                tuple,
                torch.cat([small(name, sequences=20).batch("train", k, 8, seed).tokens for k in range(3)]).tolist(),
            )
        )
        for seed in (0, 5)
    ]
    assert rows[0] == rows[1]
    assert small(name, sequences=20).size("train") == 20


@pytest.mark.parametrize("name", NAMES)
def test_a_hash_of_its_tokens_decides_a_sequence_s_split(name):
    dataset = small(name)
    for split, code in (("test", 0), ("validation", 1), ("train", 2)):
        ids, _, _ = dataset._rows.take(split, 0, 30, None if split != "train" else 0)
        assert (split_codes(ids) == code).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_is_calibrated_at_every_position(name):
    """Each token comes with the oracle's probability, over many sequences: position by position and token by token.

    Of all positions, also those out of the loss; whichever model forgets a case is wrong at some position.
    """
    dataset = small(name, sequences=None)
    batch = dataset.batch("train", 0, 3000, 0)
    truth = dataset.oracle(batch).double()
    torch.testing.assert_close(truth.sum(-1), batch.valid.double())
    known = batch.valid[:, :-1] & batch.valid[:, 1:]
    following = F.one_hot(batch.tokens[:, 1:], truth.size(-1)).double()
    p = truth[:, :-1]
    assert (p[known].gather(1, batch.tokens[:, 1:][known][:, None]) > 0).all()
    n = known.sum(0).clamp(min=1)[:, None]
    excess = ((following - p) * known[..., None]).sum(0) / n
    spread = ((p * (1 - p) * known[..., None]).sum(0) / n**2).sqrt()
    enough = n > 100
    # Five standard errors, of some hundred cells; what is certain has none, and float32 rounds.
    assert (excess.abs() <= 5 * spread + 1e-6)[enough.expand_as(excess)].all()


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_what_follows(name):
    for split in ("train", "test"):
        dataset = small(name)
        batch = dataset.batch(split, 0, 30, 0)
        ids, _, _ = dataset._rows.take(split, 0, 30, 0)
        counted = batch.targets != IGNORED
        assert counted.any()
        assert torch.equal(batch.targets[counted], ids[:, 1:][counted])
        assert (ids[:, 1:][counted] > 0).all()
        assert batch.tokens.size(1) <= dataset.max_length


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sequences": 0}, "data.sequences: 0 is less than 1"),
        ({"held_out": 0}, "data.held_out: 0 is less than 1"),
        ({"seed": -1}, "data.seed: -1 is not in"),
    ],
)
def test_options_of_all_tasks_are_checked(name, options, says):
    with pytest.raises(InputError, match=says):
        small(name, **options)


def test_all_faults_are_named_at_once():
    with pytest.raises(InputError) as caught:
        small("dyck", kinds=0, open=2.0, held_out=0, length=LONGEST + 1)
    assert len(caught.value.faults) == 4


def test_a_split_that_no_sequence_is_in_is_an_error():
    rows = Rows(lambda key: torch.full((len(key), 3), 2), None, 1, 0)
    code = split_codes(torch.full((1, 3), 2)).item()
    with pytest.raises(InputError, match="hardly any sequence"):
        rows.take("test" if code else "validation", 0, 1, None)


def test_the_first_candidate_that_fits_is_taken():
    """With one attempt at a time, the slow form."""
    found = Rows(lambda key: words(key, 4) & 15, None, 30, 7)
    ids, keys, _ = found.take("test", 0, 30, None)
    for row in range(30):
        for attempt in range(1000):
            key = stream_key(7, 0, 0, torch.tensor([row]), attempt)
            made = words(key, 4) & 15
            if split_codes(made) == 0:
                break
        assert torch.equal(made[0], ids[row])
        assert key == keys[row]


def test_names_of_symbols():
    assert symbol_names(3) == ("a", "b", "c")
    assert len(set(symbol_names(500))) == 500
