"""The Hub's side: every case against a real socket (icll_zoo.testing.loophub), by huggingface_hub's real client."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import command
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from icll_zoo import hub, hub_patience
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError, ZooError
from icll_zoo.testing.loophub import FOR_EVER, LoopHub
from icll_zoo.testing.loophub_http import Dropped

# huggingface_hub gives httpx a file as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CONFIG = b'{"library": "icll-zoo"}\n'
WEIGHTS = os.urandom(300_000)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"---\nlicense: mit\n---\nhello\n"}
TOKEN = "hf_alice"


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopHub]:
    """A Hub with one model, and this process speaking to it with an empty cache."""
    monkeypatch.setattr(hub_patience, "WAITS", (0.05, 0.05))
    for module in (_http, file_download):  # huggingface_hub's own waits, of seconds
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.05))))
    with LoopHub(writers={"alice": {"lab"}}) as running, running.here(tmp_path / "home"):
        running.create("lab/m")
        running.push("lab/m", FILES)
        yield running


def head(loop: LoopHub, repo: str = "lab/m") -> str:
    return loop.repos[repo].branches["main"]


def held(loop: LoopHub, repo: str = "lab/m", branch: str = "main") -> dict[str, bytes]:
    """What a branch holds, without the file that the Hub makes itself."""
    files = loop.repos[repo].commits[loop.repos[repo].branches[branch]].files
    return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}


def contents(folder: Path, names: Any = FILES) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def cached(tmp_path: Path) -> list[Path]:
    """The regular files of the cache, beside its notes."""
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in kept if path.parent.name == "blobs" or path.name.endswith(".incomplete")]


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", ("org/name", "main")),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("Some-Org/a.b_c@refs/pr/1", ("Some-Org/a.b_c", "refs/pr/1")),
        ("a/b@" + "0" * 40, ("a/b", "0" * 40)),
    ],
)
def test_parse(text: str, found: tuple[str, str]) -> None:
    assert hub.parse(text) == found


@pytest.mark.parametrize(
    "text",
    ["", "name", "a/b/c", "../b", "a/..", "a/b@", "a/b@..", "a/b@x/../y", "a/b@-x", "a/b@a b", "a/b\n", "-a/b", "a/b.",
     "a/" + "b" * 200, "a--b/c", "https://x.y/z", "a/b@\x1b[2J"],
)  # fmt: skip
def test_parse_refuses(text: str) -> None:
    with pytest.raises(InputError) as refusal:
        hub.parse(text)
    assert str(refusal.value).isprintable()


# -- fetching ----------------------------------------------------------------------------------------------------------


def test_by_branch_tag_and_commit(loop: LoopHub) -> None:
    first = head(loop)
    loop.repos["lab/m"].tags["v1"] = first
    second = loop.push("lab/m", {"config.json": b"{}"})
    assert hub.resolve("lab/m") == second
    for revision, commit, config in [("main", second, b"{}"), ("v1", first, CONFIG), (first, first, CONFIG)]:
        assert hub.resolve("lab/m", revision) == commit
        folder = hub.fetch("lab/m", revision, list(FILES))
        assert folder.name == commit
        assert contents(folder) == {**FILES, "config.json": config}


def test_what_is_in_the_cache_is_not_fetched_again(loop: LoopHub) -> None:
    hub.fetch("lab/m", "main", list(FILES))
    loop.log.clear()
    hub.fetch("lab/m", head(loop), list(FILES))
    assert loop.log == []
    hub.fetch("lab/m", "main", list(FILES))
    assert [(method, path) for method, path, _ in loop.log] == [("GET", "/api/models/lab/m/revision/main")]
    # A new commit with the same weights: only what changed is fetched, by its ETag.
    loop.push("lab/m", {"config.json": b"{}"})
    loop.log.clear()
    assert contents(hub.fetch("lab/m", "main", list(FILES)))["config.json"] == b"{}"
    assert len(loop.requests("GET", "/resolve/")) == 1
    assert loop.requests("GET", "/_cdn/") == []


def test_offline_works_from_the_cache_alone(loop: LoopHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = head(loop)
    hub.fetch("lab/m", "main", ["config.json"])
    loop.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in ("main", commit):
        assert hub.fetch("lab/m", revision, ["config.json"]).name == commit
    for repo, revision, names in [
        ("lab/m", "main", ["model.safetensors"]),
        ("lab/m", "v1", ["config.json"]),
        ("lab/other", "main", ["config.json"]),
        ("lab/m", "0" * 40, ["config.json"]),
    ]:
        start = time.perf_counter()
        with pytest.raises(InputError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
            hub.fetch(repo, revision, names)
        assert time.perf_counter() - start < 10  # nobody was waited for
    with pytest.raises(InputError, match="while HF_HUB_OFFLINE is set"):
        hub.commit("lab/m", {"a": b"a"}, "no")
    assert loop.log == []


def test_a_name_means_a_snapshot_that_is_whole(loop: LoopHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that fails half-way does not move `main` in the cache."""
    first = head(loop)
    hub.fetch("lab/m", "main", list(FILES))
    loop.push("lab/m", {"config.json": b"{}", "model.safetensors": WEIGHTS[::-1]})
    loop.fail("GET", "/_cdn/", status=404, times=FOR_EVER)
    with pytest.raises(ZooError):
        hub.fetch("lab/m", "main", list(FILES))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = hub.fetch("lab/m", "main", list(FILES))
    assert folder.name == first
    assert contents(folder) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flipped", "cut", "longer", "empty"])
