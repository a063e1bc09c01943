"""`icll_zoo_analysis.diagram`, its layout and its verb."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from icll_zoo import Vocabulary, create_dataset, create_model, open_predictor
from icll_zoo.cli import run
from icll_zoo_analysis.diagram import Automaton, automaton_of, beliefs, sequences_of
from icll_zoo_analysis.diagram_drawing import layout_of, merged
from icll_zoo_analysis.diagram_labels import RADIUS, sample
from icll_zoo_analysis.diagram_layout import SPACING, shared_ends, ugliness

Capture = pytest.CaptureFixture[str]
CROWDED = ("data.states_min=12", "data.degree_min=3", "data.symbols_min=18", "data.held_out=4")


def crowded(index: int) -> Automaton:
    dataset = create_dataset("dfa", states_min=12, degree_min=3, symbols_min=18, held_out=4)
    return automaton_of(dataset, "test", index)


def test_beliefs_against_plain_loops() -> None:
    dataset = create_dataset("dfa", held_out=3)
    automaton = automaton_of(dataset, "test", 2)
    language = dataset.language("test", 2)
    assert automaton.delta == language.delta
    batch = sequences_of(dataset, "test", 2)
    model = create_model("ngram-2", vocabulary=Vocabulary.of(dataset))
    found = beliefs(automaton, dataset, batch, open_predictor("ngram-2", dataset), skip=60)
    rows, sums, visits = model(batch.tokens)[0].tolist(), defaultdict(lambda: [0.0] * 20), defaultdict(int)
    string = ""
    for t, token in enumerate(batch.tokens[0].tolist()):
        symbol = dataset.vocabulary[token]
        string = "" if symbol == "|" else string + symbol
        state = language.states_of(string)[-1] if string else language.start
        if t >= 60:
            visits[state] += 1
            sums[state] = [a + b for a, b in zip(sums[state], rows[t], strict=True)]
    assert sum(visits.values()) == int(batch.valid.sum()) - 60
    for state, belief in found.items():
        truth = [1 / len(language.delta[state]) if v in language.delta[state] else 0 for v in dataset.vocabulary]
        assert belief.truth.tolist() == pytest.approx(truth, abs=1e-7)
        assert belief.visits == visits[state]
        if visits[state]:
            mean = [value / visits[state] for value in sums[state]]
            assert belief.model.tolist() == pytest.approx(mean, abs=1e-6)
            apart = sum(abs(p - q) for p, q in zip(mean, truth, strict=True)) / 2
            assert belief.tvd == pytest.approx(apart, abs=1e-6)
            assert belief.illegal == pytest.approx(sum(p for p, q in zip(mean, truth, strict=True) if not q), abs=1e-6)


def test_the_oracle_believes_the_truth() -> None:
    dataset = create_dataset("dfa", held_out=2)
    automaton = automaton_of(dataset, "test", 0)
    batch = sequences_of(dataset, "test", 0)
    for belief in beliefs(automaton, dataset, batch, open_predictor("oracle", dataset), skip=0).values():
        assert belief.visits > 0
        assert belief.tvd == belief.mean_tvd == belief.illegal == 0
    unseen = beliefs(automaton, dataset, batch, open_predictor("oracle", dataset), skip=10_000)
    assert all(belief.model is None and belief.tvd is None for belief in unseen.values())


def test_an_end_leads_back_to_the_start_and_has_its_probability() -> None:
    dataset = create_dataset("regular-language", regex="(ab|ba*c)*d?", held_out=8)
    automaton = automaton_of(dataset, "test", 0)
    assert automaton.accepting == frozenset(dataset.acceptor.accepting)
    assert automaton.states_of(["a", "b", "<end>", "b", "a"]) == [1, 0, 0, 2, 2]
    batch = sequences_of(dataset, "test", 0)
    assert len(batch) == 8
    found = beliefs(automaton, dataset, batch, None, skip=0)
    end = dataset.vocabulary.index("<end>")
    assert {state: float(belief.truth[end]) for state, belief in found.items()} == pytest.approx(
        {0: 0.2, 1: 0.0, 2: 0.0, 3: 1.0}, abs=1e-6
    )
    for state, belief in found.items():
        assert belief.truth.sum() == pytest.approx(1, abs=1e-6)
        assert torch.equal(belief.truth.float(), dataset.probability[state].float())


def test_symbols_between_the_same_states_share_an_edge() -> None:
    automaton = Automaton(0, {0: {"a": 1, "b": 1, "c": 0}, 1: {"a": 0}}, None)
    assert merged(automaton) == {(0, 1): ["a", "b"], (0, 0): ["c"], (1, 0): ["a"]}
    layout = layout_of(automaton)
    assert layout.curve[0, 0].shape == (4, 2)
    # The two edges between 0 and 1 lie side by side.
    there, back = sample(layout.curve[0, 1]), sample(layout.curve[1, 0])[::-1]
    assert np.hypot(*(there - back).T).max() > 0.3


@pytest.mark.parametrize("index", range(2))
def test_twelve_states_with_three_edges_each_stay_readable(index: int) -> None:
    automaton = crowded(index)
    assert sum(map(len, automaton.delta.values())) == 36
    layout = layout_of(automaton)
    places = np.stack(list(layout.place.values()))
    gaps = np.hypot(*np.moveaxis(places[:, None] - places[None], -1, 0)) + np.eye(12) * 9
    assert gaps.min() > 4 * RADIUS
    through = covered = 0
    for (a, b), curve in layout.curve.items():
        points = sample(curve)
        # From rim to rim.
        assert np.hypot(*(points[0] - layout.place[a])) == pytest.approx(RADIUS, abs=0.02)
        assert np.hypot(*(points[-1] - layout.place[b])) == pytest.approx(RADIUS, abs=0.02)
        others = np.stack([at for state, at in layout.place.items() if state not in (a, b)])
        through += bool((np.hypot(*np.moveaxis(points[:, None] - others, -1, 0)) < 0.9 * RADIUS).any())
    half = np.array([0.22, 0.09])  # of a label such as "a .33"
    labels = np.stack(list(layout.label.values()))
    # From a label's rectangle to the middle of a state.
    gaps = np.maximum(np.abs(labels[:, None] - places) - half, 0)
    assert (np.hypot(*np.moveaxis(gaps, -1, 0)) > 0.9 * RADIUS).all()
    for i in range(36):
        covered += sum(bool((np.abs(labels[i] - labels[j]) < 1.4 * half).all()) for j in range(i))
    assert through <= 1
    assert covered == 0


def test_crossings_and_edges_through_states_are_ugly() -> None:
    def cost(place: list[tuple[float, float]], ends: list[tuple[int, int]]) -> float:
        found = np.array(ends)
        length = sum(np.hypot(*np.subtract(place[a], place[b])) for a, b in ends)
        return ugliness(np.array(place), found, shared_ends(found), 0) - 0.25 * length / SPACING

    row = [(0.0, 0.0), (1.6, 0.0), (3.2, 0.0)]
    assert cost(row, [(0, 1), (1, 2)]) == pytest.approx(0)
    assert cost(row, [(0, 2)]) == pytest.approx(6)  # through state 1
    square = [(0.0, 0.0), (1.6, 0.0), (1.6, 1.6), (0.0, 1.6)]
    assert cost(square, [(0, 1), (2, 3)]) == pytest.approx(0)
    assert cost(square, [(0, 2), (1, 3)]) == pytest.approx(1)  # they cross
    assert cost([(0.0, 0.0), (1.6, 0.0), (1.6, 0.2)], [(0, 1), (0, 2)]) > 1  # nearly the same direction
    assert cost([(3.2, 0.0), *row], [(1, 2)]) == pytest.approx(1.6)  # the start belongs on the left


def test_the_same_automaton_has_the_same_layout() -> None:
    dataset = create_dataset("dfa", held_out=2)
    one, other = (layout_of(automaton_of(dataset, "test", 1)) for _ in range(2))
    assert all(np.array_equal(one.place[state], other.place[state]) for state in one.place)
    assert all(np.array_equal(one.label[edge], other.label[edge]) for edge in one.label)


def test_the_verb_draws_both_side_by_side(tmp_path: Path, capsys: Capture) -> None:
    words = ["diagram", "dfa", *CROWDED, "--language", "1", "--model", "ngram-3"]
    assert run([*words, "--json", "--output", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["states"]) == 12
    with (tmp_path / "diagram.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 * 20
    assert sum(row["target"] != "" for row in rows) == 36
    for state in told["states"]:
        mine = [row for row in rows if int(row["state"]) == state["state"]]
        apart = sum(abs(float(row["difference"])) for row in mine) / 2
        assert apart == pytest.approx(state["TVD of the mean"], abs=1e-9)
    assert (tmp_path / "diagram.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "diagram.svg").read_text()
    for row in rows:
        if row["target"]:
            believed = f"{float(row['model']):.2f}".removeprefix("0")
            assert f">{row['token']} .33<" in drawn
            assert f">{row['token']} {believed}<" in drawn
    assert run(words) == 0
    assert "language 1 of dfa (test), 12 states, start 0" in capsys.readouterr().out


def test_marks_of_acceptance(tmp_path: Path) -> None:
    assert run(["diagram", "regular-language", "data.regex=(ab)*", "--output", str(tmp_path / "some")]) == 0
    assert "Two rims: the state accepts." in (tmp_path / "some" / "diagram.svg").read_text()
    assert run(["diagram", "dfa", "data.held_out=1", "--output", str(tmp_path / "all")]) == 0
    assert "Every state accepts." in (tmp_path / "all" / "diagram.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "too few names"),
        (["dfa", "data.held_out=3", "--language", "3"], "the test split has languages 0 to 2"),
        (["dfa", "--split", "train"], "endless"),
        (["mqar"], "no automaton to draw"),
        (["regular-language", "data.regex=a*", "--language", "1"], "has one only"),
        (["regular-language", "data.regex=" + "a" * 60], "states are too many"),
        (["ngram-2", "dfa"], "one dataset is drawn"),
        (["dfa", "data.held_out=1", "--model", "transformer"], "untrained"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words: list[str], message: str, capsys: Capture) -> None:
    assert run(["diagram", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err
