"""Predictors by name: the same probabilities as the model, the learner or the dataset itself."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT

from icll_zoo import InputError, Vocabulary, create_dataset, create_model, load_model, open_predictor

MODEL = f"local-dir:{ROOT}/cards/transformer.dfa"


def test_each_kind_predicts_what_it_should() -> None:
    dataset = create_dataset("dfa", held_out=4)
    batch = dataset.batch("test", 0, 4, None)
    saved = open_predictor(MODEL, dataset)(batch)
    assert torch.equal(saved, load_model(MODEL)(batch.tokens).softmax(-1))
    assert not saved.requires_grad
    learner = create_model("ngram-2", vocabulary=Vocabulary.of(dataset))
    assert torch.equal(open_predictor("ngram-2", dataset)(batch), learner(batch.tokens))
    second = open_predictor("ngram", dataset, options={"order": 2})
    assert torch.equal(second(batch), learner(batch.tokens))
    assert torch.equal(open_predictor("oracle", dataset)(batch), dataset.oracle(batch))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformer", {}, "'transformer' is untrained"),
        ("oracle", {"order": 2}, "the oracle takes no model options"),
        (MODEL, {"d_model": 8}, "a saved model's options are fixed"),
        ("no-such-learner", {}, "unknown"),
        ("no/such.file", {}, "local-dir:"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_predictor(name, create_dataset("dfa", held_out=1), options=options)


def test_weights_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(InputError, match=r"another vocabulary \(20 tokens\) than this dataset's \(64 tokens\)"):
        open_predictor(MODEL, create_dataset("mqar", held_out=1))
