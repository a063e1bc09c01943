"""A Hub on the loopback interface: models and datasets, branches, tags, LFS and a CDN, spoken to over real sockets.

    with LoopHub() as hub, hub.here(home):    # in this process; hub.environment(home) for those that it starts
        hub.fail("GET", "/config.json", status=503)
        zoo.load_model("hf-hub:alice/model")

huggingface_hub's own client and its command `hf` work against it. It keeps everything in memory, the datasets under
names such as datasets/alice/corpus, and speaks the LFS protocol or hf_xet's. Endpoints and headers:
https://huggingface.co/docs/hub/api and https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icll_zoo.testing.loophub_http import Server
from icll_zoo.testing.loophub_store import DATASETS, LFS, Blob, Repo

FOR_EVER = 2**31


@dataclass
class Fault:
    """What is done to the requests of a method whose path contains a text: see `LoopHub.fail`."""

    method: str
    path: str
    times: int
    status: int | None
    headers: Mapping[str, str]
    cut: int | None
    stall: float
    cut_upload: int | None
    flip: int | None
    hang: float
    lose: bool
    body: bytes | None
    before: Callable[[], Any] | None


class LoopHub:
    """A running Hub. `url` is its address, `log` every request as (method, path, status), `repos` what it holds.

    tokens: the name behind each token. writers: the namespaces that a name may write to, beside its own.
    xet: a folder for hf_xet's store on disk, instead of LFS. What lies there only hf_xet can read: bytes that a commit
    names must be in `objects` too, and are served from there but for those in `xet_hashes`, by their sha256.
    page: how many files a listing shows before it names the address of the next page.
    """

    def __init__(
        self,
        tokens: Mapping[str, str] | None = None,
        writers: Mapping[str, set[str]] | None = None,
        xet: str | Path | None = None,
    ) -> None:
        self.tokens = dict({"hf_alice": "alice", "hf_bob": "bob"} if tokens is None else tokens)
        self.writers = {name: {name, *(writers or {}).get(name, ())} for name in self.tokens.values()}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.xet, self.xet_hashes = xet, dict[str, str]()
        self.page = 1000
        self.log: list[tuple[str, str, int]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        # The CDN has an origin of its own: clients must see that the token is not for it.
        self._servers = [Server(self, cdn) for cdn in (False, True)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> LoopHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def environment(self, home: str | Path, token: str | None = "hf_alice") -> dict[str, str]:
        """The variables with which a process speaks to this Hub, and keeps its cache in `home`."""
        quiet = ("TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS", *(() if self.xet else ("XET",)))
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_TOKEN": token or "",
            **{f"HF_HUB_DISABLE_{name}": "1" for name in quiet},
        }

    @contextlib.contextmanager
    def here(self, home: str | Path, token: str | None = "hf_alice") -> Iterator[LoopHub]:
        """Let this process speak to it: the variables, and what huggingface_hub read of them when it was imported."""
        from huggingface_hub import constants

        wanted = self.environment(home, token)
        before, xet = {name: os.environ.get(name) for name in wanted}, constants.HF_HUB_DISABLE_XET
        os.environ.update(wanted)
        constants.HF_HUB_DISABLE_XET = self.xet is None
        try:
            yield self
        finally:
            constants.HF_HUB_DISABLE_XET = xet
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            importlib.import_module("huggingface_hub.utils").close_session()

    def fail(
        self,
        method: str,
        path: str,
        *,
        times: int = 1,
        status: int | None = None,
        retry_after: int | None = None,
        cut: int | None = None,
        stall: float = 0.0,
        cut_upload: int | None = None,
        flip: int | None = None,
        hang: float = 0.0,
        lose: bool = False,
        body: bytes | None = None,
        before: Callable[[], Any] | None = None,
    ) -> None:
        """Let the next `times` requests of `method` whose path contains `path` go wrong.

        status: answer that. cut: close the connection after so many bytes of the body, and stall: seconds later.
        cut_upload: close it after so many bytes of the request. flip: the byte of the body of which one bit is wrong.
        hang: seconds before the answer. lose: do what was asked and close the connection instead of answering. body:
        answer that instead, as a login page does. before: called first.
        """
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        made = Fault(method, path, times, status, headers, cut, stall, cut_upload, flip, hang, lose, body, before)
        with self.lock:
            self.faults.append(made)

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that is due for a request; it is used up."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault
        return None

    def create(self, repo: str, *, private: bool = False, gated: set[str] | None = None) -> Repo:
        """An empty repository with its first commit, as the Hub makes it."""
        rules = "".join(f"*{ending} filter=lfs -text\n" for ending in LFS).encode()
        with self.lock:
            made = self.repos[repo] = Repo(repo.removeprefix(DATASETS), private, gated)
            made.add("main", "initial commit", {".gitattributes": Blob(rules, False)})
        return made

    def push(self, repo: str, files: Mapping[str, bytes], *, branch: str = "main", message: str = "a push") -> str:
        """A commit of somebody else: these files beside those that are there. Gives its 40 hex digits."""
        with self.lock:
            held = self.repos[repo]
            base = held.find(branch)
            added = {path: Blob(data, path.endswith(LFS)) for path, data in files.items()}
            return held.add(branch, message, {**(base.files if base else {}), **added}).oid

    def requests(self, method: str = "", path: str = "") -> list[tuple[str, str, int]]:
        """The requests of a method whose path contains a text."""
        with self.lock:
            return [line for line in self.log if line[0].startswith(method) and path in line[1]]
