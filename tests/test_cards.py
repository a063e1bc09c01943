"""The card of a saved model: what the Hub reads, what a person reads, its pictures, and that it is never stale.

Also that no text in config.json, which may be a stranger's, is anything but text in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from mixers import zoo_of_tests

from icll_zoo import card_text, cards, figures, files, measuring
from icll_zoo.cli import run as command
from icll_zoo.errors import InputError
from icll_zoo.model_config import Config, describe_model
from icll_zoo.run import Run
from icll_zoo.testing.loophub import LoopHub
from icll_zoo.training import train
from icll_zoo.weights import LAYOUT, load_model, save_model
from icll_zoo.zoo import Vocabulary, default_zoo

SCORE = {"value": 0.91234, "low": 0.9, "high": 0.92, "n": 1000}
FULL = {
    **SCORE,
    "seeds": [0],
    "split": "test",
    "limit": None,
    "direction": "higher",
    "about": "How often the most probable token may follow.",
    "options": {"languages": 2500},
    "beside": {
        "ngram-2": {"value": 0.8, "low": 0.7, "high": 0.9},
        "oracle": {"value": 1.0, "low": 1.0, "high": 1.0},
        "Transformer, 2,500 languages": {"value": 0.925, "within": 0.003, "source": "arXiv:2401.12973"},
    },
}
CURVE = [{"step": s, "loss": 3.0 / s} for s in range(1, 9)] + [{"step": s, "validation_loss": 2.5 / s} for s in (4, 8)]


def config(metrics: Any = None, dataset: str | None = "dfa:dfa", **training: Any) -> Config:
    zoo = zoo_of_tests()
    model = zoo.create_model("sum", 5, d_model=8, n_layers=1)
    data = {"dataset": dataset} if dataset else None
    return describe_model(zoo, model, data=data, training=training, metrics=metrics, parameters=12345)


def front(text: str) -> Any:
    start, matter, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter)


def parsed(text: str) -> list[Any]:
    """Every token of the Markdown below the front matter, as a browser would see it: tables and bare links too."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])
    return [inner for token in tokens for inner in [token, *(token.children or [])]]


def addresses(text: str) -> set[str]:
    """What the text links to or shows as a picture; no HTML is in it."""
    tokens = parsed(text)
    assert not [t for t in tokens if t.type in ("html_block", "html_inline")]
    return {str(t.attrs.get("href") or t.attrs.get("src")) for t in tokens if t.type in ("link_open", "image")}


# -- what the Hub reads ------------------------------------------------------------------------------------------------


def test_front_matter():
    text = cards.card(config({"accuracy": SCORE, "curve": [1, 2]}), license="Apache-2.0", paper="arXiv:2401.12973")
    assert front(text) == {
        "library_name": "icll-zoo",
        "license": "apache-2.0",
        "tags": ["icll-zoo", "in-context-learning", "sum", "dfa", "arxiv:2401.12973"],
        "model-index": [
            {
                "name": "script:sum",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": "dfa", "type": "dfa"},
                        "metrics": [{"type": "accuracy", "name": "accuracy", "value": 0.91234}],
                    }
                ],
            }
        ],
    }


def test_the_hubs_own_reader_finds_one_result_a_metric():
    card = ModelCard(cards.card(config({"accuracy": FULL, "tvd": SCORE, "validation_loss": 1.5}), license="MIT"))
    assert [(r.metric_type, r.metric_value, r.dataset_split) for r in card.data.eval_results or []] == [
        ("accuracy", 0.91234, "test"),
        ("tvd", 0.91234, None),
    ]
    assert (card.data.license, card.data.library_name) == ("mit", "icll-zoo")


def test_a_licence_that_is_an_expression():
    assert front(cards.card(config(), license="MIT OR Apache-2.0")) == {
        "library_name": "icll-zoo",
        "license": "other",
        "license_name": "MIT OR Apache-2.0",
        "tags": ["icll-zoo", "in-context-learning", "sum", "dfa"],
    }
    assert "license" not in front(cards.card(config()))


