"""The Hugging Face Hub: resolve a revision, fetch files into the cache, send a commit: all by huggingface_hub.

The endpoint, the token, the cache and offline mode are huggingface_hub's own: HF_ENDPOINT, HF_TOKEN or `hf auth login`,
HF_HUB_CACHE or HF_HOME, HF_HUB_OFFLINE. What is added here:

* every failure is one line, with the exit code of errors.py;
* requests that huggingface_hub sends once (metadata, commits) are repeated, and none of its waits is endless;
* a file's bytes are compared with its name in the cache, which is its hash, and with the caller's facts, at every use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from icll_zoo import files
from icll_zoo._version import __version__
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError, ZooError, printable
from icll_zoo.hub_patience import REPEATED, address, cause_of, endpoint, host, not_cached, offline, patiently, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from icll_zoo.model_config import FileFacts

Content = Path | bytes

COMMIT = re.compile(r"[0-9a-f]{40}\Z")
REPO = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?/[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?\Z")
REVISION = re.compile(r"\w[\w./-]{0,199}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Moved(EnvironmentFault):
    """Another commit came to the branch between reading and writing it. Nothing was published."""


@dataclass(frozen=True)
class Remote:
    """A file in a repository: its size, git's name for it, and its sha256 where it is kept as LFS."""

    bytes: int
    oid: str
    sha256: str | None

    def holds(self, content: Content) -> bool:
        """Whether its bytes are these."""
        found = digest(content, git=self.sha256 is None)
        return found == (self.oid if self.sha256 is None else self.sha256)


# -- names -----------------------------------------------------------------------------------------------------------


def parse(text: str) -> tuple[str, str]:
    """(repo, revision) of a text such as org/name@revision; main if there is none. InputError for anything else."""
    repo, at, revision = text.partition("@")
    if not REPO.match(repo) or ".." in repo or "--" in repo:
        raise InputError(f"{printable(repr(repo), 120)} is not a repository", hint="say org/name or org/name@revision")
    if at and (not REVISION.match(revision) or ".." in revision):
        raise InputError(
            f"{printable(repr(revision), 120)} is not a revision",
            hint="say a branch, a tag or a commit's 40 digits",
        )
    return repo, revision if at else "main"


def cache() -> str | None:
    """The folder of the cache; None for huggingface_hub's default."""
    return os.environ.get("HF_HUB_CACHE") or None


