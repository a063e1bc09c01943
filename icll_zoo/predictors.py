"""Predictors by name: a saved model, a learner, or the dataset's own truth; what evaluation and comparisons read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from icll_zoo.data import Dataset
from icll_zoo.errors import InputError
from icll_zoo.evaluation import Predictor, oracle_of, predictor_of
from icll_zoo.weights import load_model
from icll_zoo.zoo import Vocabulary, Zoo, default_zoo


def open_predictor(
    name: str,
    dataset: Dataset,
    *,
    options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    zoo: Zoo | None = None,
) -> Predictor:
    """What predicts by a name: a function of a batch on `device` that gives probabilities (b, l, v).

    name: `local-dir:PATH`, `hf-hub:ORG/NAME@REVISION`, a catalogue name, a learner such as ngram-3, or oracle.
    options: of a learner (`model.*`).
    Raises InputError for a name whose model would have untrained parameters, or for weights of another vocabulary; the
    oracle of a dataset that has none raises it when it is first asked.
    """
    model = open_model(zoo or default_zoo(), name, dict(options or {}), dataset)
    if isinstance(model, str):
        return oracle_of(dataset, "the predictor 'oracle'")
    return predictor_of(model.to(device))


def open_model(zoo: Zoo, name: str, options: dict[str, Any], dataset: Dataset) -> nn.Module | Literal["oracle"]:
    """A model by source (`local-dir:PATH`, a catalogue name), a learner by name, or "oracle".

    Raises InputError for a name whose model would have untrained parameters, or for weights of another vocabulary.
    """
    if name == "oracle":
        if options:
            raise InputError("the oracle takes no model options")
        return "oracle"
    if is_source(zoo, name):
        if options:
            raise InputError(f"model.{next(iter(options))} for {name!r}: a saved model's options are fixed")
        return load_model_for(name, dataset, zoo=zoo)
    model = zoo.create_model(name, vocabulary=Vocabulary.of(dataset), **options)
    if any(True for _ in model.parameters()):
        raise InputError(f"model {name!r} is untrained", hint="train it first, then evaluate local-dir:RUN/model")
    return model


def load_model_for(
    source: str, dataset: Dataset, *, device: torch.device | str = "cpu", zoo: Zoo | None = None
) -> nn.Module:
    """A saved model that speaks a dataset's vocabulary, as `load_model` gives it. InputError for another vocabulary."""
    model: Any = load_model(source, zoo=zoo, device=device)
    known, wanted = model.zoo_vocabulary, Vocabulary.of(dataset)
    if known.size != wanted.size or (known.tokens and list(known.tokens) != list(wanted.tokens or [])):
        raise InputError(
            f"{source!r} was trained on another vocabulary ({known.size} tokens) than this dataset's "
            f"({wanted.size} tokens)"
        )
    return model


def is_source(zoo: Zoo, name: str) -> bool:
    """Whether a name means saved weights and not a registered architecture."""
    registered = name in zoo.registry.names("model")
    prefixed = name.startswith(("local-dir:", "hf-hub:"))
    return prefixed or (not registered and ("." in name or "/" in name or Path(name).exists()))
