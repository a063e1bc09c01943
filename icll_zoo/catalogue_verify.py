"""Verify a catalogue: recompute every figure of a block that can be recomputed, and name each that is another now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from icll_zoo import cards, files, measuring
from icll_zoo.catalogue import CatalogueEntry
from icll_zoo.catalogue_edit import as_data, block_of, copied, differences
from icll_zoo.errors import ZooError
from icll_zoo.model_config import read_config
from icll_zoo.weights import LAYOUT, load_model
from icll_zoo.zoo import Zoo

TOLERANCE = 1e-3
"""Of a metric measured again, absolute, or of its value where that is above one. Sums in float32 take another order on
another machine, and so a few of the most probable tokens of some 180,000 positions may be others."""
OWN = ("path", "repo", "revision", "status", "files")  # of the block alone; files are compared one by one


def verify(entry: CatalogueEntry, zoo: Zoo, *, metrics: bool = False) -> list[str]:
    """Each difference between a block and what its files give, a line; empty if there is none.

    Compared are: size and sha256 of each file, the plugins' releases here, everything that `block_of` computes (the
    model is loaded, its fingerprint verified, its parameters and state counted), and the card. metrics: evaluate the
    model again.
    """
    try:
        folder = entry.folder()
        if entry.repo is None:
            return compared(entry, folder, zoo, metrics)
        with copied(folder, entry.files) as plain:
            return compared(entry, plain, zoo, metrics)
    except ZooError as error:
        return [str(error)]


def compared(entry: CatalogueEntry, folder: Path, zoo: Zoo, metrics: bool) -> list[str]:
    """The same of a folder of files."""
    found = changed_files(entry, folder) + plugin_differences(entry, zoo)
    try:
        made = block_of(folder, zoo)
        said = {key: value for key, value in as_data(entry).items() if key not in OWN}
        found += differences(said, {key: v for key, v in made.items() if v is not None and key not in OWN})
        found += [f"card: {line}" for line in cards.stale(folder, zoo)]
        if metrics:
            found += metric_differences(entry, folder, zoo)
    except ZooError as error:
        found.append(str(error))
    return found


def changed_files(entry: CatalogueEntry, folder: Path) -> list[str]:
    """Files that are missing, of other bytes, or there and not listed."""
    found = []
    for name, facts in sorted(entry.files.items()):
        path = folder / name
        try:
            size = files.regular_file(path, name)
        except ZooError as error:
            found.append(str(error))
            continue
        if size != facts.bytes:
            found.append(f"files.{name}.bytes: {facts.bytes} -> {size}")
        elif (now := files.sha256_of(path)) != facts.sha256:
            found.append(f"files.{name}.sha256: {facts.sha256} -> {now}")
    unlisted = [name for name in LAYOUT if name not in entry.files and (folder / name).exists()]
    return found + [f"files.{name} is there and not listed" for name in unlisted]


def plugin_differences(entry: CatalogueEntry, zoo: Zoo) -> list[str]:
    """Plugins whose release here is not one that the block allows."""
    here = {plugin.name: plugin.version for plugin in zoo.plugins if plugin.status == "loaded"}
    return [
        f"plugins.{name}: {wanted} -> {here[name]}"
        for name, wanted in sorted(entry.plugins.items())
        if name in here and not SpecifierSet(wanted).contains(here[name], prereleases=True)
    ]


def metric_differences(entry: CatalogueEntry, folder: Path, zoo: Zoo) -> list[str]:
    """Metrics whose n is another when they are measured again, or whose value or interval is off by too much."""
    config = read_config(folder, zoo)
    dataset, _ = measuring.dataset_of(config, zoo)
    model = load_model(f"local-dir:{folder}", zoo=zoo)
    by_limit: dict[int | None, list[str]] = {}
    for name in entry.metrics:
        kept: Any = config.metrics.get(name)
        by_limit.setdefault(kept.get("limit") if isinstance(kept, dict) else None, []).append(name)
    found = []
    for limit, names in by_limit.items():
        for name, score in measuring.scores_of(model, dataset, names, zoo, limit=limit).items():
            said = entry.metrics[name]
            if score.n != said.n:
                found.append(f"metrics.{name}.n: {said.n} -> {score.n}, measured again")
            for key in ("value", "low", "high"):
                was, now = getattr(said, key), getattr(score, key)
                if not abs(now - was) <= TOLERANCE * max(1.0, abs(was)):
                    found.append(f"metrics.{name}.{key}: {was:.6g} -> {now:.6g}, measured again")
    return found