def api() -> HfApi:
    """huggingface_hub's client; token=None is how it reads the token itself."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), token=None, library_name="icll-zoo", library_version=__version__)


# -- reading ---------------------------------------------------------------------------------------------------------


def resolve(repo: str, revision: str = "main") -> str:
    """The commit, 40 hex digits, that a revision is; in offline mode as the cache knows it. ZooErrors otherwise."""
    if COMMIT.match(revision):
        return revision
    if offline():
        from huggingface_hub import try_to_load_from_cache

        known = try_to_load_from_cache(repo, "config.json", cache_dir=cache(), revision=revision)
        if not isinstance(known, str):
            raise not_cached(repo, revision)
        return Path(known).parent.name
    info = patiently(repo, revision, lambda: api().model_info(repo, revision=revision, timeout=10))
    if not COMMIT.match(info.sha or ""):
        raise EnvironmentFault(f"{host()} does not say which commit {revision!r} of {repo!r} is")
    return str(info.sha)


def fetch(repo: str, revision: str, names: Collection[str], *, facts: Mapping[str, FileFacts] | None = None) -> Path:
    """The folder of huggingface_hub's cache that holds the named files of a revision, each compared with its hash.

    facts: the size and sha256 that files must have; they are checked before anything is downloaded, where the Hub says
    so, and before anything is read. A file that is damaged in the cache is fetched once more.
    Raises IntegrityError for a file of other bytes, InputError for one that is not there, EnvironmentFault for the
    network.
    """
    from huggingface_hub import try_to_load_from_cache

    facts = facts or {}
    commit = resolve(repo, revision)
    where = f"{repo!r} at {revision}"
    cached = {n: try_to_load_from_cache(repo, n, cache_dir=cache(), revision=commit) for n in names}
    missing = [name for name, path in cached.items() if not isinstance(path, str)]
    if missing and offline():
        raise not_cached(repo, revision)
    if missing:
        check_before(where, repo, commit, missing, facts)
    folder = Path()
    for name in names:
        path = download(repo, commit, name)
        reason = damage(path, facts.get(name))
        if reason and not offline():
            path = download(repo, commit, name, force=True)
            reason = damage(path, facts.get(name))
            if reason:
                discard(path)
        if reason:
            hint = "the Hub, or what lies between, sends other bytes than it says"
            raise IntegrityError(
                f"{name} of {where} {reason}", hint="it is damaged in the cache; go online once" if offline() else hint
            )
        folder = path.parents[len(PurePosixPath(name).parts) - 1]
    if revision != commit and not offline():
        # Only now: what offline mode finds under a branch's or a tag's name is always whole.
        with contextlib.suppress(OSError):
            reference = folder.parent.parent / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(reference, commit)
    return folder


def check_before(where: str, repo: str, commit: str, names: Collection[str], facts: Mapping[str, FileFacts]) -> None:
    """Refuse, before a download, files that are not there, that are not what facts say, or texts of absurd size."""
    held = listing(repo, commit, names)
    for name in names:
        if name not in held:
            raise InputError(f"no {name} in {where}", hint="`icll-zoo publish` writes it with every model")
        remote, fact = held[name], facts.get(name)
        if fact is not None and (remote.bytes != fact.bytes or remote.sha256 not in (None, fact.sha256)):
            raise IntegrityError(
                f"{name} of {where} is another file than the one that is catalogued", hint="the repository has changed"
            )
        if not name.endswith(".safetensors") and remote.bytes > files.TEXT_LIMIT:
            raise InputError(f"{name} of {where} has {remote.bytes} bytes, more than {files.TEXT_LIMIT}")


def listing(repo: str, commit: str, names: Collection[str] | None = None) -> dict[str, Remote]:
    """The files of a commit by path; only those of `names` if given, without those that are not there."""

    def ask() -> list[Any]:
        if names is None:
            return list(api().list_repo_tree(repo, recursive=True, revision=commit))
        return list(api().get_paths_info(repo, list(names), revision=commit))

    return {
        item.path: Remote(item.size, item.blob_id, item.lfs.sha256 if item.lfs else None)
        for item in patiently(repo, commit, ask)
        if hasattr(item, "blob_id")  # a folder has none
    }


def download(repo: str, commit: str, name: str, *, force: bool = False) -> Path:
    """A file of a commit in the cache, fetched if need be. A broken download is resumed."""
    from huggingface_hub import hf_hub_download

    def ask() -> str:
        made: Any = hf_hub_download(
            repo,
            name,
            revision=commit,
            endpoint=endpoint(),
            cache_dir=cache(),
            token=None,
            force_download=force,
            local_files_only=offline(),
            library_name="icll-zoo",
            library_version=__version__,
        )
        return str(made)

    return Path(patiently(repo, commit, ask))


def damage(path: Path, facts: FileFacts | None) -> str:
    """What is wrong with the bytes of a cached file; an empty string if nothing is.

    The cache keeps a file under its ETag: a sha256 for LFS, git's name otherwise.
    """
    if facts is not None and path.stat().st_size != facts.bytes:
        return f"has {path.stat().st_size} bytes and must have {facts.bytes}"
    kept = path.readlink().name if path.is_symlink() else ""
    wanted = {facts.sha256} if facts is not None else set()
    wanted |= {kept} if SHA256.match(kept) else set()
    if wanted and wanted != {digest(path, git=False)}:
        return "has another sha256 than it must"
    if COMMIT.match(kept) and digest(path, git=True) != kept:
        return "has another hash than the Hub says"
    return ""


def digest(content: Content, *, git: bool) -> str:
    """The sha256 of some bytes, or the name that git gives a blob of them."""
    if not git:
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else files.sha256_of(content)
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    found = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if isinstance(content, bytes):
        found.update(content)
        return found.hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, lambda: found).hexdigest()


def discard(path: Path) -> None:
    """Take a file out of the cache: the name in the snapshot, and the bytes that it points to."""
    with contextlib.suppress(OSError):
        Path(os.path.realpath(path)).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


# -- writing ---------------------------------------------------------------------------------------------------------


def prepare(repo: str, *, private: bool = False, revision: str = "main") -> str:
    """Make the repository and the branch if they are not there, and give the branch's newest commit.

    Raises InputError for a revision that is no branch, or if `private` is asked of a public repository.
    """
    if COMMIT.match(revision):
        raise InputError(f"{revision!r} is a commit, and nothing can be added to it", hint="name a branch")
    if offline():
        raise InputError(f"cannot publish {repo!r} while HF_HUB_OFFLINE is set")
    if not patiently(repo, "main", lambda: api().repo_exists(repo)):
        # None leaves it to the organisation's default.
        patiently(repo, "main", lambda: api().create_repo(repo, private=private or None, exist_ok=True))
    elif private and not patiently(repo, "main", lambda: api().model_info(repo, timeout=10)).private:
        raise InputError(f"{repo!r} exists and is public", hint="leave out --private, or make it private on the Hub")
    if revision != "main":
        refs = patiently(repo, revision, lambda: api().list_repo_refs(repo))
        if revision in {tag.name for tag in refs.tags}:
            raise InputError(f"{revision!r} is a tag of {repo!r}, and tags do not move", hint="name a branch")
        if revision not in {branch.name for branch in refs.branches}:
            patiently(repo, revision, lambda: api().create_branch(repo, branch=revision, exist_ok=True))
    return resolve(repo, revision)


def commit(
    repo: str,
    contents: Mapping[str, Content],
    message: str,
    *,
    private: bool = False,
    revision: str = "main",
    parent: str | None = None,
    delete: Collection[str] = (),
    facts: Mapping[str, FileFacts] | None = None,
) -> tuple[str, str]:
    """Send files in one commit on top of `parent`, all or none, and give the address and the commit.

    parent: what the branch must still be; its newest commit by default. If the answer is lost, the branch is looked at
    before anything is sent again, so that nothing is published twice. facts: the sha256 that files must have once they
    are uploaded, as they may change in the meantime.
    Raises Moved if another commit came in between.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    base = parent or prepare(repo, private=private, revision=revision)

    def send() -> str:
        client = api()
        added = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in contents.items()
        ]
        # One by one, and so in this thread, where the limits on waiting hold.
        for operation in added:
            client.preupload_lfs_files(repo, [operation], revision=revision, num_threads=1)
            fact = (facts or {}).get(operation.path_in_repo)
            if fact is not None and operation.upload_info.sha256.hex() != fact.sha256:
                raise EnvironmentFault(
                    f"{operation.path_in_repo} changed while it was sent, and nothing was published",
                    hint="publish again",
                )
        removed = [CommitOperationDelete(path, is_folder=False) for path in delete]
        made = client.create_commit(
            repo, [*added, *removed], commit_message=message, revision=revision, parent_commit=base, num_threads=1
        )
        return str(made.oid)

    def attempt() -> str:
        try:
            return send()
        except Exception as error:
            status = status_of(cause_of(error))
            if isinstance(error, ZooError) or (status is not None and status not in (*REPEATED, 412)):
                raise
            newest = base
            with contextlib.suppress(Exception):
                newest = str(api().model_info(repo, revision=revision, timeout=10).sha)
                if newest != base and agrees(repo, newest, contents, delete):
                    return newest
            if status == 412 or (status == 409 and newest != base):
                raise Moved(
                    f"another commit came to {repo!r} ({revision}) in between, and nothing was published",
                    hint="look at it, then publish again",
                ) from error
            raise

    return address(repo, revision), patiently(repo, revision, attempt)


def agrees(repo: str, commit: str, contents: Mapping[str, Content], delete: Collection[str]) -> bool:
    """Whether a commit holds exactly these files, whatever others it holds."""
    held = listing(repo, commit)
    return all(path in held and held[path].holds(content) for path, content in contents.items()) and not any(
        path in held for path in delete
    )