def test_a_file_damaged_in_the_cache_is_never_used(loop: LoopHub, name: str, harm: str) -> None:
    folder = hub.fetch("lab/m", "main", list(FILES))
    data = FILES[name]
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    bad = {"flipped": flipped, "cut": data[:middle], "longer": data + b"x", "empty": b""}[harm]
    (folder / name).resolve().write_bytes(bad)
    assert contents(hub.fetch("lab/m", "main", list(FILES))) == FILES
    (folder / name).resolve().write_bytes(bad)
    constants.HF_HUB_OFFLINE = True
    try:
        with pytest.raises(IntegrityError, match=f"{name} of 'lab/m' at main has another"):
            hub.fetch("lab/m", "main", list(FILES))
    finally:
        constants.HF_HUB_OFFLINE = False


@pytest.mark.parametrize("path", ["/_cdn/", "/resolve/"])
def test_a_byte_flipped_on_the_way_is_refused_and_not_kept(loop: LoopHub, path: str, tmp_path: Path) -> None:
    """Same size: huggingface_hub itself takes it."""
    name = "model.safetensors" if path == "/_cdn/" else "config.json"
    loop.fail("GET", path, flip=7, times=FOR_EVER)
    with pytest.raises(IntegrityError, match=f"{name} of 'lab/m' at main has another .* sends other bytes"):
        hub.fetch("lab/m", "main", [name])
    assert cached(tmp_path) == []
    loop.faults.clear()
    assert (hub.fetch("lab/m", "main", [name]) / name).read_bytes() == FILES[name]


