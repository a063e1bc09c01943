"""registry: add a model to a catalogue of trained weights, verify a catalogue, compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from icll_zoo.cli import app, emit, warn
from icll_zoo.cli.shared import as_json, open_zoo
from icll_zoo.errors import UnknownName, ZooError, printable


@app.group()
def registry() -> None:
    """The catalogue of trained weights, registry.yaml: add to it, verify it, compare two."""


@registry.command()
@click.argument("source")
@click.option("--name", required=True, help="An architecture or preset, a dot and a label: gla-small.dfa-10k.")
@click.option("--file", metavar="FILE", help="The catalogue; by default icll-zoo's own registry.yaml.")
@click.option("--replace", is_flag=True, help="Write the block of a name that is there anew, and show what changes.")
@click.option("--allow-floating", is_flag=True, help="Take a branch or tag, and pin the commit that it is now.")
@as_json
def add(source: str, name: str, file: str | None, replace: bool, allow_floating: bool, json: bool) -> None:
    """Add the block of a saved model, everything in it computed from its files.

    SOURCE is local-dir:PATH, of a folder below the catalogue's, or hf-hub:org/name@COMMIT.
    """
    from icll_zoo import catalogue, catalogue_edit

    path = Path(file) if file is not None else catalogue.own_path()
    entry, changes = catalogue_edit.add(source, name, path, open_zoo(), replace=replace, allow_floating=allow_floating)
    if json:
        emit({"name": name, "file": str(path), "block": catalogue_edit.as_data(entry), "changes": changes})
        return
    where = entry.path if entry.repo is None else f"{entry.repo}@{entry.revision}"
    print(f"{name} in {path}: {where}, {len(entry.files)} files, {entry.parameters:,} parameters")
    for line in changes:
        print(f"  {printable(line)}")


@registry.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--file", metavar="FILE", help="Only this catalogue; by default icll-zoo's own and every plugin's.")
@click.option("--metrics", is_flag=True, help="Also evaluate every model again.")
@as_json
def verify(names: tuple[str, ...], file: str | None, metrics: bool, json: bool) -> int:
    """Recompute every figure of a catalogue that can be recomputed; exit 1 if any is another now."""
    from icll_zoo import catalogue
    from icll_zoo.catalogue_verify import verify as verify_entry

    zoo = open_zoo()
    unread: list[str] = []
    entries = catalogue.read(file) if file is not None else catalogue.load_catalogue(zoo, unread.append)
    for name in names:
        if name not in entries:
            raise UnknownName("weights", name, entries)
    reports: list[dict[str, Any]] = [{"name": "?", "ok": False, "differences": [line]} for line in unread if not names]
    for line in unread:
        warn(line)
    for name, entry in entries.items():
        if names and name not in names:
            continue
        withdrawn = entry.status == "withdrawn"
        lines = [] if withdrawn else [printable(line) for line in verify_entry(entry, zoo, metrics=metrics)]
        reports.append({"name": name, "ok": not lines, "differences": lines})
        if not json:
            again = ", metrics measured again" if metrics else ""
            good = "withdrawn, not verified" if withdrawn else f"ok ({len(entry.files)} files{again})"
            said = f"{len(lines)} difference{'s' * (len(lines) > 1)}" if lines else good
            print(f"{name:<32} {said}", flush=True)
            for line in lines:
                print(f"  {line}")
    bad = [report["name"] for report in reports if not report["ok"]]
    if json:
        emit({"ok": not bad, "models": reports})
        return 1 if bad else 0
    if bad:
        first = next(report["differences"][0] for report in reports if not report["ok"])
        raise ZooError(f"{len(bad)} of {len(reports)} models differ from the catalogue", hint=f"the first: {first}")
    if not reports:
        print("the catalogue lists no models")
    return 0


@registry.command()
@click.argument("old")
@click.argument("new")
@as_json
def diff(old: str, new: str, json: bool) -> None:
    """Show which models two catalogue files add, remove and change, and each figure that changes."""
    from icll_zoo import catalogue
    from icll_zoo.catalogue_edit import as_data, differences

    before, after = ({n: as_data(e) for n, e in catalogue.read(file).items()} for file in (old, new))
    added, removed = sorted(set(after) - set(before)), sorted(set(before) - set(after))
    changed = {n: differences(before[n], after[n]) for n in sorted(set(before) & set(after)) if before[n] != after[n]}
    if json:
        emit({"added": added, "removed": removed, "changed": changed})
        return
    for sign, group in (("+", added), ("-", removed)):
        for name in group:
            print(f"{sign} {name}")
    for name, lines in changed.items():
        print(f"~ {name}")
        for line in lines:
            print(f"    {printable(line)}")
    if not (added or removed or changed):
        print("the two list the same")
