"""The Hub on the loopback interface, spoken to by huggingface_hub's own client and by its command `hf`."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import close_session

from icll_zoo.testing.loophub import LoopHub
from icll_zoo.testing.loophub_store import git_oid

# huggingface_hub gives httpx a file as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = b"---\nlibrary_name: icll-zoo\ntags:\n- dfa\n---\n\n# a model\n"
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LoopHub(writers={"alice": {"lab"}}) as running:
        yield running
    close_session()


def api(hub: LoopHub, token: str | bool = "hf_alice") -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def push(hub: LoopHub, repo: str, files: dict[str, bytes], **more: Any) -> str:
    """A commit by the real client."""
    client = api(hub)
    client.create_repo(repo, exist_ok=True)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return str(client.create_commit(repo, operations, commit_message="first", **more).oid)


def test_a_round_trip_by_branch_tag_and_commit(hub: LoopHub, tmp_path: Path) -> None:
    first = push(hub, "lab/m", {"README.md": CARD, "model.safetensors": WEIGHTS})
    api(hub).create_tag("lab/m", tag="v1")
    second = push(hub, "lab/m", {"model.safetensors": WEIGHTS[::-1], "figures/a.svg": b"<svg/>"}, parent_commit=first)
    for revision, commit, weights in [
        ("main", second, WEIGHTS[::-1]),
        ("v1", first, WEIGHTS),
        (first, first, WEIGHTS),
        (second, second, WEIGHTS[::-1]),
    ]:
        cache = tmp_path / revision
        folder = Path(snapshot_download("lab/m", revision=revision, endpoint=hub.url, cache_dir=cache))
        assert folder.name == commit
        assert (folder / "model.safetensors").read_bytes() == weights
        assert (folder / "model.safetensors").readlink().name == hashlib.sha256(weights).hexdigest()
        assert (folder / "README.md").readlink().name == git_oid(CARD)
        assert (folder / "figures" / "a.svg").is_file() is (commit == second)
    assert [commit.title for commit in api(hub).list_repo_commits("lab/m")] == ["first", "first", "initial commit"]
    assert all("authorization" not in line[1].lower() for line in hub.log)
    # The same bytes again are not sent again.
    sent = len(hub.requests("PUT"))
    push(hub, "lab/other", {"model.safetensors": WEIGHTS})
    assert len(hub.requests("PUT")) == sent


def test_what_the_hub_tells_of_a_model(hub: LoopHub) -> None:
    commit = push(hub, "alice/m", {"README.md": CARD, "model.safetensors": WEIGHTS})
    info = api(hub).model_info("alice/m")
    assert (info.sha, info.library_name, info.private) == (commit, "icll-zoo", False)
    assert set(info.tags or ()) == {"dfa", "icll-zoo"}
    client = api(hub)
    client.create_branch("alice/m", branch="next")
    refs = client.list_repo_refs("alice/m")
    assert {branch.name for branch in refs.branches} == {"main", "next"}
    (file,) = client.get_paths_info("alice/m", ["model.safetensors", "absent"])
    assert (file.size, file.lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert [model.id for model in client.list_models(filter="icll-zoo", author="alice")] == ["alice/m"]
    assert list(client.list_models(search="nothing")) == []
    assert client.whoami()["name"] == "alice"


def test_a_dataset_by_the_client(hub: LoopHub, tmp_path: Path) -> None:
    """Beside a model of the same name; its listing in pages."""
    client = api(hub)
    push(hub, "lab/m", {"model.safetensors": WEIGHTS})
    client.create_repo("lab/m", repo_type="dataset")
    files = {f"train/part{i}.jsonl{'.zst' * (i % 2)}": bytes([i]) * 100 for i in range(5)}
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    commit = client.create_commit("lab/m", operations, commit_message="data", repo_type="dataset").oid
    assert client.dataset_info("lab/m").sha == commit != client.model_info("lab/m").sha
    hub.page = 2
    held = {item.path: item for item in client.list_repo_tree("lab/m", recursive=True, repo_type="dataset")}
    assert set(held) == {".gitattributes", *files}
    assert len(hub.requests("GET", "/api/datasets/lab/m/tree/")) == 3
    assert held["train/part0.jsonl"].blob_id == git_oid(files["train/part0.jsonl"])
    assert held["train/part1.jsonl.zst"].lfs.sha256 == hashlib.sha256(files["train/part1.jsonl.zst"]).hexdigest()
    folder = Path(snapshot_download("lab/m", repo_type="dataset", endpoint=hub.url, cache_dir=tmp_path))
    assert {path: (folder / path).read_bytes() for path in files} == files
    assert [model.id for model in client.list_models()] == ["lab/m"]
    more = [CommitOperationAdd("a", b"a")]
    with pytest.raises(HfHubHTTPError) as refusal:
        api(hub, "hf_bob").create_commit("lab/m", more, commit_message="no", repo_type="dataset")
    assert refusal.value.response.status_code == 403


def test_who_may_do_what(hub: LoopHub, tmp_path: Path) -> None:
    push(hub, "alice/m", {"README.md": CARD})
    api(hub).create_repo("alice/secret", private=True)
    hub.create("alice/gated", gated={"bob"})
    hub.push("alice/gated", {"config.json": b"{}"})
    with pytest.raises(HfHubHTTPError) as refusal:
        api(hub, "hf_bob").create_commit("alice/m", [CommitOperationAdd("a", b"a")], commit_message="no")
    assert refusal.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as refusal:
        api(hub, "hf_nobody").model_info("alice/m")
    assert refusal.value.response.status_code == 401
    for token in ("hf_bob", False):
        with pytest.raises(RepositoryNotFoundError):
            api(hub, token).model_info("alice/secret")
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info("alice/m", revision="no-such")
    assert "alice/secret" not in [model.id for model in api(hub, False).list_models()]
    for token, status in ((False, 401), ("hf_alice", 403)):
        with pytest.raises(GatedRepoError) as refused:
            hf_hub_download("alice/gated", "config.json", endpoint=hub.url, token=token, cache_dir=tmp_path)
        assert refused.value.response.status_code == status
    hf_hub_download("alice/gated", "config.json", endpoint=hub.url, token="hf_bob", cache_dir=tmp_path)


def test_a_commit_is_all_or_nothing(hub: LoopHub) -> None:
    first = push(hub, "alice/m", {"a": b"a"})
    hub.push("alice/m", {"b": b"b"})
    with pytest.raises(HfHubHTTPError) as refusal:
        push(hub, "alice/m", {"a": b"changed", "c": b"c"}, parent_commit=first)
    assert refusal.value.response.status_code == 412
    repo = hub.repos["alice/m"]
    assert {path: blob.data for path, blob in repo.commits[repo.branches["main"]].files.items() if path in "abc"} == {
        "a": b"a",
        "b": b"b",
    }


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def test_faults_are_used_up_and_do_what_they_say(hub: LoopHub) -> None:
    hub.create("alice/m")
    hub.push("alice/m", {"config.json": b"0123456789"})
    url = f"{hub.url}/alice/m/resolve/main/config.json"
    hub.fail("GET", "/config.json", status=503, retry_after=7)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        read(url)
    assert refusal.value.code == 503
    assert refusal.value.headers["Retry-After"] == "7"
    refusal.value.close()
    hub.fail("GET", "/config.json", flip=3)
    assert read(url) == b"0122456789"
    hub.fail("GET", "/config.json", cut=4)
    with pytest.raises(http.client.IncompleteRead):
        read(url)
    pushed = []
    hub.fail("GET", "/config.json", before=lambda: pushed.append(hub.push("alice/m", {"config.json": b"other"})))
    assert read(url) == b"other"
    assert read(url) == b"other"
    assert hub.repos["alice/m"].branches["main"] == pushed[0]
    assert [status for *_, status in hub.requests("GET", "/config.json")] == [503, 200, 200, 200, 200]


def test_ranges_and_the_token_that_is_not_for_the_cdn(hub: LoopHub) -> None:
    push(hub, "alice/m", {"model.safetensors": WEIGHTS})
    place = f"{hub.cdn}/_cdn/{hashlib.sha256(WEIGHTS).hexdigest()}/model.safetensors"
    with urllib.request.urlopen(urllib.request.Request(place, headers={"Range": "bytes=100-"}), timeout=10) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 100-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
        assert answer.read() == WEIGHTS[100:]
    with pytest.raises(urllib.error.HTTPError, match="400") as refusal:
        urllib.request.urlopen(urllib.request.Request(place, headers={"Authorization": "Bearer hf_alice"}), timeout=10)
    refusal.value.close()


def test_the_official_command_line(hub: LoopHub, tmp_path: Path) -> None:
    commit = push(hub, "alice/m", {"README.md": CARD, "model.safetensors": WEIGHTS, "config.json": b"{}"})

    def hf(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("hf")), *words],
            env={**os.environ, **hub.environment(tmp_path / "home")},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    hf("download", "alice/m", "--local-dir", str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads(hf("models", "info", "alice/m"))["sha"] == commit
    assert "All checksums match" in hf("cache", "verify", "alice/m", "--local-dir", str(tmp_path / "out"))
    (tmp_path / "out" / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"x")
    assert "model.safetensors" in hf("cache", "verify", "alice/m", "--local-dir", str(tmp_path / "out"), code=1)
