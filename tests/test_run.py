from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from icll_zoo.errors import InputError
from icll_zoo.run import RECIPES, Run, merge, parse_value, parse_words
from icll_zoo.zoo import default_zoo

SAID: dict[str, Any] = {
    "architecture": "transformer",
    "dataset": "dfa",
    "steps": 20,
    "seed": 1,
    "model": {"d_model": 64, "n_layers": 2},
    "data": {"languages": 100},
    "optimizer": {"lr": 1e-3},
}


def test_python_yaml_and_words_are_the_same_object(tmp_path: Path) -> None:
    words = Run.parse(
        merge(
            {"architecture": "transformer", "dataset": "dfa"},
            parse_words(
                [
                    "steps=20",
                    "seed=1",
                    "model.d_model=64",
                    "model.n_layers=2",
                    "data.languages=100",
                    "optimizer.lr=1e-3",
                ]
            ),
        )
    )
    file = tmp_path / "run.yaml"
    file.write_text(
        "architecture: transformer\ndataset: dfa\nsteps: 20\nseed: 1\nmodel: {d_model: 64, n_layers: 2}\n"
        "data.languages: 100\noptimizer: {lr: 1e-3}\n"
    )
    assert words == Run(**SAID) == Run.parse(Run.read(file))


def test_the_hash_is_of_what_runs_and_not_of_where() -> None:
    zoo = default_zoo()
    base = Run.parse(SAID).resolve(zoo)
    assert Run.parse({**SAID, "output": "elsewhere"}).resolve(zoo).hash == base.hash
    assert Run.parse(merge(SAID, {"train": {"log_every": 3}})).resolve(zoo).hash == base.hash
    for change in ({"seed": 2}, {"model": {"n_heads": 1}}, {"data": {"seed": 1}}, {"train": {"threads": 7}}):
        assert Run.parse(merge(SAID, change)).resolve(zoo).hash != base.hash


def test_resolving_writes_everything_out() -> None:
    description = Run.parse(SAID).resolve(default_zoo()).description
    assert description["model"]["architecture"] == "baselines:transformer"
    assert description["model"]["options"]["positions"] == "learned"
    assert description["model"]["options"]["n_heads"] == 2
    assert description["data"]["options"]["states_max"] == 12
    assert description["train"]["device"] in ("cpu", "cuda")
    assert description["train"]["validate_every"] == 2


def test_learned_positions_are_enough_for_the_dataset() -> None:
    said = merge(SAID, {"data": {"length_max": 200}})
    options = Run.parse(said).resolve(default_zoo()).description["model"]["options"]
    assert options["max_length"] >= 19 * 200 + 18 - 1


def test_a_recipe_gives_defaults_and_what_is_said_wins() -> None:
    run = Run.parse({"architecture": "a", "dataset": "b", "recipe": "paper", "optimizer": {"lr": 1e-4}})
    assert (run.optimizer.lr, run.optimizer.decay_all, run.optimizer.clip) == (1e-4, True, None)
    assert run.epochs == 200
    assert Run.parse({"architecture": "a", "dataset": "b", "recipe": "paper", "steps": 5}).epochs is None
    assert set(RECIPES) == {"default", "paper", "paper-grouped", "paper-text"}


def test_the_recipe_for_text_reads_fifteen_billion_tokens() -> None:
    run = Run.parse({"architecture": "a", "dataset": "b", "recipe": "paper-text"})
    assert run.steps is not None
    assert run.train.batch_size * run.train.accumulate * 2048 * run.steps == pytest.approx(15e9, rel=1e-4)
    longer = Run.parse({"architecture": "a", "dataset": "b", "recipe": "paper-text", "epochs": 2.0})
    assert (longer.steps, longer.epochs) == (None, 2.0)


def test_epochs_become_steps() -> None:
    said = {key: value for key, value in SAID.items() if key != "steps"}
    assert Run.parse({**said, "epochs": 3.0}).resolve(default_zoo()).description["steps"] == 12
    with pytest.raises(InputError, match="epochs of an endless training split"):
        Run.parse({**said, "epochs": 3.0, "data": {}}).resolve(default_zoo())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("none", "none"),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        ("NaN", "NaN"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_of_words(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("words", [["steps"], ["=3"], ["steps=1", "steps=2"], ["model.a=1", "model.a.b=2"]])
def test_bad_words(words: list[str]) -> None:
    with pytest.raises(InputError):
        parse_words(words)
