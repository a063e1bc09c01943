"""Find plugins, load each one alone and entirely or not at all, and report what happened to it.

pluggy's own loader stops at the first plugin that raises and silently drops the second of two that share a name,
so every plugin gets a manager of its own here and its registrations are staged until all of them are in.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy

from icll_zoo import hookspecs
from icll_zoo._version import __version__
from icll_zoo.errors import InputError, did_you_mean, printable
from icll_zoo.registry import Entry, Kind, entries_of

GROUP = hookspecs.PROJECT
DISTRIBUTION = "icll-zoo"
KINDS: tuple[Kind, ...] = ("mixer", "architecture", "dataset", "metric")


@dataclass
class Plugin:
    """One plugin and its report.

    status: loaded, blocked (by ICLL_ZOO_PLUGINS), failed (it raised, or registered something illegal) or
    incompatible (it asks for another version of icll-zoo). Only a loaded plugin has entries, catalogues or hooks.
    """

    name: str
    distribution: str
    version: str
    module: str
    status: Literal["loaded", "blocked", "failed", "incompatible"] = "loaded"
    milliseconds: float = 0.0
    error: str | None = None
    entries: list[Entry] = field(default_factory=list)
    catalogues: list[str] = field(default_factory=list)
    manager: pluggy.PluginManager | None = None

    def report(self) -> dict[str, Any]:
        """What `icll-zoo plugins --json` prints of it."""
        kept = ("name", "distribution", "version", "module", "status", "milliseconds", "error")
        shown: dict[str, Any] = {key: getattr(self, key) for key in kept}
        shown["registered"] = {
            f"{kind}s": [e.name for e in self.entries if e.kind == kind]
            for kind in KINDS
            if any(e.kind == kind for e in self.entries)
        }
        return shown


@dataclass(frozen=True)
class Selection:
    """What ICLL_ZOO_PLUGINS asks for: unset = all, empty = none, `a,b` = only those, `-a,-b` = all but those."""

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str | None) -> Selection:
        if text is None:
            return cls()
        words = [word.strip() for word in text.split(",") if word.strip()]
        minus = [word[1:] for word in words if word.startswith("-")]
        if minus and len(minus) < len(words):
            raise InputError(f"ICLL_ZOO_PLUGINS={text!r} mixes names to load and names to leave out")
        return cls(without=frozenset(minus)) if minus else cls(only=frozenset(words))

    def admits(self, point: EntryPoint) -> bool:
        names = {point.name, f"{distribution_of(point)}/{point.name}"}
        return not names & self.without if self.only is None else bool(names & self.only)

    def unknown(self, points: list[EntryPoint]) -> list[str]:
        known = {p.name for p in points} | {f"{distribution_of(p)}/{p.name}" for p in points}
        return sorted(((self.only or frozenset()) | self.without) - known)


def distribution_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"


def discover() -> tuple[list[Plugin], list[str]]:
    """Every installed plugin, loaded or with the reason why not, and the warnings that a person should read.

    With ICLL_ZOO_STRICT=1 the first plugin that fails raises instead.
    """
    points = sorted(entry_points(group=GROUP), key=lambda p: (distribution_of(p) != DISTRIBUTION, p.name))
    selection = Selection.parse(os.environ.get("ICLL_ZOO_PLUGINS"))
    warnings = [
        f"ICLL_ZOO_PLUGINS names {name!r}, which is not installed "
        f"({did_you_mean(name, [p.name for p in points]) or 'see `icll-zoo plugins`'})"
        for name in selection.unknown(points)
    ]
    plugins = []
    for point in points:
        version = point.dist.version if point.dist is not None else "?"
        plugin = Plugin(point.name, distribution_of(point), version, point.value)
        if selection.admits(point):
            load(plugin, point)
        else:
            plugin.status, plugin.error = "blocked", "left out by ICLL_ZOO_PLUGINS"
        plugins.append(plugin)
        if plugin.status in ("failed", "incompatible"):
            warnings.append(
                f"plugin {plugin.name!r} ({plugin.distribution} {plugin.version}) {plugin.status}: {plugin.error}"
            )
    for name in sorted({p.name for p in plugins if [q.name for q in plugins].count(p.name) > 1}):
        owners = " and ".join(sorted(p.distribution for p in plugins if p.name == name))
        warnings.append(
            f"plugin name {name!r} is claimed by {owners}: say DISTRIBUTION/{name}:NAME for what they share"
        )
    return plugins, [printable(w) for w in warnings]


def load(plugin: Plugin, point: EntryPoint) -> None:
    """Import one plugin and take its registrations, all or none; never raises but under ICLL_ZOO_STRICT=1."""
    start = time.perf_counter()
    try:
        if reason := incompatible(point):
            plugin.status, plugin.error = "incompatible", reason
            return
        register_all(plugin, point.load())
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        plugin.status, plugin.manager = "failed", None
        plugin.entries, plugin.catalogues = [], []
        plugin.error = printable(f"{type(error).__name__}: {error}", 300)
        if os.environ.get("ICLL_ZOO_STRICT") == "1":
            raise
    finally:
        plugin.milliseconds = round(1000 * (time.perf_counter() - start), 2)


def incompatible(point: EntryPoint) -> str | None:
    """Why the plugin's own requirement on icll-zoo excludes this version, or None."""
    requirements = [
        r for r in ((point.dist and point.dist.requires) or []) if r.lower().startswith(("icll-zoo", "icll_zoo"))
    ]
    if not requirements or distribution_of(point) == DISTRIBUTION:
        return None
    from packaging.requirements import Requirement

    for text in requirements:
        requirement = Requirement(text)
        own = requirement.name.lower().replace("_", "-") == DISTRIBUTION
        if own and not requirement.specifier.contains(__version__, prereleases=True):
            return f"it requires {requirement}, and this is icll-zoo {__version__}"
    return None


def register_all(plugin: Plugin, module: object) -> None:
    """Run a plugin's registration hooks into a stage, and keep the stage if all of them succeed."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(module, plugin.name)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        raise InputError(f"{plugin.module} implements no hook", hint="mark its functions with icll_zoo.hookimpl")
    staged: list[Entry] = []
    catalogues: list[str] = []

    def stage(kind: Kind, name: str, target: Any = None, **about: Any) -> None:
        made = entries_of(kind, plugin.name, plugin.distribution, name, target, **about)
        taken = {(e.space, e.name) for e in staged} & {(e.space, e.name) for e in made}
        if taken:
            raise InputError(f"{plugin.name!r} registers the name {min(taken)[1]!r} twice")
        staged.extend(made)

    for kind in KINDS:
        getattr(manager.hook, f"register_{kind}s")(register=functools.partial(stage, kind))
    manager.hook.register_pretrained(register=catalogues.append)
    plugin.entries, plugin.catalogues, plugin.manager = staged, catalogues, manager


def each(plugins: list[Plugin], hook: str) -> Iterator[tuple[Plugin, Callable[..., Any]]]:
    """The loaded plugins that implement `hook`, each with its own caller: one that raises stops no other."""
    for plugin in plugins:
        if plugin.manager is not None and (caller := getattr(plugin.manager.hook, hook)).get_hookimpls():
            yield plugin, caller
