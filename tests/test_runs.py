"""Listing and comparing run folders: what is finished, running, failed or broken, and the curves."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from icll_zoo import files, runs
from icll_zoo.cli import run
from icll_zoo.errors import InputError
from icll_zoo.run import Run
from icll_zoo.run_folder import locked
from icll_zoo.sweeps.ledger import Ledger
from icll_zoo.training import train
from icll_zoo.zoo import default_zoo

SMALL: dict[str, Any] = {
    "architecture": "transformer",
    "dataset": "dfa",
    "steps": 4,
    "model": {"d_model": 16, "n_layers": 1},
    "data": {"languages": 20, "held_out": 4, "length_max": 9},
    "train": {"batch_size": 2, "threads": 1, "log_every": 2},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, one that began, one that failed in a sweep, one whose files are broken, and something else."""
    folder = tmp_path_factory.mktemp("kept")
    train(Run.parse({**SMALL, "output": str(folder / "a"), "metrics": ["accuracy"]}), quiet=True)
    train(Run.parse({**SMALL, "output": str(folder / "deep" / "b"), "seed": 3, "optimizer": {"lr": 0.01}}), quiet=True)
    for name, log in (
        ("begun", '{"loss": 3.0, "step": 2}\n{"step": 3, "validation_loss": null}\n{"st'),
        ("s/runs/failed", ""),
    ):
        resolved = Run.parse({**SMALL, "seed": 9, "steps": 50, "output": str(folder / name)}).resolve(default_zoo())
        (folder / name).mkdir(parents=True)
        written = {"hash": resolved.hash, "description": resolved.description}
        (folder / name / "run.json").write_text(files.pretty_json(written))
        (folder / name / "metrics.jsonl").write_text(log)
        (folder / name / "lock").touch()
    Ledger(folder / "s").add("fail", run=resolved.hash, reason="its process ended with exit code 7")
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text('{"hash": 1, "descr')
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("x")
    return folder


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert run(["runs", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_run_and_where_it_stands(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {Path(row["folder"]).name: row for row in listed(capsys, str(kept))["runs"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "finished", "b": "finished", "begun": "unfinished", "failed": "failed", "broken": "unreadable",
    }  # fmt: skip
    result = json.loads((kept / "a" / "result.json").read_text())
    assert rows["a"]["validation_loss"] == result["validation_loss"]
    assert rows["a"]["validation_accuracy"] == result["metrics"]["validation_accuracy"]
    assert (rows["a"]["step"], rows["a"]["steps"], rows["a"]["architecture"]) == (4, 4, "baselines:transformer")
    assert (rows["begun"]["step"], rows["begun"]["train_loss"], rows["begun"]["validation_loss"]) == (2, 3.0, None)
    assert rows["failed"]["reason"] == "its process ended with exit code 7"
    assert "JSON" in rows["broken"]["reason"]


def test_a_run_is_running_while_its_lock_is_held(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(kept / "begun"):
        assert runs.describe(kept / "begun")["status"] == "running"
        # Looking must not take the lock, not even for an instant: a run that begins just then would be turned away.
        monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("the lock was tried"))
        assert runs.describe(kept / "begun")["status"] == "running"
        assert runs.describe(kept / "s" / "runs" / "failed")["status"] == "failed"
    assert runs.describe(kept / "begun")["status"] == "unfinished"


def test_sorting_and_choosing(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def names(*words: str) -> list[str]:
        return [Path(row["folder"]).name for row in listed(capsys, str(kept), *words)["runs"]]

    losses = {name: json.loads((path / "result.json").read_text())["validation_loss"]
              for name, path in (("a", kept / "a"), ("b", kept / "deep" / "b"))}  # fmt: skip
    best = sorted(losses, key=lambda name: losses[name])
    assert names("--sort", "validation_loss")[:2] == best
    assert names("--sort", "-validation_loss")[:2] == best[::-1]
    assert len(names("--sort", "-validation_loss")) == 5
    assert names("--where", "status=finished", "--where", "optimizer.lr=0.01") == ["b"]
    assert names("--where", "architecture=*:trans*", "--where", "seed=9") == ["begun", "failed"]
    assert names("--where", "seed=77") == []
    assert run(["runs", str(kept), "--sort", "no_such_key"]) == 2
    assert run(["runs", str(kept), "--where", "seed"]) == 2
    assert run(["runs", str(kept / "nowhere")]) == 2


def test_the_tables(kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kept)
    assert run(["runs", "--sort", "optimizer.lr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-2:] == ["optimizer.lr", "reason"]
    assert len(lines) == 6
    assert run(["runs", "a", "deep/b"]) == 0
    out = capsys.readouterr().out
    differing = dict(line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines())
    assert list(differing) == ["differs", "metrics", "optimizer.lr", "seed"]
    assert differing["seed"].split() == ["0", "3"]
    assert differing["optimizer.lr"].split() == ["0.002", "0.01"]
    assert "validation_accuracy" in out
    monkeypatch.chdir(kept / "other")
    assert run(["runs"]) == 0
    assert capsys.readouterr().out == "no runs here\n"


def test_comparing_as_json(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = listed(capsys, str(kept / "a"), str(kept / "deep" / "b"))
    assert compared["differences"] == {"metrics": [["accuracy"], []], "seed": [0, 3], "optimizer.lr": [0.002, 0.01]}
    assert compared["results"]["status"] == ["finished", "finished"]
    assert compared["results"]["validation_accuracy"][1] is None
    assert "reason" not in compared["results"]


def test_pictures(kept: Path, tmp_path: Path) -> None:
    rows = [runs.describe(kept / "a"), runs.describe(kept / "deep" / "b"), runs.describe(kept / "begun")]
    runs.picture(rows, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    for shown in ("training loss", "validation loss", "updates", "begun"):
        assert shown in text
    runs.picture(rows[:2], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="neither an SVG nor a PNG"):
        runs.picture(rows, tmp_path / "p.pdf")
    with pytest.raises(InputError, match="none of these runs has logged a loss"):
        runs.picture([runs.describe(kept / "s" / "runs" / "failed")], tmp_path / "q.svg")
    with pytest.raises(InputError, match="too many for a picture"):
        runs.picture(rows * 7, tmp_path / "q.svg")
    assert not (tmp_path / "q.svg").exists()
