"""A corpus on the Hub: pinned in the plan, and of its files only those on the disk that are being worked on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from icll_zoo import InputError, fetch_dataset_file, parse_dataset, pin_dataset
from icll_zoo_slimpajama import layout
from icll_zoo_slimpajama.sources import choose

KEPT = "source"
"""The folder, below the corpus's own, of the files that are kept."""


def pinned(
    source: str, include: Sequence[str], begun: Mapping[str, Any] | None
) -> tuple[str, str, list[dict[str, Any]]]:
    """The name of a corpus as a plan has it, its commit, and its files with their sizes and hashes.

    begun: the plan of the same output, if there is one. It holds all of that, and the Hub is not asked: a branch may
    have moved since. InputError if it is of another repository, or of a revision that is not the one asked for.
    """
    found = parse_dataset(source)
    assert found is not None, source
    repo, revision = found
    name = f"hf-hub:{repo}@{revision}"
    if begun is not None:
        commit = begun["settings"]["revision"]
        theirs = parse_dataset(begun["source"])
        if theirs is None or repo != theirs[0] or revision not in (theirs[1], commit):
            raise InputError(
                "the output folder was begun with another source", hint="give another folder, or remove it"
            )
        return begun["source"], commit, begun["files"]
    commit, listing = pin_dataset(repo, revision)
    files = []
    for path in choose(listing, include, f"in {name}"):
        size, digest = listing[path]
        files.append({"path": path, "bytes": size, "sha256" if len(digest) == 64 else "git": digest})
    return name, commit, files


@contextmanager
def source_file(output: Path, plan: Mapping[str, Any], index: int, keep: bool) -> Iterator[Path]:
    """Where a source file lies as long as it is worked on: in the folder of the corpus, or fetched from the Hub.

    What is fetched goes away again, but for what is kept below `output`: that is compared with its hash, and used.
    """
    entry = plan["files"][index]
    remote = parse_dataset(plan["source"])
    if remote is None:
        yield Path(plan["source"]) / entry["path"]
        return
    kept = output / KEPT
    passing = output / f".source-{layout.name_of(index)}.{layout.own()}.partial"
    stays = keep or (kept / entry["path"]).is_file()
    folder = kept if stays else passing
    digest = entry.get("sha256") or entry["git"]
    try:
        yield fetch_dataset_file(remote[0], plan["settings"]["revision"], entry["path"], entry["bytes"], digest, folder)
    finally:
        shutil.rmtree(passing, ignore_errors=True)
