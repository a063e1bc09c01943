"""`icll_zoo_analysis.compare` and its verb, against plain loops and known distances."""

from __future__ import annotations

import csv
import json
import re
import shlex
import weakref
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command
from torch import Tensor

from icll_zoo import (
    Batch,
    InputError,
    Vocabulary,
    create_dataset,
    create_metric,
    create_model,
    evaluate,
    open_predictor,
)
from icll_zoo.cli import run
from icll_zoo_analysis.compare import Comparison, compare
from icll_zoo_analysis.words import short

V = 4
NAMES = ("ngram-1", "ngram-2", "ngram-3")
Capture = pytest.CaptureFixture[str]


class Tiny:
    """Ten sequences of three languages, of unlike length; the truth is that token 1 follows."""

    vocabulary = tuple("wxyz")
    pad_id, separator_id = 0, None

    def size(self, split: str) -> int:
        return 10

    def batch(self, split: str, k: int, batch_size: int, seed: int | None) -> Batch:
        index = torch.arange(10)[k * batch_size : (k + 1) * batch_size]
        lengths = 2 + index % 5
        valid = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = (index[:, None] + torch.arange(valid.size(1))).remainder(V) * valid
        return Batch(tokens, tokens.clone(), valid, index % 3)

    def oracle(self, batch: Batch) -> Tensor:
        return torch.nn.functional.one_hot(torch.ones_like(batch.tokens), V).float() * batch.valid[..., None]


def uniform(batch: Batch) -> Tensor:
    return torch.full((*batch.tokens.shape, V), 1 / V)


def sure(batch: Batch) -> Tensor:
    return torch.nn.functional.one_hot(torch.full_like(batch.tokens, 2), V).float()


def nothing(batch: Batch) -> Tensor:
    return torch.zeros(*batch.tokens.shape, V)


def by_token(batch: Batch) -> Tensor:
    """Of token 0 after token 0, of token 3 otherwise: like nothing else only at some positions."""
    return torch.nn.functional.one_hot(torch.where(batch.tokens == 0, 0, 3), V).double()


HAND_MADE = {"uniform": uniform, "sure": sure, "nothing": nothing, "by_token": by_token}


def hand_made(**settings: int) -> Comparison:
    return compare(HAND_MADE, Tiny(), {"tvd": create_metric("tvd")}, **settings)


def test_known_distances_of_hand_made_predictors() -> None:
    found = hand_made()
    assert found.tvd["uniform", "sure"][0] == 0.75
    assert found.tvd["uniform", "nothing"][0] == 0.5  # nothing is renormalised: half of the mass of one side
    assert found.tvd["sure", "nothing"][0] == 0.5
    assert found.tvd["sure", "by_token"][0] == 1
    assert {name: value for name, (value, _, _) in found.scores["tvd"].items()} == {
        "uniform": 0.75, "sure": 1, "nothing": 0.5, "by_token": 1,
    }  # fmt: skip
    # Where nothing differs between languages, the interval is a point.
    assert found.tvd["uniform", "sure"] == (0.75, 0.75, 0.75)
    assert found.differences["tvd"]["uniform", "nothing"] == (0.25, 0.25, 0.25)
    assert (found.sequences, found.groups, found.positions) == (10, 3, 40)


def test_the_table_is_symmetric_and_zero_on_the_diagonal() -> None:
    matrix = torch.tensor(hand_made().matrix())
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.zeros(4))
    turned = compare(dict(reversed(HAND_MADE.items())), Tiny(), {})
    assert torch.equal(torch.tensor(turned.matrix()), matrix.flip(0, 1))


def learner(name: str, dataset: object) -> torch.nn.Module:
    return create_model(name, vocabulary=Vocabulary.of(dataset))


def looped(dataset: object, names: tuple[str, ...], first: int | None) -> dict[tuple[str, str], float]:
    """Mean distances in plain Python, sequence by sequence and position by position."""
    sums, count = {}, 0
    for k in range(12):
        batch = dataset.batch("test", k, 1, None)
        rows = {name: learner(name, dataset)(batch.tokens)[0].tolist() for name in names}
        for t in range(int(batch.valid.sum())):
            if first is not None and t >= first:
                break
            count += 1
            for i, a in enumerate(names):
                for b in names[i + 1 :]:
                    apart = sum(abs(p - q) for p, q in zip(rows[a][t], rows[b][t], strict=True)) / 2
                    sums[a, b] = sums.get((a, b), 0) + apart
    return {pair: total / count for pair, total in sums.items()}


