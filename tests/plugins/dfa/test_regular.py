"""Regular languages of a user's own: strings, ends, the oracle, splits, files, bad options; and a model on one."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch.nn import functional as F

from icll_zoo import InputError, Run, Zoo, create_dataset, evaluate, split_codes, train
from icll_zoo_dfa.regular import RegularLanguage

REGEX = "(ab|ba*c)*d?"


def texts(dataset, batch):
    ids = torch.cat([batch.tokens, batch.targets[:, -1:]], 1)
    return [[dataset.vocabulary[i] for i in row] for row in ids.tolist()]


def test_every_string_is_in_the_language():
    dataset = RegularLanguage(REGEX, length=60)
    assert dataset.vocabulary == ("<pad>", "a", "b", "c", "d", "<end>")
    batch = dataset.batch("train", 0, 200, 0)
    assert batch.valid.all()
    found = set()
    for row in texts(dataset, batch):
        assert len(row) == 60
        *whole, last = "".join("|" if token == "<end>" else token for token in row).split("|")
        assert all(re.fullmatch(REGEX, word) for word in whole)
        assert any(re.fullmatch(REGEX, last + rest) for rest in ("", "b", "c"))  # the beginning of one
        found.update(whole)
    # All short strings of the language come, and the empty one.
    assert {"", "d", "ab", "bc", "abd", "bac", "baacd", "abab"} <= found


def test_the_oracle_by_hand():
    """ab?: a; then with probability 0.3 the end, else b; then surely the end."""
    dataset = RegularLanguage("ab?", stop=0.3, length=20)
    batch = dataset.batch("train", 0, 5, 0)
    truth = dataset.oracle(batch)
    after = {"a": [0, 0, 0.7, 0.3], "b": [0, 0, 0, 1], "<end>": [0, 1, 0, 0]}
    for row, p in zip(batch.tokens.tolist(), truth, strict=True):
        wanted = torch.tensor([after[dataset.vocabulary[i]] for i in row], dtype=torch.float32)
        torch.testing.assert_close(p, wanted)


def test_the_oracle_is_calibrated():
    dataset = RegularLanguage(REGEX, length=30, stop=0.4)
    batch = dataset.batch("train", 0, 4000, 0)
    p = dataset.oracle(batch).double()
    following = F.one_hot(batch.targets, 6).double()
    excess = (following - p).mean(0)
    spread = (p * (1 - p)).mean(0).sqrt() / math.sqrt(4000)
    assert (excess.abs() <= 5 * spread + 1e-6).all()
    scores = evaluate("oracle", dataset, ["accuracy", "tvd"])
    assert scores["accuracy"].value == 1.0
    assert scores["tvd"].value == 0.0


def test_states_are_those_of_the_minimal_automaton():
    dataset = RegularLanguage(REGEX, length=40)
    batch = dataset.batch("train", 0, 9, 0)
    for row, states in zip(batch.tokens.tolist(), batch.extra["state"].tolist(), strict=True):
        state = 0
        for token, noted in zip(row, states, strict=True):
            symbol = dataset.vocabulary[token]
            state = 0 if symbol == "<end>" else dataset.acceptor.delta[state][symbol]
            assert noted == state


def test_a_row_depends_on_seeds_split_and_index_alone():
    def new(**more):
        return RegularLanguage(REGEX, **{"length": 30, "held_out": 20, **more})

    long = new().batch("train", 0, 60, 3)
    for batch_size in (1, 7, 20):
        k = 40 // batch_size
        batch = new().batch("train", k, batch_size, 3)
        where = slice(k * batch_size, (k + 1) * batch_size)
        for key in ("tokens", "targets", "group"):
            assert torch.equal(getattr(batch, key), getattr(long, key)[where])
        assert torch.equal(batch.extra["state"], long.extra["state"][where])
    held = new().batch("test", 0, 20, None).tokens
    assert torch.equal(new(held_out=13).batch("test", 1, 8, None).tokens, held[8:13])
    assert not torch.equal(new(seed=1).batch("test", 0, 20, None).tokens, held)
    assert not torch.equal(new().batch("train", 0, 60, 4).tokens, long.tokens)
    for split, code in (("test", 0), ("validation", 1), ("train", 2)):
        batch = new(sequences=20).batch(split, 0, 20, 1)
        assert (split_codes(torch.cat([batch.tokens, batch.targets[:, -1:]], 1)) == code).all()
    fixed = [sorted(new(sequences=20).batch("train", 0, 20, seed).tokens.tolist()) for seed in (0, 1)]
    assert fixed[0] == fixed[1]


def test_a_file_is_the_language_that_it_draws(tmp_path):
    even = {"start": 0, "accepting": [0], "delta": {"0": {"a": 1, "b": 0}, "1": {"a": 0, "b": 1}}}
    (tmp_path / "even.json").write_text(json.dumps(even))
    (tmp_path / "even.gv").write_text(
        "digraph { s [shape=point] 0 [shape=doublecircle] s -> 0 "
        "0 -> 1 -> 0 [label=a] 0 -> 0 [label=b] 1 -> 1 [label=b] }"
    )
    made = [
        RegularLanguage(**given, length=40).batch("test", 0, 9, None).tokens
        for given in (
            {"regex": "(b*ab*a)*b*"},
            {"file": str(tmp_path / "even.json")},
            {"file": str(tmp_path / "even.gv")},
        )
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_an_alphabet_adds_symbols_that_never_come():
    dataset = RegularLanguage("a|b", alphabet="xab", length=9)
    assert dataset.vocabulary == ("<pad>", "a", "b", "x", "<end>")
    assert dataset.oracle(dataset.batch("train", 0, 3, 0))[..., 3].sum() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs either data.regex or data.file"),
        ({"regex": "a", "file": "x.json"}, "needs either data.regex or data.file"),
        ({"file": "x.json", "alphabet": "ab"}, "data.file brings its own symbols"),
        ({"file": "nowhere.json"}, "no automaton at 'nowhere.json'"),
        ({"regex": "a("}, "a group that is not closed"),
        ({"regex": "a", "stop": 0.0}, "data.stop: 0.0"),
        ({"regex": "a", "stop": 1.0}, "data.stop: 1.0"),
        ({"regex": "a", "length": 1}, "data.length: 1"),
        ({"regex": "a", "length": 10**6}, "data.length: 1000000 is more"),
        ({"regex": "a", "held_out": 0}, "data.held_out: 0"),
        ({"regex": "a", "sequences": 0}, "data.sequences: 0"),
        ({"regex": "a", "seed": -1}, "data.seed: -1"),
    ],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        create_dataset("regular-language", **options)


def test_a_language_of_one_sequence_has_no_splits():
    with pytest.raises(InputError, match=r"hardly any sequence of data.length=9 for the"):
        [RegularLanguage("ab", length=9, held_out=1).batch(split, 0, 1, 0) for split in ("train", "validation", "test")]


def test_a_model_learns_it(tmp_path):
    run = Run(
        architecture="gru", dataset="regular-language", steps=80, metrics=["accuracy"], seed=1,
        model={"d_model": 32, "n_layers": 1}, data={"regex": "(ab|ba*c)*d?", "length": 32, "held_out": 50},
        optimizer={"lr": 1e-2}, output=str(tmp_path / "run"),
    )  # fmt: skip
    result = train(run, zoo=Zoo.discover(), quiet=True)
    assert result["metrics"]["validation_accuracy"] > 0.98