def facts(data: bytes) -> Any:
    return SimpleNamespace(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_facts_are_checked_before_anything_is_fetched(loop: LoopHub, tmp_path: Path) -> None:
    good = {name: facts(data) for name, data in FILES.items()}
    assert contents(hub.fetch("lab/m", head(loop), list(FILES), facts=good)) == FILES
    for name, other in [("model.safetensors", WEIGHTS[::-1]), ("model.safetensors", b""), ("config.json", b"{}")]:
        loop.create("lab/x")
        loop.push("lab/x", FILES)
        before = len(loop.requests("GET", "/resolve/"))
        with pytest.raises(IntegrityError, match=f"{name} of 'lab/x' at .* is another file than"):
            hub.fetch("lab/x", head(loop, "lab/x"), list(FILES), facts={**good, name: facts(other)})
        assert len(loop.requests("GET", "/resolve/")) == before
    # A text of the same size, which the Hub lists by git's name only, is caught once it is here.
    with pytest.raises(IntegrityError, match=r"config.json .* has another sha256"):
        hub.fetch("lab/x", head(loop, "lab/x"), ["config.json"], facts={"config.json": facts(CONFIG[::-1])})
    # And so is what the cache held before the catalogue was read.
    with pytest.raises(IntegrityError, match=r"model.safetensors .* has another sha256"):
        hub.fetch("lab/m", head(loop), ["model.safetensors"], facts={"model.safetensors": facts(WEIGHTS[::-1])})


def test_what_is_no_model_is_refused_before_its_weights_are_fetched(loop: LoopHub) -> None:
    with pytest.raises(InputError, match=r"no fingerprint\.safetensors in 'lab/m' at main"):
        hub.fetch("lab/m", "main", ["config.json", "model.safetensors", "fingerprint.safetensors"])
    loop.push("lab/m", {"config.json": b" " * (2**22 + 1)})
    with pytest.raises(InputError, match=r"config.json of 'lab/m' at main has 4194305 bytes, more than"):
        hub.fetch("lab/m", "main", ["config.json", "model.safetensors"])
    assert loop.requests("GET", "/resolve/") == []


# -- failures ----------------------------------------------------------------------------------------------------------


def fetch() -> bytes:
    return (hub.fetch("lab/m", "main", list(FILES)) / "model.safetensors").read_bytes()


def commit() -> bytes:
    hub.commit("lab/m", {"config.json": b"{}", "model.safetensors": WEIGHTS[::-1]}, "a commit")
    return WEIGHTS


READS = [("GET", "/revision/main"), ("POST", "/paths-info/"), ("HEAD", "/resolve/"), ("GET", "/resolve/"),
         ("GET", "/_cdn/")]  # fmt: skip
WRITES = [("GET", "/api/models/lab/m"), ("GET", "/revision/main"), ("POST", "/preupload/"), ("POST", "/objects/batch"),
          ("POST", "/lfs/verify"), ("PUT", "/_lfs/"), ("POST", "/commit/")]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "method", "path"), [(fetch, *where) for where in READS] + [(commit, *where) for where in WRITES]
)
def test_a_server_error_once_is_got_over(loop: LoopHub, call: Callable[[], bytes], method: str, path: str) -> None:
    loop.fail(method, path, status=500)
    commits = len(loop.repos["lab/m"].commits)
    assert call() == WEIGHTS
    assert 500 in [status for *_, status in loop.requests(method, path)]
    assert len(loop.repos["lab/m"].commits) - commits == (call is commit)


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [("GET", "/revision/main", fetch), ("POST", "/paths-info/", fetch), ("POST", "/commit/", commit)],
)
def test_a_server_error_for_ever_is_one_line(
    loop: LoopHub, method: str, path: str, call: Callable[[], bytes], tmp_path: Path
) -> None:
    before = held(loop)
    loop.fail(method, path, status=503, times=FOR_EVER)
    with pytest.raises(
        EnvironmentFault, match=r"answers 503 for 'lab/m'.*, also when asked again \(try again later\)$"
    ):
        call()
    assert held(loop) == before
    assert cached(tmp_path) == []


def test_a_retry_after_is_waited_for(loop: LoopHub) -> None:
    loop.fail("GET", "/revision/main", status=429, retry_after=1)
    start = time.perf_counter()
    assert fetch() == WEIGHTS
    assert 1 <= time.perf_counter() - start < 30


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("GET", "/revision/main", fetch),
        ("HEAD", "/resolve/", fetch),
        ("GET", "/_cdn/", fetch),
        ("GET", "/api/models/lab/m", commit),
        ("POST", "/preupload/", commit),
        ("POST", "/commit/", commit),
    ],
)
def test_nobody_waits_for_an_hour(loop: LoopHub, method: str, path: str, call: Callable[[], bytes]) -> None:
    """huggingface_hub itself would sleep for as long as it is told."""
    loop.fail(method, path, status=429, retry_after=3600, times=FOR_EVER)
    start = time.perf_counter()
    with pytest.raises(EnvironmentFault, match="asks to wait 3600 s"):
        call()
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(("method", "path", "call"), [("GET", "/revision/main", fetch), ("POST", "/commit/", commit)])
def test_a_hub_that_hangs_is_given_up(
    loop: LoopHub, monkeypatch: pytest.MonkeyPatch, method: str, path: str, call: Callable[[], bytes]
) -> None:
    monkeypatch.setattr(hub_patience, "TIMEOUTS", dict.fromkeys(hub_patience.TIMEOUTS, 0.3))
    loop.fail(method, path, hang=3, times=FOR_EVER)
    with pytest.raises(EnvironmentFault, match=r"the connection to .* failed for 'lab/m': ReadTimeout"):
        call()


