"""One run on several real processes: what they compute is what one computes, and none is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import icll_zoo
from icll_zoo.distributed import Ranks
from icll_zoo.errors import InputError
from icll_zoo.run import Run, merge
from icll_zoo.training import train

SMALL: dict[str, Any] = {
    "architecture": "transformer",
    "dataset": "dfa",
    "steps": 50,
    "model": {"d_model": 16, "n_layers": 2, "dropout": 0.0, "attention_dropout": 0.0},
    # Batches of 5, 5, ... and 1, of unequal lengths: in the last one a second process has no row of its own.
    "data": {"languages": 41, "held_out": 9, "length_max": 9, "buckets": 1},
    "metrics": ["accuracy", "tvd"],
    "train": {"batch_size": 5, "threads": 1, "log_every": 1, "validate_every": 25},
}
DROPPING = {"model": {"dropout": 0.2, "attention_dropout": 0.2}}
RUNS: dict[str, dict[str, Any]] = {
    "fp64": {"train": {"precision": "fp64"}},
    "fp32": {},
    "fp64 dropout accumulate ema": merge({"train": {"precision": "fp64", "accumulate": 2, "ema": 0.9}}, DROPPING),
    "fp32 dropout": DROPPING,
}
TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}
CASES = [
    ("fp64", "ddp"),
    ("fp64", "fsdp"),
    ("fp32", "ddp"),
    ("fp32 dropout", "fsdp"),
    ("fp64 dropout accumulate ema", "ddp"),
    ("fp64 dropout accumulate ema", "fsdp"),
]
# Every process runs these in the order of the file, and the first writes down what was refused.
SESSION = """
import json, sys
from pathlib import Path
from icll_zoo.distributed import is_first
from icll_zoo.errors import InputError
from icll_zoo.run import Run
from icll_zoo.training import train
for given in json.loads(Path(sys.argv[1]).read_text()):
    try:
        train(Run.parse(given), quiet=True)
    except InputError as error:
        assert is_first()
        Path(given["output"] + ".refused").write_text(str(error))
    except SystemExit as stop:
        assert not is_first()
        Path(given["output"] + ".followed").write_text(str(stop.code))
