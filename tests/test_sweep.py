"""Sweeps: what a file describes, and that runs which raise, crash or are killed harm nothing but themselves."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icll_zoo.cli import run
from icll_zoo.errors import EnvironmentFault, InputError
from icll_zoo.run import Run, merge
from icll_zoo.run_folder import locked
from icll_zoo.sweeps import descriptions, ledger
from icll_zoo.sweeps.board import Board
from icll_zoo.sweeps.ledger import Ledger
from icll_zoo.sweeps.processes import died, visible_gpus
from icll_zoo.sweeps.sweeping import plan, run_folder, shares, sweep
from icll_zoo.training import train
from icll_zoo.zoo import Zoo, default_zoo

SMALL: dict[str, Any] = {
    "architecture": "transformer",
    "dataset": "dfa",
    "steps": 6,
    "model": {"d_model": 16, "n_layers": 1},
    "data": {"languages": 40, "held_out": 8, "length_max": 9},
    "train": {"batch_size": 4, "threads": 1},
}

# The same file describes the runs and registers what they need.
BREAKS = """
import os, signal
import torch
from torch import nn
import icll_zoo as zoo

@zoo.register_mixer("breaks")
class Breaks(nn.Module):
    def __init__(self, d_model: int, how: str = "not", marker: str = ""):
        super().__init__()
        self.proj, self.how, self.marker = nn.Linear(d_model, d_model), how, marker

    def forward(self, x):
        if self.how == "raise":
            raise RuntimeError("this mixer\\nraises")
        if self.how == "exit":
            os._exit(7)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "once" and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            raise RuntimeError("only once")
        return self.proj(x)

SMALL = {
    "architecture": "breaks", "dataset": "dfa", "steps": 6, "model": {"d_model": 16, "n_layers": 1},
    "data": {"languages": 40, "held_out": 8, "length_max": 9}, "train": {"batch_size": 4, "threads": 1},
}
"""


def bits(folder: Path) -> dict[str, bytes]:
    """Everything in a run folder whose bits the description determines."""
    kept = [folder / "run.json", folder / "metrics.jsonl", folder / "model" / "config.json"]
    kept += folder.rglob("*.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in ledger.read(folder) if event["event"] == kind]


def alive(pid: int) -> bool:
    """Whether a process still does anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def wait_until(true: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)


# -- what a file describes -------------------------------------------------------------------------------------


def described(tmp_path: Path, text: str, name: str = "s.yaml") -> list[dict[str, Any]]:
    (tmp_path / name).write_text(text)
    return descriptions.read(tmp_path / name, Zoo())


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    found = described(
        tmp_path,
        """
        base: {architecture: gla, dataset: dfa, model: {n_layers: 1}, optimizer.lr: 1e-2}
        runs: [{}, {model.d_ff: 7}]
        grid: {model.d_model: [16, 32], optimizer: [{lr: 1e-3}, {name: sgd}]}
        seeds: 3
        """,
    )
    assert len(found) == 2 * 2 * 2 * 3
    assert found[0] == {
        "architecture": "gla", "dataset": "dfa", "model": {"n_layers": 1, "d_model": 16}, "optimizer": {"lr": 1e-3},
        "seed": 0,
    }  # fmt: skip
    assert [one["seed"] for one in found[:4]] == [0, 1, 2, 0]
    assert found[-1]["model"] == {"n_layers": 1, "d_ff": 7, "d_model": 32}
    assert found[-1]["optimizer"] == {"lr": 1e-2, "name": "sgd"}
    assert descriptions.varied_keys(found) == ["model.d_model", "optimizer.lr", "seed", "optimizer.name", "model.d_ff"]


