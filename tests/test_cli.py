"""The verbs that look at the zoo, in a process of their own where that matters and in this one otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icll_zoo.cli import run

Capture = pytest.CaptureFixture[str]


def output(capsys: Capture, *words: str) -> str:
    assert run(list(words)) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def test_list_json_has_every_kind(capsys: Capture) -> None:
    listed = json.loads(output(capsys, "list", "--json"))
    names = {space: {entry["name"] for entry in listed[space]} for space in ("models", "datasets", "metrics")}
    assert {"transformer", "transformer-rope", "lstm", "lstm-paper", "ngram-head", "ngram-1", "ngram-8"} <= names[
        "models"
    ]
    assert {"dfa", "dfa-stated"} <= names["datasets"]
    assert {"accuracy", "accuracy-loop", "tvd", "kl", "cross-entropy", "token-accuracy"} <= names["metrics"]
    entry = next(e for e in listed["models"] if e["name"] == "ngram-3")
    assert entry["qualified"] == "baselines:ngram-3"
    assert entry["preset_of"] == "ngram"


def test_list_takes_a_pattern(capsys: Capture) -> None:
    shown = output(capsys, "list", "*gram*")
    assert "ngram-head" in shown
    assert "lstm" not in shown
    assert output(capsys, "list", "no-such-*", "--pretrained", "--json") == '{\n  "pretrained": []\n}\n'
    (found,) = json.loads(output(capsys, "list", "*quickstart", "--pretrained", "--json"))["pretrained"]
    assert found["name"] == "ngram-head-stack.quickstart"


@pytest.mark.parametrize("name", ["transformer", "ngram-3", "ngram-head-stack", "transformer-ngram", "dfa", "tvd"])
def test_show(name: str, capsys: Capture) -> None:
    shown = json.loads(output(capsys, "show", name, "--json"))
    assert shown["name"] == name
    assert shown["plugin"] in ("baselines", "ngram", "dfa")
    text = output(capsys, "show", name)
    assert text.startswith(name)


def test_show_measures_the_model(capsys: Capture) -> None:
    shown = json.loads(output(capsys, "show", "transformer", "--json"))
    assert shown["measured"]["parameters"] > 100_000
    assert shown["options"]["n_heads"] == {"type": "int", "default": 2}
    assert shown["backbone"]["positions"]["default"] == "learned"
    file, _, line = shown["defined"].rpartition(":")
    assert Path(file).name == "transformer.py"
    assert int(line) > 1


def test_plugins_json_says_what_each_one_did(capsys: Capture) -> None:
    reports = {r["name"]: r for r in json.loads(output(capsys, "plugins", "--json"))["plugins"]}
    for name in ("baselines", "dfa", "linear", "ngram", "ssm", "tasks", "tensorboard"):
        assert reports[name]["status"] == "loaded"
        assert reports[name]["version"]
        assert reports[name]["milliseconds"] >= 0
        assert reports[name]["error"] is None
    assert "dfa" in reports["dfa"]["registered"]["datasets"]
    assert "baselines" in output(capsys, "plugins")


def test_version_and_help(capsys: Capture) -> None:
    from icll_zoo import __version__

    assert output(capsys, "--version").strip() == __version__
    shown = output(capsys, "--help")
    for verb in ("list", "show", "plugins", "train", "evaluate", "generate", "quickstart"):
        assert verb in shown
    assert "KEY=VALUE" in output(capsys, "train", "--help")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = "train transformer dfa steps=4 model.d_model=16 model.n_layers=1 data.languages=50 data.held_out=10"
    assert run([*words.split(), "train.batch_size=4", f"output={folder}", "seed=1", "--quiet"]) == 0
    return folder


def test_train_evaluate_generate(trained: Path, capsys: Capture) -> None:
    source = f"local-dir:{trained}/model"
    words = ["evaluate", source, "dfa", "data.held_out=20", "--metrics", "accuracy,tvd,cross-entropy", "--json"]
    shown = json.loads(output(capsys, *words))
    assert shown["model"] == source
    assert (shown["dataset"], shown["split"]) == ("dfa", "test")
    for name in ("accuracy", "tvd", "cross-entropy"):
        score = shown["metrics"][name]
        assert score["low"] <= score["value"] <= score["high"]
        assert score["n"] == 20
    assert 0.4 < shown["metrics"]["cross-entropy"]["oracle"] < 0.8
    first = output(capsys, "generate", source, "--prompt", "a b c | a b", "--tokens", "20", "--seed", "1")
    again = output(capsys, "generate", source, "--prompt", "a b c | a b", "--tokens", "20", "--seed", "1")
    assert first == again
    assert first.startswith("a b c | a b ")
    assert len(first.split()) == 26
    other = output(capsys, "generate", source, "--prompt", "a b c | a b", "--tokens", "20", "--seed", "2")
    assert other != first


def test_the_same_command_again_prints_the_result(trained: Path, capsys: Capture) -> None:
    before = (trained / "result.json").read_bytes()
    words = "train transformer dfa steps=4 model.d_model=16 model.n_layers=1 data.languages=50 data.held_out=10"
    again = json.loads(output(capsys, *words.split(), "train.batch_size=4", f"output={trained}", "seed=1", "--json"))
    assert again["steps"] == 4
    resumed = json.loads(output(capsys, "train", "--resume", str(trained), "--json"))
    assert resumed == again
    assert (trained / "result.json").read_bytes() == before


def test_learners_and_the_oracle_are_evaluated_on_a_file(tmp_path: Path, capsys: Capture) -> None:
    line = {"text": "ab|ba|abab", "start": 0, "delta": {"0": {"a": 1, "b": 1}, "1": {"b": 0, "a": 0}}}
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(line) + "\n")
    shown = json.loads(output(capsys, "evaluate", "ngram-3", "dfa", f"data.file={file}", "--json"))
    assert shown["metrics"]["accuracy"]["n"] == 1
    oracle = json.loads(output(capsys, "evaluate", "oracle", "dfa", f"data.file={file}", "--json"))
    assert oracle["metrics"]["accuracy"]["value"] == 1.0
    assert oracle["metrics"]["tvd"]["value"] == 0.0
    assert "accuracy" in output(capsys, "evaluate", "ngram-3", "dfa", f"data.file={file}")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_quickstart(icll_zoo_command: Callable[..., Any]) -> None:
    done = icll_zoo_command("quickstart", "--json", seconds=1200, OMP_NUM_THREADS="2")
    assert done.code == 0, done.err
    shown = done.json
    assert set(shown) == {"model", "oracle", "ngram-2", "ngram-3", "paper", "parameters", "seconds", "folder"}
    assert shown["model"]["accuracy"]["value"] >= 0.92
    assert shown["model"]["tvd"]["value"] <= 0.33
    assert shown["oracle"]["accuracy"]["value"] == 1.0
    assert shown["model"]["accuracy"]["n"] == 500
