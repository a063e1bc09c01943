"""Questions of probes against loops, and probes of hidden states whose content is known."""

from __future__ import annotations

import csv
import json
import random

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from icll_zoo import InputError, create_dataset, create_model, load_model, save_model
from icll_zoo.cli import run
from icll_zoo_analysis import probe, probe_samples
from icll_zoo_analysis.probe import control_task
from icll_zoo_analysis.probe_samples import Questions, collect, is_binary, task_names

SHIPPED = f"local-dir:{ROOT / 'cards' / 'transformer.dfa'}"
SEPARATOR, VOCAB = 19, 20


class Known(nn.Module):
    """A model whose part `told` gives a function of the tokens."""

    def __init__(self, function) -> None:
        super().__init__()
        self.told = Told(function)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.told(tokens)


class Told(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, tokens: Tensor) -> Tensor:
        return self.function(tokens)


def positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.size(1)).float()[None, :, None].expand(len(tokens), -1, 1)


def counts(tokens: Tensor) -> Tensor:
    """(b, l, v): how often each token occurred."""
    return nn.functional.one_hot(tokens, VOCAB).cumsum(1).float()


def followed(tokens: Tensor) -> Tensor:
    """(b, l, v): whether each token ever followed the current one."""
    b, length = tokens.shape
    seen = torch.zeros(b, VOCAB, VOCAB)
    made = []
    for t in range(length):
        if t:
            seen[torch.arange(b), tokens[:, t - 1], tokens[:, t]] = 1
        made.append(seen[torch.arange(b), tokens[:, t]].clone())
    return torch.stack(made, 1)


def noise(tokens: Tensor) -> Tensor:
    return torch.randn(*tokens.shape, 8, generator=torch.Generator().manual_seed(int(tokens.sum())))