def test_after_the_deadline_no_request_is_begun(loop: LoopHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_patience, "PATIENCE", 0.5)
    loop.fail("HEAD", "/resolve/", status=503, hang=0.6, times=FOR_EVER)  # each answer comes after the deadline
    loop.log.clear()
    with pytest.raises(EnvironmentFault, match="has not answered for"):
        fetch()
    assert len(loop.requests("HEAD", "/resolve/")) == 1


def test_a_download_that_breaks_is_resumed(loop: LoopHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub goes on from the last whole chunk, of 10 MiB; a shorter one makes the test short."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 30_000)
    loop.fail("GET", "/_cdn/", cut=100_000)
    assert fetch() == WEIGHTS
    assert [status for *_, status in loop.requests("GET", "/_cdn/")] == [200, 206]


def test_a_download_that_always_breaks_leaves_nothing(
    loop: LoopHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub_patience, "WAITS", ())
    loop.fail("GET", "/_cdn/", cut=0, times=FOR_EVER)
    with pytest.raises(EnvironmentFault, match=r"the connection to .* failed for 'lab/m' at [0-9a-f]{40}: Remote"):
        hub.fetch("lab/m", "main", ["model.safetensors"])
    assert cached(tmp_path) == []
    loop.faults.clear()
    assert fetch() == WEIGHTS


def test_no_hub_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_patience, "WAITS", ())
    with LoopHub() as gone:
        pass
    with gone.here(tmp_path), pytest.raises(EnvironmentFault, match=r"the connection to 127.0.0.1:.* HF_HUB_OFFLINE=1"):
        hub.resolve("lab/m")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/revision/main"), ("HEAD", "/resolve/"), ("POST", "/paths-info/")]
)
def test_a_login_page_in_between(loop: LoopHub, method: str, path: str) -> None:
    loop.fail(method, path, body=b"<html>log in</html>", times=FOR_EVER)
    with pytest.raises(
        EnvironmentFault, match=r"does not answer for 'lab/m'.* as the Hub does.*HF_ENDPOINT wrong"
    ) as caught:
        fetch()
    assert "\n" not in str(caught.value)


def test_a_password_in_the_endpoint_is_not_shown(loop: LoopHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", loop.url.replace("://", "://user:secret@"))
    with pytest.raises(InputError, match=r"^127.*does not accept") as caught:
        hub.resolve("lab/none")
    assert "secret" not in str(caught.value)
    assert hub_patience.address("lab/m", "v1") == f"{loop.url}/lab/m/tree/v1"


def gate(loop: LoopHub) -> None:
    loop.repos["lab/m"].gated = set()


def hide(loop: LoopHub) -> None:
    loop.repos["lab/m"].private = True


@pytest.mark.parametrize(
    ("token", "prepare", "call", "says"),
    [
        ("hf_expired", None, fetch, "does not accept the token.*`hf auth login`, or set HF_TOKEN"),
        ("hf_expired", None, commit, "does not accept the token"),
        (None, None, commit, "does not accept the token, or wants one"),
        ("hf_bob", None, commit, "the token may not do this with 'lab/m': You do not have write access"),
        ("hf_alice", gate, fetch, "'lab/m' is gated: ask for access at http://127.0.0.1:.*/lab/m"),
        (None, gate, fetch, "'lab/m' is gated"),
        ("hf_bob", hide, fetch, "no repository 'lab/m' at 127.0.0.1:.*, or it is private"),
        (None, hide, fetch, "no repository 'lab/m'"),
    ],
)
def test_who_may_not_is_told_why(
    loop: LoopHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    token: str | None,
    prepare: Callable[[LoopHub], None] | None,
    call: Callable[[], bytes],
    says: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    if prepare is not None:
        prepare(loop)
    before = held(loop)
    with pytest.raises(InputError, match=says) as refusal:
        call()
    assert token is None or token not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert held(loop) == before


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: hub.fetch("lab/nothing", "main", ["config.json"]), "no repository 'lab/nothing'"),
        (lambda: hub.fetch("lab/m", "v9", ["config.json"]), "no revision 'v9' in 'lab/m'"),
        (lambda: hub.fetch("lab/m", "0" * 40, ["config.json"]), f"no revision '{'0' * 40}' in 'lab/m'"),
        (lambda: hub.fetch("lab/m", "main", ["figures/none.svg"]), "no figures/none.svg in 'lab/m' at main"),
        (lambda: hub.commit("lab/m", {"a": b"a"}, "m", revision="0" * 40), "is a commit, and nothing can be added"),
        (lambda: hub.commit("lab/m", {"a": b"a"}, "m", revision="v1"), "'v1' is a tag of 'lab/m', and tags do not"),
        (lambda: hub.commit("lab/m", {"a": b"a"}, "m", private=True), "'lab/m' exists and is public"),
        (lambda: hub.commit("bob/m", {"a": b"a"}, "m"), "may not do this with 'bob/m': You don't have the rights"),
    ],
)
def test_what_is_not_there_is_named(loop: LoopHub, call: Callable[[], Any], says: str) -> None:
    loop.repos["lab/m"].tags["v1"] = head(loop)
    before = held(loop)
    with pytest.raises(InputError, match=says):
        call()
    assert held(loop) == before


