"""registry.yaml: which trained weights there are, where they lie, and what was measured of them.

The project's own file ships inside the wheel; in a source tree it is the one at the top. Plugins bring theirs through
the hook `register_pretrained`. Only reading is here: fetching and publishing are the Hub's side.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, Field, ValidationError, model_validator

from icll_zoo import files, hub
from icll_zoo.errors import AmbiguousName, InputError, UnknownName, printable
from icll_zoo.model_config import Count, FileFacts, PluginName, Qualified, Short, fault_lines
from icll_zoo.plugins import DISTRIBUTION
from icll_zoo.run import Part
from icll_zoo.zoo import PluginWarning, Zoo, default_zoo

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(?:\.[a-z0-9][a-z0-9_-]*)+\Z")
NEEDED = ("config.json", "model.safetensors", "fingerprint.safetensors")


def specifier(text: str) -> str:
    """A requirement on a version, such as ">=0.1,<0.2"."""
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{text[:80]!r} is not a version specifier") from error
    return text


def inside(text: str) -> str:
    """A relative path, in ASCII, that does not leave its folder."""
    if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)*", text, re.ASCII) or {".", ".."} & set(text.split("/")):
        raise ValueError(f"{text[:80]!r} is not a plain relative path")
    return text


Inside = Annotated[str, Field(max_length=200), AfterValidator(inside)]


class State(Part):
    """The bytes of the state of one sequence, measured after 64 and 512 tokens; equal means constant."""

    bytes_64: Count
    bytes_512: Count


class Measured(Part):
    """A metric with its 95 % interval over n languages or documents, and the seeds of the runs behind it."""

    value: float
    low: float
    high: float
    n: Count
    seeds: Annotated[list[int], Field(min_length=1)]


class TrainedOn(Part):
    dataset: Qualified
    options: dict[str, Any] = Field(default_factory=dict)


class Block(Part):
    """What registry.yaml says of one model.

    plugins: name -> the versions that can build it. repo and revision (40 hex digits), or path, beside the file.
    files: sha256 and bytes of each file, by its name in the folder.
    """

    architecture: Qualified
    version: Annotated[int, Field(ge=1)]
    plugins: dict[PluginName, Annotated[str, Field(max_length=200), AfterValidator(specifier)]]
    repo: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$")] = None
    revision: Annotated[str | None, Field(pattern=r"^[0-9a-f]{40}$")] = None
    path: Inside | None = None
    files: dict[Inside, FileFacts]
    parameters: Count
    state: State | None = None
    data: TrainedOn
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[Short, Measured]
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+() -]+$", max_length=80)]
    paper: Short | None = None
    status: Literal["active", "superseded", "withdrawn"] = "active"

    @model_validator(mode="after")
    def _one_place(self) -> Block:
        if (self.repo is None) == (self.path is None):
            raise ValueError("either repo or path must say where it lies, and not both")
        if (self.repo is None) != (self.revision is None):
            raise ValueError("repo and revision go together")
        if missing := [name for name in NEEDED if name not in self.files]:
            raise ValueError(f"files does not list {missing[0]}")
        if len({name.casefold() for name in self.files}) < len(self.files):
            raise ValueError("files lists two names that are one where capitals do not count")
        return self


class CatalogueEntry(Block):
    """A block and where it was read: its name, the plugin that brought it, and the file."""

    name: str = Field(exclude=True)
    owner: str = Field(exclude=True)
    source: Path = Field(exclude=True)

    def folder(self) -> Path:
        """Where its files lie; those of the Hub are fetched, and compared with `files`.

        Raises InputError for a place that was not installed, IntegrityError for other bytes, EnvironmentFault for the
        network.
        """
        if self.path is None:
            return hub.fetch(str(self.repo), str(self.revision), list(self.files), facts=self.files)
        top = self.source.parent.resolve()
        folder = (top / self.path).resolve()
        if not folder.is_relative_to(top):
            raise InputError(f"{self.name!r} in {str(self.source)!r} points outside its folder")
        if not folder.is_dir():
            raise InputError(
                f"no folder {self.path!r} beside {str(self.source)!r}",
                hint="it comes with the source, not in the wheel",
            )
        return folder


def own_path() -> Path:
    """The project's registry.yaml: in the wheel beside this module, else at the top of the source tree."""
    packaged = Path(__file__).with_name("registry.yaml")
    top = Path(__file__).resolve().parent.parent
    if not packaged.exists() and (top / "pyproject.toml").is_file():
        return top / "registry.yaml"
    return packaged


