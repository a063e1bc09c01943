"""`icll_zoo_analysis.curve` and its verb, against plain loops."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from icll_zoo import Batch, Vocabulary, bootstrap, create_dataset, create_metric, create_model, evaluate, open_predictor
from icll_zoo.cli import run
from icll_zoo_analysis.curve import bins_of, curves

Capture = pytest.CaptureFixture[str]
METRICS = ("accuracy", "tvd", "cross-entropy")


def measured(*names: str) -> dict[str, object]:
    return {name: create_metric(f"{name}-curve") for name in names}


def test_bins_by_token_and_by_complete_strings() -> None:
    tokens = torch.tensor([[1, 9, 2, 2, 9, 3], [1, 1, 1, 9, 0, 0]])
    batch = Batch(tokens, tokens, tokens != 0, torch.arange(2))
    bins = bins_of(batch, separator=9, width=4)
    assert bins["token"].tolist() == [[0, 0, 0, 0, 1, 1]] * 2
    # What is predicted from a separator on begins the next string.
    assert bins["string"].tolist() == [[0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]]
    assert set(bins_of(batch, separator=None, width=4)) == {"token"}


def test_against_plain_loops() -> None:
    dataset = create_dataset("dfa", held_out=9)
    model = create_model("ngram-2", vocabulary=Vocabulary.of(dataset))
    found = curves({"ngram-2": open_predictor("ngram-2", dataset)}, dataset, measured("accuracy", "tvd"), width=16)
    right, apart, number, languages = defaultdict(int), defaultdict(float), defaultdict(int), defaultdict(set)
    for k in range(9):
        batch = dataset.batch("test", k, 1, None)
        rows, truth = model(batch.tokens)[0].tolist(), dataset.oracle(batch)[0].tolist()
        strings = 0
        for t, token in enumerate(batch.tokens[0].tolist()):
            strings += token == dataset.separator_id
            best = max(range(20), key=lambda v: (rows[t][v], -v))
            for key in (("token", t // 16 * 16 + 1), ("string", strings)):
                number[key] += 1
                languages[key].add(k)
                right[key] += truth[t][best] > 0 and rows[t][best] > 0
                apart[key] += sum(abs(p - q) for p, q in zip(rows[t], truth[t], strict=True)) / 2
    for by in ("token", "string"):
        keys = sorted(key for key in number if key[0] == by)
        for metric, sums in (("accuracy", right), ("tvd", apart)):
            curve = found[metric, by, "ngram-2"]
            assert curve.at == [at for _, at in keys]
            assert curve.groups == [len(languages[key]) for key in keys]
            assert curve.value == pytest.approx([sums[key] / number[key] for key in keys], abs=1e-6)
            for value, low, high, n in zip(curve.value, curve.low, curve.high, curve.groups, strict=True):
                assert (low is None) == (high is None) == (n == 1)
                assert low is None or low - 1e-12 <= value <= high + 1e-12


def test_one_bin_of_everything_is_what_evaluate_says() -> None:
    dataset = create_dataset("dfa", held_out=15)
    predictors = {name: open_predictor(name, dataset) for name in ("ngram-1", "ngram-3")}
    found = curves(predictors, dataset, measured(*METRICS), width=10_000)
    for name in predictors:
        scores = evaluate(create_model(name, vocabulary=Vocabulary.of(dataset)), dataset, METRICS)
        for metric, score in scores.items():
            curve = found[metric, "token", name]
            assert (curve.at, curve.groups) == ([1], [15])
            ends = (curve.value[0], curve.low[0], curve.high[0])
            assert ends == pytest.approx((score.value, score.low, score.high), rel=1e-9)


def test_batches_of_any_size_give_the_same() -> None:
    dataset = create_dataset("dfa", held_out=7)
    predictors = {name: open_predictor(name, dataset) for name in ("ngram-2", "oracle")}
    whole = curves(predictors, dataset, measured("tvd"))
    pieces = curves(predictors, dataset, measured("tvd"), batch_size=2)
    assert whole.keys() == pieces.keys()
    for key, curve in whole.items():
        assert (curve.at, curve.groups) == (pieces[key].at, pieces[key].groups)
        # The learner adds in another order in a batch of another width.
        assert pieces[key].value == pytest.approx(curve.value, abs=1e-6)
        assert [end for end in pieces[key].low if end] == pytest.approx([end for end in curve.low if end], abs=1e-6)
    assert set(whole["tvd", "token", "oracle"].value) == {0.0}


def test_the_verb_writes_what_it_prints(tmp_path: Path, capsys: Capture) -> None:
    words = ["curve", "ngram-2", "oracle", "dfa", "data.held_out=25", "--width", "50"]
    assert run([*words, "--json", "--output", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    # The dataset's own metrics that have a curve and bounds.
    assert {row["metric"] for row in told["curves"]} == {"accuracy", "tvd"}
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [row["value"] for row in told["curves"]]
    assert {row["by"] for row in rows} == {"token", "string"}
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "curve.svg").read_text()
    for text in ("tokens read", "complete strings seen", "accuracy (higher is better)", "ngram-2", "oracle"):
        assert f">{text}<" in drawn
    assert run([*words, "--metrics", "cross-entropy"]) == 0
    shown = capsys.readouterr().out
    assert "cross-entropy by tokens read" in shown
    assert " 1   50      25" in shown


def test_more_context_makes_a_learner_better(capsys: Capture) -> None:
    assert run(["curve", "ngram-3", "dfa", "data.held_out=100", "--width", "50", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["curves"]
    tvd = [row["value"] for row in rows if (row["metric"], row["by"]) == ("tvd", "token")]
    assert tvd[0] > tvd[1] > tvd[2] > tvd[4]


def test_a_single_sequence_can_be_drawn(tmp_path: Path, capsys: Capture) -> None:
    assert run(["curve", "ngram-1", "markov-chains", "--limit", "1", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "[" not in told.out.split("wrote")[0]  # no interval of one sequence
    assert told.err == ""
    assert (tmp_path / "curve.svg").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dfa"], "too few names"),
        (["ngram-2", "dfa", "data.held_out=2", "--metrics", "kl"], "'kl' has no curve form (those that have: accuracy"),
        (["ngram-2", "dfa", "data.held_out=2", "--metrics", "no-such"], "unknown metric"),
        (["transformer", "dfa", "data.held_out=2"], "untrained"),
        (["ngram-2", "dfa", "model.order=3"], "unknown key 'model'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words: list[str], message: str, capsys: Capture) -> None:
    assert run(["curve", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err


def test_the_same_seed_draws_the_same_groups() -> None:
    sums, counts = torch.rand(12, 3, dtype=torch.float64), torch.ones(12, 3, dtype=torch.float64)
    value, draws = bootstrap(sums, counts, 200, 5)
    assert torch.equal(value, sums.mean(0))
    for column in range(3):
        alone = bootstrap(sums[:, column, None], counts[:, column, None], 200, 5)[1]
        assert torch.allclose(alone[:, 0], draws[:, column], rtol=1e-12)
    assert not torch.equal(draws, bootstrap(sums, counts, 200, 6)[1])