# -- committing --------------------------------------------------------------------------------------------------------


def test_one_commit_with_additions_and_deletions(loop: LoopHub, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"new weights")
    before = len(loop.repos["lab/m"].commits)
    where, made = hub.commit("lab/m", {"model.safetensors": tmp_path / "w", "figures/a.svg": b"<svg/>"}, "two",
                             delete=["README.md"])  # fmt: skip
    assert (where, made) == (f"{loop.url}/lab/m", head(loop))
    assert len(loop.repos["lab/m"].commits) == before + 1
    assert held(loop) == {"config.json": CONFIG, "model.safetensors": b"new weights", "figures/a.svg": b"<svg/>"}
    assert loop.repos["lab/m"].commits[made].message == "two"
    assert loop.repos["lab/m"].commits[made].files["model.safetensors"].lfs


def test_new_repositories_and_branches_are_made(loop: LoopHub) -> None:
    hub.commit("alice/new", {"a": b"a"}, "first", private=True)
    assert loop.repos["alice/new"].private
    where, _ = hub.commit("alice/new", {"b": b"b"}, "second", private=True, revision="next")
    assert where == f"{loop.url}/alice/new/tree/next"
    assert held(loop, "alice/new") == {"a": b"a"}
    assert held(loop, "alice/new", "next") == {"a": b"a", "b": b"b"}
    hub.commit("alice/open", {"a": b"a"}, "first")
    assert not loop.repos["alice/open"].private


def test_a_stale_parent_publishes_nothing(loop: LoopHub) -> None:
    old = head(loop)
    loop.push("lab/m", {"other": b"other"})
    before = held(loop)
    with pytest.raises(
        hub.Moved, match=r"another commit came to 'lab/m' \(main\) in between, and nothing was published"
    ):
        hub.commit("lab/m", {"config.json": b"{}"}, "late", parent=old)
    assert held(loop) == before


@pytest.mark.parametrize("fault", [{"lose": True}, {"cut_upload": 50}])
@pytest.mark.parametrize("path", ["/commit/", "/_lfs/", "/preupload/", "/objects/batch", "/repos/create"])
def test_a_connection_lost_in_the_middle_publishes_once(loop: LoopHub, path: str, fault: dict[str, Any]) -> None:
    """Whether the request arrived or not: the branch gets one commit, and it is whole."""
    loop.fail("PUT" if path == "/_lfs/" else "POST", path, **fault)
    new = {"config.json": b"{}", "model.safetensors": WEIGHTS[::-1]}
    _, made = hub.commit("lab/new", new, "once")
    assert made == head(loop, "lab/new")
    assert len(loop.repos["lab/new"].commits) == 2
    assert held(loop, "lab/new") == new


def test_what_was_uploaded_before_a_failure_is_not_uploaded_again(loop: LoopHub) -> None:
    loop.fail("POST", "/commit/", status=500, times=FOR_EVER)
    before = held(loop)
    for _ in range(2):
        with pytest.raises(EnvironmentFault):
            hub.commit("lab/m", {"model.safetensors": WEIGHTS[::-1]}, "again")
    assert held(loop) == before
    loop.faults.clear()
    hub.commit("lab/m", {"model.safetensors": WEIGHTS[::-1]}, "again")
    assert len(loop.requests("PUT", "/_lfs/")) == 1


