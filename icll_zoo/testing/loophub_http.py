"""How a Hub on the loopback interface answers: its endpoints, and what a fault makes of an answer. See loophub.py."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from icll_zoo.testing.loophub_store import DATASETS, LFS, Blob, Commit, Repo, namespace

if TYPE_CHECKING:
    from icll_zoo.testing.loophub import LoopHub


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str = "", **more: Any) -> None:
        self.status, self.message, self.code, self.more = status, message, code, more


class Dropped(Exception):
    """The connection is closed without an answer."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: LoopHub, cdn: bool) -> None:
        self.hub, self.is_cdn = hub, cdn
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    flip: int | None
    cut: int | None
    stall: float

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # -- one request -------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer, or do what a fault says."""
        _hub, fault = self.server.hub, self.server.hub.fault(self.command, self.path)
        self.flip, self.cut, self.stall = None, None, 0.0
        self.noted = False
        try:
            if fault is not None:
                if fault.cut_upload is not None:
                    self.rfile.read(min(fault.cut_upload, int(self.headers.get("Content-Length", fault.cut_upload))))
                    raise Dropped
                time.sleep(fault.hang)
                if fault.before is not None:
                    fault.before()
                self.flip, self.cut, self.stall = fault.flip, fault.cut, fault.stall
            body = self.read_body()
            if fault is not None and fault.status is not None:
                self.answer_json({"error": f"status {fault.status} on purpose"}, fault.status, fault.headers)
                return
            if fault is not None and fault.body is not None:
                self.answer(fault.body, 200, {"Content-Type": "text/html"})
                return
            status, headers, made = self.route(body)
            if fault is not None and fault.lose:
                raise Dropped
            self.answer(made, status, headers)
        except Refused as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.answer_json({"error": refusal.message, **refusal.more}, refusal.status, headers)
        except Dropped:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        finally:
            self.note(0)

    def note(self, status: int) -> None:
        """Write the request down, once: before its answer is on the way, or 0 where there was none."""
        if not self.noted:
            self.noted = True
            with self.server.hub.lock:
                self.server.hub.log.append((self.command, self.path, status))

    def read_body(self) -> bytes:
        """The request's body, of a known length or in chunks."""
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        """Send a whole answer, or as much of it as the fault allows."""
        if self.flip is not None and body:
            at = self.flip % len(body)
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        self.note(status)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if self.cut is None else body[: self.cut])
        if self.cut is not None and self.cut < len(body):
            self.wfile.flush()
            time.sleep(self.stall)
            raise Dropped

    def answer_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.answer(body, status, {"Content-Type": "application/json", **(headers or {})})

    # -- who asks for what -------------------------------------------------------------------------------------

    def user(self) -> str | None:
        """The name behind the token; None without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in self.server.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.server.hub.tokens[token]

    def readable(self, name: str) -> Repo:
        """A repository that the user may see."""
        user, repo = self.user(), self.server.hub.repos.get(name)
        allowed = user is not None and namespace(name) in self.server.hub.writers[user]
        if repo is None or (repo.private and not allowed):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, name: str) -> Repo:
        repo = self.readable(name)
        user = self.user()
        if user is None:
            raise Refused(401, "You must be logged in to write")
        if namespace(name) not in self.server.hub.writers[user]:
            raise Refused(403, "You do not have write access to this repository")
        return repo

    def at(self, repo: Repo, revision: str) -> Commit:
        if (commit := repo.find(unquote(revision))) is None:
            raise Refused(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit

    def route(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """The status, headers and body of the answer."""
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query, keep_blank_values=True).items()}
        for method, pattern, call in CDN_ROUTES if self.server.is_cdn else ROUTES:
            # A file is asked for by HEAD and by GET.
            if self.command in method.split("|") and (match := re.fullmatch(pattern, split.path)):
                with self.server.hub.lock:
                    made = call(self, body, *match.groups())
                if isinstance(made, tuple):
                    return made
                return 200, {"Content-Type": "application/json"}, json.dumps(made).encode()
        raise Refused(404, f"no {self.command} {split.path} here")

    # -- endpoints ---------------------------------------------------------------------------------------------

    def whoami(self, _: bytes) -> Any:
        if (user := self.user()) is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        orgs = [{"name": name} for name in sorted(self.server.hub.writers[user] - {user})]
        return {"type": "user", "name": user, "orgs": orgs, "auth": {"accessToken": {"role": "write"}}}

    def create_repo(self, body: bytes) -> Any:
        asked = json.loads(body)
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        kind = asked.get("type") or "model"
        name = f"{DATASETS if kind == 'dataset' else ''}{asked.get('organization') or user}/{asked['name']}"
        if namespace(name) not in self.server.hub.writers[user]:
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {name!r}")
        url = f"{self.server.hub.url}/{name}"
        if name in self.server.hub.repos:
            raise Refused(409, f"You already created this {kind} repo", url=url)
        self.server.hub.create(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": url, "name": name.removeprefix(DATASETS)}

    def validate_yaml(self, body: bytes) -> Any:
        text = json.loads(body)["content"]
        try:
            matter = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
        except (yaml.YAMLError, IndexError) as error:
            raise Refused(400, "bad YAML", errors=[{"message": str(error)}], warnings=[]) from error
        return {"errors": [], "warnings": [] if matter else [{"message": "empty or missing yaml metadata"}]}

    def preupload(self, body: bytes, name: str, revision: str) -> Any:
        held, told = self.at(self.writable(name), revision).files, []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS) or file["size"] > 10_000_000 else "regular"
            oid = held[path].etag if path in held else None
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": told}

    def lfs_batch(self, body: bytes, name: str) -> Any:
        self.writable(name)
        hub, made = self.server.hub, []
        for item in json.loads(body)["objects"]:
            upload = {"href": f"{hub.cdn}/_lfs/{item['oid']}"}
            verify = {"href": f"{hub.url}/{name}.git/info/lfs/verify"}
            missing = item["oid"] not in hub.objects
            made.append({**item, **({"actions": {"upload": upload, "verify": verify}} if missing else {})})
        return {"transfer": "basic", "objects": made}

    def lfs_put(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the bytes have another sha256")
        self.server.hub.objects[oid] = body
        return {}

    def lfs_verify(self, body: bytes, name: str) -> Any:
        self.writable(name)
        asked = json.loads(body)
        if len(self.server.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "no such object")
        return {}

    def xet_token(self, _: bytes, name: str, kind: str, __: str) -> Any:
        self.writable(name) if kind == "write" else self.readable(name)
        store, until = f"local://{self.server.hub.xet}", int(time.time()) + 3600
        told = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)}
        return 200, told, json.dumps({"casUrl": store, "accessToken": "xet", "exp": until}).encode()

    def commit(self, body: bytes, name: str, revision: str) -> Any:
        repo, branch = self.writable(name), unquote(revision)
        if branch not in repo.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = repo.commits[repo.branches[branch]]
        files, summary = dict(head.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            path = value.get("path", "")
            if key == "header":
                summary = value["summary"]
                if value.get("parentCommit") not in (None, head.oid):
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[path] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.server.hub.objects:
                    raise Refused(400, f"LFS object {value['oid']} was not uploaded")
                files[path] = Blob(self.server.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            elif key == "deletedFolder":
                files = {held: blob for held, blob in files.items() if not held.startswith(f"{path.rstrip('/')}/")}
        made = repo.add(branch, summary, files)
        url = f"{self.server.hub.url}/{name}/commit/{made.oid}"
        return {"success": True, "commitOid": made.oid, "commitUrl": url, "pullRequestUrl": None}

    def repository(self, _: bytes, name: str, revision: str | None = None) -> Any:
        repo = self.readable(name)
        return self.shown(repo, self.at(repo, revision or "main"))

    def models(self, _: bytes) -> Any:
        found = []
        for name in sorted(name for name in self.server.hub.repos if not name.startswith(DATASETS)):
            with contextlib.suppress(Refused):
                found.append(self.shown(repo := self.readable(name), self.at(repo, "main")))
        for key, value in self.query.items():
            if key == "author":
                found = [model for model in found if model["id"].startswith(f"{value}/")]
            elif key == "search":
                found = [model for model in found if value in model["id"]]
            elif key == "filter":
                found = [model for model in found if value in model["tags"]]
        return found

    def shown(self, repo: Repo, commit: Commit) -> dict[str, Any]:
        """What the Hub tells of a repository; its tags are those of its card."""
        card = commit.files["README.md"].data.decode() if "README.md" in commit.files else ""
        matter = (yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else None) or {}
        library = [matter["library_name"]] if "library_name" in matter else []
        return {
            "id": repo.id,
            "modelId": repo.id,
            "sha": commit.oid,
            "private": repo.private,
            "gated": False if repo.gated is None else "manual",
            "library_name": matter.get("library_name"),
            "tags": [*matter.get("tags", ()), *library],
            "cardData": matter,
            "siblings": [{"rfilename": path} for path in commit.files],
        }

    def tree(self, _: bytes, name: str, revision: str) -> Any:
        """The files in the order of their names, a page at a time; the header Link says where the next page is."""
        files = sorted(self.at(self.readable(name), revision).files.items())
        begin, page = int(self.query.get("cursor", 0)), self.server.hub.page
        shown = json.dumps([blob.listed(path) for path, blob in files[begin : begin + page]]).encode()
        headers = {"Content-Type": "application/json"}
        if begin + page < len(files):
            where = f"{self.server.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={begin + page}"
            headers["Link"] = f'<{where}>; rel="next"'
        return 200, headers, shown

    def paths_info(self, body: bytes, name: str, revision: str) -> Any:
        held = self.at(self.readable(name), revision).files
        if "json" in self.headers.get("Content-Type", ""):
            asked = json.loads(body)["paths"]
        else:
            asked = parse_qs(body.decode()).get("paths", [])
        return [held[path].listed(path) for path in asked if path in held]

    def refs(self, _: bytes, name: str) -> Any:
        repo = self.readable(name)

        def listed(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": oid} for ref, oid in refs.items()]

        return {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}

    def commits(self, _: bytes, name: str, revision: str) -> Any:
        repo = self.readable(name)
        found: list[dict[str, Any]] = []
        commit: Commit | None = self.at(repo, revision)
        while commit is not None:
            date = "2026-01-01T00:00:00.000Z"
            found.append({"id": commit.oid, "title": commit.message, "message": "", "date": date, "authors": []})
            commit = repo.commits.get(commit.parent or "")
        return found

    def add_branch(self, body: bytes, name: str, branch: str) -> Any:
        repo, branch = self.writable(name), unquote(branch)
        if branch in (*repo.branches, *repo.tags):
            raise Refused(409, "Reference already exists")
        repo.branches[branch] = self.at(repo, json.loads(body or b"{}").get("startingPoint") or "main").oid
        return {}

    def add_tag(self, body: bytes, name: str, revision: str) -> Any:
        repo, tag = self.writable(name), json.loads(body)["tag"]
        if tag in (*repo.branches, *repo.tags):
            raise Refused(409, "Reference already exists")
        repo.tags[tag] = self.at(repo, revision).oid
        return {}

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> Any:
        repo, path = self.readable(name), unquote(path)
        user = self.user()
        if repo.gated is not None and user not in repo.gated:
            raise Refused(403 if user else 401, f"Access to {name} is restricted", "GatedRepo")
        commit = self.at(repo, revision)
        if (blob := commit.files.get(path)) is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return self.ranged(blob.data, headers)
        linked = {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        self.server.hub.objects[blob.sha256] = blob.data
        if blob.sha256 in self.server.hub.xet_hashes:
            kind = "" if name.startswith(DATASETS) else "models/"
            token = f"{self.server.hub.url}/api/{kind}{name}/xet-read-token/{commit.oid}"
            linked |= {"X-Xet-Hash": self.server.hub.xet_hashes[blob.sha256], "Link": f'<{token}>; rel="xet-auth"'}
        place = f"{self.server.hub.cdn}/_cdn/{blob.sha256}/{path}"
        return 302, {**headers, **linked, "Location": place}, b""

    def fetch(self, _: bytes, sha256: str) -> Any:
        if "Authorization" in self.headers:
            raise Refused(400, "the token was sent to another host than the Hub")
        return self.ranged(self.server.hub.objects[sha256], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def ranged(self, data: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """All of a file, or from the byte on at which a broken download wants to go on."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return 200, headers, data
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        where = f"bytes {first}-{last}/{len(data)}"
        return 206, {**headers, "Content-Range": where}, data[first : last + 1]


