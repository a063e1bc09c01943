"""The model card: README.md of a saved model and its pictures, made from config.json and nothing else.

Front matter that the Hub reads (https://huggingface.co/docs/hub/model-cards), then what a person needs (card_text.py).
`write` brings the card of a folder up to date; `stale` says what is not. Every text in config.json may be a
stranger's: none of it can leave its place in the Markdown, and the pictures hold drawn text only.
"""

from __future__ import annotations

import re
from pathlib import Path

from icll_zoo import card_text, figures, files
from icll_zoo.card_text import inline, measured, number
from icll_zoo.errors import InputError, printable
from icll_zoo.figures import FIGURES
from icll_zoo.model_config import Config, read_config
from icll_zoo.model_config import parse as parse_config
from icll_zoo.zoo import Zoo, default_zoo

CARD, CONFIG, FOLDER = "README.md", "config.json", "figures"
ANYWHERE = "local-dir:PATH"
PLACE = r"hf-hub:[\w.-]+/[\w.-]+(?:@[\w./-]+)?|[a-z0-9][a-z0-9_-]*(?:\.[a-z0-9][a-z0-9_-]*)+"
SOURCE = re.compile(rf'zoo\.load_model\("({PLACE})"\)', re.ASCII)
LARGEST = 1e6  # a loss or metric beyond it is not drawn


# -- the card ----------------------------------------------------------------------------------------------------------


def card(
    config: Config,
    *,
    license: str | None = None,
    paper: str | None = None,
    source: str = ANYWHERE,
    pictures: tuple[str, ...] = (),
) -> str:
    """The whole text of README.md.

    license: an SPDX identifier. source: what `load_model` is given in the snippet. pictures: those beside the card.
    """
    return f"---\n{front_matter(config, license, paper)}---\n\n{card_text.body(config, paper, source, pictures)}"