@pytest.mark.parametrize(
    "given",
    [{"metrics": {"accuracy": SCORE}, "dataset": None}, {"metrics": {"curve": [1]}}, {"metrics": {"loss": 1.0}}, {}],
)
def test_no_results_without_a_measured_number_and_a_dataset(given):
    assert "model-index" not in front(cards.card(config(**given)))


# -- what a person reads -----------------------------------------------------------------------------------------------


def test_text():
    given = config(
        {"accuracy": FULL, "validation_loss": 1.25, "curve": [1, 2]},
        steps=300,
        best_step=200,
        tokens=12345,
        seconds=61.7,
        seed=3,
        optimizer={"name": "adamw", "lr": 0.003},
    )
    text = cards.card(given, paper="arXiv:2312.06635")
    for part in (
        "12,345 parameters, trained on `dfa:dfa`. Paper: [arXiv:2312.06635](https://arxiv.org/abs/2312.06635).",
        "On the test split of `dfa:dfa`, 1,000 languages",
        "| predictor | `accuracy` ↑ |",
        "| **this model** | 0.9123 [0.9, 0.92] |",
        "| `ngram-2` | 0.8 [0.7, 0.9] |",
        "| `oracle` | 1 |",
        "| Transformer, 2,500 languages (published) | 0.925 [0.922, 0.928] |",
        "- `accuracy`: How often the most probable token may follow.",
        "`icll-zoo evaluate local-dir:PATH dfa data.languages=2500`",
        "| `validation_loss` | 1.25 |",
        "| updates | 300, best at 200 |",
        "| tokens read | 12,345 |",
        "| time | 62 s |",
        "| optimizer | `adamw`, learning rate `0.003` |",
        '"d_model": 8',
        "registered in the script",
        "of seed 3: the intervals say",
        "It knows the 5 tokens",
        "@inproceedings{akyurek2024icll,",
        "eprint       = {2312.06635}",
    ):
        assert part in text, part
    assert "`curve`" not in text
    assert addresses(text) == {"https://arxiv.org/abs/2312.06635", "https://arxiv.org/abs/2401.12973"}


def test_what_was_not_measured_is_said():
    text = cards.card(config())
    assert "## Results" not in text
    assert "have not been measured" in text


def test_where_it_is_loaded_from():
    here = cards.card(config())
    there = cards.card(config({"accuracy": FULL}), source="hf-hub:org/name@v1")
    assert 'zoo.load_model("local-dir:PATH")  # the folder of this file' in here
    assert 'zoo.load_model("hf-hub:org/name@v1")\n' in there
    assert "`hf download org/name --revision v1 --local-dir FOLDER`" in there
    assert "`icll-zoo evaluate hf-hub:org/name@v1 dfa data.languages=2500`" in there


def test_a_limit_is_part_of_the_command():
    text = cards.card(config({"accuracy": {**FULL, "limit": 20}}))
    assert "`icll-zoo evaluate local-dir:PATH dfa data.languages=2500 --limit 20`" in text


@pytest.mark.parametrize("options", [{"x": "$(touch /tmp/pwned)"}, {"x;ls": 1}, {"x": [1]}])
def test_no_command_to_paste_holds_a_strangers_text(options):
    assert "icll-zoo evaluate" not in cards.card(config({"accuracy": {**FULL, "options": options}}))


# -- texts of a stranger -----------------------------------------------------------------------------------------------