NAME = rf"((?:{DATASETS})?[^/]+/[^/]+)"
REPO = rf"/api/(?:models/|(?={DATASETS})){NAME}"
Route = tuple[str, str, Callable[..., Any]]
ROUTES: tuple[Route, ...] = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create_repo),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"{REPO}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", rf"/{NAME}\.git/info/lfs/verify", Handler.lfs_verify),
    ("GET", rf"{REPO}/xet-(write|read)-token/([^/]+)", Handler.xet_token),
    ("POST", rf"{REPO}/commit/([^/]+)", Handler.commit),
    ("GET", REPO, Handler.repository),
    ("GET", rf"{REPO}/revision/([^/]+)", Handler.repository),
    ("GET", "/api/models", Handler.models),
    ("GET", rf"{REPO}/tree/([^/]+)", Handler.tree),
    ("POST", rf"{REPO}/paths-info/([^/]+)", Handler.paths_info),
    ("GET", rf"{REPO}/refs", Handler.refs),
    ("GET", rf"{REPO}/commits/([^/]+)", Handler.commits),
    ("POST", rf"{REPO}/branch/([^/]+)", Handler.add_branch),
    ("POST", rf"{REPO}/tag/([^/]+)", Handler.add_tag),
    ("HEAD|GET", rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
)
CDN_ROUTES: tuple[Route, ...] = (
    ("PUT", r"/_lfs/([0-9a-f]{64})", Handler.lfs_put),
    ("HEAD|GET", r"/_cdn/([0-9a-f]{64})/.+", Handler.fetch),
)
