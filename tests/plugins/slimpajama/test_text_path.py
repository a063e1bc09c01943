"""The whole path of text on a generated corpus: prepare, train, evaluate, a folder ready to publish; killed in each.

No perplexity of it means anything: the words are drawn at random.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from text_cases import fingerprint, rows_of, some_texts, train_byte_level, write_jsonl, write_parquet

MEGABYTES = float(os.environ.get("ICLL_ZOO_TEXT_MEGABYTES", "1"))  # 200 takes minutes and is for once in a while
FILES = 6


def generate(folder: Path, megabytes: float) -> int:
    """A corpus in SlimPajama's schema, packed and in tables; how many bytes of text it has."""
    each = round(megabytes * 1e6 / FILES / 250)  # documents; they have about 250 bytes
    size = 0
    for i in range(FILES):
        rows = rows_of(some_texts(each, seed=i), seed=i)
        size += sum(len(row["text"].encode()) for row in rows)
        if i % 2:
            write_parquet(folder / f"chunk{i}.parquet", rows)
        else:
            write_jsonl(folder / f"chunk{i}.jsonl.zst", rows)
    return size


def verb(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """A verb in a process group of its own, so that its workers die with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    code = "from icll_zoo.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=cwd, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(*words: str, cwd: Path) -> str:
    """What a verb prints that runs to its end."""
    process = verb(*words, cwd=cwd)
    out, err = process.communicate(timeout=1500)
    assert process.returncode == 0, err
    return out


def killed_and_again(rng: random.Random, seconds: float, *words: str, cwd: Path) -> tuple[int, str]:
    """The same verb, killed up to three times somewhere in the time that it takes, then left alone: kills, its words.

    One that goes on where it was may have come to its end before the third.
    """
    kills = 0
    for _ in range(3):
        process = verb(*words, cwd=cwd)
        try:
            process.communicate(timeout=rng.uniform(0.1, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
    return kills, finished(*words, cwd=cwd)


def files_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a run, but for how long it took, which differs."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("lock", "result.json")):
        if "checkpoints" in path.parts:
            continue
        data = re.sub(rb'"seconds": [\d.]+|\| time \| .* \|', b"", path.read_bytes())
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def steps_of(name: str) -> dict[str, list[str]]:
    """The verbs of the path, their folders below `name`; both read the corpus as `tokens`, as descriptions say it."""
    run, data = f"{name}/run", ["data.folder=tokens", "data.length=64"]
    return {
        "prepare": ["prepare-text", "source", f"{name}/tokens", "--tokenizer", "tokenizer.json", "--workers", "2"],
        "train": [
            "train", "gla-ngram", "text", *data, "data.held_out=40", "model.d_model=32", "steps=60", "--quiet",
            'model.layers=["gla",{"mixer":"ngram-head","order":1,"mlp_ratio":1}]', f"output={run}",
            "train.batch_size=8", "train.checkpoint_every=10", "train.validate_every=20", "train.threads=1",
            "metrics=perplexity,in-context-2gram-loss",
        ],
        "evaluate": ["evaluate", f"local-dir:{run}/model", "text", *data, "--limit", "200", "--json",
                     "--metrics", "perplexity,bits-per-byte"],
        "card": ["card", run, "--evaluate", "--limit", "100", "--learners", "ngram-2"],
        "publish": ["publish", run, "lab/gla-ngram-text", "--dry-run"],
    }  # fmt: skip


@pytest.mark.slow
def test_from_text_to_a_folder_that_can_be_published(tmp_path: Path) -> None:
    """Each step twice, once undisturbed and once killed with signal 9: the same bytes."""
    rng = random.Random(5)
    size = generate(tmp_path / "source", MEGABYTES)
    assert size == pytest.approx(MEGABYTES * 1e6, rel=0.2)
    train_byte_level(tmp_path / "tokenizer.json", some_texts(300, seed=77))
    tokens = tmp_path / "tokens"
    said: dict[str, dict[str, str]] = {"clean": {}, "killed": {}}
    seconds, kills = {}, {}
    tokens.symlink_to(tmp_path / "clean" / "tokens")
    for step, words in steps_of("clean").items():
        began = time.monotonic()
        said["clean"][step] = finished(*words, cwd=tmp_path)
        seconds[step] = round(time.monotonic() - began, 1)
    tokens.unlink()
    tokens.symlink_to(tmp_path / "killed" / "tokens")
    for step, words in steps_of("killed").items():
        kills[step], said["killed"][step] = killed_and_again(rng, seconds[step], *words, cwd=tmp_path)
    print(f"{size / 1e6:.1f} MB of text; seconds {seconds}; kills {kills}")
    assert min(kills.values()) >= 1
    assert sum(kills.values()) >= 8
    assert fingerprint(tmp_path / "clean" / "tokens") == fingerprint(tmp_path / "killed" / "tokens")
    assert files_of(tmp_path / "clean" / "run") == files_of(tmp_path / "killed" / "run")
    scores = [json.loads(said[name]["evaluate"])["metrics"] for name in said]
    assert scores[0] == scores[1]
    assert "model.safetensors" in said["killed"]["publish"]