def front_matter(config: Config, license: str | None, paper: str | None) -> str:
    """What the Hub reads, as YAML: library, license, tags, and one number for each metric that was measured."""
    from huggingface_hub import EvalResult, ModelCardData

    short = dataset_name(config)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=short,
            dataset_name=short,
            dataset_split=found.split,
            metric_type=inline(name),
            metric_name=inline(name),
            metric_value=found.value,
        )
        for name, found in measured(config).items()
        if short
    ]
    # The Hub knows single SPDX identifiers, in lower case; an expression of several has a field of its own.
    single = license is not None and re.fullmatch(r"[A-Za-z0-9.+-]+", license)
    data = ModelCardData(
        library_name="icll-zoo",
        license=license.lower() if license is not None and single else None if license is None else "other",
        license_name=None if license is None or single else inline(license),
        tags=tags(config, paper),
        model_name=config.architecture if results else None,
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n") + "\n"


def tags(config: Config, paper: str | None) -> list[str]:
    """What the Hub's search finds the model by."""
    found = ["icll-zoo", "in-context-learning", config.architecture.partition(":")[2]]
    if short := dataset_name(config):
        found.append(short)
    if paper is not None and paper.startswith("arXiv:"):
        found.append(f"arxiv:{paper.removeprefix('arXiv:')}")
    return list(dict.fromkeys(found))


def dataset_name(config: Config) -> str:
    """The dataset's short name; empty if there is none."""
    return inline((config.data.dataset or "").rpartition(":")[2])


# -- the folder --------------------------------------------------------------------------------------------------------


def contents(
    config: Config,
    *,
    license: str | None,
    paper: str | None,
    source: str = ANYWHERE,
    kept: tuple[str, ...] = (),
) -> dict[str, bytes]:
    """The card and its pictures by their paths in the folder, README.md last.

    Without matplotlib nothing is drawn, and the card shows the pictures in `kept`.
    """
    wanted = learning_series(config), comparison_rows(config)
    drawn = figures.draw(*wanted) if any(wanted) and figures.can_draw() else {}
    shown = tuple(drawn) if drawn or not any(wanted) else kept
    text = card(config, license=license, paper=paper, source=source, pictures=shown)
    return {**drawn, CARD: text.encode()}


def write(folder: str | Path, zoo: Zoo | None = None, source: str | None = None) -> list[str]:
    """Bring README.md and the pictures of a saved model up to date with its config.json; the paths that changed.

    source: what the snippet gives to `load_model`: a name in the catalogue or hf-hub:org/name. None keeps the one
    there. Each file is replaced whole, README.md last; the files that loading reads are not touched.
    Raises InputError as `read_config` does, EnvironmentFault where the system refuses to write.
    """
    folder = Path(folder)
    if source is not None and not re.fullmatch(PLACE, source, re.ASCII):
        raise InputError(f"{printable(repr(source), 80)} is neither hf-hub:org/name nor a name of a catalogue")
    wanted = wanted_contents(folder, zoo or default_zoo(), source)
    have = present(folder)
    changed = []
    with files.disk_faults("model card", folder):
        for name, content in wanted.items():
            if have.get(name) != content and not (name in have and is_current(name, have[name], content)):
                (folder / name).parent.mkdir(exist_ok=True)
                files.write_atomic(folder / name, content)
                changed.append(name)
        if figures.can_draw():
            for name in set(have) - set(wanted):
                (folder / name).unlink()
                changed.append(name)
            if (folder / FOLDER).is_dir() and not any((folder / FOLDER).iterdir()):
                (folder / FOLDER).rmdir()
    return changed


def stale(folder: str | Path, zoo: Zoo | None = None) -> list[str]:
    """What of a folder's card is not as config.json would make it, a line each. Nothing is written.

    Without matplotlib the pictures themselves cannot be compared.
    """
    folder = Path(folder)
    wanted = wanted_contents(folder, zoo or default_zoo(), None)
    have = present(folder)
    found = []
    for name, content in wanted.items():
        if name not in have:
            found.append(f"{name} is missing")
        elif not is_current(name, have[name], content):
            found.append(f"{name} differs from what config.json gives{first_line(name, have[name], content)}")
    if figures.can_draw():
        found += [f"{name} is no longer part of the card" for name in sorted(set(have) - set(wanted))]
    return found


def is_current(name: str, have: bytes, wanted: bytes) -> bool:
    return have == wanted if name == CARD else figures.same_picture(have, wanted)


def first_line(name: str, have: bytes, wanted: bytes) -> str:
    """Where a text first differs, for a person who looks for it."""
    if name != CARD:
        return ""
    old, new = have.decode(errors="replace").splitlines(), wanted.decode().splitlines()
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return f" from line {place + 1} on"


def wanted_contents(folder: Path, zoo: Zoo, source: str | None) -> dict[str, bytes]:
    """What the card of a folder should be."""
    read_config(folder, zoo)  # of a form and with names that are known here
    config = parse_config(files.read_json(folder / CONFIG, CONFIG), f"config.json {str(folder / CONFIG)!r}")
    facts = config.plugins.get(config.architecture.rpartition(":")[0])
    entry = zoo.entry("model", config.architecture, facts.distribution if facts is not None else None)
    have = present(folder)
    return contents(
        config,
        license=entry.license,
        paper=entry.paper,
        source=source or source_in(have.get(CARD, b"")),
        kept=tuple(name for name in FIGURES if name in have),
    )


def source_in(text: bytes) -> str:
    """What the snippet in a README.md gives to `load_model`, if that is a name or a repository."""
    found = SOURCE.search(text.decode(errors="replace"))
    return found.group(1) if found else ANYWHERE


def present(folder: Path) -> dict[str, bytes]:
    """The card's files that lie in a folder. InputError for a link or anything else in their place."""
    if (folder / FOLDER).is_symlink() or ((folder / FOLDER).exists() and not (folder / FOLDER).is_dir()):
        raise InputError(f"{FOLDER} in {str(folder)!r} is not a folder")
    found = {}
    for name in (CARD, *FIGURES):
        path = folder / name
        if path.is_symlink():
            raise InputError(f"{name} in {str(folder)!r} is a symbolic link")
        if path.exists():
            files.regular_file(path, name, files.TEXT_LIMIT)
            found[name] = path.read_bytes()
    return found


# -- what is drawn -----------------------------------------------------------------------------------------------------


def learning_series(config: Config) -> dict[str, list[tuple[int, float]]]:
    """The losses in config.json's `training.curve`; empty unless there are two points to draw a line between."""
    curve = config.training.get("curve")
    lines = [line for line in curve[: figures.POINTS] if isinstance(line, dict)] if isinstance(curve, list) else []
    series = {}
    for key, title in (("loss", "training"), ("validation_loss", "validation")):
        points = [
            (step, float(value))
            for line in lines
            if isinstance(step := line.get("step"), int) and abs(step) < 2**53
            if (value := number(line.get(key))) is not None and abs(value) < LARGEST
        ]
        if len(points) > 1:
            series[title] = points
    return series


def comparison_rows(config: Config) -> dict[str, list[tuple[str, float, float, float, str]]]:
    """The measured metrics and what stands beside them, as rows to draw."""
    shown: dict[str, list[tuple[str, float, float, float, str]]] = {}
    for metric, found in list(measured(config).items())[: figures.PANELS]:
        arrow = {"higher": " (higher is better)", "lower": " (lower is better)"}.get(found.direction, "")
        rows = [("this model", found, "model")]
        rows += [
            (label(f"{name} (published)" if other.source else name), other, "quoted" if other.source else "beside")
            for name, other in found.beside.items()
        ]
        drawn = [
            (name, row.value, row.low, row.high, kind)
            for name, row, kind in rows[: figures.ROWS]
            if max(map(abs, (row.value, row.low, row.high))) < LARGEST
        ]
        if len(drawn) > 1:
            shown[label(metric) + arrow] = drawn
    return shown


def label(text: str) -> str:
    """A text to draw: in the letters that every font has, and short."""
    return card_text.words(text).encode("ascii", "ignore").decode()[:60].strip() or "?"
