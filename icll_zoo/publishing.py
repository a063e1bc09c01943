"""Publish a saved model as a repository of the Hub: the published layout, in one commit, and nothing else.

What is sent was loaded back before, strictly and against its fingerprint, by the same code that others load it with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icll_zoo import card_text, cards, figures, files, hub
from icll_zoo.errors import EnvironmentFault, InputError, ZooError, printable
from icll_zoo.hub import Content
from icll_zoo.hub_patience import address
from icll_zoo.model_config import Config, read_config
from icll_zoo.model_config import parse as parse_config
from icll_zoo.registry import SCRIPT, Entry
from icll_zoo.run_folder import RUN
from icll_zoo.weights import CARD, CONFIG, FINGERPRINT, LAYOUT, MODEL, load_model
from icll_zoo.zoo import Zoo, default_zoo


@dataclass(frozen=True)
class Published:
    """What was, or in a dry run would be, published.

    commit: 40 hex digits; None in a dry run. files: bytes of each file. changed: what is new, a line each; empty if
    the repository held all of it already and no commit was made.
    """

    repo: str
    revision: str
    url: str | None
    commit: str | None
    files: dict[str, int]
    card: str
    changed: list[str] = field(default_factory=list)


def publish(
    run_or_folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str = "main",
    dry_run: bool = False,
    zoo: Zoo | None = None,
) -> Published:
    """Send a run's model, or a saved model, to `repo` ("org/name") on the Hub, in one commit on the branch `revision`.

    The card is made anew from config.json. Publishing again sends what changed, and commits nothing if nothing did.
    dry_run: only say what would be sent; the Hub is not asked.
    Raises InputError, before anything is sent, for a model that cannot be loaded back, that a script registered, that
    has no licence or no measured metric; EnvironmentFault for the network; hub.Moved if somebody else changed the
    same files at the same time.
    """
    zoo = zoo or default_zoo()
    if "@" in repo:
        raise InputError(f"{printable(repr(repo), 120)} names a revision", hint="say --revision BRANCH beside org/name")
    repo, _ = hub.parse(repo)
    hub.parse(f"{repo}@{revision}")
    folder = model_folder(run_or_folder)
    text = files.read_text(folder / CONFIG, CONFIG)
    config, entry = checked(folder, text, zoo)
    contents = {**layout(folder, config, entry, repo), CONFIG: text.encode()}
    sizes = {name: size(content) for name, content in contents.items()}
    card = bytes_of(contents[CARD]).decode()
    if dry_run:
        return Published(repo, revision, None, None, sizes, card)
    base = hub.prepare(repo, private=private, revision=revision)
    where, newest, changed = send(repo, revision, base, config, contents)
    return Published(repo, revision, where, newest, sizes, card, changed)


# -- what may be published -------------------------------------------------------------------------------------------


def model_folder(run_or_folder: str | Path) -> Path:
    """The folder of the saved model: of a run, or the folder itself. InputError if there is none."""
    folder = Path(str(run_or_folder).removeprefix("local-dir:"))
    for found in (folder, folder / "model"):
        if (found / CONFIG).is_file():
            return found
    if (folder / RUN).is_file():
        raise InputError(
            f"the run in {str(folder)!r} has no model yet", hint="the same `icll-zoo train` goes on with it"
        )
    raise InputError(f"no saved model and no run in {str(folder)!r}", hint="give the output= of `icll-zoo train`")


def checked(folder: Path, text: str, zoo: Zoo) -> tuple[Config, Entry]:
    """A description that others can load the model from, and what it is an instance of. InputError with the reason.

    text: config.json as it is sent, not as it might be read again.
    """
    where, place = f"cannot publish {str(folder)!r}", f"config.json {str(folder / CONFIG)!r}"
    written = parse_config(files.parse_json(text, place), place)
    named = [written.architecture, *(str(layer["mixer"]) for layer in written.model.get("layers") or [])]
    if written.script is not None or any(name.startswith(f"{SCRIPT}:") for name in named):
        raise InputError(
            f"{where}: it was registered in a script, which nobody else has",
            hint="`icll-zoo new` makes a plugin of it that others can install",
        )
    try:
        load_model(f"local-dir:{folder}", zoo=zoo)
    except ZooError as error:
        kind = EnvironmentFault if isinstance(error, EnvironmentFault) else InputError
        refusal = kind(f"{where}: it cannot be loaded back: {error}")
        refusal.faults = error.faults
        raise refusal from error
    config = read_config(folder, zoo)
    entry = zoo.entry("model", config.architecture, config.distribution)
    layers = [zoo.entry("model", layer["mixer"]) for layer in config.model.get("layers") or []]
    for name, license in ((found.qualified, found.license) for found in (entry, *layers)):
        if license is None:
            raise InputError(
                f"{where}: {name!r} has no licence", hint='its plugin says register(..., license="MIT"), say'
            )
    # A run's own validation loss is on the data by which its weights were chosen.
    if not card_text.measured(written):
        raise InputError(f"{where}: nothing was measured of it", hint=f"`icll-zoo card {folder} --evaluate` does")
    return written, entry


def layout(folder: Path, config: Config, entry: Entry, repo: str) -> dict[str, Content]:
    """What is sent, by its path in the repository. The card says how to load it from there."""
    have = cards.present(folder)
    made = cards.contents(
        config,
        license=entry.license,
        paper=entry.paper,
        source=f"hf-hub:{repo}",
        kept=tuple(name for name in figures.FIGURES if name in have),
    )
    # A picture that is there and says the same stays: drawn by another matplotlib, it would be news to everybody.
    pictures = {name: have[name] for name in figures.FIGURES if f"({name})" in made[CARD].decode() and name in have}
    pictures |= {name: data for name, data in made.items() if name != CARD and not same(pictures.get(name), data)}
    kept: dict[str, Content] = {name: folder / name for name in (CONFIG, MODEL, FINGERPRINT)}
    return {CARD: made[CARD], **kept, **pictures}


def same(have: bytes | None, drawn: bytes) -> bool:
    return have is not None and figures.same_picture(have, drawn)


def size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def bytes_of(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


# -- sending ---------------------------------------------------------------------------------------------------------


def send(
    repo: str, revision: str, base: str, config: Config, contents: dict[str, Content]
) -> tuple[str, str, list[str]]:
    """Commit what differs from `base`; once more if, meanwhile, somebody else changed other files only."""
    held = hub.listing(repo, base)
    for last in (False, True):
        fresh = {
            path: content for path, content in contents.items() if path not in held or not held[path].holds(content)
        }
        gone = [path for path in LAYOUT if path in held and path not in contents]
        if not fresh and not gone:
            return address(repo, revision), base, []
        changed = changes(repo, base, config, fresh, gone, held)
        message = f"Publish {config.architecture}" if MODEL not in held else f"Update {', '.join([*fresh, *gone])}"
        try:
            where, newest = hub.commit(
                repo, fresh, message, revision=revision, parent=base, delete=gone, facts=config.files
            )
            return where, newest, changed
        except hub.Moved:
            base = hub.resolve(repo, revision)
            before, held = held, hub.listing(repo, base)
            if last or any(before.get(path) != held.get(path) for path in LAYOUT):
                raise
    raise AssertionError("the second attempt returns or raises")


def changes(
    repo: str, base: str, config: Config, fresh: dict[str, Content], gone: list[str], held: dict[str, hub.Remote]
) -> list[str]:
    """What a commit brings, a line each: metrics by their old and new values, then the files."""
    lines = [f"{name} ({size(content):,} bytes)" for name, content in fresh.items() if name not in held]
    if CONFIG in held and CONFIG in fresh:
        lines += metric_changes(old_metrics(repo, base), config.metrics)
    titles = {CARD: "the card", CONFIG: "the description", MODEL: "the weights", FINGERPRINT: "the fingerprint"}
    lines += [f"{titles.get(name, name)} changed" for name in fresh if name in held]
    return lines + [f"{name} removed" for name in gone]


def old_metrics(repo: str, base: str) -> dict[str, Any]:
    """The metrics of the config.json that is published; none if it cannot be read, as it is about to be replaced."""
    try:
        raw = files.read_json(hub.fetch(repo, base, [CONFIG]) / CONFIG, CONFIG)
    except InputError:
        return {}
    found = raw.get("metrics") if isinstance(raw, dict) else None
    return found if isinstance(found, dict) else {}


def metric_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Each metric whose value is another one, as `name old -> new`."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = (card_text.number(metrics.get(name)) for metrics in (old, new))
        if before != after:
            shown = (f"{value:.4g}" if value is not None else "none" for value in (before, after))
            lines.append(printable(f"metric {name} {' -> '.join(shown)}", 120))
    return lines