@pytest.mark.parametrize("first", [None, 100, 7])
def test_real_learners_against_plain_loops(first: int | None) -> None:
    dataset = create_dataset("dfa", held_out=12)
    predictors = {name: open_predictor(name, dataset) for name in NAMES}
    found = compare(predictors, dataset, {}, first=first, batch_size=5)
    for pair, value in looped(dataset, NAMES, first).items():
        assert found.tvd[pair][0] == pytest.approx(value, abs=1e-6)
        assert found.tvd[pair][1] <= found.tvd[pair][0] <= found.tvd[pair][2]


def test_batches_of_any_size_give_the_same() -> None:
    whole = hand_made(batch_size=64)
    for size in (1, 3):
        assert hand_made(batch_size=size) == whole
    assert hand_made(limit=6) != whole


def test_no_prediction_outlives_its_batch() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def watched(batch: Batch) -> Tensor:
        # Of the batch before, only what the loop's own names still hold may be there.
        assert sum(ref() is not None for ref in seen[:-1]) == 0
        made = uniform(batch)
        seen.append(weakref.ref(made))
        return made

    compare({"watched": watched, "sure": sure}, Tiny(), {"tvd": create_metric("tvd")}, batch_size=1)
    assert len(seen) == 10


def test_metrics_are_those_of_evaluate_and_differences_are_paired() -> None:
    dataset = create_dataset("dfa", held_out=20)
    names = ("accuracy", "tvd", "perplexity")
    metrics = {name: create_metric(name) for name in names}
    found = compare({name: open_predictor(name, dataset) for name in NAMES}, dataset, metrics)
    for name in NAMES:
        for metric, score in evaluate(learner(name, dataset), dataset, names).items():
            assert found.scores[metric][name] == pytest.approx((score.value, score.low, score.high), rel=1e-12)
    # The same resamples as for the values, in plain loops over drawn languages.
    sums: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    for k in range(20):
        batch = dataset.batch("test", k, 1, None)
        for name in NAMES:
            total, count = metrics["tvd"](learner(name, dataset)(batch.tokens), batch, dataset.oracle(batch))
            sums[name].append((float(batch.group), float(total), float(count)))
    rows = {name: [row[1:] for row in sorted(sums[name])] for name in NAMES}
    drawn = torch.randint(20, (1000, 20), generator=torch.Generator().manual_seed(0)).tolist()

    def mean(name: str, chosen: list[int]) -> float:
        return sum(rows[name][i][0] for i in chosen) / sum(rows[name][i][1] for i in chosen)

    apart = sorted(mean("ngram-2", chosen) - mean("ngram-3", chosen) for chosen in drawn)
    value, low, high = found.differences["tvd"]["ngram-2", "ngram-3"]
    assert value == pytest.approx(mean("ngram-2", list(range(20))) - mean("ngram-3", list(range(20))), abs=1e-9)
    ends = torch.tensor(apart, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert (low, high) == pytest.approx(tuple(ends.tolist()), abs=1e-9)
    # Paired: narrower than what two independent intervals would say.
    two = found.scores["tvd"]
    assert high - low < (two["ngram-2"][2] - two["ngram-2"][1]) + (two["ngram-3"][2] - two["ngram-3"][1])


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        compare({"sure": sure}, Tiny(), {})
    with pytest.raises(InputError, match="curve over positions"):
        compare(HAND_MADE, Tiny(), {"tvd-curve": create_metric("tvd-curve")})
    with pytest.raises(InputError, match=r"'wide' gives \(10, 6, 9\), not \(10, 6, 4\)"):
        compare({"sure": sure, "wide": lambda b: torch.zeros(*b.tokens.shape, 9)}, Tiny(), {})
    blind = Tiny()
    blind.oracle = lambda batch: None  # type: ignore[method-assign]
    with pytest.raises(InputError, match="metric 'tvd' needs an oracle"):
        compare(HAND_MADE, blind, {"tvd": create_metric("tvd")})


def test_the_verb_writes_what_it_prints(tmp_path: Path, capsys: Capture) -> None:
    model = f"local-dir:{ROOT}/cards/transformer.dfa"
    words = ["compare", model, "ngram-2", "oracle", "dfa", "data.held_out=30", "--limit", "8"]
    assert run([*words, "--json", "--output", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["predictors"] == [model, "ngram-2", "oracle"]
    assert (told["sequences"], told["groups"]) == (8, 8)
    with (tmp_path / "out" / "compare-pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["tvd_between"]) for row in rows] == [pair["tvd"]["value"] for pair in told["pairs"]]
    # What lies between a predictor and the oracle is its TVD.
    assert float(rows[2]["tvd_between"]) == pytest.approx(told["scores"]["ngram-2"]["tvd"]["value"], abs=1e-9)
    assert float(rows[2]["tvd_difference"]) == pytest.approx(told["scores"]["ngram-2"]["tvd"]["value"], abs=1e-9)
    with (tmp_path / "out" / "compare-scores.csv").open() as file:
        scores = {row["predictor"]: row for row in csv.DictReader(file)}
    assert float(scores["oracle"]["accuracy"]) == 1
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "out" / "compare.svg").read_text()
    for pair in told["pairs"]:
        assert drawn.count(f">{pair['tvd']['value']:.2f}<") >= 2  # on both sides of the diagonal
    assert ">transformer.dfa<" in drawn
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert "8 sequences, 8 groups (languages, documents) of dfa (test), all positions" in shown
    assert f"{told['pairs'][0]['tvd']['value']:.4f}" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ngram-2", "dfa"], "too few names"),
        (["ngram-2", "ngram-2", "dfa"], "'ngram-2' is given twice"),
        (["ngram-2", "oracle", "no-such-data"], "unknown dataset"),
        (["transformer", "oracle", "dfa", "data.held_out=2"], "'transformer' is untrained"),
        ([f"local-dir:{ROOT}/cards/transformer.dfa", "ngram-2", "mqar"], "trained on another vocabulary"),
        (["ngram-2", "oracle", "dfa", "steps=3"], "unknown key 'steps'"),
        (["ngram-2", "oracle", "dfa", "data.held_out=2", "--metrics", "no-such"], "unknown metric"),
        (["ngram-2", "oracle", "dfa", "--split", "train"], "endless"),
        (["ngram-2", "oracle", "dfa", "data.held_out=2", "--device", "abacus"], "wrong value for --device"),
        (["ngram-2", "oracle", "dfa", "--output", __file__], "is a file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words: list[str], message: str, capsys: Capture) -> None:
    assert run(["compare", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err


def test_without_an_oracle_the_metrics_are_those_that_need_none(tmp_path: Path, capsys: Capture) -> None:
    script = tmp_path / "blind.py"
    script.write_text(
        "import icll_zoo as zoo\n"
        "from icll_zoo_dfa.dataset import DfaLanguages\n"
        "@zoo.register_dataset('blind')\n"
        "class Blind(DfaLanguages):\n"
        "    def __init__(self, held_out: int = 6) -> None:\n"
        "        super().__init__(held_out=held_out)\n"
        "    def oracle(self, batch):\n"
        "        return None\n"
    )
    words = ["compare", "ngram-1", "ngram-2", "blind", "--load", str(script)]
    assert run([*words, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["scores"]["ngram-1"]) == ["cross-entropy"]
    assert run(["compare", "ngram-1", "oracle", "blind", "--load", str(script)]) == 2
    assert "the predictor 'oracle' needs an oracle" in capsys.readouterr().err


def test_short_names_stay_apart() -> None:
    assert short(["local-dir:runs/a/model", "local-dir:runs/b/model", "oracle"]) == ["a/model", "b/model", "oracle"]
    assert short(["local-dir:runs/a/model", "oracle"]) == ["a/model", "oracle"]
    assert short(["transformer.dfa", "ngram-2"]) == ["transformer.dfa", "ngram-2"]


@pytest.mark.slow
def test_the_page_s_commands_work_as_written(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- commands -->\s*```sh\n(.*?)```", page, re.S)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert {words[1] for words in commands} == {"compare", "curve", "diagram", "states"}
    for program, *words in commands:
        assert program == "icll-zoo"
        done = command(*words, cwd=tmp_path)
        assert done.code == 0, f"{words}\n{done.err}"
    for name in ("compared/compare", "curves/curve", "diagrams/diagram", "states/states"):
        assert {(tmp_path / f"{name}.{kind}").is_file() for kind in ("png", "svg")} == {True}


@pytest.mark.slow
def test_the_page_s_table_is_measured(capsys: Capture) -> None:
    page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    names = rows[0][1:]
    assert run(["compare", *names, "dfa", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert f"{told['positions']:,} positions" in page
    for pair in told["pairs"]:
        a, b = names.index(pair["first"]), names.index(pair["second"])
        # Another machine may round the last digit otherwise.
        assert float(rows[1 + a][1 + b]) == float(rows[1 + b][1 + a])
        assert float(rows[1 + a][1 + b]) == pytest.approx(pair["tvd"]["value"], abs=0.001)
