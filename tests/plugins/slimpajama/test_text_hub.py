"""Preparing a corpus straight from a dataset repository, over real sockets: a Hub on the loopback interface."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from text_cases import (
    environment,
    fingerprint,
    prepare,
    prepare_here,
    prepare_words,
    rows_of,
    some_texts,
    train_byte_level,
    write_jsonl,
    write_parquet,
)

from icll_zoo import InputError, ZooError, hub_patience
from icll_zoo.errors import EnvironmentFault, IntegrityError
from icll_zoo.testing.loophub import FOR_EVER, LoopHub
from icll_zoo_slimpajama import layout
from icll_zoo_slimpajama import prepare as stages

REPO = "datasets/alice/corpus"
SOURCE = "hf-hub:alice/corpus"


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopHub]:
    """A Hub, and this process and those that it starts speaking to it with an empty cache."""
    monkeypatch.setattr(hub_patience, "WAITS", (0.05, 0.05))
    for module in (_http, file_download):  # huggingface_hub's own waits, of seconds
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.05))))
    with LoopHub() as running, running.here(tmp_path / "home"):
        running.create(REPO)
        yield running


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return train_byte_level(tmp_path / "tokenizer.json", some_texts(60), 300)


def corpus(folder: Path, files: int = 4, each: int = 20, seed: int = 9) -> dict[str, bytes]:
    """A corpus of all formats in folders, with files that are none of it; its files by path."""
    texts = some_texts(files * each, seed, 30)
    for i in range(files):
        rows = rows_of(texts[i * each : (i + 1) * each], seed=i)
        name = folder / f"chunk{i % 2}" / f"part{i}{('.jsonl', '.parquet', '.jsonl.zst', '.jsonl.gz')[i % 4]}"
        write_parquet(name, rows) if i % 4 == 1 else write_jsonl(name, rows)
    (folder / "README.md").write_text("a corpus\n")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made_of(output: Path) -> dict[str, Any]:
    """All that is made of a corpus; of the plan and the manifest what does not name the source."""
    found: dict[str, Any] = fingerprint(output)
    for name in (layout.PLAN, layout.MANIFEST):
        about = json.loads((output / name).read_text())
        about.pop("source")
        files = [{"path": file["path"], "bytes": file["bytes"]} for file in about.get("files", ())]
        found[name] = {**about, "files": files}
    return found


def left_over(*folders: Path) -> list[Path]:
    """Files of a corpus, whole or not, and what belongs to a fetch."""
    endings = (".jsonl", ".gz", ".zst", ".parquet", ".incomplete", ".partial", ".metadata", ".lock")
    found = [path for folder in folders for path in folder.rglob("*") if path.name.endswith(endings)]
    return [path for path in found if path.name not in (layout.SHARDS, layout.QUARANTINE)]


def fetches(loop: LoopHub) -> list[str]:
    """The files whose bytes were asked for: those kept as LFS come from the CDN."""
    return [path.rpartition("/")[2] for _, path, status in loop.requests("GET", "part") if status in (200, 206)]


def test_equal_to_the_same_files_in_a_folder(
    loop: LoopHub, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage in the repository itself too; the listing comes in pages; one file at a time is on the disk."""
    held = corpus(tmp_path / "folder", 8)
    name = "chunk0/part6.jsonl.zst"
    held[name] = held[name][:-9]
    (tmp_path / "folder" / name).write_bytes(held[name])
    loop.push(REPO, held)
    commit = loop.push(REPO, {"chunk0/.hidden.jsonl": b"{"})
    loop.page, seen = 3, []
    inner = stages.records

    def watched(path: Path, group_by: str | None) -> Any:
        seen.append([p.name for p in (tmp_path / "out").rglob("part*") if p.is_file()])
        return inner(path, group_by)

    monkeypatch.setattr(stages, "records", watched)
    manifest = prepare_here(SOURCE, tmp_path / "out", tokenizer)
    monkeypatch.undo()
    assert manifest["source"] == f"{SOURCE}@main"
    assert manifest["revision"] == commit
    assert manifest["quarantine"]["damaged_files"] == 1
    assert seen == [
        [path.rpartition("/")[2]] for path in [*sorted(held)[1:], *(n for n in sorted(held)[1:] if n != name)]
    ]
    assert sorted(fetches(loop)) == sorted(path for paths in seen for path in paths)
    assert len(loop.requests("GET", "/tree/")) == 4
    assert not left_over(tmp_path / "out", tmp_path / "home")
    prepare_here(tmp_path / "folder", tmp_path / "clean", tokenizer, revision=commit)
    assert made_of(tmp_path / "out") == made_of(tmp_path / "clean")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert [sorted(file) for file in plan["files"][:2]] == [["bytes", "git", "path"], ["bytes", "path", "sha256"]]


