"""The network over n-gram statistics: its inputs against a recount, and what it learns beside the plain n-grams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError, Vocabulary, create_dataset, create_model, evaluate
from icll_zoo_baselines.smoothing_mlp import SmoothingMlp, coded, ngram_counts

V, PAD, SEPARATOR = 7, 0, 6


def recounted(tokens: list[int], order: int) -> Tensor:
    """(l, order, v), from all the strings read at each position."""
    out = torch.zeros(len(tokens), order, V, dtype=torch.float64)
    for t in range(len(tokens)):
        strings: list[list[int]] = [[-1] * order]
        for token in tokens[: t + 1]:
            if token == SEPARATOR:
                strings.append([-1] * order)
            else:
                strings[-1].append(token)
        for n in range(order):
            context = strings[-1][len(strings[-1]) - n :]
            for string in strings:
                for i in range(order, len(string)):
                    if string[i - n : i] == context:
                        out[t, n, string[i]] += 1
    return out


def sequences(seed: int, lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        tokens = torch.randint(1, V - 1, (length,), generator=generator)
        tokens[torch.rand(length, generator=generator) < 0.15] = SEPARATOR
        made.append(tokens.tolist())
    return made


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_counts_equal_a_recount(order: int) -> None:
    rows = sequences(order, [60, 60])
    found = ngram_counts(torch.tensor(rows), V, SEPARATOR, order)
    for row, tokens in zip(found, rows, strict=True):
        assert torch.equal(row, recounted(tokens, order))


def test_codes() -> None:
    count = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    assert torch.equal(coded(count, "count"), count / 100)
    assert torch.equal(coded(count, "ratio"), torch.tensor([[0.0, 0.25, 0.75], [0.0, 0.0, 0.0]]))
    assert torch.equal(coded(count, "binary"), torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))


def test_is_a_network_of_those_inputs() -> None:
    model = SmoothingMlp(V, SEPARATOR, order=2, code="count", d_hidden=8)
    tokens = torch.tensor(sequences(4, [30]))
    x = torch.stack([recounted(row, 2) for row in tokens.tolist()]).flatten(2).float() / 100
    hidden = torch.nn.functional.gelu(x @ model.hidden.weight.T + model.hidden.bias)
    torch.testing.assert_close(model(tokens), hidden @ model.out.weight.T + model.out.bias)


def test_learns_more_than_the_frequencies_of_symbols() -> None:
    dataset = create_dataset("dfa", languages=96, held_out=50)
    vocabulary = Vocabulary.of(dataset)
    torch.manual_seed(0)
    model: Any = create_model("smoothing-mlp", vocabulary=vocabulary, d_hidden=128)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for k in range(24):
        batch = dataset.batch("train", k, 16, 0)
        loss = torch.nn.functional.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = evaluate(model, dataset, ["tvd"], resamples=2)["tvd"].value
    unigram = evaluate(create_model("ngram-1", vocabulary=vocabulary), dataset, ["tvd"], resamples=2)["tvd"].value
    assert found < unigram - 0.05


def test_bad_options() -> None:
    for name, value in (("order", 0), ("code", "log"), ("d_hidden", 0)):
        with pytest.raises(InputError, match=name):
            SmoothingMlp(**{"vocab_size": V, "separator_id": SEPARATOR, name: value})
