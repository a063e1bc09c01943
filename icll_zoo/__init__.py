"""A plugin-based model zoo for in-context language learning.

    import icll_zoo as zoo
    model = zoo.create_model("transformer", n_layers=4)

Every public name is loaded when it is first used, so that `import icll_zoo` costs nothing and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from icll_zoo._version import __version__

if TYPE_CHECKING:
    from icll_zoo.cli import emit
    from icll_zoo.cli.shared import as_json, default_metrics, open_zoo, split_words, with_scripts
    from icll_zoo.data import IGNORED, SPLITS, Batch, Dataset, Split, epoch_indices, passes
    from icll_zoo.dropout import dropout_keys, kept
    from icll_zoo.errors import EnvironmentFault, InputError, Interrupted, ZooError
    from icll_zoo.evaluation import Accumulator, Metric, Predictor, Score, bootstrap, evaluate, interval, stored_batches
    from icll_zoo.figures import render_figure, tidy_axes
    from icll_zoo.files import parse_json, read_text
    from icll_zoo.generation import generate
    from icll_zoo.hashing import logical_shift, splitmix64, stream_key
    from icll_zoo.hookspecs import hookimpl
    from icll_zoo.hub_datasets import fetch_dataset_file, parse_dataset, pin_dataset
    from icll_zoo.predictors import load_model_for, open_predictor
    from icll_zoo.publishing import publish
    from icll_zoo.rotary import rotate_pairs
    from icll_zoo.rows import Rows, split_codes
    from icll_zoo.run import Run, check_device, parse_words
    from icll_zoo.sweeps.sweeping import sweep
    from icll_zoo.tables import write_table
    from icll_zoo.tracing import replaced, trace
    from icll_zoo.training import train
    from icll_zoo.weights import load_model, save_model
    from icll_zoo.zoo import (
        Vocabulary,
        Zoo,
        create_dataset,
        create_metric,
        create_model,
        list_datasets,
        list_metrics,
        list_models,
        register_architecture,
        register_dataset,
        register_metric,
        register_mixer,
    )

_HOMES = {
    "cli": ("emit",),
    "cli.shared": ("as_json", "default_metrics", "open_zoo", "split_words", "with_scripts"),
    "data": ("IGNORED", "SPLITS", "Batch", "Dataset", "Split", "epoch_indices", "passes"),
    "dropout": ("dropout_keys", "kept"),
    "errors": ("EnvironmentFault", "InputError", "Interrupted", "ZooError"),
    "evaluation": (
        "Accumulator",
        "Metric",
        "Predictor",
        "Score",
        "bootstrap",
        "evaluate",
        "interval",
        "stored_batches",
    ),
    "figures": ("render_figure", "tidy_axes"),
    "files": ("parse_json", "read_text"),
    "generation": ("generate",),
    "hashing": ("logical_shift", "splitmix64", "stream_key"),
    "hookspecs": ("hookimpl",),
    "hub_datasets": ("fetch_dataset_file", "parse_dataset", "pin_dataset"),
    "predictors": ("load_model_for", "open_predictor"),
    "publishing": ("publish",),
    "rotary": ("rotate_pairs",),
    "rows": ("Rows", "split_codes"),
    "run": ("Run", "check_device", "parse_words"),
    "sweeps.sweeping": ("sweep",),
    "tables": ("write_table",),
    "tracing": ("replaced", "trace"),
    "training": ("train",),
    "weights": ("load_model", "save_model"),
    "zoo": (
        "Vocabulary",
        "Zoo",
        "create_dataset",
        "create_metric",
        "create_model",
        "list_datasets",
        "list_metrics",
        "list_models",
        "register_architecture",
        "register_dataset",
        "register_metric",
        "register_mixer",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "IGNORED",
    "SPLITS",
    "Accumulator",
    "Batch",
    "Dataset",
    "EnvironmentFault",
    "InputError",
    "Interrupted",
    "Metric",
    "Predictor",
    "Rows",
    "Run",
    "Score",
    "Split",
    "Vocabulary",
    "Zoo",
    "ZooError",
    "__version__",
    "as_json",
    "bootstrap",
    "check_device",
    "create_dataset",
    "create_metric",
    "create_model",
    "default_metrics",
    "dropout_keys",
    "emit",
    "epoch_indices",
    "evaluate",
    "fetch_dataset_file",
    "generate",
    "hookimpl",
    "interval",
    "kept",
    "list_datasets",
    "list_metrics",
    "list_models",
    "load_model",
    "load_model_for",
    "logical_shift",
    "open_predictor",
    "open_zoo",
    "parse_dataset",
    "parse_json",
    "parse_words",
    "passes",
    "pin_dataset",
    "publish",
    "read_text",
    "register_architecture",
    "register_dataset",
    "register_metric",
    "register_mixer",
    "render_figure",
    "replaced",
    "rotate_pairs",
    "save_model",
    "split_codes",
    "split_words",
    "splitmix64",
    "stored_batches",
    "stream_key",
    "sweep",
    "tidy_axes",
    "trace",
    "train",
    "with_scripts",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'icll_zoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"icll_zoo.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