def test_a_part_of_a_corpus(loop: LoopHub, tmp_path: Path, tokenizer: Path) -> None:
    held = corpus(tmp_path / "folder", 8)
    commit = loop.push(REPO, held)
    patterns = ["chunk1/*", "*part0.jsonl"]
    manifest = prepare_here(f"{SOURCE}@{commit}", tmp_path / "out", tokenizer, include=patterns)
    assert manifest["include"] == patterns
    paths = [json.loads(line)["path"] for line in (tmp_path / "out" / "shards.jsonl").read_text().splitlines()]
    assert paths == sorted(p for p in held if p.startswith("chunk1/") or p == "chunk0/part0.jsonl")
    prepare_here(tmp_path / "folder", tmp_path / "clean", tokenizer, include=patterns, revision=commit)
    assert made_of(tmp_path / "out") == made_of(tmp_path / "clean")
    for source in (SOURCE, tmp_path / "folder"):
        with pytest.raises(InputError, match=r"'chunk9/\*' matches none of the 8 files"):
            prepare_here(source, tmp_path / "new", tokenizer, include=["chunk9/*"])
    with pytest.raises(InputError, match="was begun with other patterns"):
        prepare_here(f"{SOURCE}@{commit}", tmp_path / "out", tokenizer, include=["chunk1/*"])


