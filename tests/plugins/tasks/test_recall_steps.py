"""How soon architectures recall: `benchmarks/recall.py` on 16 pairs, as docs/recall.md reports it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SETTINGS = ["--seeds", "0", "--lrs", "3e-3", "--every", "100", "train.batch_size=64", "model.init_std=0.125"]
NAMES = ("ngram-head", "deltanet", "kda", "rwkv-7", "gated-deltanet", "mamba-2")


@pytest.mark.slow
def test_six_architectures_recall_sixteen_pairs(tmp_path: Path) -> None:
    """Two layers of width 64 answer 0.99 of held-out queries within 5,000 updates; the n-gram head is first."""
    words = [sys.executable, str(ROOT / "benchmarks" / "recall.py"), *NAMES, *SETTINGS]
    done = subprocess.run(
        [*words, "train.threads=1", "--output", str(tmp_path), "--json"],
        capture_output=True, text=True, check=False, timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    steps = {name: rows[name][0]["steps"] for name in NAMES}
    assert all(reached is not None and reached <= 5000 for reached in steps.values()), steps
    assert min(steps, key=lambda name: steps[name]) == "ngram-head", steps