HOSTILE = [
    "![x](https://evil.example/track.png)",
    "[click](javascript:alert(1))",
    "<img src=https://evil.example/x onerror=alert(1)>",
    "`` ` ``` ~~~\n```\n![x](https://evil.example/y)",
    "a | b\n\n# heading\n\n<script>alert(1)</script>",
    "---\nlicense: mit\n---\n",
    "<https://evil.example> https://evil.example www.evil.example",
    "[ref]: https://evil.example\n[ref]",
    "\x1b[2J\u202e\ud800\x00",
    "$\\frac{1}{0}$ & \\ * _ ~ ^ { } %s {0}",
    "x" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("pictures", [(), figures.FIGURES])
def test_no_text_of_config_json_is_more_than_text(text, pictures):
    metric = {**FULL, "split": text, "direction": text, "about": text, "options": {text: text}}
    metric["beside"] = {text: SCORE, f"{text}2": {"value": 1.0, "source": text}, "ok": {"value": text}}
    training = {"seed": text, "optimizer": {"name": text}, "hash": text, "steps": text, "train": {"device": text}}
    given = config()
    given = given.model_copy(
        update={
            "metrics": {text: metric, "accuracy": metric, "plain": 1.0},
            "training": training,
            "data": given.data.model_copy(update={"dataset": f"dfa:{text}", "options": {text: [text]}}),
            "model": {text: text, "max_length": 10**400, "list": [text]},
            "script": text,
        }
    )
    shown = cards.card(given, license=text, paper=text, pictures=pictures)
    assert addresses(shown) <= set(pictures)
    assert set(front(shown)) <= {"library_name", "license", "license_name", "tags", "model-index"}
    headings = [t for t in parsed(shown) if t.type == "heading_open"]
    assert len(headings) == 6, "the title and five sections"
    prose = shown.split("---\n", 2)[2]
    assert all(c.isprintable() or c == "\n" for c in prose)
    prose.encode()
    drawn = figures.draw({}, cards.comparison_rows(given)) if pictures else {}
    for picture in drawn.values():
        assert_harmless(picture)


def assert_harmless(picture: bytes) -> None:
    """An SVG that is well-formed, runs nothing and fetches nothing."""
    root = ET.fromstring(picture)
    for element in root.iter():
        assert element.tag.rpartition("}")[2] not in ("script", "image", "foreignObject", "a", "iframe", "animate")
        for key, value in element.attrib.items():
            assert not key.lower().startswith("on")
            if key.endswith("href"):
                assert value.startswith("#")


@pytest.mark.parametrize("value", [10**400, -(10**30), 1e308, True, "1", None, [1], {"value": {"value": 1}}])
def test_odd_numbers(value):
    odd = {"value": value, "low": value, "high": value, "n": value, "beside": {"x": {"value": value}}}
    training = dict.fromkeys(("steps", "best_step", "tokens", "seconds", "seed"), value)
    curve = [{"step": value, "loss": value}, {"step": 1, "loss": value}, value]
    given = config({"a": odd, "b": {**FULL, "low": value, "n": 5}}, curve=curve, **training)
    text = cards.card(given)
    assert "| `b` |" not in text
    figures.draw(cards.learning_series(given), cards.comparison_rows(given))


@pytest.mark.parametrize("curve", [None, 3, "x", [], [1], {"step": 1}, [{"loss": 1.0}], [{"step": 1, "loss": 1.0}]])
def test_a_curve_that_is_none(curve):
    assert cards.learning_series(config(curve=curve)) == {}


# -- pictures ----------------------------------------------------------------------------------------------------------


def drawn() -> dict[str, bytes]:
    given = config({"accuracy": FULL, "tvd": FULL}, curve=CURVE)
    return figures.draw(cards.learning_series(given), cards.comparison_rows(given))


def test_pictures_show_what_was_measured():
    made = drawn()
    assert list(made) == list(figures.FIGURES)
    for picture in made.values():
        assert_harmless(picture)
        assert len(picture) < 50_000
    texts = {e.text for e in ET.fromstring(made[figures.COMPARISON]).iter() if e.tag.endswith("}text")}
    assert {"this model", "ngram-2", "oracle", "Transformer, 2,500 languages (published)"} <= texts
    assert {"accuracy (higher is better)", "tvd (higher is better)"} <= texts
    texts = {e.text for e in ET.fromstring(made[figures.LEARNING]).iter() if e.tag.endswith("}text")}
    assert {"training", "validation", "updates"} <= texts


def test_pictures_are_the_same_bytes_whoever_draws_them():
    import matplotlib

    first = drawn()
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "mine", "axes.facecolor": "black"}):
        assert drawn() == first
    assert b"dc:date" not in first[figures.LEARNING]


def test_a_picture_of_another_matplotlib_is_judged_by_its_numbers():
    ours = drawn()[figures.LEARNING]
    theirs = re.sub(rb"Matplotlib v[^,]*", b"Matplotlib v3.0.0", ours).replace(b"width=", b"data-x='1' width=")
    assert figures.same_picture(theirs, ours)
    assert not figures.same_picture(ours.replace(b"updates", b"upgrades"), ours), "the same matplotlib, other bytes"
    digest = re.search(rb"<dc:description>(.*?)<", ours)
    assert digest
    assert not figures.same_picture(theirs.replace(digest[1], b"0" * 64), ours)
    assert not figures.same_picture(b"", ours)