@pytest.fixture(autouse=True)
def _fewer_steps(request, monkeypatch):
    """What is to be found here is found soon."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(probe, "STEPS", {"linear": 300, "mlp": 150})


@pytest.fixture(scope="module")
def dataset():
    return create_dataset("dfa", held_out=40)


@pytest.fixture(scope="module")
def asked(dataset):
    """Questions of 40 test sequences; the hidden state of a place is its position."""
    return collect(Known(positions), dataset, "test", 40, patterns=["told"], orders=(1, 2, 3), start=60, batch_size=7)


@pytest.fixture(scope="module")
def sequences(dataset):
    """Tokens and states of each language."""
    batch = dataset.batch("test", 0, 40, None)
    lengths = batch.valid.sum(1).tolist()
    rows = zip(batch.group.tolist(), batch.tokens.tolist(), batch.extra["state"].tolist(), lengths, strict=True)
    return {group: (x[:length], state[:length]) for group, x, state, length in rows}


def each(asked, task):
    """(position, query, target, group) of each question."""
    found = asked.tasks[task]
    at = asked.hidden["told"][:, 0].long()
    yield from zip(
        at[found.place].tolist(), found.query.tolist(), found.target.tolist(), found.group.tolist(), strict=True
    )


# -- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("what", ["count", "ratio", "exists"])
def test_answers_are_what_loops_count(asked, sequences, what, n):
    if (what, n) == ("exists", 1):
        assert "exists-1" not in asked.tasks
        return
    total = yes = 0
    for t, query, target, group in each(asked, f"{what}-{n}"):
        x = sequences[group][0]
        assert t >= 60
        assert x[t] != SEPARATOR
        read = x[: t + 1]
        if n == 1:
            assert query == [x[t]]
            wanted, of = read.count(x[t]), t + 1
        else:
            assert query[:-1] == x[t - n + 2 : t + 1]
            after = [read[j] for j in range(n - 1, len(read)) if read[j - n + 1 : j] == query[:-1]]
            after = [c for c in after if c != SEPARATOR]
            wanted, of = after.count(query[-1]), len(after)
            assert query[-1] in read
            assert query[-1] != SEPARATOR
        total += 1
        yes += wanted > 0
        if what == "count":
            assert target == wanted > 0
        elif what == "ratio":
            assert target == pytest.approx(wanted / of)
        else:
            assert target == (wanted > 0)
            assert of > 0
    assert total > 200
    if what == "exists":
        assert 0.4 < yes / total < 0.6


def test_continuations_are_drawn_by_how_often_they_occurred(dataset):
    row = [1, 2] * 30 + [1, 3] * 10 + [1]
    tokens = torch.tensor([row])
    from icll_zoo import Batch

    batch = Batch(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    anchors = torch.full((1, 4000), len(row) - 1)
    place = torch.arange(4000)[None]
    found = probe_samples.ngram_questions(batch, anchors, place, (2,), None, torch.Generator().manual_seed(0))
    share = (found["count-2"].query[:, 1] == 2).float().mean()
    assert float(share) == pytest.approx(0.75, abs=0.03)
    assert set(found["count-2"].target.tolist()) == {30.0, 10.0}
    # 1 itself occurred and never followed: the only thing to ask for.
    absent = found["exists-2"].query[found["exists-2"].target == 0]
    assert absent[:, 1].unique().tolist() == [1]


def test_pairs_are_of_two_positions_and_half_of_them_of_one_state(asked, sequences):
    found = asked.tasks["same-state"]
    at = asked.hidden["told"][:, 0].long()
    same = 0
    for (first, second), query, target, group in zip(
        at[found.place].tolist(), found.query.tolist(), found.target.tolist(), found.group.tolist(), strict=True
    ):
        x, state = sequences[group]
        assert first != second
        assert [x[first], x[second]] == query
        assert SEPARATOR not in query
        assert min(first, second) >= 60
        assert target == (state[first] == state[second])
        same += target
    assert 0.4 < same / len(found) < 0.6


def test_questions_depend_on_the_seed_alone(dataset):
    def made(seed):
        return collect(Known(positions), dataset, "test", 10, patterns=["told"], seed=seed).tasks

    first, again, other = made(0), made(0), made(1)
    assert all(torch.equal(first[task].query, again[task].query) for task in first)
    assert not torch.equal(first["count-2"].query, other["count-2"].query)


def test_an_endless_split_is_read_too_and_a_short_one_is_an_error(dataset):
    assert len(collect(Known(positions), dataset, "train", 5, patterns=["told"], positions=3).tasks["count-1"]) == 15
    with pytest.raises(InputError, match="41 sequences of a test split of 40"):
        collect(Known(positions), dataset, "test", 41, patterns=["told"])
    with pytest.raises(InputError, match="lower --start"):
        collect(Known(positions), dataset, "test", 5, patterns=["told"], start=2000)


def test_the_tasks_by_name():
    assert task_names((1, 3), True) == ["count-1", "count-3", "ratio-1", "ratio-3", "exists-3", "same-state"]
    assert [name for name in task_names((1, 2), True) if is_binary(name)] == ["exists-2", "same-state"]


# -- controls and scores ---------------------------------------------------------------------------------------------


def questions(queries, targets) -> Questions:
    n = len(queries)
    return Questions(torch.arange(n), torch.tensor(queries), torch.tensor(targets), torch.arange(n))


def test_a_control_answers_a_query_always_alike_and_at_random():
    rows = [[i % 7, i % 5] for i in range(70)]
    train, test = questions(rows, [float(i) for i in range(70)]), questions(rows[::-1], [0.0] * 70)
    a, b = control_task("count-2", train, test, seed=0)
    answers: dict[tuple[int, ...], float] = {}
    for part in (a, b):
        for query, target in zip(part.query.tolist(), part.target.tolist(), strict=True):
            assert answers.setdefault(tuple(query), target) == target
    assert len(answers) == 35
    assert set(answers.values()) <= set(train.target.tolist())
    assert len(set(answers.values())) > 20
    assert not torch.equal(a.target, control_task("count-2", train, test, seed=1)[0].target)
    pairs = questions([[1, 2], [2, 1], [3, 4]] * 20, [0.0, 1.0, 0.0] * 20)
    a, _ = control_task("same-state", pairs, pairs, seed=0)
    assert a.target[0] == a.target[1]
    assert set(a.target.tolist()) <= {0.0, 1.0}


def test_scores_are_r_squared_and_accuracy():
    generator = random.Random(0)
    target = [generator.uniform(1, 9) for _ in range(50)]
    guess = [y + generator.gauss(0, 1) for y in target]
    mean = sum(target) / 50
    wanted = 1 - sum((y - g) ** 2 for y, g in zip(target, guess, strict=True)) / sum((y - mean) ** 2 for y in target)
    score, low, high, error = probe.measured("count-2", torch.tensor(guess), questions([[0]] * 50, target))
    assert score == pytest.approx(wanted, abs=1e-5)
    assert low < score < high
    assert error == pytest.approx(sum(abs(y - g) / y for y, g in zip(target, guess, strict=True)) / 50, abs=1e-5)
    binary = questions([[0]] * 4, [1.0, 1.0, 0.0, 0.0])
    assert probe.measured("exists-2", torch.tensor([0.3, -2.0, -0.1, -5.0]), binary)[0] == 0.75
    # The mean of the answers explains nothing of them.
    assert probe.measured("count-2", torch.full((50,), mean), questions([[0]] * 50, target))[0] == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(
    ("task", "function", "least"), [("count-1", counts, 0.8), ("exists-2", followed, 0.8), ("exists-2", noise, None)]
)
def test_a_probe_finds_what_is_there_and_nothing_in_noise(dataset, kind, task, function, least):
    scores = probe.probe_scores(
        Known(function), dataset, kind=kind, tasks=[task], patterns=["told"], orders=(1, 2), train=200, test=40
    )
    query, told = scores
    assert (query.layer, told.layer) == ("query", "told")
    assert query.score < (0.62 if is_binary(task) else 0.1)
    assert told.selectivity == told.score - told.control
    if least is None:
        assert told.score < 0.6
    else:
        assert told.score > least
        assert told.low > query.high


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_probe_of_states_reads_states_and_not_noise(dataset, kind):
    batches = {}
    for split, k, size in (("train", range(10), 32), ("test", range(2), 32)):
        for number in k:
            batch = dataset.batch(split, number, size, 0 if split == "train" else None)
            for row, state in zip(batch.tokens, batch.extra["state"], strict=True):
                batches[row.tolist()[0], int(row.sum()), tuple(row[:40].tolist())] = state

    def states(tokens: Tensor) -> Tensor:
        rows = [batches[row.tolist()[0], int(row.sum()), tuple(row[:40].tolist())][: len(row)] for row in tokens]
        return nn.functional.one_hot(torch.stack(rows), 12).float()

    options = {"kind": kind, "tasks": ["same-state"], "patterns": ["told"], "train": 200, "test": 40}
    query, told = probe.probe_scores(Known(states), dataset, **options)
    assert told.score > 0.97
    assert query.score < 0.6
    assert probe.probe_scores(Known(noise), dataset, **options)[1].score < 0.6


def test_probes_of_several_layers_are_fitted_as_if_each_were_alone_and_leave_the_generator(dataset):
    class Two(Known):
        def __init__(self) -> None:
            super().__init__(counts)
            self.other = Told(noise)

        def forward(self, tokens: Tensor) -> Tensor:
            self.other(tokens)
            return self.told(tokens)

    options = {"tasks": ["ratio-1"], "orders": (1,), "train": 60, "test": 20}
    before = torch.get_rng_state()
    both = probe.probe_scores(Two(), dataset, patterns=["told", "other"], **options)
    again = probe.probe_scores(Two(), dataset, patterns=["told", "other"], **options)
    assert torch.equal(before, torch.get_rng_state())
    assert both == again
    alone = probe.probe_scores(Known(counts), dataset, patterns=["told"], **options)
    by_layer = {score.layer: score.score for score in both}
    assert by_layer["told"] == pytest.approx(alone[1].score, abs=0.02)


def test_a_part_that_gives_no_vector_for_each_token_is_an_input_error(dataset):
    model = create_model("transformer", d_model=8, n_layers=1)
    with pytest.raises(InputError, match="no vector for each token"):
        collect(model, dataset, "test", 3, patterns=["blocks.*.mixer:attention"])


# -- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small") / "model"
    save_model(create_model("gla", d_model=16, n_layers=1), folder)
    return f"local-dir:{folder}"


def test_the_verb_prints_draws_and_writes_its_numbers(small, tmp_path, capsys):
    line = ["probe", small, "dfa", "data.held_out=12", "--train", "40", "--test", "12", "--orders", "1,2", "--json"]
    line += ["--tasks", "ratio-1,exists-2,same-state", "--output", str(tmp_path / "out")]
    assert run(line) == 0
    shown = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "probe.csv", "probe.parquet", "probe.png", "probe.svg",
    ]  # fmt: skip
    with (tmp_path / "out" / "probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(shown["probes"]) == 3 * 3
    assert [float(row["score"]) for row in rows] == [score["score"] for score in shown["probes"]]
    assert [row["layer"] for row in rows[:3]] == ["query", "dropout", "blocks.0"]
    svg = (tmp_path / "out" / "probe.svg").read_text()
    assert all(text in svg for text in ("same-state", "embeddings", "control task", "accuracy"))


def test_the_verb_prints_a_table(small, capsys):
    line = ["probe", small, "dfa", "data.held_out=9", "--train", "20", "--test", "9", "--tasks", "count-1"]
    assert run([*line, "--of", "blocks.*.mlp", "--probe", "mlp"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mlp probes of local-dir:")
    assert [text.split()[1] for text in lines[3:]] == ["query", "blocks.0.mlp"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["dfa", "--tasks", "count-9"], "unknown task 'count-9'"),
        (["dfa", "--orders", "x"], "wrong value for --orders"),
        (["dfa", "data.held_out=5", "--train", "4", "--test", "6"], "6 sequences of a test split of 5"),
        (["dfa", "data.held_out=5", "--train", "4", "--test", "5", "--of", "block.*"], "no module matches 'block.*'"),
        (["dfa", "model.x=1"], "keys here begin with data"),
        (["dfa", "data.held_out=5", "--train", "4", "--test", "5", "--of", "head.*"], "no module matches 'head.*'"),
        (["mqar", "--tasks", "same-state"], "unknown task 'same-state'"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line_and_exit_code_2(small, line, words, capsys):
    assert run(["probe", small, *line]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


# -- what a trained model shows --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_shipped_transformer_holds_bigram_statistics_after_its_second_layer():
    model, dataset = load_model(SHIPPED), create_dataset("dfa", held_out=200)
    tasks = ["ratio-2", "exists-2", "exists-3", "same-state"]
    found = {(s.task, s.layer): s for s in probe.probe_scores(model, dataset, tasks=tasks, train=1000, test=200)}
    assert found["exists-2", "blocks.1"].score > 0.95
    assert found["exists-2", "blocks.0"].high < 0.7
    assert found["ratio-2", "blocks.1"].low > found["ratio-2", "blocks.0"].high + 0.2
    assert found["exists-3", "blocks.1"].selectivity > 0.15
    assert found["same-state", "blocks.1"].selectivity > 0.05
    assert all(found[task, "query"].score < 0.55 for task in tasks)
