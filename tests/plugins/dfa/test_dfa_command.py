"""The verb `icll-zoo languages`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from icll_zoo import SPLITS
from icll_zoo.cli import run
from icll_zoo_dfa.dataset import DfaLanguages
from icll_zoo_dfa.language import read_samples

Capture = pytest.CaptureFixture[str]


def shown(capsys: Capture, *words: str) -> str:
    assert run(["languages", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: Capture, *words: str) -> str:
    assert run(["languages", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_prints_a_language_and_its_text(capsys: Capture) -> None:
    sample = next(iter(DfaLanguages(seed=3).samples("test", 1)))
    assert shown(capsys, "data.seed=3") == f"test language 0\n{sample.language}\n{sample.text}\n"
    out = shown(capsys, "data.seed=3", "--count", "3", "--split", "validation")
    assert [line for line in out.splitlines() if line.startswith("validation")] == [
        f"validation language {number}" for number in range(3)
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_what_it_prints_does_not_depend_on_how_much(capsys: Capture, split: str) -> None:
    few = shown(capsys, "--split", split, "--json", "--count", "3").splitlines()
    more = shown(capsys, "--split", split, "--json", "--count", "700").splitlines()
    assert len(few) == 3
    assert len(more) == 700
    assert more[:3] == few
    held_out = shown(capsys, "--split", split, "--json", "--count", "700", "data.held_out=5").splitlines()
    assert held_out == (more if split == "train" else more[:5])


def test_bounds_are_options(capsys: Capture) -> None:
    words = ["data.states_min=2", "data.states_max=2", "data.degree_max=1", "data.strings_min=3", "data.strings_max=3"]
    line = json.loads(shown(capsys, *words, "data.length_min=4", "data.length_max=4", "--json"))
    assert set(line) == {"text", "start", "delta", "split"}
    assert [len(word) for word in line["text"].split("|")] == [4, 4, 4]
    assert len(line["delta"]) <= 2


def test_json_lines_are_what_data_file_reads(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(shown(capsys, "--json", "--count", "40", "data.seed=6"))
    samples = list(DfaLanguages(held_out=40, seed=6).samples("test", 40))
    assert read_samples(file) == samples
    assert shown(capsys, "--json", "--count", "40", f"data.file={file}") == file.read_text()
    scores = []
    for options in (["data.seed=6", "data.held_out=40"], [f"data.file={file}"]):
        words = ["ngram-3", "dfa", *options, "--metrics", "accuracy,tvd,kl,cross-entropy,accuracy-loop", "--json"]
        assert run(["evaluate", *words]) == 0
        scores.append(json.loads(capsys.readouterr().out)["metrics"])
    assert scores[0]["accuracy"]["n"] == 40
    assert scores[0].keys() == scores[1].keys()
    for name, score in scores[0].items():
        assert scores[1][name]["value"] == pytest.approx(score["value"], rel=1e-12)


def test_draws_the_last_one(tmp_path: Path, capsys: Capture) -> None:
    for name, begin in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")):
        shown(capsys, "--draw", str(tmp_path / name), "--count", "2")
        assert (tmp_path / name).read_bytes().startswith(begin)
    wanted = DfaLanguages().language("test", 1)
    source = (tmp_path / "a.svg").read_text()
    assert [f"<!-- {state} -->" in source for state in (*wanted.delta, len(wanted.delta))][-2:] == [True, False]
    assert "cannot draw to" in refused(capsys, "--draw", str(tmp_path / "a.xyz"))
    assert not (tmp_path / "a.xyz").exists()


def test_bad_input(tmp_path: Path, capsys: Capture) -> None:
    assert "unknown key 'steps' on the command line (keys begin with data.)" in refused(capsys, "steps=3")
    assert "unknown key 'data' on the command line" in refused(capsys, "data=3")
    assert "did you mean 'states_max'?" in refused(capsys, "data.states_mx=3")
    assert "more than data.states_max=12" in refused(capsys, "data.states_min=13")
    assert "missing.jsonl" in refused(capsys, f"data.file={tmp_path}/missing.jsonl")
    file = tmp_path / "one.jsonl"
    file.write_text('{"text": "aa", "start": 0, "delta": {"0": {"a": 0}}}\n')
    assert "the validation split is empty" in refused(capsys, f"data.file={file}", "--split", "validation")
    assert "brings its own languages" in refused(capsys, f"data.file={file}", "data.languages=5")
    assert run(["languages", "--count", "0"]) == 2