def test_a_list_and_a_function(tmp_path: Path) -> None:
    listed = described(tmp_path, "[{architecture: gla, model.d_model: 8}, {architecture: rnn, seed: 1}]")
    assert listed == [{"architecture": "gla", "model": {"d_model": 8}}, {"architecture": "rnn", "seed": 1}]
    text = "import icll_zoo as zoo\ndef runs():\n"
    text += "  for s in 1, 2:\n    yield zoo.Run(architecture='a', dataset='b', seed=s)\n"
    found = described(tmp_path, text, "f.py")
    assert [(one["architecture"], one["seed"]) for one in found] == [("a", 1), ("a", 2)]
    assert described(tmp_path, "runs = [{'architecture': 'a', 'data.x': 1}]", "g.py") == [
        {"architecture": "a", "data": {"x": 1}}
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "has no runs"),
        ("7", "neither a list of runs nor a mapping"),
        ("{base: {}, grids: {}}", "unknown key 'grids'.*did you mean 'grid'"),
        ("{grid: {seed: 3}}", "'seed' of the grid in .* is not a list"),
        ("{grid: {seed: []}}", "'seed' of the grid in .* is not a list"),
        ("{base: [1], runs: {}, grid: 3, seeds: no}", r"base in .* \(and 3 more\)"),
        ("{base: {}, seeds: 0}", "seeds in"),
        ("[{a: 1}, 7, {output: x}]", r"run 2 of .* is not a mapping.*\(and 1 more\)"),
        ("{grid: {model.a: [1], model.a.b: [2]}}", "goes below"),
    ],
)
def test_a_wrong_file(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        described(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "has no name `runs`"),
        ("runs = 5", "`runs` of .* failed: TypeError"),
        ("def runs():\n  yield {}\n  raise ValueError('no')", "`runs` of .* failed: ValueError: no"),
        ("1 / 0", "line 1 failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_python_file(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        described(tmp_path, text, "wrong.py")
    with pytest.raises(InputError, match="neither a YAML nor a Python file"):
        described(tmp_path, "", "runs.txt")


@pytest.mark.parametrize(("kind", "count"), [("yaml", 12), ("python", 3)])
def test_the_files_in_the_documentation(kind: str, count: int, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"```{kind}\n(.*?)```", page, re.S)
    found = described(tmp_path, text, "doc.py" if kind == "python" else "doc.yaml")
    jobs, notes = plan(found, tmp_path, 1, default_zoo())
    assert (len(jobs), notes) == (count, [])


# -- before anything starts ------------------------------------------------------------------------------------


def test_all_faults_of_all_runs_are_found_before_anything_is_written(tmp_path: Path) -> None:
    runs = [
        SMALL,
        {**SMALL, "architecture": "transformr"},
        merge(SMALL, {"model": {"n_heads": 3}}),
        merge(SMALL, {"optimizer": {"name": "adamww"}, "train": {"trackers": ["nobody"]}}),
        merge(SMALL, {"train": {"precision": "fp7", "device": "cuda:9"}, "steps": -1}),
        merge(SMALL, {"data": {"held_out": 0}}),
        merge(SMALL, {"train": 5}),
        {**SMALL, "architecture": "transformr"},
    ]
    with pytest.raises(InputError, match=r"\(and \d more\) \(nothing was started\)") as caught:
        sweep(runs, tmp_path / "out", quiet=True)
    text = "\n".join(caught.value.faults)
    for fault in (
        r"'transformr' .*\(in runs 2, 8\)",
        r"n_heads.*\(in run 3\)",
        r"'nobody' .*\(in run 4\)",
        r"precision.*\(in run 5\)",
        r"steps .*\(in run 5\)",
        r"'adamww' .*\(in run 4\)",
        r"train .*\(in run 7\)",
    ):
        assert re.search(fault, text), (fault, text)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"did you mean 'transformer'\?\) \(in all 2 runs\)"):
        sweep([{**SMALL, "architecture": "transformr", "seed": seed} for seed in (1, 2)], tmp_path / "out")


def test_a_name_of_this_process_alone_is_refused(tmp_path: Path) -> None:
    from torch import nn

    class HereOnly(nn.Module):
        def __init__(self, d_model: int) -> None:
            super().__init__()
            self.proj = nn.Linear(d_model, d_model)

    zoo = Zoo.discover()
    zoo.register("mixer", "here-only", HereOnly)
    with pytest.raises(InputError, match=r"'here-only' was registered in this process.*--load FILE"):
        sweep([{**SMALL, "architecture": "here-only"}], tmp_path / "out", zoo=zoo)


def test_a_folder_of_something_else_or_of_another_sweep_at_work(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no sweep"):
        sweep([SMALL], tmp_path / "mine")
    with locked(tmp_path / "busy"), pytest.raises(EnvironmentFault, match="another sweep is at work"):
        sweep([SMALL], tmp_path / "busy", quiet=True)
    assert [path.name for path in (tmp_path / "busy").iterdir()] == ["lock"]


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    for wrong in ({"jobs": 0}, {"retries": -1}, {"address": "x"}, {"engine": "threads"}):
        with pytest.raises(InputError):
            sweep([SMALL], tmp_path / "out", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs an output folder"):
        sweep([SMALL])


def test_threads_are_shared_out_once_and_then_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    quiet: dict[str, Any] = {"train": {"device": "cpu"}}
    two: dict[str, Any] = {"train": {"device": "cpu", "threads": 2}}
    assert shares([quiet] * 20, None, "processes", None) == (8, 1)
    assert shares([quiet] * 3, None, "processes", None) == (3, 2)
    assert shares([quiet] * 20, 2, "processes", None) == (2, 4)
    assert shares([quiet, *[two] * 20], None, "processes", None) == (4, 2)
    assert shares([quiet] * 20, 2, "ray", None) == (2, 1)
    # The hash of a run holds its threads: with another number the finished runs would not be found again.
    assert shares([quiet] * 20, 2, "processes", 1) == (2, 1)
    no_threads = merge(SMALL, {"train": {"threads": None}})
    for said, expected in ((SMALL, 1), (no_threads, 3), ({k: v for k, v in SMALL.items() if k != "train"}, 3)):
        (job,), _ = plan([said], tmp_path, 3, default_zoo())
        assert job.resolved.description["train"]["threads"] == expected or said is no_threads


def test_labels_and_folders(tmp_path: Path) -> None:
    runs = [
        {**SMALL, "optimizer": {"lr": lr}, "model": {"layers": layers}}
        for lr in (1e-3, 2e-3)
        for layers in (["transformer"], ["gla", "transformer"])
    ]
    jobs, notes = plan([*runs, runs[0]], tmp_path, 1, default_zoo())
    assert [job.label for job in jobs][:2] == [
        'layers=["transformer"] lr=0.001',
        'layers=["gla","transformer"] lr=0.001',
    ]
    assert notes == ["runs 1, 5 of the file are the same run, which is trained once"]
    name = jobs[1].folder.name
    assert name == f"layers-gla-transformer-lr-0.001-{jobs[1].resolved.hash[:10]}"
    # Under other varied keys the label is another; the folder that has the hash is found again.
    (tmp_path / "runs" / name).mkdir(parents=True)
    assert run_folder(tmp_path / "runs", jobs[1].resolved, {}) == tmp_path / "runs" / name
    (alone,), _ = plan([SMALL], tmp_path, 1, default_zoo())
    assert alone.folder.name.startswith("transformer-dfa-")


def test_gpus_are_dealt_out_unless_a_run_names_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    jobs, _ = plan([SMALL], tmp_path, 1, default_zoo())
    settings = jobs[0].resolved.description["train"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(jobs) == []
    settings["device"] = "cuda"
    assert visible_gpus(jobs) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus(jobs) == ["3", "5"]
    settings["device"] = "cuda:1"
    assert visible_gpus(jobs) == []


# -- ledger, table and board -----------------------------------------------------------------------------------


def test_a_ledger_survives_a_torn_line(tmp_path: Path) -> None:
    record = Ledger(tmp_path)
    record.add("sweep", threads=2)
    record.add("fail", run="a", reason="x")
    torn = record.path.read_bytes()[:-9]
    record.path.write_bytes(torn)
    record.add("finish", run="a")
    assert [event["event"] for event in ledger.read(tmp_path)] == ["sweep", "finish"]
    assert record.path.read_bytes().startswith(torn)
    assert ledger.threads(ledger.read(tmp_path)) == 2
    assert ledger.last_of_runs(ledger.read(tmp_path))["a"]["event"] == "finish"
    assert ledger.read(tmp_path / "nowhere") == []


def test_the_table(tmp_path: Path) -> None:
    rows = [{"lr": 1, "layers": ["a"], "odd": 1, "none": None}, {"lr": 0.5, "layers": "b", "odd": "x", "loss": 0.25}]
    written = ledger.write_table(tmp_path, rows)
    assert [path.name for path in written] == ["results.csv", "results.parquet"]
    with (tmp_path / "results.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"lr": "1", "layers": '["a"]', "odd": "1", "none": "", "loss": ""},
            {"lr": "0.5", "layers": "b", "odd": "x", "none": "", "loss": "0.25"},
        ]
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist() == [
        {"lr": 1.0, "layers": '["a"]', "odd": "1", "none": None, "loss": None},
        {"lr": 0.5, "layers": "b", "odd": "x", "none": None, "loss": 0.25},
    ]


def test_the_board_reads_where_a_run_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    jobs, _ = plan([merge(SMALL, {"seed": seed, "steps": 100}) for seed in (0, 1, 2)], tmp_path, 1, default_zoo())
    board = Board(jobs, Ledger(tmp_path), plain_every=0)
    first = jobs[0]
    first.folder.mkdir(parents=True)
    (first.folder / "metrics.jsonl").write_text('{"step": 10, "loss": 3.5}\n')
    board.started(first, pid=1)
    assert (first.step, first.loss, first.left(), board.left()) == (10, 3.5, None, None)
    lines = "".join(f'{{"step": {step}, "loss": {step / 10}}}\n' for step in range(11, 800))
    (first.folder / "metrics.jsonl").write_text(f'{lines}{{"step": 60, "loss": 2.25}}\n{{"step": 60, "valida')
    first.began -= 50
    board.began = first.began
    board.tick()
    assert (first.step, first.loss) == (60, 2.25)
    assert first.left() == pytest.approx(40, abs=2)  # 50 steps in 50 seconds, and 40 to go
    assert board.left() == pytest.approx(240, abs=5)  # and 200 of the others
    assert board.summary().startswith("1 running, 2 waiting of 3 runs, 4:0")
    console = Console(width=100, record=True, file=(tmp_path / "shown").open("w"))
    console.print(board.render())
    shown = console.export_text()
    assert "seed=0" in shown
    assert "60/100" in shown
    assert "2.2500" in shown
    assert "seed=1" not in shown
    console.file.close()
    board.failed(first, "bad\nluck", again=True)
    assert (first.status, first.reason) == ("waiting", "bad\\nluck")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "started   seed=0 from step 10"
    assert told[1].startswith("1 running, 2 waiting of 3 runs")
    assert told[2] == "failed    seed=0: bad\\nluck; it is tried again"
    assert [event["event"] for event in ledger.read(tmp_path)] == ["start", "fail"]


def test_what_an_exit_code_says() -> None:
    assert died(3)["reason"] == "its process ended with exit code 3"
    assert died(-11)["reason"] == "its process was killed by SIGSEGV"
    assert "memory runs out" in died(-9)["reason"]
    assert died(-64 - 1)["reason"] == "its process was killed by signal 65"


# -- real processes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A sweep of two runs that are well, one of them said twice, and one that fails in every way; and its rows."""
    folder = tmp_path_factory.mktemp("sweep")
    text = """
def runs():
    yield SMALL | {"seed": 1}
    for how in ("raise", "kill"):
        yield SMALL | {"model": SMALL["model"] | {"how": how}}
    yield SMALL | {"seed": 2, "metrics": ["accuracy"]}
    yield SMALL | {"seed": 1, "train": SMALL["train"] | {"log_every": 3}}
"""
    (folder / "breaks.py").write_text(BREAKS + text)
    return folder, sweep(folder / "breaks.py", folder / "out", jobs=2, quiet=True)


def test_a_run_that_fails_stops_no_other(broken: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = broken
    assert [row["status"] for row in rows] == ["finished", "failed", "failed", "finished"]
    assert [row["reason"] for row in rows] == [
        None,
        "RuntimeError: this mixer\\nraises",
        "its process was killed by SIGKILL, as the system does when memory runs out",
        None,
    ]
    assert [row["model.how"] for row in rows] == ["not", "raise", "kill", "not"]
    assert [row["seed"] for row in rows] == [1, 0, 0, 2]
    assert rows[3]["validation_accuracy"] >= 0
    assert len(events(folder / "out", "fail")) == 2
    assert len(events(folder / "out", "finish")) == 2
    assert not any(alive(event["pid"]) for event in events(folder / "out", "start"))
    logs = {path.name: path.read_text() for path in (folder / "out" / "logs").iterdir()}
    assert len(logs) == 4
    assert any("Traceback" in text and "this mixer" in text for text in logs.values())
    with (folder / "out" / "results.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == [row["status"] for row in rows]


def test_a_run_of_a_sweep_has_the_bits_of_the_same_run_alone(broken: tuple[Path, list[dict[str, Any]]]) -> None:
    """Also the one whose process had trained another run before."""
    folder, rows = broken
    for row in (rows[0], rows[3]):
        alone = folder / f"alone{row['seed']}"
        changes = {"architecture": "breaks", "seed": row["seed"], "output": str(alone)}
        train(Run.parse({**SMALL, **changes, "metrics": ["accuracy"] if row["seed"] == 2 else []}), quiet=True)
        assert bits(alone) == bits(Path(row["folder"]))


def test_the_same_sweep_again_runs_only_what_is_not_finished(broken: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = broken
    before = len(events(folder / "out", "start"))
    (folder / "well.py").write_text(BREAKS + "runs = [SMALL | {'seed': 1}]")
    again = sweep(folder / "well.py", folder / "out", jobs=1, quiet=True)
    assert [row["hash"] for row in again] == [rows[0]["hash"]]
    assert again[0]["validation_loss"] == rows[0]["validation_loss"]
    assert len(events(folder / "out", "start")) == before


@pytest.mark.slow
def test_a_run_that_crashes_stops_no_other(tmp_path: Path) -> None:
    text = "runs = [SMALL | {'model': SMALL['model'] | {'how': how}} for how in ('exit', 'segfault', 'not')]"
    (tmp_path / "crashes.py").write_text(BREAKS + text)
    rows = sweep(tmp_path / "crashes.py", tmp_path / "out", jobs=1, quiet=True)
    assert [row["reason"] for row in rows] == [
        "its process ended with exit code 7",
        "its process was killed by SIGSEGV",
        None,
    ]
    assert rows[2]["status"] == "finished"
    logs = [path.read_text() for path in (tmp_path / "out" / "logs").iterdir()]
    assert any("Fatal Python error: Segmentation fault" in log for log in logs)


@pytest.mark.slow
def test_a_run_that_failed_is_tried_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "once.py").write_text(
        BREAKS + f"runs = [SMALL | {{'model': SMALL['model'] | {{'how': 'once', 'marker': {str(marker)!r}}}}}]"
    )
    (row,) = sweep(tmp_path / "once.py", tmp_path / "out", jobs=1, retries=1, quiet=True)
    assert (row["status"], row["reason"]) == ("finished", None)
    assert [event["attempt"] for event in events(tmp_path / "out", "start")] == [1, 2]
    assert [event["reason"] for event in events(tmp_path / "out", "fail")] == ["RuntimeError: only once"]


LONG = merge(SMALL, {"steps": 160, "train": {"checkpoint_every": 20, "validate_every": 80}})


def start(folder: Path, *words: str, steps: int = LONG["steps"]) -> subprocess.Popen[str]:
    """`icll-zoo sweep` of two long runs, in a process of its own."""
    (folder / "long.yaml").write_text(json.dumps({"base": {**LONG, "steps": steps}, "seeds": [0, 1]}))
    code = "from icll_zoo.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "sweep", "long.yaml", "--jobs", "2", *words],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def begun(folder: Path) -> bool:
    """Whether one of the runs has made some steps."""
    return any(log.stat().st_size > 200 for log in (folder / "long" / "runs").glob("*/metrics.jsonl"))


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    """kill -9: the workers notice by themselves, save and leave; the same sweep ends with the bits of no kill."""
    sweeping = start(tmp_path)
    wait_until(lambda: begun(tmp_path) or sweeping.poll() is not None)
    sweeping.kill()
    sweeping.communicate()
    pids = [event["pid"] for event in events(tmp_path / "long", "start")]
    assert len(pids) == 2
    wait_until(lambda: not any(map(alive, pids)), 30)
    assert list((tmp_path / "long" / "runs").glob("*/checkpoints/step-*[0-9]"))
    unfinished = 2 - len(list((tmp_path / "long" / "runs").glob("*/result.json")))
    assert unfinished

    rows = sweep(tmp_path / "long.yaml", tmp_path / "long", jobs=2, quiet=True)
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert len(events(tmp_path / "long", "start")) == 2 + unfinished
    logs = {row["seed"]: tmp_path / "long" / "logs" / f"{Path(row['folder']).name}.txt" for row in rows}
    resumed = [seed for seed, log in logs.items() if "going on from step" in log.read_text()]
    train(Run.parse({**LONG, "seed": resumed[0], "output": str(tmp_path / "alone")}), quiet=True)
    assert bits(tmp_path / "alone") == bits(Path(rows[resumed[0]]["folder"]))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_runs_save(number: signal.Signals, code: int, tmp_path: Path) -> None:
    sweeping = start(tmp_path, steps=100_000)  # which nobody waits for
    wait_until(lambda: begun(tmp_path) or sweeping.poll() is not None)
    sweeping.send_signal(number)
    out, err = sweeping.communicate(timeout=60)
    assert sweeping.returncode == code, err
    assert f"stopped: {number.name}: 0 of 2 runs are finished, and the same command goes on" in err
    assert "Traceback" not in out + err
    stopped = events(tmp_path / "long", "stop")
    assert len(stopped) == 2
    assert not any(alive(event["pid"]) for event in events(tmp_path / "long", "start"))
    assert max(event["step"] for event in stopped) > 0
    for event in stopped:
        assert not event["step"] or list(
            (tmp_path / "long" / "runs" / event["folder"]).glob(f"checkpoints/step-{event['step']}")
        )
    with (tmp_path / "long" / "results.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["stopped", "stopped"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that fails makes exit code 1, with the table on stdout and one line on stderr."""
    monkeypatch.chdir(tmp_path)
    nan = merge(SMALL, {"optimizer": {"lr": 1e30, "clip": None}, "schedule": {"warmup": 0.0}})
    Path("s.yaml").write_text(json.dumps([SMALL, nan]))
    assert run(["sweep", "s.yaml", "--jobs", "1"]) == 1
    shown = capsys.readouterr()
    head, *body = shown.out.splitlines()
    assert head.split()[:3] == ["optimizer.lr", "optimizer.clip", "schedule.warmup"]
    assert ["finished" in line for line in body] == [True, False]
    assert "failed" in body[1]
    last = shown.err.splitlines()[-1]
    assert last.startswith("error: 1 of 2 runs failed (the first: s/runs/lr-1e-30-clip-None-warmup-0.0-")
    assert "at step" in last
    assert run(["sweep", "s.yaml", "--engine", "processes", "--address", "x", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2
