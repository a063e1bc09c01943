"""N-gram head scores against loops and hand-made attention, and heads taken out."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex

import pytest
import torch
from conftest import ROOT
from torch import nn

from icll_zoo import InputError, create_dataset, create_metric, create_model, evaluate, load_model, replaced, save_model
from icll_zoo.cli import run
from icll_zoo_analysis import attention, heads, heads_ablation, pictures, tables

SIZE = {f"blocks.{layer}.mixer": 4 for layer in (0, 1)}
READERS = {module: f"{module}.out_proj" for module in SIZE}
SHIPPED = f"local-dir:{ROOT / 'cards' / 'transformer.dfa'}"


def words(rows: int = 6, length: int = 23, symbols: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(symbols, (rows, length), generator=torch.Generator().manual_seed(seed))


def by_definition(x: list[int], order: int, t: int, asked: int) -> set[int]:
    """The successors at t of the context that ends at `asked`, from the definition in a loop."""
    if asked < order - 1:
        return set()
    context = x[asked - order + 1 : asked + 1]
    return {j for j in range(order, t) if x[j - order : j] == context}


@pytest.fixture(scope="module")
def dataset():
    return create_dataset("dfa", held_out=6)


@pytest.fixture(scope="module")
def shipped():
    return load_model(SHIPPED)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An untrained model on the disk: two layers of two heads."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small") / "model"
    save_model(create_model("transformer", d_model=16, n_layers=2, n_heads=2), folder)
    return f"local-dir:{folder}"


# -- targets and shares ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("shuffled", [False, True])
def test_successors_are_those_of_the_definition(order, shuffled):
    tokens = words()
    asked = attention.permuted(torch.ones_like(tokens, dtype=torch.bool), torch.Generator().manual_seed(3))
    found = attention.successors(tokens, order, asked if shuffled else None)
    for row in range(6):
        x = tokens[row].tolist()
        for t in range(23):
            place = int(asked[row, t]) if shuffled else t
            assert set(found[row, t].nonzero()[:, 0].tolist()) == by_definition(x, order, t, place)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, n, t: {j for j in range(n, t + 1) if x[j - n : j] == x[t - n + 1 : t + 1]},  # the position itself
        lambda x, n, t: {j - 1 for j in range(n, t) if x[j - n : j] == x[t - n + 1 : t + 1]},  # the occurrence's end
        lambda x, n, t: {
            j for j in range(1, t) if x[max(j - n, 0) : j] == x[t - n + 1 : t + 1][-j:]
        },  # cut at the start
        lambda x, n, t: {j for j in range(n, t) if x[j - 1] == x[t]},  # order 1 always
    ],
)
def test_the_loops_tell_wrong_definitions_from_the_right_one(wrong):
    tokens = words()
    found = attention.successors(tokens, 2)
    assert any(
        set(found[row, t].nonzero()[:, 0].tolist()) != wrong(tokens[row].tolist(), 2, t)
        for row, t in itertools.product(range(6), range(1, 23))
    )


def test_contexts_of_a_large_vocabulary_do_not_collide():
    tokens = torch.randint(2**40, (4, 30), generator=torch.Generator().manual_seed(0))
    tokens[:, 15:] = tokens[:, :15]
    code = attention.contexts(tokens, 5)
    assert torch.equal(code[:, 19:], code[:, 4:15])
    assert len(code[:, 4:19].unique()) == 4 * 15


def test_a_perfect_induction_head_scores_1_and_its_opposite_0():
    tokens = words()
    targets = attention.successors(tokens, 2)
    some = targets.any(-1)
    perfect = targets.float() / targets.sum(-1, keepdim=True).clamp(min=1)
    other = (~targets).float().tril()
    scores = attention.share(torch.stack([perfect, other, -perfect], 1), targets)
    torch.testing.assert_close(scores[:, 0][some], torch.ones(int(some.sum())))
    assert not scores[:, 1].any()
    torch.testing.assert_close(scores[:, 2], scores[:, 0])  # weights of a sign count by their size
    assert not scores[:, 0][~some].any()


def test_uniform_attention_scores_the_uniform_level():
    tokens = words()
    uniform = torch.ones(6, 1, 23, 23).tril() / torch.arange(1, 24)[:, None]
    for targets in (attention.successors(tokens, 1), attention.previous(tokens)):
        torch.testing.assert_close(attention.share(uniform, targets)[:, 0], attention.uniform_share(targets))
    assert attention.uniform_share(attention.previous(tokens))[0, :3].tolist() == pytest.approx([0, 1 / 2, 1 / 3])


def test_a_control_shuffles_the_valid_positions_of_a_row_among_themselves():
    valid = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    asked = attention.permuted(valid, torch.Generator().manual_seed(0))
    assert torch.equal(asked.sort(1)[0], torch.arange(9).expand(3, -1))
    assert torch.equal(asked[~valid], torch.arange(9).expand(3, -1)[~valid])
    assert not torch.equal(asked[0], torch.arange(9))


# -- scores of models ------------------------------------------------------------------------------------------------


def test_an_n_gram_head_scores_1_of_its_order_and_what_loops_say_of_the_next(dataset):
    torch.manual_seed(0)
    model = create_model("ngram-head", d_model=8, n_layers=2, order=1)
    found = {(s.layer, s.measure): s for s in heads.head_scores(model, dataset, orders=(1, 2), batch_size=4)}
    assert set(found) == set(itertools.product((0, 1), ("1", "2", "previous")))
    sums: dict[str, list[float]] = {"1": [], "2": [], "uniform": [], "previous": []}
    batch = dataset.batch("test", 0, 6, None)
    for row, length in zip(batch.tokens.tolist(), batch.valid.sum(1).tolist(), strict=True):
        for t in range(length):
            one, two = (by_definition(row[:length], n, t, t) for n in (1, 2))
            if one:
                sums["1"].append(1.0)
                sums["uniform"].append(len(one) / (t + 1))
            if two:
                sums["2"].append(len(two) / len(one))
            if t:
                sums["previous"].append((t - 1 in one) / len(one) if one else 0.0)
    for layer in (0, 1):
        for measure in ("1", "2", "previous"):
            score = found[layer, measure]
            assert score.score == pytest.approx(sum(sums[measure]) / len(sums[measure]), abs=1e-6)
            assert score.positions == len(sums[measure])
            assert score.low <= score.score + 1e-9
            assert score.score <= score.high + 1e-9
        assert found[layer, "1"].uniform == pytest.approx(sum(sums["uniform"]) / len(sums["uniform"]), abs=1e-6)


def test_a_head_without_queries_is_uniform_and_so_is_its_control(dataset):
    model = create_model("transformer", d_model=8, n_layers=1, n_heads=2)
    nn.init.zeros_(model.blocks[0].mixer.qkv.weight)
    for score in heads.head_scores(model, dataset, orders=(1, 3)):
        assert score.score == pytest.approx(score.uniform, abs=1e-6)
        assert score.control == pytest.approx(score.control_uniform, abs=1e-6)


def test_scores_depend_neither_on_the_size_of_batches_nor_on_padding(dataset, shipped, monkeypatch):
    whole = heads.head_scores(shipped, dataset, orders=(1,))
    monkeypatch.setattr(heads, "PAIRS", 1)
    for a, b in zip(whole, heads.head_scores(shipped, dataset, orders=(1,), batch_size=5), strict=True):
        assert {**vars(a)} == pytest.approx(vars(b), abs=1e-5)


def test_a_model_without_attention_is_an_input_error(dataset):
    with pytest.raises(InputError, match="attention_weights"):
        heads.head_scores(create_model("lstm", d_model=8, n_layers=1), dataset)


# -- heads taken out -------------------------------------------------------------------------------------------------


def test_the_other_sets_are_distinct_and_not_the_best():
    every = [("blocks.0.mixer", i) for i in range(4)] + [("blocks.1.mixer", i) for i in range(4)]
    best = [every[5], every[2]]
    drawn = heads_ablation.other_sets(best, every, 10, seed=0)
    assert len({frozenset(chosen) for chosen in drawn}) == 10
    assert all(len(set(chosen)) == 2 for chosen in drawn)
    assert frozenset(best) not in {frozenset(chosen) for chosen in drawn}
    assert drawn == heads_ablation.other_sets(best, every, 10, seed=0)
    nearly_all = heads_ablation.other_sets(best, every, 26, seed=0)
    assert frozenset(best) not in {frozenset(chosen) for chosen in nearly_all}
    assert len(heads_ablation.other_sets(best, every, 100, seed=0)) == 27  # 8 choose 2, less the best
    for number in (0, 8):
        with pytest.raises(InputError, match="cannot be compared"):
            heads_ablation.other_sets(every[:number], every, 10, seed=0)


def test_a_head_taken_out_adds_nothing_and_the_others_stay(shipped):
    tokens = words(2, 30, 18)
    mixer = shipped.blocks[1].mixer
    q, k, v = mixer._project(shipped.trace(tokens, "blocks.1.mixer:input")["blocks.1.mixer:input"])
    v = v.clone()
    v[:, :, [0, 2]] = 0
    wanted = mixer._mix(q, k, v)
    change = heads_ablation.without([("blocks.1.mixer", 0), ("blocks.1.mixer", 2)], SIZE, READERS, {})
    found = shipped.trace(tokens, "blocks.1.mixer", replace=change)["blocks.1.mixer"]
    torch.testing.assert_close(found, wanted.detach())


def test_a_mean_over_positions_stands_in_for_a_head(dataset, shipped):
    means = heads_ablation.mean_inputs(shipped, dataset, READERS, "test", 4, None, "cpu")
    batch = dataset.batch("test", 0, 6, None)
    inputs = shipped.trace(batch.tokens, "blocks.0.mixer.out_proj:input")["blocks.0.mixer.out_proj:input"]
    torch.testing.assert_close(means["blocks.0.mixer"], inputs[batch.valid].mean(0), rtol=1e-4, atol=1e-5)
    change = heads_ablation.without([("blocks.0.mixer", 1)], SIZE, READERS, means)
    (found,) = shipped.trace(batch.tokens, "blocks.0.mixer.out_proj:input", replace=change).values()
    parts, mean = found.unflatten(-1, (4, -1)), means["blocks.0.mixer"].view(4, -1)
    assert torch.equal(parts[..., 1, :], mean[1].expand_as(parts[..., 1, :]))
    assert torch.equal(parts[..., [0, 2, 3], :], inputs.unflatten(-1, (4, -1))[..., [0, 2, 3], :])


def test_values_are_those_of_evaluate_and_costs_their_differences(dataset, shipped):
    every = [(f"blocks.{layer}.mixer", head) for layer in (0, 1) for head in range(4)]
    metrics = {name: create_metric(name) for name in ("accuracy", "tvd")}
    found = heads_ablation.ablate(shipped, dataset, every[4:], every, metrics, draws=2, batch_size=4)
    assert len(found.random) == 2
    for chosen in ((), found.best, *found.random):
        with replaced(shipped, heads_ablation.without(chosen, SIZE, READERS, {})):
            scores = evaluate(shipped, dataset, metrics)
        for name, sign in (("accuracy", 1), ("tvd", -1)):
            value, low, high = found.values[chosen][name]
            assert (value, low, high) == pytest.approx((scores[name].value, scores[name].low, scores[name].high))
            assert found.costs[chosen][name][0] == pytest.approx(sign * (found.values[()][name][0] - value))
    for name in metrics:
        mean = sum(found.costs[chosen][name][0] for chosen in found.random) / 2
        assert found.random_costs[name][0] == pytest.approx(mean)
        assert found.excess[name][0] == pytest.approx(found.costs[found.best][name][0] - mean)
        assert found.costs[()][name] == (0, 0, 0)


def test_taking_out_an_n_gram_head_leaves_what_it_does_to_the_token_itself(dataset):
    torch.manual_seed(0)
    model = create_model("ngram-head", d_model=8, n_layers=2).eval()
    assert heads_ablation.reader(model, "blocks.1.mixer") == "blocks.1.mixer.attended"
    change = heads_ablation.without(
        [("blocks.0.mixer", 0)], {"blocks.0.mixer": 1}, {"blocks.0.mixer": "blocks.0.mixer.attended"}, {}
    )
    found = model.trace(words(), "blocks.0.mixer", "blocks.0.mixer:input", replace=change)
    mixer = model.blocks[0].mixer
    wanted = mixer.attended.bias + mixer.own(found["blocks.0.mixer:input"])
    torch.testing.assert_close(found["blocks.0.mixer"], wanted.detach())


def test_a_mixer_whose_heads_nothing_reads_is_an_input_error():
    model = create_model("rnn", d_model=8, n_layers=2)
    with pytest.raises(InputError, match="it has no out_proj"):
        heads_ablation.reader(model, "blocks.1.mixer")


# -- the verb --------------------------------------------------------------------------------------------------------


def test_the_verb_prints_draws_and_writes_its_numbers(small, tmp_path, capsys):
    line = ["heads", small, "dfa", "data.held_out=4", "--orders", "1,2", "--draws", "2", "--tokens", "6", "--json"]
    assert run([*line, "--output", str(tmp_path / "out")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.{kind}"
        for name in ("ablation", "attention", "head-scores")
        for kind in ("csv", "parquet", "png", "svg")
    )
    assert len(shown["files"]) == 12
    with (tmp_path / "out" / "head-scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(shown["heads"]) == 4 * 3
    assert [float(row["score"]) for row in rows] == [head["score"] for head in shown["heads"]]
    (best,) = shown["ablation"]["best"]["heads"]  # none is an n-gram head, so it is the best of all
    of_order_1 = {(h["module"], h["head"]): h["score"] for h in shown["heads"] if h["measure"] == "1"}
    assert of_order_1[best["module"], best["head"]] == max(of_order_1.values())
    with (tmp_path / "out" / "attention.csv").open() as file:
        weights = list(csv.DictReader(file))
    assert len(weights) == 4 * 6 * 7 / 2
    of_head_0 = [row for row in weights if row["layer"] == "1" and row["head"] == "0"]
    assert sum(float(row["weight"]) for row in of_head_0 if row["query"] == "4") == pytest.approx(1)
    svg = (tmp_path / "out" / "attention.svg").read_text()
    assert "layer 1, head 1" in svg
    assert "attended to (token and the state after it)" in svg


def test_the_verb_prints_a_table(capsys):
    assert run(["heads", SHIPPED, "dfa", "data.held_out=3", "--orders", "2", "--ablate", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 sequences" in lines[0]
    assert sum(line.startswith("1.2 ") for line in lines) == 2
    assert not any("without some heads" in line for line in lines)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([SHIPPED, "dfa", "--orders", "0"], "wrong value for --orders"),
        ([SHIPPED, "dfa", "--orders", "1,1"], "wrong value for --orders"),
        ([SHIPPED, "dfa", "--by", "4"], "not among the measures"),
        ([SHIPPED, "dfa", "--device", "tpu"], "--device"),
        ([SHIPPED, "dfa", "model.n_heads=2"], "keys here begin with data"),
        ([SHIPPED, "dfa", "data.held_out=2", "--orders", "1", "--ablate", "8"], "lower --ablate"),
        ([SHIPPED, "dfa", "data.held_out=2", "--ablate", "0", "--sequence", "2", "--output", "out"], "--sequence 2"),
        ([SHIPPED, "mqar"], "another vocabulary"),
        (["ngram-3", "dfa"], "untrained"),
        (["local-dir:nowhere", "dfa"], "nowhere"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line_and_exit_code_2(line, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["heads", *line]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_a_file_for_output_and_a_missing_matplotlib_are_told_before_the_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert run(["heads", SHIPPED, "dfa", "--output", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    assert run(["heads", SHIPPED, "dfa", "--output", str(tmp_path / "out")]) == 2
    assert "icll-zoo[plots]" in capsys.readouterr().err


def test_a_saved_model_of_signed_weights_is_scored_too(tmp_path, capsys):
    torch.manual_seed(0)
    save_model(create_model("retnet", d_model=16, n_layers=1, n_heads=2), tmp_path / "model")
    line = ["heads", f"local-dir:{tmp_path / 'model'}", "dfa", "data.held_out=2", "--orders", "1", "--tokens", "8"]
    assert run([*line, "--ablate", "1", "--mean", "--output", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["heads"]
    assert all(0 <= head["score"] <= 1 for head in found)


# -- pictures and tables ---------------------------------------------------------------------------------------------


def test_equal_numbers_give_equal_pictures_whatever_the_user_s_settings(tmp_path):
    import matplotlib

    def plot(figure, data):
        pictures.heat_map(figure.add_subplot(), data, numbers=2)

    numbers = [[0.25, None], [1.0, 0.5]]
    first = [path.read_bytes() for path in pictures.save(tmp_path / "a", "map", plot, numbers, "Map")]
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other"}):
        again = [path.read_bytes() for path in pictures.save(tmp_path / "b", "map", plot, numbers, "Map")]
    assert first == again
    assert first[0].startswith(b"\x89PNG")
    assert b">0.25<" in first[1]
    assert b"nan" not in first[1]


def test_a_table_keeps_all_digits_in_csv_and_parquet(tmp_path):
    from pyarrow import parquet

    columns = {"name": ["a,b", 'c"d'], "value": [0.1 + 0.2, None], "count": [3, 12]}
    written = tables.write(tmp_path / "new" / "table.csv", columns)
    assert [path.name for path in written] == ["table.csv", "table.parquet"]
    with written[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == columns["name"]
    assert float(rows[0]["value"]) == 0.1 + 0.2
    assert rows[1]["value"] == ""
    assert parquet.read_table(written[1]).to_pydict() == columns
    with pytest.raises(ValueError, match="longer than"):
        tables.write(tmp_path / "bad", {"a": [1], "b": [1, 2]})
    assert tables.text(columns) == 'name  value  count\na,b   0.300      3\nc"d       -     12'


def test_a_table_is_csv_alone_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [path.name for path in tables.write(tmp_path / "table", {"a": [1]})] == ["table.csv"]


# -- docs/analysis.md ------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")


def blocks(marker: str) -> list[str]:
    return re.findall(rf"<!-- {marker} -->\s*```\w+\n(.*?)```", PAGE, re.S)


def test_the_snippets_of_the_page_work(shipped):
    names: dict = {}
    for snippet in blocks("python"):
        exec(snippet, names)
    assert names["stream"].shape == (2, names["tokens"].size(1), 64)
    assert names["weights"].shape[1] == 4
    assert names["scores"]["accuracy"].value < 0.7
    torch.testing.assert_close(names["logits"], shipped(names["tokens"]))  # the whole stream was patched in


@pytest.mark.slow
def test_the_commands_of_the_page_work_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("commands") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        program, *rest = shlex.split(line)
        assert program == "icll-zoo"
        assert run(rest) == 0
    assert (tmp_path / "probe" / "probe.png").is_file()


# -- what a trained model shows --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_shipped_transformer_has_n_gram_heads_that_it_needs(shipped):
    dataset = create_dataset("dfa", held_out=100)
    scores = heads.head_scores(shipped, dataset, orders=(1,))
    first = heads.ranked(scores, "1")
    assert first[0].score > 0.5
    assert first[0].score >= 2.5 * first[0].uniform
    assert 0.15 < first[0].uniform < 0.25
    assert all(abs(score.control - score.uniform) < 0.03 for score in first)
    every = list(dict.fromkeys((score.module, score.head) for score in scores))
    best = [(score.module, score.head) for score in first if score.score > 0.5]
    metrics = {name: create_metric(name) for name in ("accuracy", "tvd")}
    found = heads_ablation.ablate(shipped, dataset, best, every, metrics, draws=10)
    assert found.excess["accuracy"][1] > 0.1
    assert found.excess["tvd"][1] > 0.05
