"""list, show, plugins: what is in the zoo. `list` imports neither torch nor timm."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from icll_zoo.cli import app, emit, warn
from icll_zoo.cli.shared import as_json, open_zoo, with_scripts
from icll_zoo.errors import UnknownName
from icll_zoo.registry import Entry, Space

if TYPE_CHECKING:
    from icll_zoo.zoo import Zoo

SPACES: tuple[Space, ...] = ("model", "dataset", "metric")


def about(entry: Entry) -> dict[str, Any]:
    """What listing says of an entry."""
    return {
        "name": entry.name,
        "qualified": entry.qualified,
        "kind": entry.kind,
        "plugin": entry.plugin,
        "distribution": entry.distribution,
        "version": entry.version,
        "preset_of": entry.preset_of,
        "license": entry.license,
        "paper": entry.paper,
    }


@app.command("list")
@click.argument("pattern", default="*")
@click.option("--pretrained", is_flag=True, help="List trained weights instead.")
@with_scripts
@as_json
def list_names(pattern: str, pretrained: bool, load: tuple[str, ...], json: bool) -> None:
    """List models, datasets and metrics whose name matches PATTERN."""
    zoo = open_zoo(load)
    if pretrained:
        list_weights(zoo, pattern, json)
        return
    found = {space: zoo.list(space, pattern) for space in SPACES}
    if json:
        emit({f"{space}s": [about(e) for e in entries] for space, entries in found.items()})
        return
    if not any(found.values()):
        print(f"no name matches {pattern!r}")
    clashes = zoo.registry.clashes()
    for space, entries in found.items():
        if entries:
            print(f"{space}s")
        for entry in entries:
            name = entry.qualified if entry.name in clashes else entry.name
            kind = f"preset of {entry.preset_of}" if entry.preset_of else entry.kind if space == "model" else ""
            print(f"  {name:<24} {entry.plugin:<12} {kind:<24} {entry.paper or ''}".rstrip())


def list_weights(zoo: Zoo, pattern: str, json: bool) -> None:
    """List the catalogue's trained weights."""
    import fnmatch

    from icll_zoo.catalogue import load_catalogue

    found = {n: e for n, e in load_catalogue(zoo).items() if fnmatch.fnmatchcase(n, pattern)}
    if json:
        emit({"pretrained": [{"name": name, **entry.model_dump()} for name, entry in found.items()]})
        return
    for name, entry in found.items():
        print(f"  {name:<32} {entry.architecture:<28} {entry.status}")
    if not found:
        print(f"no trained weights match {pattern!r}")


@app.command()
@as_json
def plugins(json: bool) -> None:
    """Show every installed plugin, what it registered, and why one was not loaded."""
    zoo = open_zoo()
    reports = [plugin.report() for plugin in zoo.plugins]
    clashes = {
        name: [f"{entry.distribution}/{entry.plugin}" for entry in entries]
        for name, entries in zoo.registry.clashes().items()
    }
    if json:
        emit({"plugins": reports, "clashes": clashes})
        return
    for report in reports:
        names = [name for group in report["registered"].values() for name in group]
        shown = f"{len(names)} names" if len(names) > 4 else ", ".join(names)
        print(
            f"{report['name']:<14} {report['distribution']} {report['version']:<10} {report['status']:<13} "
            f"{report['milliseconds']:7.1f} ms  {report['error'] or shown}"
        )
    for name, owners in clashes.items():
        warn(f"{name!r} is claimed by {' and '.join(owners)}: use its qualified name")


@app.command()
@click.argument("name")
@with_scripts
@as_json
def show(name: str, load: tuple[str, ...], json: bool) -> None:
    """Show one name: its options, where it is defined, and what was measured of it."""
    zoo = open_zoo(load)
    shown = [described(zoo, space, name) for space in SPACES if known(zoo, space, name)]
    if not shown:
        zoo.entry("model", name)  # raises, with the nearest name
    if json:
        emit(shown[0] if len(shown) == 1 else {"names": shown})
        return
    for one in shown:
        print(f"{one['name']}  ({one['kind']} of plugin {one['plugin']}, {one['distribution']})")
        for key in ("summary", "defined", "paper", "license", "presets", "direction", "vocabulary"):
            if one.get(key):
                value = ", ".join(one[key]) if isinstance(one[key], list) else one[key]
                print(f"  {key:<11} {value}")
        for key, value in shown_measures(one.get("measured") or {}).items():
            print(f"  {key:<11} {value}")
        for group in ("options", "backbone"):
            if one.get(group):
                print(f"  {group}")
            for option, facts in one.get(group, {}).items():
                print(f"    {option:<20} {facts['type']:<36} {facts['default']!r}")


def known(zoo: Zoo, space: Space, name: str) -> bool:
    """Whether a space has the name; an ambiguous one is an error."""
    try:
        zoo.entry(space, name)
    except UnknownName:
        return False
    return True


def described(zoo: Zoo, space: Space, name: str) -> dict[str, Any]:
    """Everything about one entry, as `show --json` prints it."""
    from icll_zoo import options as opts
    from icll_zoo.zoo import CONTEXT

    entry = zoo.entry(space, name)
    target = entry.load() if entry.target is not None else None
    shown = about(entry) | {
        "summary": (inspect.getdoc(target) or "").split("\n")[0] if target else "a composition of layers",
        "defined": location(target) if target else None,
        "target": entry.target if isinstance(entry.target, str) or target is None else repr(target),
        "presets": [e.name for e in zoo.list(space) if e.preset_of == entry.name and e.plugin == entry.plugin],
    }
    if space == "model":
        spec = zoo.resolve_model(name)
        if entry.kind == "mixer":
            own = zoo.mixer_options(entry)
            shown["backbone"] = facts(zoo.backbone_options(), spec.options)
        else:
            own = {k: o for k, o in opts.signature(entry.load()).items() if k not in CONTEXT}
        shown["options"] = facts(own, spec.options)
        shown["measured"] = measured(zoo, name)
        return shown
    if target is not None and (space == "dataset" or isinstance(target, type)):
        shown["options"] = facts(opts.signature(target), zoo.resolve_options(space, name))
    if space == "dataset":
        shown["vocabulary"] = list(zoo.create_dataset(name).vocabulary)
    else:
        metric = zoo.create_metric(name)
        shown["direction"] = getattr(metric, "direction", None)
        shown["needs_oracle"] = getattr(metric, "needs_oracle", None)
    return shown


def facts(options: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The type and the default of every option, as this name sets it."""
    return {
        name: {"type": option.type_name, "default": values.get(name, option.default)}
        for name, option in options.items()
    }


def measured(zoo: Zoo, name: str) -> dict[str, Any]:
    """Parameters and state, counted on the model itself at its default options and 20 tokens."""
    from icll_zoo.weights import describe
    from icll_zoo.zoo import Vocabulary

    return describe(zoo.create_model(name, vocabulary=Vocabulary(20, None, 0, 19)))


def shown_measures(measured: dict[str, Any]) -> dict[str, str]:
    """What was measured, as a person reads it."""
    if not measured:
        return {}
    shown = {"parameters": f"{measured['parameters']:,}"}
    if sizes := measured["state_bytes"]:
        told = [f"{size:,} bytes after {length} tokens" for length, size in sizes.items() if size is not None]
        shown["state"] = ", ".join(told) + (" (grows)" if measured["state_grows"] else " (constant)")
    if flops := measured["flops_per_token"]:
        shown["FLOPs"] = f"{flops:,.0f} a token, forward over 512 tokens"
    return shown


def location(target: Any) -> str | None:
    """file:line of a class or function."""
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (TypeError, OSError):
        return None
