"""The tracker trackio with the real library, which must reach nobody."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

# Every attempt to reach another machine is noted and fails.
OFFLINE = """
import socket, sys
from pathlib import Path

def refuse(name):
    def refused(*words, **more):
        with open("reached", "a") as file:
            file.write(f"{name} {words[1:]}\\n")
        raise OSError("there is no network here")
    return refused

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, refuse(name))
socket.getaddrinfo = refuse("getaddrinfo")

from icll_zoo.cli import run
words = "train transformer dfa steps=12 model.d_model=16 model.n_layers=1 train.batch_size=2 train.threads=1"
words += " data.languages=20 data.held_out=4 train.trackers=trackio output=sweep/runs/one --json"
sys.exit(run(words.split()))
"""


@pytest.mark.slow
def test_a_run_is_recorded_on_this_machine_and_nowhere_else(tmp_path: Path) -> None:
    elsewhere = {"TRACKIO_SPACE_ID": "somebody/space", "TRACKIO_SERVER_URL": "http://127.0.0.1:1", "HF_TOKEN": "hf_no"}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRACKIO_DIR": str(tmp_path / "records"), **elsewhere}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 12
    assert "left out" not in done.stderr
    assert not (tmp_path / "reached").exists(), (tmp_path / "reached").read_text()
    with sqlite3.connect(tmp_path / "records" / "icll-zoo.db") as database:
        recorded = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        ((config,),) = database.execute("select config from configs").fetchall()
    log = [json.loads(line) for line in (tmp_path / "sweep/runs/one/metrics.jsonl").read_text().splitlines()]
    assert [step for _, step, _ in recorded] == [line["step"] for line in log]
    for (name, _, metrics), line in zip(recorded, log, strict=True):
        assert name == "one"
        kept = json.loads(metrics)
        kept.pop("tokens_per_second")
        assert {key: value for key, value in line.items() if key != "step"}.items() <= kept.items()
    assert json.loads(config)["model"]["architecture"] == "baselines:transformer"
    assert json.loads(config)["_Group"] == "sweep"