"""


def description(folder: Path, **changes: Any) -> dict[str, Any]:
    return merge(SMALL, {"output": str(folder), **changes})


def launch(*words: str, processes: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """What it said; killed with all its children if it does not end."""
    try:
        return "".join(process.communicate(timeout=seconds))
    except subprocess.TimeoutExpired:
        for pid in (*workers(process), process.pid):
            os.kill(pid, signal.SIGKILL)
        pytest.fail("it did not end: " + "".join(process.communicate()))


def session(folder: Path, described: list[dict[str, Any]], processes: int = 2) -> None:
    (folder / "session.py").write_text(SESSION)
    (folder / "runs.json").write_text(json.dumps(described))
    process = launch(str(folder / "session.py"), str(folder / "runs.json"), processes=processes)
    said = finish(process)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs on two processes."""
    folder = tmp_path_factory.mktemp("two")
    described = [
        merge(description(folder / f"{name} {parallel}"), merge(RUNS[name], {"train": {"parallel": parallel}}))
        for name, parallel in CASES
    ]
    whole = Run.parse(merge(KILLED, {"output": str(folder / "whole")})).model_dump()
    muon = description(folder / "muon", optimizer={"name": "muon"}, train={"parallel": "fsdp"})
    session(folder, [*described, whole, muon])
    return folder


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path, tolerance: float) -> None:
    assert [sorted(line) for line in lines(one)] == [sorted(line) for line in lines(other)]
    for a, b in zip(lines(one), lines(other), strict=True):
        for key, value in a.items():
            # The gradient's norm is the root of a sum of squares, each as exact as the loss.
            close = pytest.approx(value, rel=10 * tolerance, abs=tolerance)
            assert b[key] == close, f"{key} at step {a['step']}"
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert list(expected) == list(found)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.float32
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=max(100 * tolerance, 1e-7))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs on one process."""
    folder = tmp_path_factory.mktemp("one")
    for name in RUNS:
        train(Run.parse(merge(description(folder / name), RUNS[name])), quiet=True)
    return folder


@pytest.mark.parametrize(("name", "parallel"), CASES)
def test_two_processes_compute_what_one_does(name: str, parallel: str, one: Path, two: Path) -> None:
    """50 updates, unequal lengths, a ragged batch in every pass; with dropout too."""
    assert_same_run(one / name, two / f"{name} {parallel}", TOLERANCE[name[:4]])
    assert icll_zoo.load_model(f"local-dir:{two / f'{name} {parallel}' / 'model'}").training is False


def test_accumulation_drops_what_one_batch_drops(one: Path, tmp_path: Path) -> None:
    """A batch of 8 and two of 4 make the same updates, dropout and all."""
    for size, parts in ((8, 1), (4, 2)):
        settings = {"batch_size": size, "accumulate": parts, "precision": "fp64"}
        changes = merge(DROPPING, {"train": settings, "data": {"languages": 40}, "steps": 10})
        train(Run.parse(merge(description(tmp_path / str(size)), changes)), quiet=True)
    assert_same_run(tmp_path / "8", tmp_path / "4", 1e-10)


def test_what_is_refused_is_said_once_and_ends_all(two: Path) -> None:
    assert "optimizer.name=muon has to see whole parameters" in (two / "muon.refused").read_text()
    assert (two / "muon.followed").read_text() == "2"
    assert not (two / "muon").exists()


# -- a process that is killed -----------------------------------------------------------------------------------------

KILLED = merge(SMALL, {**DROPPING, "steps": 60, "train": {"checkpoint_every": 4, "validate_every": 20, "ema": 0.9}})


def words(folder: Path) -> list[str]:
    path = folder.parent / "run.yaml"
    path.write_text(json.dumps({**KILLED, "output": str(folder)}))
    return ["-m", "icll_zoo", "train", str(path), "--quiet"]


def workers(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        assert process.poll() is None, finish(process)
        time.sleep(0.002)


def bits(folder: Path) -> dict[str, bytes]:
    kept = [folder / "metrics.jsonl", *folder.rglob("*.safetensors"), folder / "model" / "config.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = launch(*words(folder))
    wait_for(lambda: (folder / "checkpoints" / "step-12").exists(), process)
    os.kill(workers(process)[1], signal.SIGKILL)
    killed = time.monotonic()
    said = finish(process, 60)
    assert time.monotonic() - killed < 30
    assert process.returncode != 0
    (line,) = re.findall("^error: .*$", said, re.MULTILINE)
    assert line.startswith("error: process 0 of 2: another process of this run ended or does not answer (the same ")
    assert not (folder / "result.json").exists()

    # On one process it goes on, too, to the same result but for rounding, and says that it is another setting
    # (torchrun may have set OMP_NUM_THREADS as well, which is named then).
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone)
    with pytest.warns(UserWarning, match=r"under another .*processes 2 \(ddp\) -> 1"):
        train(Run.parse({**KILLED, "output": str(alone)}), quiet=True)
    assert_same_run(two / "whole", alone, 1e-5)

    again = launch(*words(folder))
    said = finish(again)
    assert again.returncode == 0, said
    assert said.count("validation loss") == 1
    assert bits(folder) == bits(two / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), [(("ddp", 2), ("fsdp", 3)), (("fsdp", 3), ("ddp", 1)), (("fsdp", 2),) * 2]
)
def test_a_run_goes_on_at_another_number_of_processes(
    before: tuple[str, int], after: tuple[str, int], tmp_path: Path
) -> None:
    described = Run.parse(merge(KILLED, {"output": str(tmp_path / "whole")}))
    train(described, quiet=True)
    folder, settings = tmp_path / "run", ("train.parallel={}", "--nproc")
    process = launch(*words(folder), settings[0].format(before[0]), processes=before[1])
    wait_for(lambda: (folder / "checkpoints" / "step-12").exists(), process)
    os.kill(process.pid, signal.SIGTERM)  # as a scheduler stops a job: every process is told, and they stop together
    said = finish(process, 60)
    assert "stopped: SIGTERM after step" in said
    again = launch(*words(folder), settings[0].format(after[0]), processes=after[1])
    said = finish(again)
    assert again.returncode == 0, said
    assert bool(re.search("under another .*processes", said)) == (before != after)
    assert_same_run(tmp_path / "whole", folder, 1e-5)


# A sharded step, and a last collective whose thread hardly ever gets its turn: it is not done when the process ends.
STARVED = """
import os
from pathlib import Path
import torch
from torch import nn
from icll_zoo.distributed import join, shard
ranks = join("cpu")
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
shard(model, "adam", torch.device("cpu"))
model(torch.ones(1, 4)).sum().backward()
ranks.gather(0)
cpu = {min(os.sched_getaffinity(0))}
os.sched_setaffinity(0, cpu)
threads = [int(task.name) for task in Path("/proc/self/task").iterdir() if "gloo" in (task / "comm").read_text()]
assert threads
for thread in threads:
    os.sched_setaffinity(thread, cpu)
    os.setpriority(os.PRIO_PROCESS, thread, 19)
ranks.gather(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_a_process_ends_well_while_its_threads_are_starved(tmp_path: Path) -> None:
    """Without `leave` two in three of these were aborted, which made a run that had ended well a failed one."""
    (tmp_path / "starved.py").write_text(STARVED)
    busy = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(2)]
    try:
        for _ in range(5):
            process = launch(str(tmp_path / "starved.py"))
            said = finish(process)
            assert process.returncode == 0, said
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_row_is_some_process_s_and_counts_once(size: int) -> None:
    dataset = icll_zoo.create_dataset("dfa", **SMALL["data"])
    batch = dataset.batch("train", 0, 5, 0)
    shares = [Ranks(rank, size).share(batch) for rank in range(size)]
    assert all(len(share) >= 1 for share in shares)
    assert sum(int((share.targets >= 0).sum()) for share in shares) == int((batch.targets >= 0).sum())
    assert sum(int(share.valid.sum()) for share in shares) == int(batch.valid.sum())
    counted = [row for rank in range(size) for row in Ranks(rank, size).rows(5).tolist() if rank < 5]
    assert sorted(counted) == [0, 1, 2, 3, 4]
    for rank in range(min(size, 5)):
        assert torch.equal(shares[rank].tokens, batch.tokens[rank::size])
        assert torch.equal(shares[rank].extra["state"], batch.extra["state"][rank::size])


def test_alone_nothing_is_changed_and_faults_pass_as_they_are() -> None:
    ranks, tensor = Ranks(), torch.ones(2)
    assert ranks.sum(tensor) is tensor
    assert (ranks.largest(3), ranks.gather({"a": 1})) == (3, [{"a": 1}])

    def refuse() -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        ranks.together(refuse)
