"""The engine ray on a real cluster of this machine: a head without cores and two workers, one of which dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from icll_zoo.errors import EnvironmentFault, InputError
from icll_zoo.run import merge
from icll_zoo.sweeps import cluster as engine
from icll_zoo.sweeps import ledger
from icll_zoo.sweeps.sweeping import plan, sweep
from icll_zoo.zoo import default_zoo

RUN: dict[str, Any] = {
    "architecture": "transformer",
    "dataset": "dfa",
    "steps": 800,
    "model": {"d_model": 16, "n_layers": 1},
    "data": {"languages": 40, "held_out": 8, "length_max": 9},
    "train": {"batch_size": 4, "threads": 1, "checkpoint_every": 20, "validate_every": 400},
}


def bits(folder: Path) -> dict[str, bytes]:
    kept = [folder / "run.json", folder / "metrics.jsonl", folder / "model" / "config.json"]
    kept += folder.rglob("*.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in ledger.read(folder) if event["event"] == kind]


def below(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [one for child in found for one in below(child)]


def test_what_a_run_takes_of_a_machine(tmp_path: Path) -> None:
    (job,), _ = plan([merge(RUN, {"train": {"threads": 3}})], tmp_path, 1, default_zoo())
    assert engine.needs(job) == {"num_cpus": 3, "num_gpus": 0}
    job.resolved.description["train"]["device"] = "cuda"
    assert engine.needs(job) == {"num_cpus": 1, "num_gpus": 0.25}


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    answer = engine.train_one({"folder": str(tmp_path / "runs" / "one"), "log": "", "cwd": "", "scripts": []})
    assert answer["event"] == "failed"
    assert "not on a file system that all machines of the cluster share" in answer["reason"]


def test_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray is not installed \(pip install 'icll-zoo\[ray\]'\)"):
        sweep([RUN], tmp_path / "out", engine="ray", quiet=True)


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"no Ray cluster at '127\.0\.0\.1:9'"):
        sweep([RUN], tmp_path / "out", engine="ray", address="127.0.0.1:9", quiet=True)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # what else is run here may need the memory
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        yield made
    finally:
        made.shutdown()


def start(folder: Path, address: str, steps: int = RUN["steps"]) -> subprocess.Popen[str]:
    base = {**RUN, "steps": steps}
    (folder / "s.yaml").write_text(json.dumps({"base": base, "grid": {"model.d_model": [16, 24]}, "seeds": [0, 1]}))
    code = "from icll_zoo.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "sweep", "s.yaml", "--engine", "ray", "--address", address],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_checkpoints(folder: Path, count: int, sweeping: subprocess.Popen[str]) -> None:
    """Until so many runs that are not finished have one."""
    until = time.monotonic() + 150

    def begun() -> set[Path]:
        saved = (folder / "s" / "runs").glob("*/checkpoints/step-*[0-9]")
        return {run for path in saved if not ((run := path.parents[1]) / "result.json").exists()}

    while len(begun()) < count:
        assert sweeping.poll() is None, sweeping.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray leaves sockets and files to the garbage collector
def test_a_machine_dies_on_the_way(cluster: Any, tmp_path: Path) -> None:
    """SIGKILL to one of two workers and all its processes: every run finishes, with the bits of the other engine."""
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    sweeping = start(tmp_path, cluster.address)
    wait_for_checkpoints(tmp_path, 2, sweeping)
    raylet = nodes[0].all_processes["raylet"][0].process.pid
    victims = [raylet, *below(raylet)]
    assert len(victims) > 1
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):  # a worker whose raylet is gone may end by itself
            os.kill(pid, signal.SIGKILL)
    out, err = sweeping.communicate(timeout=240)
    assert sweeping.returncode == 0, err
    assert out.count("finished") == 4
    (lost,) = events(tmp_path / "s", "fail")
    assert lost["reason"].startswith("its process or machine died")
    starts = [event["folder"] for event in events(tmp_path / "s", "start")]
    assert len(starts) == 5
    assert starts.count(lost["folder"]) == 2
    assert "going on from step" in (tmp_path / "s" / "logs" / f"{lost['folder']}.txt").read_text()
    rows = sweep(tmp_path / "s.yaml", tmp_path / "here", jobs=2, quiet=True)
    assert [row["status"] for row in rows] == ["finished"] * 4
    for row in rows:
        here = Path(row["folder"])
        assert bits(tmp_path / "s" / "runs" / here.name) == bits(here)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_signal_lets_the_runs_save_and_the_cluster_waits_for_nodes(cluster: Any, tmp_path: Path) -> None:
    sweeping = start(tmp_path, cluster.address, steps=100_000)
    time.sleep(5)  # no machine has a core yet
    assert not events(tmp_path / "s", "start")
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    wait_for_checkpoints(tmp_path, 1, sweeping)
    sweeping.send_signal(signal.SIGTERM)
    _, err = sweeping.communicate(timeout=60)
    assert sweeping.returncode == 143, err
    assert "stopped: SIGTERM: 0 of 4 runs are finished, and the same command goes on" in err
    (stopped,) = events(tmp_path / "s", "stop")
    assert stopped["step"] > 0
    log = (tmp_path / "s" / "logs" / f"{stopped['folder']}.txt").read_text()
    assert "Traceback" not in log
    state = sorted((tmp_path / "s" / "runs" / stopped["folder"]).glob("checkpoints/step-*[0-9]"))
    assert state
