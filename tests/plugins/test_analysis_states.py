"""`icll_zoo_analysis.states` and its verb."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from icll_zoo import InputError, create_dataset, load_model
from icll_zoo.cli import run
from icll_zoo_analysis import states
from icll_zoo_analysis.states import Rates, Reading, nearest, pca, project, rates, read, shuffle

Capture = pytest.CaptureFixture[str]
MODEL = f"local-dir:{ROOT}/cards/transformer.dfa"


def reading(hidden: torch.Tensor, state: torch.Tensor, token: torch.Tensor | None = None, index: int = 0) -> Reading:
    place = torch.arange(len(state))
    return Reading(
        index, {"block 1": hidden.double()}, place, torch.zeros_like(state) if token is None else token, state
    )


def test_nearest_against_plain_loops() -> None:
    hidden = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = []
    for i in range(40):
        apart = [sum((a - b) ** 2 for a, b in zip(hidden[i].tolist(), row, strict=True)) for row in hidden.tolist()]
        wanted.append(min((j for j in range(40) if j != i), key=lambda j: apart[j]))
    assert nearest(hidden).tolist() == wanted


def test_a_shuffle_within_tokens_keeps_what_each_token_has() -> None:
    generator = torch.Generator().manual_seed(0)
    state, token = torch.randint(5, (300,), generator=generator), torch.randint(3, (300,), generator=generator)
    mixed = shuffle(state, token, generator)
    assert not torch.equal(mixed, state)
    for t in range(3):
        assert mixed[token == t].sort().values.tolist() == state[token == t].sort().values.tolist()
    anywhere = shuffle(state, torch.zeros_like(token), generator)
    assert anywhere.sort().values.tolist() == state.sort().values.tolist()
    assert anywhere[token == 0].bincount().tolist() != state[token == 0].bincount().tolist()


def test_known_rates() -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(4, (400,), generator=generator)
    noise = torch.randn(400, 6, generator=generator)
    perfect = torch.nn.functional.one_hot(state, 6) * 100 + noise
    # Two equally frequent states a token: a token alone is right half of the time.
    same, shuffled, within = (rates(reading(perfect, state, state // 2))["block 1"] / 400).tolist()
    assert same == 1
    assert shuffled == pytest.approx(0.25, abs=0.03)
    assert within == pytest.approx(0.5, abs=0.03)
    same, shuffled, _ = (rates(reading(noise, state))["block 1"] / 400).tolist()
    assert same == pytest.approx(0.25, abs=0.08)
    only_token = torch.nn.functional.one_hot(state // 2, 6) * 100 + noise
    same, _, within = (rates(reading(only_token, state, state // 2))["block 1"] / 400).tolist()
    assert same == pytest.approx(within, abs=0.08)


def test_rates_add_up_over_sequences() -> None:
    summed = Rates()
    summed.add(reading(torch.eye(4), torch.tensor([0, 0, 0, 0])))
    summed.add(reading(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]), index=1))
    table = summed.table()
    assert table["layer"] == ["block 1"]
    assert table["same state"] == [4 / 6]
    assert (table["same state low"], table["same state high"]) == ([0.0], [1.0])


def test_pca_has_the_directions_of_most_variance() -> None:
    hidden = torch.randn(200, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden = hidden * torch.tensor([1, 9, 1, 1, 4, 1, 1]) + 3
    flat, shares = pca(hidden)
    values, vectors = torch.linalg.eigh(torch.cov(hidden.T))
    assert shares == pytest.approx((values.flip(0)[:2] / values.sum()).tolist(), abs=1e-9)
    for i in range(2):
        along = (hidden - hidden.mean(0)) @ vectors[:, -1 - i]
        assert torch.allclose(flat[:, i].abs(), along.abs(), atol=1e-9)
    assert torch.allclose(pca(hidden + 100)[0], flat, atol=1e-9)
    assert pca(torch.tensor([[0.0], [1.0], [5.0]]))[0].shape == (3, 2)


def test_a_reading_knows_the_automaton_s_state() -> None:
    dataset = create_dataset("dfa", held_out=2)
    found = read(load_model(MODEL), dataset, 1, skip=30)
    language = dataset.language("test", 1)
    text = next(sample.text for i, sample in enumerate(dataset.samples("test", 2)) if i == 1)
    assert list(found.hidden) == ["embedding", "block 1", "block 2"]
    for position, token, state in zip(found.position.tolist(), found.token.tolist(), found.state.tolist(), strict=True):
        assert position >= 30
        assert dataset.vocabulary[token] == text[position] != "|"
        assert language.states_of(text[: position + 1].rpartition("|")[2])[-1] == state
    assert len(found.position) == sum(letter != "|" for letter in text[30:-1])
    with pytest.raises(InputError, match="no two positions from 5000 on"):
        read(load_model(MODEL), dataset, 1, skip=5000)


def test_what_is_read_is_the_residual_stream() -> None:
    dataset = create_dataset("dfa", held_out=1)
    model = load_model(MODEL)
    found = read(model, dataset, 0, skip=0)
    tokens = dataset.batch("test", 0, 1, None).tokens
    last = found.hidden["block 2"].float()
    logits = model(tokens)[0, found.position]
    again = torch.nn.functional.linear(model.norm(last), model.embedding.weight)
    assert torch.allclose(again, logits, atol=1e-4)


def test_the_verb_writes_what_it_prints(tmp_path: Path, capsys: Capture) -> None:
    words = ["states", MODEL, "dfa", "data.held_out=6", "--limit", "6"]
    assert run([*words, "--json", "--output", str(tmp_path), "--layer", "0", "--layer", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in told["layers"]] == ["embedding", "block 1", "block 2"]
    for row in told["layers"]:
        assert row["same state"] > row["shuffled"] + 0.2
    with (tmp_path / "states-points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["layer"] for row in rows} == {"embedding", "block 2"}
    assert {row["language"] for row in rows} == {"0", "1"}
    assert (tmp_path / "states.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "states.svg").read_text()
    assert f"same state {told['layers'][2]['same state']:.2f}" in drawn
    assert "of variance)" in drawn
    assert run(words) == 0
    assert f"{told['layers'][1]['same state']:.3f}" in capsys.readouterr().out


def test_methods_that_are_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(states.importlib, "import_module", missing)
    for method, package in (("umap", "umap-learn"), ("tsne", "scikit-learn")):
        with pytest.raises(InputError, match=f"needs {package}"):
            project(hidden, method)


def test_t_sne_by_the_library() -> None:
    pytest.importorskip("sklearn", reason="t-SNE comes from scikit-learn, which nothing here requires")
    groups = torch.arange(60) // 20
    noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat, shares = project(torch.nn.functional.one_hot(groups, 4) * 50 + noise, "tsne")
    assert shares is None
    assert torch.equal(groups[nearest(flat)], groups)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([MODEL], "too few names"),
        ([MODEL, "ngram-2", "dfa"], "one model is looked into"),
        ([MODEL, "mqar"], "another vocabulary"),
        ([MODEL, "dfa", "data.held_out=2", "--layer", "3"], "there is no layer 3: they are 0 to 2"),
        ([MODEL, "dfa", "data.held_out=2", "--language", "2"], "there is no language 2"),
        ([MODEL, "dfa", "data.held_out=2", "--skip", "5000"], "--skip"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words: list[str], message: str, capsys: Capture) -> None:
    assert run(["states", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err


@pytest.mark.slow
def test_n_gram_heads_tell_states_apart_that_the_token_does_not(capsys: Capture) -> None:
    words = ["states", f"local-dir:{ROOT}/cards/gla-ngram.dfa", "dfa", "data.held_out=30", "--limit", "30"]
    assert run([*words, "--json"]) == 0
    layers = {row["layer"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    before, after = layers["embedding"], layers["block 4"]
    assert before["same state"] == pytest.approx(before["shuffled within tokens"], abs=0.03)
    assert after["same state low"] > after["shuffled within tokens high"]