def test_without_matplotlib_the_card_has_no_pictures(monkeypatch, tmp_path):
    given = config({"accuracy": FULL}, curve=CURVE)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    made = cards.contents(given, license="MIT", paper=None)
    assert list(made) == ["README.md"]
    assert b"svg" not in made["README.md"]


# -- a folder ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run: an n-gram head, trained for a moment on languages with few held out."""
    folder = tmp_path_factory.mktemp("cards") / "run"
    train(
        Run.parse(
            {
                "architecture": "ngram-head",
                "dataset": "dfa",
                "model": {"d_model": 16, "n_layers": 2},
                "data": {"held_out": 12},
                "metrics": ["accuracy"],
                "steps": 20,
                "train": {"batch_size": 4, "validate_every": 5, "threads": 1},
                "output": str(folder),
            }
        ),
        quiet=True,
    )
    assert command(["card", str(folder), "--evaluate"]) == 0
    return folder


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy of its model, away from the run."""
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def test_what_the_command_measures_and_writes(trained):
    config = json.loads((trained / "model" / "config.json").read_text())
    assert {p.relative_to(trained / "model").as_posix() for p in trained.glob("model/**/*.*")} == set(LAYOUT)
    assert {"accuracy", "tvd", "cross-entropy", "validation_accuracy"} <= set(config["metrics"])
    accuracy = config["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert (accuracy["n"], accuracy["seeds"], accuracy["split"]) == (12, [0], "test")
    assert accuracy["options"] == {"held_out": 12}
    assert list(accuracy["beside"]) == [
        "ngram-2", "ngram-3", "oracle",
        "Transformer, 2,500 languages", "Transformer, 40,000 languages", "2-gram", "3-gram",
    ]  # fmt: skip
    assert accuracy["beside"]["oracle"]["value"] == 1.0
    result = json.loads((trained / "result.json").read_text())
    assert (config["training"]["tokens"], config["training"]["seconds"]) == (result["tokens"], result["seconds"])
    losses = [point for point in config["training"]["curve"] if "loss" in point]
    validations = [point["step"] for point in config["training"]["curve"] if "validation_loss" in point]
    assert ([point["step"] for point in losses], validations) == ([10, 20], [5, 10, 15, 20])
    assert cards.stale(trained / "model") == []
    load_model(f"local-dir:{trained / 'model'}")


def test_the_figures_are_those_that_evaluate_gives(trained, capsys):
    words = re.search(r"`icll-zoo (evaluate local-dir:PATH .*?)`", (trained / "model" / "README.md").read_text())
    assert words
    kept = json.loads((trained / "model" / "config.json").read_text())["metrics"]
    assert command([*words[1].replace("PATH", str(trained / "model")).split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"]["value"] == kept["accuracy"]["value"]
    assert command(["evaluate", "ngram-2", "dfa", "data.held_out=12", "--json"]) == 0
    learner = json.loads(capsys.readouterr().out)["metrics"]["tvd"]["value"]
    assert learner == kept["tvd"]["beside"]["ngram-2"]["value"]


def snippet(folder: Path) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    return found


def test_the_snippet_runs_from_a_folder_and_from_the_hub(model, tmp_path):
    code = snippet(model).replace("PATH", str(model)) + "\nprint(tuple(output.shape))\n"
    assert cards.write(model, source="hf-hub:alice/tiny") == ["README.md"]
    code += snippet(model) + "\nprint(tuple(output.shape))\n"
    with LoopHub() as hub:
        hub.create("alice/tiny")
        hub.push("alice/tiny", {name: (model / name).read_bytes() for name in LAYOUT})
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(tmp_path / "hf")},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "(1, 6, 20)\n(1, 6, 20)\n"), done.stderr


def test_the_card_keeps_where_it_is_loaded_from(model):
    for source in ("hf-hub:org/name", "hf-hub:org/name@v1", "ngram-head.tiny"):
        cards.write(model, source=source)
        assert f'zoo.load_model("{source}")' in snippet(model)
        assert cards.write(model) == []
        assert cards.stale(model) == []
    for source in ("", "../x", 'x")\nimport os', "hf-hub:a b/c", "local-dir:/etc", "hf-hub:org/name\n"):
        with pytest.raises(InputError, match="neither"):
            cards.write(model, source=source)
    readme = model / "README.md"
    readme.write_text(readme.read_text().replace("ngram-head.tiny", 'x")\nimport os; ("'))
    cards.write(model)
    assert "import os" not in readme.read_text()


def test_what_is_stale_is_named_and_mended(model):
    def edit_config(change: Any) -> None:
        config = json.loads((model / "config.json").read_text())
        change(config)
        (model / "config.json").write_text(files.pretty_json(config))

    pictures = model / "figures"
    before = {name: (model / name).read_bytes() for name in LAYOUT}
    for spoil, says in [
        (lambda: (model / "README.md").write_text("x"), ["README.md differs from what config.json gives from line 1"]),
        (lambda: (model / "README.md").write_bytes(b"\xff\x00"), ["README.md differs from"]),
        (lambda: (model / "README.md").unlink(), ["README.md is missing"]),
        (lambda: (pictures / "comparison.svg").unlink(), ["figures/comparison.svg is missing"]),
        (lambda: (pictures / "comparison.svg").write_bytes(b"x"), ["figures/comparison.svg differs"]),
    ]:
        spoil()
        found = cards.stale(model)
        assert len(found) == len(says)
        assert all(line.startswith(said) for line, said in zip(found, says, strict=True)), found
        cards.write(model)
        assert cards.stale(model) == []
        # README.md of old named another place, and nothing else.
        assert {name: (model / name).read_bytes() for name in LAYOUT} == before
    edit_config(lambda c: c["metrics"]["accuracy"].update(value=0.5))
    assert [line.partition(" ")[0] for line in cards.stale(model)] == ["figures/comparison.svg", "README.md"]
    edit_config(lambda c: (c["metrics"].clear(), c["training"].pop("curve")))
    assert "figures/learning-curve.svg is no longer part of the card" in cards.stale(model)
    assert set(cards.write(model)) == {"README.md", *figures.FIGURES}
    assert not pictures.exists()
    assert cards.stale(model) == []
    load_model(f"local-dir:{model}")


def test_without_matplotlib_pictures_that_are_there_stay(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cards.stale(model) == []
    assert cards.write(model) == []
    (model / "figures" / "comparison.svg").unlink()
    assert [line.partition(" ")[0] for line in cards.stale(model)] == ["README.md"]
    assert cards.write(model) == ["README.md"]
    assert b"learning-curve.svg" in (model / "README.md").read_bytes()


def test_links_are_not_followed(model, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "comparison.svg").write_text("secret")
    shutil.rmtree(model / "figures")
    (model / "figures").symlink_to(secret)
    for call in (cards.write, cards.stale):
        with pytest.raises(InputError, match=r"figures in .* is not a folder"):
            call(model)
    (model / "figures").unlink()
    (model / "README.md").unlink()
    (model / "README.md").symlink_to(secret / "comparison.svg")
    with pytest.raises(InputError, match=r"README\.md in .* is a symbolic link"):
        cards.write(model)
    assert (secret / "comparison.svg").read_text() == "secret"


def test_saving_draws_what_it_is_given_and_replaces_pictures(tmp_path):
    zoo = default_zoo()
    made = zoo.create_model("ngram-head", 5, d_model=8, n_layers=1)
    folder = tmp_path / "saved"
    save_model(made, folder, data={"dataset": "dfa:dfa"}, metrics={"accuracy": FULL}, training={"curve": CURVE})
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} == set(LAYOUT)
    assert cards.stale(folder) == []
    save_model(made, folder)
    assert not (folder / "figures").exists()
    (folder / "figures").mkdir()
    (folder / "figures" / "mine.svg").write_text("x")
    with pytest.raises(InputError, match=r"it holds 'figures/mine\.svg'"):
        save_model(made, folder)


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured(model, tmp_path):
    with pytest.raises(InputError, match="'ngram-head' is no learner: it would have to be trained"):
        measuring.measure(model, learners=["ngram-head"])
    made = default_zoo().create_model("ngram-head", 20, d_model=8, n_layers=1)
    save_model(made, tmp_path / "other")
    with pytest.raises(InputError, match="names no dataset"):
        measuring.measure(tmp_path / "other")
    letters = Vocabulary(20, tuple("ABCDEFGHIJKLMNOPQRST"), 0, 19)
    made = default_zoo().create_model("ngram-head", vocabulary=letters, d_model=8, n_layers=1)
    save_model(made, tmp_path / "other", data={"dataset": "dfa:dfa"})
    with pytest.raises(InputError, match="not those that the model was trained on"):
        measuring.measure(tmp_path / "other")


def test_a_limit_and_metrics_of_ones_own(model):
    found = measuring.measure(model, metrics=["kl", "tvd-curve"], limit=5)
    assert list(found) == ["kl"], "curves are left out"
    assert (found["kl"]["n"], found["kl"]["limit"]) == (5, 5)
    assert list(found["kl"]["beside"]) == ["oracle"], "the paper has no such values"


def test_recording_leaves_what_loading_reads(model):
    before = json.loads((model / "config.json").read_text())
    assert measuring.record(model, metrics={"kl": SCORE}, training={"seconds": 1.0})
    after = json.loads((model / "config.json").read_text())
    assert after["metrics"].pop("kl") == SCORE
    assert after["training"]["seconds"] == 1.0
    after["training"]["seconds"] = before["training"]["seconds"]
    assert after == before
    assert not measuring.record(model, metrics={"kl": SCORE})
    with pytest.raises(InputError, match="bytes, more than"):
        measuring.record(model, training={"curve": ["x" * 2**22]})
    assert [p.name for p in model.iterdir() if p.name.startswith(".")] == []


def test_a_long_curve_is_thinned():
    lines = [{"step": i, "loss": 1.0} for i in range(12_345)]
    kept = measuring.thinned(lines)
    assert (len(kept), kept[0], kept[-1]) == (measuring.POINTS, lines[0], lines[-1])
    assert len({point["step"] for point in kept}) == measuring.POINTS


def test_only_the_run_that_it_came_from_gives_a_curve(trained, tmp_path):
    assert measuring.run_beside(trained / "model") == trained
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    config = json.loads((copy / "model" / "config.json").read_text())
    config["training"]["hash"] = "0" * 64
    (copy / "model" / "config.json").write_text(files.pretty_json(config))
    assert measuring.run_beside(copy / "model") is None
    assert measuring.run_beside(Path(shutil.copytree(trained / "model", tmp_path / "alone"))) is None


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_checks(model, tmp_path, capsys):
    assert command(["card", str(model), "--check"]) == 0
    assert capsys.readouterr().out == f"the card in {model} is up to date\n"
    (model / "README.md").write_text("x")
    assert command(["card", str(model), "--check"]) == 1
    assert f"error: the card in '{model}' is stale in 1 file: README.md differs" in capsys.readouterr().err
    assert command(["card", str(model), "--check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["stale"][0].startswith("README.md differs")
    assert command(["card", f"local-dir:{model}"]) == 0
    assert capsys.readouterr().out == f"wrote README.md in {model}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{tmp}/nothing"], "no saved model"),
        (["{tmp}/model", "--check", "--evaluate"], "--check writes nothing"),
        (["{tmp}/model", "--evaluate", "--learners", "ngram-9"], "unknown model 'ngram-9'"),
        (["{tmp}/model", "--evaluate", "--metrics", "beauty"], "unknown metric 'beauty'"),
        (["{tmp}/model", "--source", "somewhere"], "neither hf-hub:org/name nor"),
    ],
)
def test_what_the_command_refuses(model, tmp_path, capsys, words, says):
    before = {name: (model / name).read_bytes() for name in LAYOUT}
    assert command(["card", *(word.replace("{tmp}", str(tmp_path)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert {name: (model / name).read_bytes() for name in LAYOUT} == before


def test_words_are_inert():
    assert card_text.words("a [b](c) <d> `e` | f\n# g *h* _i_ \\ & ! ~ /") == "a b(c) d e  f g h i"
