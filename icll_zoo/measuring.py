"""Measure a saved model on held-out data, with other predictors beside it, and keep that in its config.json.

config.json then holds, for each metric, `{"value", "low", "high", "n", "seeds", "split", "limit", "direction",
"about", "options", "beside": {predictor: {...}}}`, and of the run `training.curve`, `tokens` and `seconds`. The card
is made from these alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icll_zoo import evaluation, files
from icll_zoo.data import Dataset
from icll_zoo.errors import InputError
from icll_zoo.evaluation import Score
from icll_zoo.model_config import Config, parse, read_config
from icll_zoo.run_folder import LOG, RESULT, RUN
from icll_zoo.weights import CONFIG, load_model
from icll_zoo.zoo import Vocabulary, Zoo, default_zoo

ORACLE = "oracle"
POINTS = 200  # of each series of a learning curve that are kept
LOG_LIMIT = 2**28  # bytes of metrics.jsonl
KEPT = ("loss", "validation_loss")


def measure(
    folder: str | Path,
    zoo: Zoo | None = None,
    *,
    learners: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate a saved model, learners that need no training and the oracle on the test split of its own dataset.

    metrics: names; by default those that the dataset names. limit: the first so many sequences only.
    Returns what config.json's `metrics` is to hold of it; nothing is written.
    Raises InputError for a model without a dataset, an unknown name, or a learner that would have to be trained.
    """
    folder, zoo = Path(folder), zoo or default_zoo()
    config = read_config(folder, zoo)
    dataset, name = dataset_of(config, zoo)
    own: Sequence[str] = getattr(dataset, "metrics", ("cross-entropy", "token-accuracy"))
    predictors: dict[str, Any] = {"": load_model(f"local-dir:{folder}", zoo=zoo, device=device)}
    for learner in learners:
        made = zoo.create_model(learner, vocabulary=Vocabulary.of(dataset))
        if any(True for _ in made.parameters()):
            raise InputError(f"{learner!r} is no learner: it would have to be trained first")
        predictors[learner] = made.to(device)
    if dataset.oracle(dataset.batch("test", 0, 1, None if dataset.size("test") is not None else 0)) is not None:
        predictors[ORACLE] = ORACLE
    scores = {
        label: scores_of(predictor, dataset, metrics or own, zoo, limit=limit, batch_size=batch_size, device=device)
        for label, predictor in predictors.items()
    }
    defaults = zoo.resolve_options("dataset", name)
    options = {key: value for key, value in config.data.options.items() if defaults.get(key) != value}
    seed = config.training.get("seed")
    quote, architecture = getattr(dataset, "published", None), config.architecture.partition(":")[2]
    found: dict[str, Any] = {}
    for metric, score in scores[""].items():
        beside = {label: plain(row[metric]) for label, row in scores.items() if label}
        beside |= quote(metric, architecture) if quote is not None else {}
        found[metric] = {
            **plain(score),
            "n": score.n,
            "seeds": [seed] if isinstance(seed, int) else [],
            "split": "test",
            "limit": limit,
            "direction": getattr(function := zoo.create_metric(metric), "direction", None),
            "about": (inspect.getdoc(function) or "").partition("\n")[0],
            "options": options,
            "beside": beside,
        }
    return found


def dataset_of(config: Config, zoo: Zoo) -> tuple[Dataset, str]:
    """The dataset that a model was trained on, and its qualified name. InputError if there is none, or another now."""
    if config.data.dataset is None:
        raise InputError("its config.json names no dataset, so there is nothing to measure it on")
    name = zoo.entry("dataset", config.data.dataset).qualified
    dataset: Dataset = zoo.create_dataset(name, **config.data.options)
    if config.data.vocabulary is not None and list(dataset.vocabulary) != config.data.vocabulary:
        raise InputError(f"the tokens of dataset {name!r} are not those that the model was trained on")
    return dataset, name


def scores_of(
    predictor: Any,
    dataset: Dataset,
    metrics: Sequence[str],
    zoo: Zoo,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
) -> dict[str, Score]:
    """The metrics on the test split that are one number each; curves over positions are left out."""
    scores = evaluation.evaluate(
        predictor, dataset, list(metrics), batch_size=batch_size, device=device, limit=limit, zoo=zoo
    )
    return {name: score for name, score in scores.items() if isinstance(score.value, float)}


def plain(score: Score) -> dict[str, Any]:
    """A score as config.json holds it."""
    return {"value": score.value, "low": score.low, "high": score.high}


# -- the run it came from ----------------------------------------------------------------------------------------------


def run_beside(folder: Path) -> Path | None:
    """The run folder that a model's folder lies in, if it is the run that the model says it came from."""
    run = folder.resolve().parent
    if not all((run / name).is_file() for name in (RUN, RESULT, LOG)):
        return None
    written, config = files.read_json(run / RUN, "description"), files.read_json(folder / CONFIG, CONFIG)
    if not isinstance(written, dict) or not isinstance(config, dict) or not isinstance(config.get("training"), dict):
        return None
    return run if written.get("hash") == config["training"].get("hash") is not None else None


def run_record(run: Path) -> dict[str, Any]:
    """What a finished run adds to config.json's `training`: its learning curve, tokens read and seconds."""
    result = files.read_json(run / RESULT, "result")
    lines = [files.parse_json(line, f"{LOG} of {str(run)!r}") for line in log_lines(run / LOG)]
    points = [
        {"step": line["step"], key: line[key]}
        for key in KEPT
        for line in thinned([line for line in lines if isinstance(line, dict) and line.get(key) is not None])
    ]
    return {
        "curve": sorted(points, key=lambda point: point["step"]),
        "tokens": result["tokens"],
        "seconds": result["seconds"],
    }


def log_lines(path: Path) -> list[str]:
    return [line for line in files.read_text(path, LOG, LOG_LIMIT).splitlines() if line]


def thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most POINTS lines, evenly spread; the first and the last stay."""
    if len(lines) <= POINTS:
        return lines
    return [lines[round(i * (len(lines) - 1) / (POINTS - 1))] for i in range(POINTS)]


# -- config.json -------------------------------------------------------------------------------------------------------


def record(
    folder: str | Path, *, metrics: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None
) -> bool:
    """Lay these upon config.json's `metrics` and `training`; whether that changed the file, which is replaced whole.

    What a loader reads of the model is left as it is, so the folder loads before, during and after.
    """
    folder = Path(folder)
    where = f"config.json {str(folder / CONFIG)!r}"
    config = parse(files.read_json(folder / CONFIG, CONFIG), where)
    changed = config.model_copy(
        update={"metrics": {**config.metrics, **(metrics or {})}, "training": {**config.training, **(training or {})}}
    )
    text = files.pretty_json(changed.to_json())
    if len(text.encode()) > files.TEXT_LIMIT:
        raise InputError(f"{where} would have {len(text.encode())} bytes, more than {files.TEXT_LIMIT}")
    parse(files.parse_json(text, where), where)
    if changed == config:
        return False
    with files.disk_faults("config.json", folder / CONFIG):
        files.write_atomic(folder / CONFIG, text)
    return True
