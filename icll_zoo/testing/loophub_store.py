"""What a Hub on the loopback interface keeps: repositories of commits of files. See loophub.py."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def git_oid(data: bytes) -> str:
    """The name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file's bytes, and whether they are kept as LFS."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """What git calls it: for LFS that is the pointer's name."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return git_oid(pointer.encode() if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def listed(self, path: str) -> dict[str, Any]:
        """As /tree and /paths-info show it."""
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    message: str
    files: Mapping[str, Blob]


LFS = (".safetensors", ".parquet", ".gz", ".zst")
"""The files that are kept as LFS whatever their size, by how their names end."""
DATASETS = "datasets/"
"""What the names of dataset repositories begin with, here and in the Hub's addresses."""


def namespace(name: str) -> str:
    """Who a repository belongs to."""
    return name.removeprefix(DATASETS).partition("/")[0]


@dataclass
class Repo:
    """A repository of a model or a dataset. gated: who was let in, or None if everybody may read."""

    id: str
    private: bool
    gated: set[str] | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or 40 hex digits."""
        return self.commits.get(self.branches.get(revision, self.tags.get(revision, revision)))

    def add(self, branch: str, message: str, files: Mapping[str, Blob]) -> Commit:
        """A commit on top of a branch; the branch moves at once or not at all."""
        parent = self.branches.get(branch)
        listing = "\n".join(f"{path} {blob.oid}" for path, blob in sorted(files.items()))
        oid = git_oid(f"{self.id} {len(self.commits)} {parent} {message}\n{listing}".encode())
        commit = Commit(oid, parent, message, dict(files))
        self.commits[oid] = commit
        self.branches[branch] = oid
        return commit