def read(path: str | Path, owner: str = DISTRIBUTION) -> dict[str, CatalogueEntry]:
    """The blocks of a catalogue file by name. Raises InputError with every fault of the file."""
    source = Path(path)
    where = f"catalogue {str(source)!r}"
    raw = files.read_yaml(source, "catalogue")
    if not isinstance(raw, dict) or set(raw) != {"models"} or not isinstance(raw["models"], dict):
        raise InputError(f"{where} must hold one key, `models`, a mapping of names to blocks")
    entries, faults = {}, []
    for name, block in raw["models"].items():
        place = f"{printable(name, 80)!r} in {where}"
        if not isinstance(name, str) or len(name) > 130 or not NAME.match(name):
            faults.append(f"illegal name {place}: it is an architecture, a dot and a label, such as gla-small.dfa-10k")
            continue
        try:
            checked = Block.model_validate(block)
        except ValidationError as error:
            faults += fault_lines(error, place)
            continue
        entries[name] = CatalogueEntry(**dict(checked), name=name, owner=owner, source=source)
    if faults:
        faults = [printable(fault, 300) for fault in faults]
        raise InputError(faults[0], faults=faults)
    return entries


def collect(zoo: Zoo, warn: Callable[[str], None] | None = None) -> dict[str, list[CatalogueEntry]]:
    """Every entry of every catalogue by name; a name with several entries is claimed by several plugins.

    A plugin's file that cannot be read is left out with one line to `warn`.
    """
    found: dict[str, list[CatalogueEntry]] = {}
    sources = [(DISTRIBUTION, str(own_path()))]
    sources += [(plugin.name, path) for plugin in zoo.plugins for path in plugin.catalogues]
    for owner, path in sources:
        try:
            entries = read(path, owner)
        except InputError as error:
            if owner == DISTRIBUTION:
                raise
            line = printable(f"catalogue of plugin {owner!r} left out: {error}")
            if warn is None:
                warnings.warn(line, PluginWarning, stacklevel=2)
            else:
                warn(line)
            continue
        for name, entry in entries.items():
            found.setdefault(name, []).append(entry)
    return found


def load_catalogue(zoo: Zoo | None = None, warn: Callable[[str], None] | None = None) -> dict[str, CatalogueEntry]:
    """All trained weights by name, sorted. A name that two catalogues claim is written `owner:name`, once for each."""
    found = collect(zoo or default_zoo(), warn)
    merged = {
        name if len(owners) == 1 else f"{entry.owner}:{name}": entry
        for name, owners in found.items()
        for entry in owners
    }
    return dict(sorted(merged.items()))


def find(name: str, zoo: Zoo | None = None, warn: Callable[[str], None] | None = None) -> CatalogueEntry:
    """The entry of a name, or of `owner:name`. Raises UnknownName, or AmbiguousName with both owners."""
    zoo = zoo or default_zoo()
    found = collect(zoo, warn)
    owner, _, bare = name.rpartition(":")
    owners = [entry for entry in found.get(bare, []) if owner in ("", entry.owner)]
    if len(owners) > 1:
        raise AmbiguousName("weights", name, sorted(entry.owner for entry in owners))
    if not owners:
        registered = name in zoo.registry.names("model")
        note = "it is an architecture, and untrained; weights are named such as gla-small.dfa-10k" if registered else ""
        raise UnknownName("weights", name, found, note=note or ("" if found else "the catalogue lists none yet"))
    return owners[0]
