"""From files to shards: nothing lost, nothing twice, the same bytes whoever did the work and however it was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from text_cases import (
    environment,
    fingerprint,
    prepare,
    prepare_here,
    prepare_words,
    rows_of,
    some_texts,
    train_byte_level,
    train_pieces,
    write_jsonl,
    write_parquet,
)

from icll_zoo import InputError
from icll_zoo_slimpajama import layout
from icll_zoo_slimpajama.encoding import Encoder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return train_byte_level(tmp_path / "tokenizer.json", some_texts(200))


def make_source(folder: Path, files: int = 4, each: int = 40) -> list[str]:
    """A corpus of all formats; its texts in order."""
    texts = some_texts(files * each, seed=9)
    for i in range(files):
        rows = rows_of(texts[i * each : (i + 1) * each], seed=i)
        if i % 3 == 2:
            write_parquet(folder / f"chunk{i}.parquet", rows)
        else:
            write_jsonl(folder / f"chunk{i}{('.jsonl', '.jsonl.zst')[i % 3]}", rows)
    return texts


def documents(output: Path) -> dict[str, list[list[int]]]:
    """The ids of every document by split, in order, read with nothing but numpy."""
    manifest = json.loads((output / "manifest.json").read_text())
    found: dict[str, list[list[int]]] = {}
    for folder in sorted((output / "shards").iterdir()):
        for split in layout.SPLITS:
            if not (folder / f"{split}.tokens").exists():
                continue
            ids = np.fromfile(folder / f"{split}.tokens", manifest["tokenizer"]["type"])
            ends = np.load(folder / f"{split}.documents.npy")["end"]
            assert ends[-1] == len(ids)
            for begin, end in zip([0, *ends[:-1]], ends, strict=True):
                assert ids[end - 1] == manifest["tokenizer"]["end"][1]
                found.setdefault(split, []).append(ids[begin : end - 1].tolist())
    return found


def test_every_document_is_there_once_and_whole(tmp_path: Path, tokenizer: Path) -> None:
    texts = make_source(tmp_path / "source")
    manifest = prepare_here(tmp_path / "source", tmp_path / "out", tokenizer, validation=0.1, test=0.1)
    own = Encoder(tokenizer)
    wanted = Counter(tuple(ids.tolist()) for ids in own.reference(texts))
    found = documents(tmp_path / "out")
    assert Counter(tuple(ids) for split in found.values() for ids in split) == wanted
    assert all(len(found[split]) > 3 for split in layout.SPLITS)
    assert not any(own.end_id in ids or own.pad_id in ids for split in found.values() for ids in split)
    for split in layout.SPLITS:
        counts = manifest["splits"][split]
        assert counts["documents"] == len(found[split])
        assert counts["tokens"] == sum(len(ids) + 1 for ids in found[split])
    assert sum(s["bytes"] for s in manifest["splits"].values()) == sum(len(text.encode()) for text in texts)
    by_subset = Counter[str]()
    for splits in manifest["subsets"].values():
        for split, counts in splits.items():
            by_subset[split] += counts["documents"]
    assert by_subset == {split: len(found[split]) for split in layout.SPLITS}
    assert manifest["encoders"] == {"byte-level": 4}


def test_pieces_with_unk_as_padding(tmp_path: Path) -> None:
    texts = make_source(tmp_path / "source", 2)
    tokenizer = train_pieces(tmp_path / "mistral.json", texts)
    manifest = prepare_here(tmp_path / "source", tmp_path / "out", tokenizer, pad="<unk>")
    about = manifest["tokenizer"]
    assert (about["end"][0], about["pad"], about["vocabulary"]) == ("</s>", ["<unk>", 0], Encoder(tokenizer).size)
    assert manifest["encoders"] == {"pieces": 2}


def test_a_text_that_holds_the_padding_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "source" / "a.jsonl", rows_of(["ba de fi"] * 1))
    texts = some_texts(100)
    tokenizer = train_byte_level(tmp_path / "t.json", texts)
    with pytest.raises(InputError, match=r"line 1 of 'a\.jsonl' holds the padding 'b'"):
        prepare_here(tmp_path / "source", tmp_path / "out", tokenizer, pad="b", validation=0.0, test=0.0)


def test_the_split_is_the_documents_own(tmp_path: Path, tokenizer: Path) -> None:
    """In whatever file and company a document lies, and held-out sets grow when fractions do."""
    texts = make_source(tmp_path / "source")
    order = random.Random(0).sample(texts, len(texts))
    write_jsonl(tmp_path / "other" / "all.jsonl", rows_of(order))
    settings = {"validation": 0.1, "test": 0.1}
    prepare_here(tmp_path / "source", tmp_path / "one", tokenizer, **settings)
    prepare_here(tmp_path / "other", tmp_path / "two", tokenizer, **settings)
    prepare_here(tmp_path / "other", tmp_path / "three", tokenizer, validation=0.1, test=0.2)
    one, two, three = (
        {split: {tuple(ids) for ids in found} for split, found in documents(tmp_path / name).items()}
        for name in ("one", "two", "three")
    )
    assert one == two
    assert two["test"] < three["test"]


def test_groups_are_held_out_whole_and_duplicates_leave(tmp_path: Path, tokenizer: Path) -> None:
    texts = some_texts(60)
    rows = [row for p in range(30) for row in rows_of([*texts[2 * p : 2 * p + 2], texts[0]], package=f"p{p}")]
    write_jsonl(tmp_path / "source" / "a.jsonl", rows[:45])
    write_jsonl(tmp_path / "source" / "b.jsonl", rows[45:])
    settings = {"validation": 0.2, "test": 0.2, "group_by": "meta.package"}
    manifest = prepare_here(tmp_path / "source", tmp_path / "out", tokenizer, **settings)
    assert manifest["duplicates"]["duplicates"] == 30  # one in its own group, and 29 elsewhere
    assert 5 < manifest["duplicates"]["across_splits"] < 29
    found = documents(tmp_path / "out")
    everything = [tuple(ids) for split in found.values() for ids in split]
    assert len(everything) == len(set(everything)) == 60
    groups: dict[int, set[str]] = {}
    for folder in (tmp_path / "out" / "shards").iterdir():
        for path in folder.glob("*.documents.npy"):
            for group in np.load(path)["group"].tolist():
                groups.setdefault(group, set()).add(path.name)
    assert len(groups) == 30
    assert all(len(splits) == 1 for splits in groups.values())
    kept = prepare_here(tmp_path / "source", tmp_path / "kept", tokenizer, **settings, duplicates=True)
    assert sum(s["documents"] for s in kept["splits"].values()) == 90


def test_folders_may_be_the_splits(tmp_path: Path, tokenizer: Path) -> None:
    texts = some_texts(30)
    for i, split in enumerate(layout.SPLITS):
        write_jsonl(tmp_path / "source" / split / "chunk1" / "a.jsonl.zst", rows_of(texts[i * 10 : i * 10 + 10]))
    manifest = prepare_here(tmp_path / "source", tmp_path / "out", tokenizer, split="folder")
    assert [manifest["splits"][split]["documents"] for split in layout.SPLITS] == [10, 10, 10]
    write_jsonl(tmp_path / "source" / "elsewhere.jsonl", rows_of(texts))
    with pytest.raises(InputError, match=r"'elsewhere\.jsonl' lies in no folder called train"):
        prepare_here(tmp_path / "source", tmp_path / "again", tokenizer, split="folder")


def test_damage_is_quarantined_and_reported(tmp_path: Path, tokenizer: Path) -> None:
    make_source(tmp_path / "source", 4)
    broken = tmp_path / "source" / "chunk1.jsonl.zst"
    broken.write_bytes(broken.read_bytes()[:-20])
    with (tmp_path / "source" / "chunk0.jsonl").open("a") as file:
        file.write('{"text": null}\n')
    done = prepare(tmp_path / "source", tmp_path / "out", tokenizer, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "1 of 4 files are damaged and were left out, and 1 records of the others" in done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["quarantine"] == {"files": 4, "damaged_files": 1, "left_out_records": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert lines[0] == {"file": "chunk0.jsonl", "line": 41, "reason": "no text"}
    assert (lines[1]["file"], lines[1]["line"]) == ("chunk1.jsonl.zst", None)
    assert "ends too early" in lines[1]["reason"]
    assert sum(len(found) for found in documents(tmp_path / "out").values()) == 120
    strict = prepare(tmp_path / "source", tmp_path / "out", tokenizer, "--strict")
    assert (strict.returncode, strict.stdout.count("train")) == (1, 1)


def test_the_same_bytes_after_kill_9(tmp_path: Path, tokenizer: Path) -> None:
    """A real run with two workers, its whole group killed as soon as a first scan, then a first shard, is there."""
    make_source(tmp_path / "source", 8, 100)
    prepare_here(tmp_path / "source", tmp_path / "clean", tokenizer)
    words = prepare_words(tmp_path / "source", tmp_path / "out", tokenizer, "--workers", "2")
    for first in ("scan/*.json", "shards/0*"):
        process = subprocess.Popen(
            words, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not list((tmp_path / "out").glob(first)):
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was not killed but came to an end"
        assert not (tmp_path / "out" / "manifest.json").exists()
    done = prepare(tmp_path / "source", tmp_path / "out", tokenizer, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "clean")  # and nothing is left over


@pytest.mark.parametrize("stage", ["scan_file", "find_duplicates", "tokenize_file", "finish"])
def test_the_same_bytes_after_a_kill_at_any_write(tmp_path: Path, tokenizer: Path, stage: str) -> None:
    """A process that dies at the n-th rename of a stage, for every n until it does not die."""
    make_source(tmp_path / "source", 2, 30)
    write_jsonl(tmp_path / "source" / "twice.jsonl", rows_of(some_texts(5, seed=9)))
    prepare_here(tmp_path / "source", tmp_path / "clean", tokenizer)
    for n in range(1, 20):
        child = os.fork()
        if child == 0:
            try:
                die_at(stage, n)
                prepare_here(tmp_path / "source", tmp_path / "out", tokenizer)
                os._exit(0)
            finally:
                os._exit(7)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert not (tmp_path / "out" / "manifest.json").exists()
    else:
        pytest.fail("it never came to an end")
    assert n > 1
    layout.sweep(tmp_path / "out")
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "clean")


def die_at(stage: str, n: int) -> None:
    """Let this process die of SIGKILL in place of the n-th rename within a stage."""
    from icll_zoo_slimpajama import prepare as module

    inner, counter, inside = getattr(module, stage), iter(range(1, 1000)), []
    rename, replace = Path.rename, Path.replace

    def staged(*words: object) -> object:
        inside.append(1)
        try:
            return inner(*words)
        finally:
            inside.pop()

    def dying(original):
        def move(self: Path, target: Path) -> Path:
            if inside and next(counter) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, target)

        return move

    setattr(module, stage, staged)
    Path.rename, Path.replace = dying(rename), dying(replace)  # type: ignore[method-assign]


def test_a_finished_one_is_left_alone_and_another_one_refused(tmp_path: Path, tokenizer: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    make_source(source, 2)
    manifest = prepare_here(source, output, tokenizer)
    before = fingerprint(output)
    stamps = {path: path.stat().st_mtime_ns for path in (output / "shards").rglob("*")}
    again = prepare(source, output, tokenizer, "--json")
    assert json.loads(again.stdout) == manifest
    assert fingerprint(output) == before
    assert {path: path.stat().st_mtime_ns for path in (output / "shards").rglob("*")} == stamps
    other = prepare(source, output, tokenizer, "--test", "0.5")
    assert (other.returncode, other.stdout) == (2, "")
    assert "begun with other settings" in other.stderr
    with pytest.raises(InputError, match="nothing is left to train on"):
        prepare_here(source, output, tokenizer, validation=0.9, test=0.2)
    write_jsonl(source / "new.jsonl", rows_of(["more"]))
    with pytest.raises(InputError, match="begun with other files"):
        prepare_here(source, output, tokenizer)
    with pytest.raises(InputError, match="holds something else"):
        prepare_here(source, tmp_path / "source", tokenizer)
    assert fingerprint(output) == before


def test_verify_makes_damaged_shards_again(tmp_path: Path, tokenizer: Path) -> None:
    make_source(tmp_path / "source", 3)
    prepare_here(tmp_path / "source", tmp_path / "out", tokenizer)
    before = fingerprint(tmp_path / "out")
    path = tmp_path / "out" / "shards" / "00001" / "train.tokens"
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    prepare_here(tmp_path / "source", tmp_path / "out", tokenizer)
    assert fingerprint(tmp_path / "out") != before  # what is there is believed
    done = prepare(tmp_path / "source", tmp_path / "out", tokenizer, "--verify")
    assert "damaged, made again: 00001" in done.stderr
    assert fingerprint(tmp_path / "out") == before


def test_two_at_once_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    from icll_zoo_slimpajama.command import locked

    make_source(tmp_path / "source", 1)
    with locked(tmp_path / "out"):
        done = prepare(tmp_path / "source", tmp_path / "out", tokenizer)
    assert (done.returncode, done.stdout) == (3, "")
    assert "another process prepares" in done.stderr


SBATCH = """#!/bin/bash
script="${@: -1}"; offset=0
for a in "$@"; do case $a in --export=*) offset="${a##*RUN_OFFSET=}";; esac; done
last=$(grep -oP '(?<=--array=0-)\\d+' "$script")
for i in $(seq 0 "${last:-0}"); do
    SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=localhost RUN_OFFSET=$offset bash "$script" >&2 || exit 1
done
echo "Submitted batch job 1"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.mark.slow
def test_slurm_gets_the_same_stages(tmp_path: Path, tokenizer: Path) -> None:
    """datatrove's own executor, with commands in Slurm's place that run every task of an array as soon as it is queued:
    there is no cluster here."""
    make_source(tmp_path / "source", 4)
    prepare_here(tmp_path / "source", tmp_path / "clean", tokenizer)
    commands = {"sbatch": SBATCH, "srun": SRUN, "scontrol": "#!/bin/bash\necho localhost\n"}
    for name, script in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    places = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    words = ("--executor", "slurm", "cluster.partition=cpu", "cluster.time=00:10:00", "cluster.tasks_per_job=2")
    done = subprocess.run(
        prepare_words(tmp_path / "source", tmp_path / "out", tokenizer, *words),
        env={**environment(), "PATH": os.pathsep.join(places)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "queued" in done.stdout
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "clean")


def test_a_cluster_option_that_is_none_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    make_source(tmp_path / "source", 2)
    done = prepare(tmp_path / "source", tmp_path / "out", tokenizer, "--executor", "slurm", "cluster.partitoin=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "partitoin" in done.stderr