def test_the_revision_stays_while_the_branch_moves(loop: LoopHub, tmp_path: Path, tokenizer: Path) -> None:
    """Killed in both stages; each time the branch has moved on when it begins again."""
    commit = loop.push(REPO, corpus(tmp_path / "folder", 8, 60))
    words = prepare_words(SOURCE, tmp_path / "out", tokenizer, "--workers", "1")
    for first in ("scan/*.json", "shards/0*"):
        process = subprocess.Popen(
            words, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not list((tmp_path / "out").glob(first)):
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was not killed but came to an end"
        loop.push(REPO, corpus(tmp_path / first[:4], 12, 5, seed=len(first)))
    layout.sweep(tmp_path / "out")  # as the verb does
    prepare_here(SOURCE, tmp_path / "out", tokenizer)
    assert len(loop.requests("GET", "/revision/main")) == 1
    assert not left_over(tmp_path / "out", tmp_path / "home")
    prepare_here(tmp_path / "folder", tmp_path / "clean", tokenizer, revision=commit)
    assert made_of(tmp_path / "out") == made_of(tmp_path / "clean")
    # By its commit it is the same one, and by another name, or with another one's files, it is not.
    assert prepare_here(f"{SOURCE}@{commit}", tmp_path / "out", tokenizer)["revision"] == commit
    for other in (f"{SOURCE}@{'0' * 40}", f"{SOURCE}@v2", "hf-hub:alice/other", tmp_path / "folder"):
        with pytest.raises(InputError, match="was begun with "):
            prepare_here(other, tmp_path / "out", tokenizer)


def test_a_kill_in_the_middle_of_a_fetch(loop: LoopHub, tmp_path: Path, tokenizer: Path) -> None:
    """Eleven of twelve megabytes are there, then the Hub says nothing any more: in a scan, then in a tokenize."""
    row = {**rows_of(some_texts(1))[0], "ignored": "x" * 12_000_000}
    big = write_jsonl(tmp_path / "folder" / "part.jsonl", [row]).read_bytes()
    commit = loop.push(REPO, {"part.jsonl": big})
    output = tmp_path / "out"
    # Without a scan, then with one whose fetch goes through, then in the folder of what is kept.
    for fetched, scanned, more in ((0, False, ()), (1, True, ()), (0, True, ("--keep-source",))):
        for _ in range(fetched):
            loop.fail("GET", "/part.jsonl")
        loop.fail("GET", "/part.jsonl", cut=11_000_000, stall=20)
        before = set(output.rglob("*.incomplete"))
        process = subprocess.Popen(
            prepare_words(SOURCE, output, tokenizer, *more),
            env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        found: list[int] = []
        while process.poll() is None and not (found and max(found) > 10_000_000):
            time.sleep(0.002)
            with contextlib.suppress(FileNotFoundError):
                ready = (output / "scan" / "00000.json").exists() is scanned
                partial = set(output.rglob("*.incomplete")) - before
                found = [path.stat().st_size for path in partial if ready]
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (output / "source" / "part.jsonl").exists()
    layout.sweep(output)  # as the verb does
    prepare_here(SOURCE, output, tokenizer, keep=True)
    assert left_over(output) == [output / "source" / "part.jsonl"]
    assert (output / "source" / "part.jsonl").read_bytes() == big
    shutil.rmtree(output / "source")
    prepare_here(tmp_path / "folder", tmp_path / "clean", tokenizer, revision=commit)
    assert made_of(output) == made_of(tmp_path / "clean")


def test_a_flipped_byte_is_fetched_again_and_then_an_error(loop: LoopHub, tmp_path: Path, tokenizer: Path) -> None:
    """In a file that git keeps, whose hash is git's, and in one that is kept as LFS."""
    commit = loop.push(REPO, corpus(tmp_path / "folder"))
    for name in ("part0.jsonl", "part2.jsonl.zst"):
        loop.fail("GET", f"/{name}", flip=100)
    prepare_here(SOURCE, tmp_path / "out", tokenizer)
    assert sorted(fetches(loop)).count("part0.jsonl") == sorted(fetches(loop)).count("part2.jsonl.zst") == 3
    prepare_here(tmp_path / "folder", tmp_path / "clean", tokenizer, revision=commit)
    assert made_of(tmp_path / "out") == made_of(tmp_path / "clean")
    for name in ("chunk0/part0.jsonl", "chunk0/part2.jsonl.zst"):
        output = tmp_path / name[-5:]
        loop.fail("GET", f"/{name}", flip=100, times=2)
        with pytest.raises(IntegrityError, match=rf"'{name}' of 'datasets/alice/corpus' at {commit} has another hash"):
            prepare_here(SOURCE, output, tokenizer, keep=True)
        assert [path.name for path in left_over(output / "source")] == (["part0.jsonl"] if "zst" in name else [])
        assert not list(output.glob("scan/00001*"))
        prepare_here(SOURCE, output, tokenizer)
        shutil.rmtree(output / "source", ignore_errors=True)
        assert made_of(output) == made_of(tmp_path / "clean")


def test_what_passes_is_tried_again(
    loop: LoopHub, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503s everywhere, and a download that breaks, which goes on where it was."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    commit = loop.push(REPO, corpus(tmp_path / "folder"))
    for method, path in (("GET", "/revision/"), ("GET", "/tree/"), ("HEAD", "/resolve/"), ("GET", "/part")):
        loop.fail(method, path, status=503, times=2)
    loop.fail("GET", "/part2", cut=500)
    loop.fail("HEAD", "/part1", lose=True)
    prepare_here(SOURCE, tmp_path / "out", tokenizer)
    assert [status for _, _, status in loop.requests("GET", "/_cdn/") if status == 206] == [206]
    prepare_here(tmp_path / "folder", tmp_path / "clean", tokenizer, revision=commit)
    assert made_of(tmp_path / "out") == made_of(tmp_path / "clean")


def test_a_hub_that_is_down_ends_it_in_one_line(loop: LoopHub, tmp_path: Path, tokenizer: Path) -> None:
    """In a worker's process too, and the same command goes on."""
    commit = loop.push(REPO, corpus(tmp_path / "folder"))
    loop.fail("GET", "/tree/", status=503, times=FOR_EVER)
    with pytest.raises(EnvironmentFault, match="answers 503 for 'datasets/alice/corpus'"):
        prepare_here(SOURCE, tmp_path / "out", tokenizer)
    loop.faults.clear()
    loop.fail("HEAD", "/part3", status=503, retry_after=9999, times=FOR_EVER)
    done = prepare(SOURCE, tmp_path / "out", tokenizer, "--workers", "2")
    assert (done.returncode, done.stdout) == (3, "")
    assert "asks to wait 9999 s before 'datasets/alice/corpus'" in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 2  # the stage, and the error
    loop.faults.clear()
    prepare_here(SOURCE, tmp_path / "out", tokenizer)
    layout.sweep(tmp_path / "out")
    prepare_here(tmp_path / "folder", tmp_path / "clean", tokenizer, revision=commit)
    assert made_of(tmp_path / "out") == made_of(tmp_path / "clean")


def test_gated_private_and_unknown_ones(loop: LoopHub, tmp_path: Path, tokenizer: Path) -> None:
    held = corpus(tmp_path / "folder")
    loop.create("datasets/bob/gated", gated={"bob"})
    loop.create("datasets/bob/private", private=True)
    commit = loop.push("datasets/bob/gated", held)
    refused = {
        "hf-hub:bob/gated": rf"'datasets/bob/gated' is gated: ask for access at {loop.url}/datasets/bob/gated",
        "hf-hub:bob/private": "no repository 'datasets/bob/private' .*, or it is private",
        "hf-hub:alice/none": "no repository 'datasets/alice/none'",
        f"{SOURCE}@v9": "no revision 'v9' in 'datasets/alice/corpus'",
        f"{SOURCE}@{'0' * 40}": "no revision '0000",
        "hf-hub:alice": "'alice' is not a repository",
        SOURCE: r"no \.jsonl, .* files in hf-hub:alice/corpus@main",
    }
    for source, message in refused.items():
        with pytest.raises(ZooError, match=message) as refusal:
            prepare_here(source, tmp_path / source.rpartition("/")[2], tokenizer)
        assert refusal.value.exit_code == 2
    with loop.here(tmp_path / "home", token="hf_nobody"), pytest.raises(InputError, match="does not accept the token"):
        prepare_here(SOURCE, tmp_path / "nobody", tokenizer)
    with loop.here(tmp_path / "home", token="hf_bob"):
        prepare_here("hf-hub:bob/gated", tmp_path / "gated", tokenizer)  # the one that was begun without access
    prepare_here(tmp_path / "folder", tmp_path / "clean", tokenizer, revision=commit)
    assert made_of(tmp_path / "gated") == made_of(tmp_path / "clean")


def test_what_is_kept_works_offline(
    loop: LoopHub, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = corpus(tmp_path / "folder")
    loop.push(REPO, held)
    output = tmp_path / "out"
    prepare_here(SOURCE, output, tokenizer, keep=True)
    before = fingerprint(output)
    held.pop("README.md")
    assert {path.removeprefix("source/") for path in before if path.startswith("source/")} == set(held)
    assert len(fetches(loop)) == len(held)
    shutil.rmtree(output / "shards" / "00001")
    loop.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    prepare_here(SOURCE, output, tokenizer)
    assert loop.log == []
    assert fingerprint(output) == before
    kept = output / "source" / "chunk1" / "part1.parquet"
    good = kept.read_bytes()
    for content, reason in (
        (good[:-1], "and must have"),
        (bytes([good[0] ^ 1]) + good[1:], "has another hash"),
        (None, "is not"),
    ):
        shutil.rmtree(
            output / "shards" / "00001" if content is None else output / "shards" / "00002", ignore_errors=True
        )
        shutil.rmtree(output / "shards" / "00002", ignore_errors=True)
        kept.unlink() if content is None else kept.write_bytes(content)
        with pytest.raises(InputError, match=rf"'chunk1/part1.parquet' of .* {reason}.*, and HF_HUB_OFFLINE is set"):
            prepare_here(SOURCE, output, tokenizer, keep=True)
    with pytest.raises(InputError, match="cannot be listed while HF_HUB_OFFLINE is set"):
        prepare_here(SOURCE, tmp_path / "new", tokenizer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    kept.write_bytes(good[:-1])
    prepare_here(SOURCE, output, tokenizer)
    assert fingerprint(output) == before


def test_options_that_do_not_go_together(loop: LoopHub, tmp_path: Path, tokenizer: Path) -> None:
    corpus(tmp_path / "folder")
    with pytest.raises(InputError, match="has its revision in its name"):
        prepare_here(SOURCE, tmp_path / "out", tokenizer, revision="main")
    assert loop.log == []
    done = prepare(tmp_path / "folder", tmp_path / "out", tokenizer, "--keep-source")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--keep-source is for what is fetched from the Hub" in done.stderr
