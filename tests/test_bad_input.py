"""Whatever a person gets wrong ends in one line on stderr, design's exit code, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from icll_zoo.cli import run

MINE = """
import torch
from torch import nn
import icll_zoo as zoo

@zoo.register_mixer("cummean")
class CumulativeMean(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.proj = nn.Linear(d_model, d_model)
    def forward(self, x):                                     # (batch, length, d_model) -> same
        return self.proj(x.cumsum(1) / torch.arange(1, x.size(1) + 1, device=x.device)[:, None])
"""

TRAIN = "train transformer dfa steps=2 model.d_model=16 model.n_layers=1 train.batch_size=2 train.threads=1"
TRAIN += " data.languages=20 data.held_out=4"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `run` and files that are wrong in every way."""
    folder = tmp_path_factory.mktemp("bad")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run([*TRAIN.split(), "output=run", "--quiet"]) == 0
        spoil(folder)
    finally:
        os.chdir(before)
    return folder


def spoil(folder: Path) -> None:
    """Copies of the saved model, each with one thing wrong, and bad descriptions, scripts and data."""

    def copy(name: str) -> Path:
        shutil.copytree(folder / "run" / "model", folder / name)
        return folder / name

    weights = copy("truncated") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    weights = copy("header") / "model.safetensors"
    weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    (copy("pickle") / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"x" * 200)
    weights = copy("flipped") / "model.safetensors"
    spoiled = bytearray(weights.read_bytes())
    spoiled[-5] ^= 0x40
    weights.write_bytes(bytes(spoiled))
    (copy("no-weights") / "model.safetensors").unlink()
    (copy("no-config") / "config.json").unlink()
    (copy("config-text") / "config.json").write_text("{")
    (copy("config-list") / "config.json").write_text("[]")

    def edit(name: str, **changes: object) -> None:
        file = copy(name) / "config.json"
        config = json.loads(file.read_text())
        config.update(changes)
        file.write_text(json.dumps(config))

    edit("unknown-architecture", architecture="nobody:nothing\n\x1b[31m")
    edit("other-version", version=99)
    config = json.loads((folder / "run/model/config.json").read_text())
    edit("huge", model={**config["model"], "d_model": 10**9})
    edit("misspelt", model={**config["model"], "n_haeds": 2})
    edit("wider", model={**config["model"], "d_model": 32})

    (folder / "mine.py").write_text(MINE)
    (folder / "broken.py").write_text("import no_such_module\n")
    (folder / "corrupt.yaml").write_text("architecture: [transformer\n")
    (folder / "alias.yaml").write_text("architecture: &a transformer\ndataset: *a\n")
    (folder / "twice.yaml").write_text("steps: 1\nsteps: 2\n")
    (folder / "list.yaml").write_text("- a\n")
    (folder / "typo.yaml").write_text("architecture: transformer\ndataset: dfa\nstesp: 2\n")
    (folder / "bad.jsonl").write_text('{"text": "ab", "start": 0, "delta": {"0": {"a": 0}}}\n')
    (folder / "notjson.jsonl").write_text('{"text": "a", "start": 0, "delta": {"0": {"a": 0}}}\nnonsense\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.txt").write_text("precious")
    os.mkfifo(folder / "fifo.jsonl")


# (words, exit code, what the one line must say)
CASES: list[tuple[str, int, str]] = [
    ("frobnicate", 2, "unknown verb 'frobnicate'"),
    ("trian", 2, "did you mean 'train'?"),
    ("list --nope", 2, "No such option"),
    ("show transfomer", 2, "did you mean 'transformer'?"),
    ("show nobody:transformer", 2, "no plugin 'nobody' is installed"),
    ("train", 2, "takes an architecture and a dataset"),
    ("train transformer", 2, "takes an architecture and a dataset"),
    ("train transformer dfa", 2, "neither steps nor epochs"),
    ("train transfomer dfa steps=1", 2, "unknown model 'transfomer' (did you mean 'transformer'?)"),
    ("train transformer dfaa steps=1", 2, "unknown dataset 'dfaa' (did you mean 'dfa'?)"),
    ("train transformer dfa stesp=1", 2, "unknown key 'stesp' in the run (did you mean 'steps'?)"),
    ("train transformer dfa steps=x", 2, "steps in the run"),
    ("train transformer dfa steps=0", 2, "greater than or equal to 1"),
    ("train transformer dfa steps=1 steps=2", 2, "'steps' is given twice"),
    ("train transformer dfa steps=1 model.d_modle=3", 2, "did you mean 'd_model'?"),
    ("train transformer dfa steps=1 model.d_model=64.5", 2, "d_model"),
    ("train transformer dfa steps=1 model.d_model=-1", 2, "at least 1"),
    ("train transformer dfa steps=1 model.n_heads=3 model.d_model=16 output=new", 2, "n_heads"),
    ("train transformer dfa steps=1 model.norm=batch", 2, "'layernorm', 'rmsnorm' or 'none'"),
    ("train transformer dfa steps=1 model=3", 2, "model"),
    ("train transformer dfa steps=1 data.languagse=3", 2, "did you mean 'languages'?"),
    ("train transformer dfa steps=1 data.states_min=13", 2, "states_m"),
    ("train transformer dfa steps=1 data.symbols_max=19", 2, "symbols_max"),
    ("train transformer dfa steps=1 data.degree_max=12", 2, "degree_max"),
    ("train transformer dfa steps=1 data.length_min=0", 2, "length_min"),
    ("train transformer dfa steps=1 data.languages=-5", 2, "languages"),
    ("train transformer dfa steps=1 data.file=missing.jsonl", 2, "missing.jsonl"),
    ("train transformer dfa steps=1 optimizer.name=adamwww output=new", 2, "adamwww"),
    ("train transformer dfa steps=1 optimizer.lr=-1", 2, "optimizer.lr"),
    ("train transformer dfa steps=1 schedule.name=step", 2, "schedule.name"),
    ("train transformer dfa steps=1 train.precision=fp8", 2, "train.precision"),
    ("train transformer dfa steps=1 train.device=tpu", 2, "train.device"),
    ("train transformer dfa steps=1 train.trackers=wandbb output=new", 2, "wandbb"),
    ("train transformer dfa steps=1 metrics=acuracy", 2, "did you mean 'accuracy'?"),
    ("train transformer dfa steps=1 recipe=papre", 2, "unknown recipe 'papre'"),
    ("train transformer dfa steps=1 output=occupied", 2, "occupied"),
    ("train transformer dfa steps=3 output=run", 2, "run"),
    ("train transformer dfa epochs=1", 2, "endless"),
    ("train missing.yaml", 2, "no description at 'missing.yaml'"),
    ("train corrupt.yaml", 2, "bad YAML in description 'corrupt.yaml'"),
    ("train alias.yaml", 2, "an alias"),
    ("train twice.yaml", 2, "a key twice"),
    ("train list.yaml", 2, "not a mapping"),
    ("train typo.yaml", 2, "unknown key 'stesp'"),
    ("train --resume missing", 2, "missing"),
    ("train --resume occupied", 2, "occupied"),
    ("train --resume run steps=3", 2, "--resume takes the description from its folder"),
    ("train --load missing.py cummean dfa steps=1", 2, "no script at 'missing.py'"),
    ("train --load broken.py cummean dfa steps=1", 2, "No module named 'no_such_module'"),
    ("train cummean dfa steps=1", 2, "unknown model 'cummean'"),
    ("evaluate transformer dfa", 2, "untrained"),
    ("evaluate ngram-3 dfa --metrics acuracy", 2, "did you mean 'accuracy'?"),
    ("evaluate ngram-3 dfa --split tset", 2, "tset"),
    ("evaluate ngram-3 dfa steps=3", 2, "unknown key 'steps' on the command line"),
    ("evaluate ngram-3 dfa model.order=0", 2, "order"),
    ("evaluate ngram-3 dfa data.file=bad.jsonl", 2, "bad.jsonl"),
    ("evaluate ngram-3 dfa data.file=notjson.jsonl", 2, "notjson.jsonl"),
    ("evaluate ngram-3 dfa data.file=empty.jsonl", 2, "empty"),
    ("evaluate ngram-3 dfa data.file=fifo.jsonl", 2, "not a regular file"),
    ("evaluate run/model dfa", 2, "local-dir:run/model"),
    ("evaluate local-dir:missing dfa", 2, "missing"),
    ("evaluate local-dir:occupied dfa", 2, "config.json"),
    ("evaluate local-dir:run/model dfa model.d_model=3", 2, "a saved model's options are fixed"),
    ("evaluate oracle dfa model.d_model=3", 2, "the oracle takes no model options"),
    ("evaluate local-dir:truncated dfa", 2, "truncated"),
    ("evaluate local-dir:header dfa", 2, "header"),
    ("evaluate local-dir:pickle dfa", 2, "model.safetensors"),
    ("evaluate local-dir:flipped dfa", 2, "sha256"),
    ("evaluate local-dir:no-weights dfa", 2, "model.safetensors"),
    ("evaluate local-dir:no-config dfa", 2, "config.json"),
    ("evaluate local-dir:config-text dfa", 2, "bad JSON"),
    ("evaluate local-dir:config-list dfa", 2, "config.json"),
    ("evaluate local-dir:unknown-architecture dfa", 2, "'architecture' in config.json"),
    ("evaluate local-dir:other-version dfa", 2, "version 99"),
    ("evaluate local-dir:huge dfa", 2, "d_model"),
    ("evaluate local-dir:misspelt dfa", 2, "n_haeds"),
    ("evaluate local-dir:wider dfa", 2, "wider"),
    ("generate local-dir:run/model", 2, "--prompt"),
    ("generate local-dir:run/model --prompt 'a z'", 2, "'z'"),
    ("generate local-dir:run/model --prompt ''", 2, "empty"),
    ("generate local-dir:run/model --prompt a --tokens 0", 2, "--tokens"),
    ("generate transformer --prompt a", 2, "untrained"),
]  # fmt: skip


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("words", "code", "says"), CASES, ids=[case[0] for case in CASES])
def test_one_line_the_right_code_and_nothing_written(
    words: str, code: int, says: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    monkeypatch.chdir(trained)
    before = tree(trained)
    assert run(shlex.split(words)) == code
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert len(lines[0]) <= 410
    assert lines[0].isprintable()
    assert shown.out == ""
    assert tree(trained) == before
    assert (trained / "occupied" / "thesis.txt").read_text() == "precious"


def test_json_gives_every_fault(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    code = run(["train", "transformer", "dfa", "stesp=3", "seed=x", "optimizer.lr=0", "--json"])
    shown = capsys.readouterr()
    assert code == 2
    faults = json.loads(shown.out)
    assert len(faults["faults"]) == 3
    assert faults["exit_code"] == 2
    assert "(and 2 more)" in shown.err


def test_debug_shows_the_traceback(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from icll_zoo.errors import UnknownName

    monkeypatch.setenv("ICLL_ZOO_DEBUG", "1")
    with pytest.raises(UnknownName):
        run(["show", "transfomer"])


def test_a_model_of_a_script_names_the_script(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, icll_zoo_command
) -> None:  # type: ignore[no-untyped-def]
    words = [
        "cummean",
        "dfa",
        "steps=1",
        "model.n_layers=1",
        "model.d_model=8",
        "train.batch_size=2",
        "data.held_out=2",
    ]
    script = str(trained / "mine.py")
    made = icll_zoo_command("train", "--load", script, *words, f"output={tmp_path / 'mine'}", "--quiet")
    assert made.code == 0, made.err
    without = icll_zoo_command("evaluate", f"local-dir:{tmp_path / 'mine'}/model", "dfa", "data.held_out=2")
    assert without.code == 2
    assert "mine.py" in without.err
    assert "--load" in without.err
    loaded = icll_zoo_command(
        "evaluate", "--load", script, f"local-dir:{tmp_path / 'mine'}/model", "dfa", "data.held_out=2", "--json"
    )
    assert loaded.code == 0, loaded.err
    assert set(loaded.json) == {"model", "dataset", "split", "metrics"}
