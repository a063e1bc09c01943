"""Names and what they stand for. A registry is filled once, from plugins, and knows nothing about any of them."""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from icll_zoo.errors import AmbiguousName, InputError, UnknownName

Kind = Literal["mixer", "architecture", "dataset", "metric"]
Space = Literal["model", "dataset", "metric"]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
RESERVED = frozenset({"oracle"})  # the predictor that reads dataset.oracle(batch)
SCRIPT = "script"  # the plugin name of everything registered by a decorator in a script or notebook


@dataclass(frozen=True)
class Entry:
    """One registered name.

    plugin: the short name of the plugin that owns it; `distribution`: the package that the plugin came in.
    target: "module:Class", the object itself, or None for a composition of layers.
    options: what a preset sets; `preset_of` is the name it refines.
    backbone: the mixer's own defaults for the backbone.
    """

    kind: Kind
    name: str
    plugin: str
    distribution: str
    target: str | Callable[..., Any] | None
    version: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    paper: str | None = None
    preset_of: str | None = None

    @property
    def space(self) -> Space:
        """Mixers and whole architectures share one namespace."""
        return "model" if self.kind == "mixer" or self.kind == "architecture" else self.kind

    @property
    def qualified(self) -> str:
        """`plugin:name`, never ambiguous while plugin names are."""
        return f"{self.plugin}:{self.name}"

    def load(self) -> Callable[..., Any]:
        """The class or function behind the name, imported now if it was not yet.

        Raises InputError if the plugin's module cannot be imported or lacks the name.
        """
        if self.target is None:
            raise InputError(f"{self.qualified} has no class of its own: it is a composition of layers")
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"cannot import {self.target!r} of {self.kind} {self.name!r} in plugin {self.plugin!r} "
                f"({self.distribution}): {type(error).__name__}: {error}"
            ) from error
        if not callable(found):
            raise InputError(f"{self.target!r} in plugin {self.plugin!r} ({self.distribution}) is not callable")
        return found


def checked_name(name: object, kind: str) -> str:
    """`name` if it may be registered; InputError otherwise."""
    if not isinstance(name, str) or not NAME.match(name):
        raise InputError(
            f"illegal {kind} name {name!r}",
            hint="lower-case letters, digits, - and _, at most 64, no leading - or _",
        )
    if name in RESERVED:
        raise InputError(f"{kind} name {name!r} is reserved")
    return name


def entries_of(
    kind: Kind,
    plugin: str,
    distribution: str,
    name: str,
    target: str | Callable[..., Any] | None,
    *,
    version: int = 1,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    backbone: Mapping[str, Any] | None = None,
    license: str | None = None,
    paper: str | None = None,
) -> list[Entry]:
    """The entries that one call of `register` makes: the name and one `name-KEY` for each preset, all checked."""
    checked_name(name, kind)
    if target is None:
        if kind != "mixer" or not (backbone or {}).get("layers"):
            raise InputError(f"{kind} {name!r} names no class", hint="only a mixer whose backbone gives `layers` may")
    elif isinstance(target, str):
        if not re.match(r"[\w.]+:[\w.]+\Z", target):
            raise InputError(f"target {target!r} of {kind} {name!r} is not of the form 'module:Class'")
    elif not callable(target):
        raise InputError(f"target of {kind} {name!r} is a {type(target).__name__}, not a class or 'module:Class'")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"version of {kind} {name!r} is {version!r}, not an integer >= 1")
    if backbone and kind != "mixer":
        raise InputError(f"{kind} {name!r} gives `backbone` defaults, which only a mixer has")
    common = Entry(kind, name, plugin, distribution, target, version, {}, dict(backbone or {}), license, paper)
    made = [common]
    for key, options in (presets or {}).items():
        full = checked_name(f"{name}-{key}", kind)
        if not isinstance(options, Mapping):
            raise InputError(f"preset {full!r} is a {type(options).__name__}, not a mapping of options")
        made.append(
            Entry(
                kind,
                full,
                plugin,
                distribution,
                target,
                version,
                dict(options),
                common.backbone,
                license,
                paper,
                name,
            )
        )
    return made


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts ngram-2 before ngram-10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


class Registry:
    """Names -> entries, in three spaces: models (mixers and architectures), datasets, metrics."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Space, str], list[Entry]] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        """Add a plugin's entries. The same qualified name again, of the same distribution, replaces it (a notebook)."""
        for entry in entries:
            owners = self._entries.setdefault((entry.space, entry.name), [])
            owners[:] = [e for e in owners if (e.plugin, e.distribution) != (entry.plugin, entry.distribution)]
            owners.append(entry)

    def names(self, space: Space) -> list[str]:
        """Every bare name of a space, in natural order."""
        return sorted((name for where, name in self._entries if where == space), key=natural)

    def all(self, space: Space, pattern: str = "*") -> list[Entry]:
        """Entries whose bare or qualified name matches the wildcard pattern, in natural order."""
        matching = [
            entry
            for (where, name), owners in self._entries.items()
            if where == space
            for entry in owners
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(entry.qualified, pattern)
        ]
        return sorted(matching, key=lambda e: (natural(e.name), e.plugin, e.distribution))

    def find(self, space: Space, name: str, distribution: str | None = None) -> Entry:
        """The entry of a bare or qualified name.

        `distribution` decides between plugins of the same short name, as a saved config.json can.
        Raises UnknownName (with the nearest name) or AmbiguousName (with both owners).
        """
        plugin, _, bare = name.rpartition(":")
        owners = self._entries.get((space, bare), [])
        if plugin:
            # A plugin whose short name another distribution has too is called DISTRIBUTION/NAME (see Zoo).
            owners = [
                e for e in owners if plugin in (e.plugin, e.plugin.rpartition("/")[2], f"{e.distribution}/{e.plugin}")
            ]
            if len(owners) > 1 and distribution:
                owners = [e for e in owners if e.distribution == distribution] or owners
        if not owners:
            known = [e.qualified for es in self._entries.values() for e in es] if plugin else self.names(space)
            raise UnknownName(space, name, known)
        if len(owners) > 1:
            raise AmbiguousName(space, name, sorted(e.plugin for e in owners))
        return owners[0]

    def clashes(self) -> dict[str, list[Entry]]:
        """Bare names that more than one plugin claims; each needs its qualified name."""
        return {name: owners for (_, name), owners in self._entries.items() if len(owners) > 1}
