"""The text of a model card, below its front matter: what it is, how to load it, what was measured, its limits.

Made from config.json, whose texts may be a stranger's: each goes through `code`, `words` or JSON, so that none of it
is a link, an image, HTML or the end of a code block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from icll_zoo.model_config import Config
from icll_zoo.registry import SCRIPT

ROWS = 50  # of a table
LARGEST = 1e300  # of a number that is shown; JSON has whole numbers that no float holds
LONGEST = 20_000  # characters of a block of options
ICLL = "2401.12973"
ICLL_BIBTEX = """\
@inproceedings{akyurek2024icll,
  title     = {In-Context Language Learning: Architectures and Algorithms},
  author    = {Aky{\\"u}rek, Ekin and Wang, Bailin and Kim, Yoon and Andreas, Jacob},
  booktitle = {Proceedings of the 41st International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {235},
  pages     = {787--812},
  year      = {2024},
  eprint    = {2401.12973},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Measured:
    """A metric in config.json that was measured on a split: its value, 95 % interval and groups.

    about: what the metric is. beside: what other predictors have on it; `source` is where a value was published.
    """

    value: float
    low: float
    high: float
    n: int | None = None
    split: str | None = None
    limit: int | None = None
    direction: str = ""
    about: str = ""
    source: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Measured] = field(default_factory=dict)


def number(value: Any) -> float | None:
    """A number, alone or as {"value": number, ...}; None for anything else."""
    value = value.get("value") if isinstance(value, Mapping) else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST:
        return None
    return value


def whole(value: Any) -> int | None:
    """A whole number of a size that can be shown; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def measured(config: Config) -> dict[str, Measured]:
    """The metrics that were measured on a split, by name; numbers alone, such as a run's validation loss, are not."""
    found = {name: reading(metric) for name, metric in list(config.metrics.items())[:ROWS]}
    return {name: metric for name, metric in found.items() if metric is not None and metric.n is not None}


def reading(metric: Any, deep: bool = True) -> Measured | None:
    """One metric of config.json; None if it is not of this form."""
    value = number(metric)
    if not isinstance(metric, Mapping) or value is None:
        return None
    within = number(metric.get("within")) or 0.0
    low, high = number(metric.get("low")), number(metric.get("high"))
    n, source, beside, options = (metric.get(key) for key in ("n", "source", "beside", "options"))
    others = beside.items() if deep and isinstance(beside, Mapping) else ()
    return Measured(
        float(value),
        float(value - within if low is None else low),
        float(value + within if high is None else high),
        whole(n),
        words(metric["split"]) if isinstance(metric.get("split"), str) else None,
        whole(metric.get("limit")),
        str(metric.get("direction", "")),
        words(str(metric.get("about", ""))),
        source if isinstance(source, str) else None,
        options if isinstance(options, Mapping) else {},
        {str(name): other for name, raw in list(others)[:ROWS] if (other := reading(raw, deep=False))},
    )


# -- the sections ------------------------------------------------------------------------------------------------------


def body(config: Config, paper: str | None, source: str, pictures: tuple[str, ...]) -> str:
    """Everything below the front matter."""
    sections = [
        what(config, paper),
        use(config, source),
        results(config, source, pictures),
        training(config, pictures),
        limits(config),
        citation(paper),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def what(config: Config, paper: str | None) -> str:
    """The title and one paragraph."""
    name = config.architecture.partition(":")[2]
    on = f", trained on {code(config.data.dataset)}" if config.data.dataset is not None else ""
    made = f"{code(config.architecture)} (version {config.version}), {config.parameters:,} parameters{on}"
    made += f". Paper: {linked(paper)}." if paper is not None else "."
    return (
        f"# {name}{' on ' + code(config.data.dataset.rpartition(':')[2]) if config.data.dataset else ''}\n\n"
        f"A model of icll-zoo, a plugin-based model zoo for in-context language learning: it predicts each next token "
        f"from the tokens before it.\n\n{made}"
    )


def use(config: Config, source: str) -> str:
    """How to load it, and what loading does not do."""
    special = {config.data.pad_id, config.data.separator_id}
    ids = [i for i in range(min(config.data.vocab_size, 8)) if i not in special][:3] or [0]
    tokens = [*ids, *ids]
    lines = [
        "## Use",
        "",
        "```python",
        "import torch",
        "import icll_zoo as zoo",
        "",
        f'model = zoo.load_model("{source}")' + ("  # the folder of this file" if source.endswith(":PATH") else ""),
        f"tokens = torch.tensor([{tokens}])",
        f"output = model(tokens)  # (1, {len(tokens)}, {config.data.vocab_size}): what follows each token",
        "```",
        "",
        "Loading reads safetensors and JSON only, runs no code from this folder, and checks the model's answers "
        "against `fingerprint.safetensors`.",
    ]
    if source.startswith("hf-hub:"):
        repo, _, revision = source.removeprefix("hf-hub:").partition("@")
        at = f" --revision {revision}" if revision else ""
        lines += ["", f"Or `hf download {repo}{at} --local-dir FOLDER` it, and load `local-dir:FOLDER`."]
    if config.architecture.startswith(f"{SCRIPT}:") or config.script is not None:
        lines += ["", f"It was registered in the script {code(config.script)}: load that first."]
    if config.plugins:
        named = [
            f"{code(name)} ({code(facts.distribution)} {code(facts.version)})"
            for name, facts in list(config.plugins.items())[:ROWS]
        ]
        lines += ["", f"It needs the plugin{'s' if len(named) > 1 else ''} {', '.join(named)}."]
    return "\n".join(lines)


def results(config: Config, source: str, pictures: tuple[str, ...]) -> str:
    """The metrics with their intervals, beside those of other predictors on the same data and of the paper."""
    found = measured(config)
    plain = {
        name: value
        for name, metric in list(config.metrics.items())[:ROWS]
        if name not in found and (value := number(metric)) is not None
    }
    if not found and not plain:
        return ""
    lines = ["## Results", ""]
    if found:
        lines += comparison(config, found, source)
    if picture := [name for name in pictures if name.endswith("comparison.svg")]:
        lines += ["", f"![The model beside other predictors, with 95 % intervals]({picture[0]})"]
    if plain:
        lines += ["", "When these weights were chosen:", ""] if found else []
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {code(name)} | {value:.4g} |" for name, value in plain.items()]
    return "\n".join(lines)


def comparison(config: Config, found: Mapping[str, Measured], source: str) -> list[str]:
    """A table with a row for each predictor and a column for each metric."""
    arrows = {"higher": " ↑", "lower": " ↓"}
    first = next(iter(found.values()))
    names = list(dict.fromkeys(name for metric in found.values() for name in metric.beside))
    quoted = {name: other.source for m in found.values() for name, other in m.beside.items() if other.source}
    rows = [("**this model**", dict(found))]
    for name in names:
        title = f"{words(name)} (published)" if name in quoted else code(name)
        rows.append((title, {m: metric.beside[name] for m, metric in found.items() if name in metric.beside}))
    on = f" of {code(config.data.dataset)}" if config.data.dataset is not None else ""
    lines = [
        f"On the {first.split or 'held-out'} split{on}, {first.n:,} languages or documents; the 95 % intervals in "
        "brackets are over those. Every predictor but the published ones read the same sequences.",
        "",
        "| predictor | " + " | ".join(code(m) + arrows.get(metric.direction, "") for m, metric in found.items()) + " |",
        "|---|" + "---|" * len(found),
    ]
    lines += [f"| {title} | " + " | ".join(cell(row.get(m)) for m in found) + " |" for title, row in rows[:ROWS]]
    if told := [f"- {code(name)}: {metric.about}" for name, metric in found.items() if metric.about]:
        lines += ["", *told]
    if quoted:
        places = ", ".join(dict.fromkeys(linked(place) for place in quoted.values()))
        lines += [
            "",
            f"Published values are those of {places}, read off a figure: the ranges are what that can be off.",
        ]
    if command := evaluation(config, first, source):
        lines += ["", f"To measure it again: `{command}`."]
    return lines


def evaluation(config: Config, found: Measured, source: str) -> str:
    """The command that measures it again; empty if it would hold anything but plain names and numbers."""
    name, options = (config.data.dataset or "").rpartition(":")[2], found.options
    given = [f"data.{key}={value}" for key, value in options.items() if value is not None]
    given += [] if found.limit is None else [f"--limit {found.limit}"]
    parts = [name, *options, *(str(value) for value in options.values())]
    if len(parts) > ROWS or not all(ARGUMENT.fullmatch(part) for part in parts):
        return ""
    return " ".join(["icll-zoo evaluate", source, name, *given])


def cell(found: Measured | None) -> str:
    """A value with its interval."""
    if found is None:
        return ""
    interval = f" [{found.low:.4g}, {found.high:.4g}]" if found.low != found.high else ""
    return f"{found.value:.4g}{interval}"


def training(config: Config, pictures: tuple[str, ...]) -> str:
    """What it was trained on, how, how long, and its learning curve."""
    lines = ["## Training and data", ""]
    if rows := training_facts(config.training):
        lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    if picture := [name for name in pictures if name.endswith("learning-curve.svg")]:
        lines += ["", f"![Training and validation loss by updates]({picture[0]})"]
    for title, options in (("Options of the dataset", config.data.options), ("Options of the model", config.model)):
        if options:
            text = json.dumps(options, indent=2)  # in ASCII: nothing in it can hide, or turn the line around
            shown = (
                ["```json", text, "```"] if len(text) <= LONGEST else ["They are too long to show: see config.json."]
            )
            lines += ["", f"{title}:", "", *shown]
    return "\n".join(lines)


def training_facts(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of the table: what a run's description says, and what was counted."""

    def fact(*keys: str) -> Any:
        value: Any = given
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, str | int | float) else None

    def shown(value: Any) -> str:
        return f"{found:,}" if (found := whole(value)) is not None else code(value)

    def each(*parts: tuple[str, Any]) -> str:
        return ", ".join(f"{name} {shown(value)}".strip() for name, value in parts if value is not None)

    seconds = number(fact("seconds"))
    rows = {
        "updates": each(("", fact("steps")), ("best at", fact("best_step"))),
        "tokens read": each(("", fact("tokens"))),
        "time": "" if seconds is None else f"{seconds:,.0f} s",
        "batch": each(("", fact("train", "batch_size")), ("accumulated", fact("train", "accumulate"))),
        "optimizer": each(
            ("", fact("optimizer", "name")),
            ("learning rate", fact("optimizer", "lr")),
            ("weight decay", fact("optimizer", "weight_decay")),
            ("gradients clipped at", fact("optimizer", "clip")),
        ),
        "schedule": each(("", fact("schedule", "name")), ("warm-up", fact("schedule", "warmup"))),
        "machine": each(("", fact("train", "device")), ("precision", fact("train", "precision"))),
        "seed": each(("", fact("seed"))),
        "description's hash": each(("", fact("hash"))),
    }
    return [(name, value) for name, value in rows.items() if value]


def limits(config: Config) -> str:
    """What not to expect of it."""
    where = code(config.data.dataset) if config.data.dataset is not None else "its training data"
    lines = [
        f"It knows the {config.data.vocab_size:,} tokens of {where} and nothing else: it is made for measuring how "
        "sequence models learn in context, and not for writing text."
    ]
    if (longest := whole(config.model.get("max_length"))) is not None:
        lines.append(f"It was built for at most {longest:,} tokens.")
    if measured(config):
        seed = whole(config.training.get("seed"))
        one = f"one training run, of seed {seed}" if seed is not None else "one training run"
        lines.append(f"The metrics are those of {one}: the intervals say how much the held-out data could change them, "
                     "and nothing of other seeds.")  # fmt: skip
    else:
        lines.append("Its metrics on held-out data have not been measured.")
    best, steps = config.training.get("best_step"), config.training.get("steps")
    if isinstance(best, int) and isinstance(steps, int):
        lines.append("Of the weights in the run, those with the least validation loss were kept.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def citation(paper: str | None) -> str:
    """BibTeX of in-context language learning and of the architecture's paper."""
    entries = [ICLL_BIBTEX]
    if paper is not None and (found := ARXIV.fullmatch(paper)) and found.group(1) != ICLL:
        number_ = found.group(1)
        entries.append(
            f"@misc{{arxiv{number_.replace('.', '')},\n  howpublished = {{arXiv:{number_}}},\n"
            f"  eprint       = {{{number_}}},\n  archivePrefix = {{arXiv}},\n"
            f"  url          = {{https://arxiv.org/abs/{number_}}}\n}}"
        )
    elif paper is not None and (found := DOI.fullmatch(paper)):
        entries.append(f"@misc{{doi,\n  doi = {{{found.group(1)}}},\n  url = {{https://doi.org/{found.group(1)}}}\n}}")
    return "## Citation\n\n```bibtex\n" + "\n\n".join(entries) + "\n```"


# -- texts that stay where they are put --------------------------------------------------------------------------------

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
DOI = re.compile(r"doi:(10\.\d{4,9}/[A-Za-z0-9_.;/:-]+)")
ARGUMENT = re.compile(r"[A-Za-z0-9_.-]+")  # of a command that a person may paste into a shell


def inline(text: Any) -> str:
    """A text that cannot break out of a code span or a cell, at most 200 characters."""
    return "".join(c for c in str(text) if c.isprintable() and c not in "`|<>")[:200]


def code(text: Any) -> str:
    """A text as a code span, in which nothing is a link, an image or HTML."""
    return f"`{inline(text).strip() or '?'}`"


def words(text: str) -> str:
    """A text outside of a code span: letters, digits and the marks that mean nothing in Markdown."""
    return "".join(c for c in text if c.isalnum() or c in " ,.:;'+%()-")[:200].strip()


def linked(paper: str) -> str:
    """Where something is published, as a link if it is on arXiv or has a DOI."""
    if found := ARXIV.fullmatch(paper):
        return f"[{paper}](https://arxiv.org/abs/{found.group(1)})"
    if found := DOI.fullmatch(paper):
        return f"[{inline(paper)}](https://doi.org/{found.group(1)})"
    return words(paper) or "?"