def test_of_two_publishers_at_once_each_is_whole_or_told(loop: LoopHub) -> None:
    rounds = 5
    start = threading.Barrier(2)

    def one(number: int) -> list[str]:
        said = []
        for turn in range(rounds):
            content = f"{number} {turn}".encode()
            start.wait()
            try:
                said.append(hub.commit("lab/m", {"a": content, "model.safetensors": content * 99}, str(content))[1])
            except hub.Moved:
                said.append("")
        return said

    with ThreadPoolExecutor(2) as pool:
        said = [commit for result in pool.map(one, range(2)) for commit in result]
    commits = loop.repos["lab/m"].commits
    made = [commit for commit in said if commit]
    assert len(made) == len(set(made)) >= rounds
    for commit in made:
        assert commits[commit].files["model.safetensors"].data == commits[commit].files["a"].data * 99
    assert len(commits) == 2 + len(made)


def test_by_xet_both_ways(tmp_path: Path) -> None:
    """The Hub's own way for large files; hf_xet's store on disk is no documented part of it."""
    hf_xet = pytest.importorskip("hf_xet")
    (tmp_path / "w").write_bytes(WEIGHTS)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    with LoopHub(xet=tmp_path / "store") as loop, loop.here(tmp_path / "home"):
        loop.objects[sha256] = WEIGHTS
        good = {"model.safetensors": facts(WEIGHTS)}
        hub.commit("alice/m", {"config.json": CONFIG, "model.safetensors": tmp_path / "w"}, "by xet", facts=good)
        assert loop.requests("PUT") == []
        (kept,) = hf_xet.hash_files([str(tmp_path / "w")])
        loop.xet_hashes[sha256] = kept.hash
        # From here on the Hub has nothing but what hf_xet keeps.
        loop.objects.clear()
        folder = hub.fetch("alice/m", "main", ["config.json", "model.safetensors"], facts=good)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert loop.requests("GET", "/_cdn/") == []
        assert len(loop.requests("GET", "/xet-read-token/")) == 1


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that speaks to the same Hub."""
    code = f"from icll_zoo import hub; from pathlib import Path; import hashlib\n{code}"
    env = {**os.environ, **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


FETCH = """
folder = hub.fetch('lab/m', 'main', ['config.json', 'model.safetensors', 'README.md'])
print(hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest())
"""


def test_processes_share_one_cache(loop: LoopHub, tmp_path: Path) -> None:
    started = [start(FETCH) for _ in range(4)]
    said = {process.communicate(timeout=60)[0].strip() for process in started}
    assert said == {hashlib.sha256(WEIGHTS).hexdigest()}
    assert [path for path in cached(tmp_path) if path.name.endswith(".incomplete")] == []


def test_offline_in_a_process_of_its_own(loop: LoopHub) -> None:
    hub.fetch("lab/m", "main", list(FILES))
    loop.log.clear()
    said, wrong = start(FETCH, HF_HUB_OFFLINE="1").communicate(timeout=60)
    assert (said.strip(), wrong) == (hashlib.sha256(WEIGHTS).hexdigest(), "")
    _, wrong = start("hub.fetch('lab/m', 'v2', ['config.json'])", HF_HUB_OFFLINE="1").communicate(timeout=60)
    assert "InputError: 'lab/m' at v2 is not in the cache, and HF_HUB_OFFLINE is set" in wrong
    assert loop.log == []


@pytest.mark.slow
def test_flipped_bytes_each_way(loop: LoopHub, tmp_path: Path) -> None:
    """On the way, and in the cache: none is ever used."""
    chosen = random.Random(0)
    for _ in range(50):
        name = chosen.choice([name for name in FILES if name != "README.md"])
        place = chosen.randrange(len(FILES[name]))
        loop.fail("GET", "/_cdn/" if name == "model.safetensors" else f"/{name}", flip=place, times=2)
        with pytest.raises(IntegrityError):
            hub.fetch("lab/m", "main", [name])
        assert cached(tmp_path) == []
        folder = hub.fetch("lab/m", "main", [name])
        data = bytearray(FILES[name])
        data[place] ^= 1 << chosen.randrange(8)
        (folder / name).resolve().write_bytes(bytes(data))
        loop.fail("GET", "", status=500, times=FOR_EVER)
        with pytest.raises(ZooError):
            hub.fetch("lab/m", head(loop), [name])
        loop.faults.clear()
        assert (hub.fetch("lab/m", "main", [name]) / name).read_bytes() == FILES[name]
        shutil.rmtree(tmp_path / "home")


@pytest.mark.slow
def test_killed_at_any_request_while_it_publishes(loop: LoopHub, tmp_path: Path) -> None:
    """kill -9 at each request in turn, which still arrives or is lost: the branch holds all or nothing, then all."""
    code = "hub.commit('lab/k', {'config.json': b'{}', 'model.safetensors': Path('w').read_bytes()}, 'once')"
    new = {"config.json": b"{}", "model.safetensors": os.urandom(1000)}
    points = 0
    for lost in (False, True):
        for number in range(20):
            loop.repos.pop("lab/k", None)
            loop.objects.clear()
            (tmp_path / "w").write_bytes(new["model.safetensors"])
            loop.log.clear()
            loop.faults.clear()
            process = start(code.replace("'w'", repr(str(tmp_path / "w"))))
            seen = iter(range(99))

            def kill(
                process: subprocess.Popen[str] = process,
                seen: Iterator[int] = seen,
                number: int = number,
                lost: bool = lost,
            ) -> None:
                if next(seen) == number:
                    process.kill()
                    process.wait()
                    if lost:
                        raise Dropped

            for method in ("GET", "POST", "PUT"):
                loop.fail(method, "", times=FOR_EVER, before=kill)
            process.communicate(timeout=60)
            if process.returncode == 0:
                break
            points += 1
            if "lab/k" in loop.repos and len(loop.repos["lab/k"].commits) > 1:
                assert held(loop, "lab/k") == new
            loop.faults.clear()
            # A request that the dead process had sent may still be under way.
            time.sleep(0.05)
            before = len(loop.repos["lab/k"].commits) if "lab/k" in loop.repos else 1
            done = start(code.replace("'w'", repr(str(tmp_path / "w"))))
            assert done.communicate(timeout=60) == ("", "")
            assert held(loop, "lab/k") == new
            assert len(loop.repos["lab/k"].commits) == max(before, 2)
            assert len(loop.requests("PUT", "/_lfs/")) <= 2
        assert points >= 8


@pytest.mark.slow
def test_killed_at_any_request_while_it_fetches(loop: LoopHub, tmp_path: Path) -> None:
    """kill -9 at each request in turn: what is in the cache is right, and the next time ends."""
    for number in range(20):
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        loop.faults.clear()
        process, seen = start(FETCH), iter(range(99))

        def kill(process: subprocess.Popen[str] = process, seen: Iterator[int] = seen, number: int = number) -> None:
            if next(seen) == number:
                process.kill()
                process.wait()

        for method in ("HEAD", "GET", "POST"):
            loop.fail(method, "", times=FOR_EVER, before=kill)
        process.communicate(timeout=60)
        for path in cached(tmp_path):
            assert path.name.endswith(".incomplete") or path.read_bytes() in FILES.values()
        if process.returncode == 0:
            break
        loop.faults.clear()
        assert start(FETCH).communicate(timeout=60)[0].strip() == hashlib.sha256(WEIGHTS).hexdigest()
    assert number >= 7


def test_the_clients_own_state_is_left_alone(loop: LoopHub) -> None:
    """Outside of `patiently` the shared client behaves as before."""
    from huggingface_hub.utils import get_session, logging

    level = logging.get_verbosity()
    fetch()
    assert logging.get_verbosity() == level
    client = get_session()
    assert client.timeout.read is None
    loop.fail("GET", "/whoami", status=429, retry_after=3600)
    assert client.get(f"{loop.url}/api/whoami-v2").status_code == 429


def test_it_is_imported_without_anything_heavy(tmp_path: Path) -> None:
    code = "import sys, icll_zoo.hub; sys.exit(str({'torch', 'huggingface_hub', 'httpx2', 'httpx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
    assert command("--version", cwd=tmp_path).code == 0
