"""A corpus in a dataset repository of the Hub: its revision pinned once, its files fetched one at a time.

Nothing goes into huggingface_hub's cache, since a corpus may be larger than the disk. Endpoint, token, offline mode,
patience and errors are those of `icll_zoo.hub`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from pathlib import Path, PurePosixPath
from typing import Any

from icll_zoo import files, hub
from icll_zoo._version import __version__
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError, printable
from icll_zoo.hub_patience import endpoint, host, offline, patiently

PREFIX = "hf-hub:"
PATIENCE = 300.0
"""Seconds. The Hub counts requests in windows of five minutes, and whoever has had too many waits for the next one:
https://huggingface.co/docs/hub/rate-limits."""


def parse_dataset(source: str) -> tuple[str, str] | None:
    """(repository, revision) of a text such as hf-hub:org/name@revision; None without that prefix.

    The revision is main if there is none. Raises InputError for what is no repository or no revision.
    """
    return hub.parse(source.removeprefix(PREFIX)) if source.startswith(PREFIX) else None


def pin_dataset(repo: str, revision: str = "main") -> tuple[str, dict[str, tuple[int, str]]]:
    """The commit that a revision is now, and by path the size and the hash of each of its files.

    The hash has 64 hex digits for a sha256 and 40 for git's name of a blob: what is kept as LFS has the first one.
    Raises InputError if there is no such repository or revision, if the token may not see it, or offline;
    EnvironmentFault for the network.
    """
    name = shown(repo)
    if offline():
        raise InputError(f"the files of {name!r} cannot be listed while HF_HUB_OFFLINE is set", hint="unset it")
    commit = revision
    if not hub.COMMIT.match(revision):
        info = patiently(name, revision, lambda: hub.api().dataset_info(repo, revision=revision, timeout=10), PATIENCE)
        commit = str(info.sha)

    def ask() -> list[Any]:
        return list(hub.api().list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset"))

    held = {
        item.path: (item.size, item.lfs.sha256 if item.lfs else item.blob_id)
        for item in patiently(name, commit, ask, PATIENCE)
        if hasattr(item, "blob_id")  # a folder has none
    }
    if not hub.COMMIT.match(commit) or any(
        not (hub.SHA256 if len(wanted) == 64 else hub.COMMIT).match(wanted) for _, wanted in held.values()
    ):
        raise EnvironmentFault(f"{host()} does not say which commit {revision!r} of {name!r} is, or what it holds")
    return commit, held


def fetch_dataset_file(repo: str, commit: str, path: str, size: int, wanted: str, folder: Path) -> Path:
    """A file of a commit below a folder, under its path there; one that is there with the right bytes is left alone.

    size, wanted: bytes and hash, as `pin_dataset` gives them. Nothing stands under the file's name that is not whole
    and has not been compared with them; what a killed process leaves behind is called `.HASH.HOST-PID.partial`.
    Bytes of another hash are fetched once more, then they are an IntegrityError. Raises InputError for a file that is
    not on the Hub, that the token may not have, or that is not here in offline mode; EnvironmentFault for the network
    and the disk.
    """
    what = f"{printable(repr(path), 200)} of {shown(repo)!r} at {commit}"
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/") or "\\" in path or not path.isprintable():
        raise InputError(f"{what} has a name that this machine does not take")
    target = folder / path
    with files.disk_faults("a file from the Hub", target):
        reason = difference(target, size, wanted) if target.is_file() else "is not on this disk"
        if not reason:
            return target
        if offline():
            raise InputError(f"{what} {reason}, and HF_HUB_OFFLINE is set", hint="unset it")
        key = hashlib.sha256(path.encode()).hexdigest()[:16]
        partial = folder / f".{key}.{socket.gethostname()}-{os.getpid()}.partial"
        try:
            for again in (False, True):
                found = download(repo, commit, path, partial, again)
                reason = difference(found, size, wanted)
                if not reason:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    found.replace(target)
                    return target
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise IntegrityError(
        f"{what} {reason}, also when it is fetched again", hint="the Hub, or what lies between, sends other bytes"
    )


def download(repo: str, commit: str, path: str, folder: Path, again: bool) -> Path:
    """A file of a commit below a folder, of whatever bytes; a broken download is resumed. again: past every cache."""
    from huggingface_hub import hf_hub_download

    def ask() -> str:
        try:
            made: Any = hf_hub_download(
                repo,
                path,
                repo_type="dataset",
                revision=commit,
                endpoint=endpoint(),
                local_dir=folder,
                token=None,
                force_download=again,
                library_name="icll-zoo",
                library_version=__version__,
            )
            return str(made)
        except OSError as error:
            if error.errno is None:  # the network's, and not the disk's
                raise
            with files.disk_faults("a file from the Hub", folder):
                raise

    return Path(patiently(shown(repo), commit, ask, PATIENCE))


def difference(path: Path, size: int, wanted: str) -> str:
    """What is wrong with the bytes of a file; an empty text if nothing is."""
    if (found := path.stat().st_size) != size:
        return f"has {found} bytes and must have {size}"
    return "" if hub.digest(path, git=len(wanted) == 40) == wanted else "has another hash than the Hub lists"


def shown(repo: str) -> str:
    """A dataset repository as messages name it and as addresses end."""
    return f"datasets/{repo}"
