"""A corpus on the Hub by itself; test_text_hub.py has the rest, in the preparation that uses it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, constants

from icll_zoo import hub, hub_datasets, hub_patience
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError
from icll_zoo.hub_datasets import fetch_dataset_file, parse_dataset, pin_dataset
from icll_zoo.testing.loophub import LoopHub
from icll_zoo.testing.loophub_store import Blob, git_oid

# huggingface_hub gives httpx a file as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {"a.jsonl": b'{"text": "a"}\n', "train/b.jsonl.zst": bytes(range(256)) * 4}


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopHub]:
    monkeypatch.setattr(hub_patience, "WAITS", (0.05,))
    with LoopHub() as running, running.here(tmp_path / "home"):
        running.create("datasets/lab/c")
        running.push("datasets/lab/c", FILES)
        yield running


def test_parse() -> None:
    assert parse_dataset("hf-hub:lab/c@v1") == ("lab/c", "v1")
    assert parse_dataset("hf-hub:lab/c") == ("lab/c", "main")
    assert parse_dataset("lab/c") is None
    with pytest.raises(InputError, match="is not a repository"):
        parse_dataset("hf-hub:../c")


def test_a_listing_has_sizes_and_hashes(loop: LoopHub) -> None:
    commit, held = pin_dataset("lab/c")
    assert commit == loop.repos["datasets/lab/c"].branches["main"]
    assert held["a.jsonl"] == (14, git_oid(FILES["a.jsonl"]))
    assert held["train/b.jsonl.zst"] == (1024, hashlib.sha256(FILES["train/b.jsonl.zst"]).hexdigest())
    assert pin_dataset("lab/c", commit) == (commit, held)
    loop.fail("GET", "/tree/", body=b'[{"type": "file", "path": "a", "size": 1, "oid": "no hash"}]')
    with pytest.raises(EnvironmentFault, match="does not say which commit 'main' of 'datasets/lab/c' is, or what"):
        pin_dataset("lab/c")
    for body in (b"<html>log in</html>", b"{}"):
        loop.fail("GET", "/revision/", body=body, times=9)
        with pytest.raises(EnvironmentFault):
            pin_dataset("lab/c")
        loop.faults.clear()


def test_what_is_there_with_the_right_bytes_is_left_alone(loop: LoopHub, tmp_path: Path) -> None:
    commit, held = pin_dataset("lab/c")
    for path, facts in held.items():
        loop.log.clear()
        found = fetch_dataset_file("lab/c", commit, path, *facts, tmp_path / "to")
        assert found == tmp_path / "to" / path
        assert found.read_bytes() == FILES.get(path, found.read_bytes())
        assert loop.log
        loop.log.clear()
        fetch_dataset_file("lab/c", commit, path, *facts, tmp_path / "to")
        assert loop.log == []
    assert {path.name for path in (tmp_path / "to").rglob("*")} == {".gitattributes", "a.jsonl", "b.jsonl.zst", "train"}
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "a\\b", "a\x1b[2J", ""])
def test_no_name_leads_out_of_the_folder(loop: LoopHub, tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="has a name that this machine does not take") as refusal:
        fetch_dataset_file("lab/c", "0" * 40, path, 1, "0" * 40, tmp_path / "to")
    assert str(refusal.value).isprintable()
    assert loop.log == []


def test_the_disk_refuses(loop: LoopHub, tmp_path: Path) -> None:
    commit, held = pin_dataset("lab/c")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write a file from the Hub"):
        fetch_dataset_file("lab/c", commit, "a.jsonl", *held["a.jsonl"], tmp_path / "file")


def test_another_file_than_the_listing_says(loop: LoopHub, tmp_path: Path) -> None:
    """A Hub that has other bytes under the same commit; the old file is not touched."""
    commit, held = pin_dataset("lab/c")
    repo = loop.repos["datasets/lab/c"]
    files = {**repo.commits[commit].files, "a.jsonl": Blob(b"other", False)}
    object.__setattr__(repo.commits[commit], "files", files)
    with pytest.raises(
        IntegrityError, match=r"'a\.jsonl' of 'datasets/lab/c' at .* has 5 bytes and must have 14, also"
    ):
        fetch_dataset_file("lab/c", commit, "a.jsonl", *held["a.jsonl"], tmp_path / "to")
    assert not list((tmp_path / "to").rglob("*"))
    assert len(loop.requests("GET", "/resolve/")) == 2


def test_a_wait_of_minutes_is_taken(loop: LoopHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of the Hub's rate limits is shorter than the patience here, and longer than that of other requests."""
    assert hub_patience.PATIENCE < 60 < hub_datasets.PATIENCE
    monkeypatch.setattr(hub_patience, "PATIENCE", 0.5)
    commit, held = pin_dataset("lab/c")
    loop.fail("GET", "/resolve/", status=503, retry_after=1)
    assert fetch_dataset_file("lab/c", commit, "a.jsonl", *held["a.jsonl"], tmp_path / "to").is_file()


def test_by_xet(tmp_path: Path) -> None:
    """The Hub's own way for large files; hf_xet's store on disk is no documented part of it."""
    hf_xet = pytest.importorskip("hf_xet")
    assert not constants.HF_HUB_OFFLINE
    data = bytes(range(256)) * 800
    (tmp_path / "w").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    with LoopHub(xet=tmp_path / "store") as loop, loop.here(tmp_path / "home"):
        loop.objects[sha256] = data
        loop.create("datasets/alice/c")
        hub.api().create_commit(
            "alice/c",
            [CommitOperationAdd("b.parquet", str(tmp_path / "w"))],
            commit_message="by xet",
            repo_type="dataset",
        )
        (kept,) = hf_xet.hash_files([str(tmp_path / "w")])
        loop.xet_hashes[sha256] = kept.hash
        loop.objects.clear()
        commit, held = pin_dataset("alice/c")
        found = fetch_dataset_file("alice/c", commit, "b.parquet", *held["b.parquet"], tmp_path / "to")
        assert found.read_bytes() == data
        assert loop.requests("GET", "/_cdn/") == []
        assert len(loop.requests("GET", "/api/datasets/alice/c/xet-read-token/")) >= 1
        assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
