"""registry add, verify and diff: every figure computed from the files, and every one that is another now named."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import command, install

from icll_zoo import cards, catalogue, catalogue_edit, files, measuring
from icll_zoo.catalogue_verify import TOLERANCE
from icll_zoo.cli import run
from icll_zoo.errors import InputError
from icll_zoo.testing.loophub import LoopHub
from icll_zoo.weights import LAYOUT, describe, load_model, save_model
from icll_zoo.zoo import Vocabulary, default_zoo

NAME = "ngram-head.tiny"
TOP = "# Our models.\n#\n#   a comment that stays\n\n"
CURVE = [{"step": step, "loss": 3.0 / step} for step in (1, 2, 3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured model and its card."""
    folder = tmp_path_factory.mktemp("registry") / "model"
    zoo = default_zoo()
    options = zoo.resolve_options("dataset", "dfa", {"held_out": 8})
    save_model(
        zoo.create_model("ngram-head", vocabulary=Vocabulary.of(zoo.create_dataset("dfa")), d_model=8, n_layers=1),
        folder,
        data={"dataset": "dfa:dfa", "options": options},
        training={"seed": 3, "steps": 3, "optimizer": {"name": "adamw"}, "curve": CURVE},
    )
    measuring.record(folder, metrics=measuring.measure(folder))
    cards.write(folder)
    return folder


@pytest.fixture
def top(made: Path, tmp_path: Path) -> Path:
    """A folder with a catalogue, still empty, and the model under cards/."""
    shutil.copytree(made, tmp_path / "top" / "cards" / NAME)
    (tmp_path / "top" / "registry.yaml").write_text(TOP + "models: {}\n")
    return tmp_path / "top"


def add(top: Path, *words: str) -> int:
    source = f"local-dir:{top}/cards/{NAME}"
    return run(["registry", "add", source, "--name", NAME, "--file", str(top / "registry.yaml"), *words])


def verify(top: Path, *words: str) -> int:
    return run(["registry", "verify", "--file", str(top / "registry.yaml"), *words])


@pytest.fixture(scope="module")
def filled(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue that lists the model, and the model, for `listed` to copy."""
    folder = tmp_path_factory.mktemp("registry") / "top"
    shutil.copytree(made, folder / "cards" / NAME)
    (folder / "registry.yaml").write_text(TOP + "models: {}\n")
    assert add(folder) == 0
    return folder


@pytest.fixture
def listed(filled: Path, tmp_path: Path) -> Path:
    """A folder with a catalogue that lists the model under cards/."""
    return Path(shutil.copytree(filled, tmp_path / "top"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a file of YAML or JSON as plain data."""
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(json.dumps(data) if path.suffix == ".yaml" else files.pretty_json(data))


# -- add ---------------------------------------------------------------------------------------------------------------


def test_a_block_is_computed_from_the_folder(listed):
    text = (listed / "registry.yaml").read_text()
    assert text.startswith(TOP + "models:\n  ngram-head.tiny:\n    architecture: ngram:ngram-head\n")
    entry = catalogue.read(listed / "registry.yaml")[NAME]
    folder = listed / "cards" / NAME
    assert entry.folder() == folder
    assert {name: (facts.sha256, facts.bytes) for name, facts in entry.files.items()} == {
        name: (files.sha256_of(folder / name), (folder / name).stat().st_size) for name in LAYOUT
    }
    counted = describe(load_model(f"local-dir:{folder}"))
    assert entry.parameters == counted["parameters"]
    assert entry.state is not None
    assert (entry.state.bytes_64, entry.state.bytes_512) == tuple(counted["state_bytes"].values())
    config = json.loads((folder / "config.json").read_text())
    assert entry.data.options == config["data"]["options"]
    assert entry.training == {"seed": 3, "steps": 3}
    for name, metric in entry.metrics.items():
        kept = config["metrics"][name]
        assert metric.model_dump() == {key: kept[key] for key in ("value", "low", "high", "n", "seeds")}
    assert (entry.license, entry.paper, entry.status) == ("Apache-2.0", "arXiv:2401.12973", "active")
    assert entry.plugins == {"ngram": f">={config['plugins']['ngram']['version']}"}
    lines = text[len(TOP) :].splitlines()
    assert [line for line in lines if line.lstrip().startswith("accuracy: {high: ")], "a metric is one line"


def test_the_model_is_then_loaded_by_its_name(listed):
    zoo = type(default_zoo()).discover()
    next(plugin for plugin in zoo.plugins if plugin.name == "ngram").catalogues.append(str(listed / "registry.yaml"))
    loaded: Any = load_model(NAME, zoo=zoo)
    assert loaded.zoo_spec.architecture == "ngram:ngram-head"


def test_a_name_that_is_there_is_replaced_only_if_asked(listed, capsys):
    before = (listed / "registry.yaml").read_bytes()
    assert add(listed) == 2
    assert "is in " in capsys.readouterr().err
    assert add(listed, "--replace") == 0
    assert (listed / "registry.yaml").read_bytes() == before
    edit(listed / "registry.yaml", lambda data: data["models"][NAME].update(parameters=1, status="superseded"))
    assert add(listed, "--replace", "--json") == 0
    out = capsys.readouterr().out
    shown = json.loads(out[out.index("{") :])
    entry = catalogue.read(listed / "registry.yaml")[NAME]
    assert shown["changes"] == [f"parameters: 1 -> {entry.parameters}"]
    assert entry.status == "superseded", "what cannot be computed stays"


def test_other_blocks_and_the_comments_at_the_top_stay(listed):
    other = {**yaml.safe_load((listed / "registry.yaml").read_text())["models"][NAME], "path": "cards/other"}
    path = listed / "registry.yaml"
    odd = {"text": "1e-3", "dotted": "1.5", "yes": "yes", "none": "null", "time": "12:30", "tiny": 1e-7, "é": "é: #\n"}
    other["training"] = odd
    path.write_text(TOP + json.dumps({"models": {"a.first": other, "z.last": other}}))
    assert add(listed) == 0
    assert path.read_text().startswith(TOP + "models:\n  a.first:\n")
    entries = catalogue.read(path)
    assert list(entries) == ["a.first", NAME, "z.last"]
    assert entries["a.first"].training == odd
    assert sorted(p.name for p in listed.iterdir()) == ["cards", "registry.yaml"], "nothing is left behind"


def test_a_comment_that_would_be_lost_is_an_error(top, capsys):
    path = top / "registry.yaml"
    path.write_text("models:\n  # mine\n  {}\n")
    before = path.read_bytes()
    assert add(top) == 2
    assert "the comment in line 2" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_new_catalogue_is_made(top):
    (top / "registry.yaml").unlink()
    assert add(top) == 0
    assert (top / "registry.yaml").read_text().startswith("# Trained weights")


def test_a_link_to_a_catalogue_stays_a_link(top):
    (top / "registry.yaml").rename(top / "real.yaml")
    (top / "registry.yaml").symlink_to("real.yaml")
    assert add(top) == 0
    assert (top / "registry.yaml").is_symlink()
    assert NAME in catalogue.read(top / "real.yaml")


def test_two_who_add_at_once_lose_nothing(top):
    names = [f"ngram-head.{letter}" for letter in "ab"]
    faults: list[BaseException] = []

    def one(name: str) -> None:
        try:
            catalogue_edit.add(f"local-dir:{top}/cards/{NAME}", name, top / "registry.yaml", default_zoo())
        except BaseException as error:  # noqa: BLE001  told below
            faults.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert list(catalogue.read(top / "registry.yaml")) == names


def spoilt(config: Callable[[Any], Any], folder: Path) -> None:
    edit(folder / "config.json", config)
    cards.write(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "README.md").write_text("x"), "is stale: README.md differs"),
        (lambda f: spoilt(lambda c: c["metrics"].clear(), f), "no metric of"),
        (lambda f: spoilt(lambda c: c["metrics"]["tvd"].update(seeds=[]), f), "metrics.tvd.seeds"),
        (lambda f: spoilt(lambda c: c["metrics"]["tvd"].update(low="x"), f), "metrics.tvd.low"),
        (lambda f: spoilt(lambda c: c["data"].update(dataset=None), f), "names no dataset"),
        (lambda f: (f / "notes.txt").write_text("x"), "holds 'notes.txt', which is no part of a saved model"),
        (lambda f: (f / "figures" / "x.svg").write_text("x"), "holds 'figures/x.svg'"),
        (lambda f: (f / "fingerprint.safetensors").unlink(), "fingerprint.safetensors"),
        (lambda f: flip(f / "model.safetensors"), "another sha256"),
        (lambda f: ((f / "README.md").unlink(), (f / "README.md").symlink_to("/etc/passwd")), "is a symbolic link"),
        (lambda f: (f / "config.json").write_text("{"), "bad JSON"),
    ],
)
def test_what_may_not_be_added(top, capsys, spoil, says):
    before = (top / "registry.yaml").read_bytes()
    spoil(top / "cards" / NAME)
    assert add(top) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert (top / "registry.yaml").read_bytes() == before


def flip(path: Path) -> None:
    """One bit of the file's last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("local-dir:/", "--name", NAME), "does not lie below"),
        (("local-dir:{top}", "--name", NAME), "does not lie below"),
        (("local-dir:{top}/cards/absent", "--name", NAME), "no folder"),
        (("{top}/cards/ngram-head.tiny", "--name", NAME), "is no source"),
        (("hf-hub:", "--name", NAME), "is no source"),
        (("hf-hub:org/name", "--name", NAME), "revision 'main' of 'org/name' may move"),
        (("hf-hub:org/name@v1", "--name", NAME), "revision 'v1' of 'org/name' may move"),
        (("hf-hub:../x@v1", "--name", NAME), "is not a repository"),
        (("local-dir:{top}/cards/ngram-head.tiny", "--name", "ngram-head"), "illegal name"),
        (("local-dir:{top}/cards/ngram-head.tiny", "--name", "Ngram-head.x"), "illegal name"),
        (("local-dir:{top}/cards/ngram-head.tiny", "--name", "gla.x"), "begins with 'gla'"),
        (("local-dir:{top}/cards/ngram-head.tiny", "--name", "ngarm-head.x"), "did you mean 'ngram-head'"),
    ],
)
def test_words_that_are_refused(top, capsys, words, says):
    before = (top / "registry.yaml").read_bytes()
    words = [word.replace("{top}", str(top)) for word in words]
    assert run(["registry", "add", *words, "--file", str(top / "registry.yaml")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert (top / "registry.yaml").read_bytes() == before


def test_a_model_of_a_script_or_without_a_licence_has_no_block(tmp_path):
    from mixers import zoo_of_tests

    zoo = zoo_of_tests()
    save_model(zoo.create_model("sum", 5, d_model=8, n_layers=1), tmp_path / "saved", zoo=zoo)
    with pytest.raises(InputError, match="registered by a script"):
        catalogue_edit.block_of(tmp_path / "saved", zoo)


# -- verify ------------------------------------------------------------------------------------------------------------


def test_a_good_catalogue(listed, capsys):
    assert verify(listed) == 0
    assert capsys.readouterr().out == f"{NAME:<32} ok (6 files)\n"
    assert verify(listed, "--metrics", "--json", NAME) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True, "models": [{"name": NAME, "ok": True, "differences": []}]
    }  # fmt: skip
    assert verify(listed, "ngram-head.tniy") == 2
    assert f"did you mean '{NAME}'" in capsys.readouterr().err


def in_block(**changes: Any) -> Callable[[Path], None]:
    return lambda top: edit(top / "registry.yaml", lambda data: data["models"][NAME].update(changes))


def in_config(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda top: edit(top / "cards" / NAME / "config.json", change)


def on_file(name: str, change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda top: change(top / "cards" / NAME / name)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (in_block(parameters=7), ["parameters: 7 -> "]),
        (in_block(state={"bytes_64": 1, "bytes_512": 1}), ["state.bytes_512: 1 -> ", "state.bytes_64: 1 -> "]),
        (in_block(version=2), ["version: 2 -> 1"]),
        (in_block(license="MIT"), ['license: "MIT" -> "Apache-2.0"']),
        (in_block(paper="arXiv:1"), ['paper: "arXiv:1" -> ']),
        (in_block(training={"seed": 4}), ["training.seed: 4 -> 3", "training.steps: nothing -> 3"]),
        (in_block(plugins={"ngram": ">=99"}), ["plugins.ngram: >=99 -> ", "plugins.ngram: "]),
        (in_block(architecture="linear:gla"), ['architecture: "linear:gla" -> "ngram:ngram-head"']),
        (in_block(path="cards/elsewhere"), ["no folder 'cards/elsewhere'"]),
        (
            lambda top: edit(
                top / "registry.yaml", lambda data: data["models"][NAME]["metrics"]["accuracy"].update(value=0.99)
            ),
            ["metrics.accuracy.value: 0.99 -> "],
        ),
        (
            lambda top: edit(top / "registry.yaml", lambda data: data["models"][NAME]["files"].pop("README.md")),
            ["files.README.md is there and not listed"],
        ),
        (on_file("model.safetensors", flip), ["files.model.safetensors.sha256: ", "another sha256"]),
        (on_file("fingerprint.safetensors", flip), ["files.fingerprint.safetensors.sha256: ", "another sha256"]),
        (on_file("fingerprint.safetensors", Path.unlink), ["no fingerprint.safetensors", "no fingerprint.safetensors"]),
        (
            on_file("README.md", lambda path: path.write_text(path.read_text() + "\n")),
            ["files.README.md.bytes: ", "card: README.md differs from what config.json gives from line"],
        ),
        (on_file("figures/comparison.svg", lambda p: p.write_text("x")), ["bytes: ", "card: figures/comparison.svg"]),
        (on_file("extra.txt", lambda path: path.write_text("x")), ["holds 'extra.txt'"]),
        (
            in_config(lambda c: c["model"].update(order=2)),
            ["files.config.json.", "does not answer as when it was saved"],
        ),
        (in_config(lambda c: c["training"].update(seed=9)), ["files.config.json.", "training.seed: 3 -> 9", "card: "]),
    ],
)
def test_every_difference_is_named(listed, capsys, spoil, says):
    spoil(listed)
    assert verify(listed, "--json") == 1
    (report,) = json.loads(capsys.readouterr().out)["models"]
    assert not report["ok"]
    assert len(report["differences"]) >= len(says)
    for said in says:
        found = [line for line in report["differences"] if said in line]
        assert found, (said, report["differences"])


def test_differences_as_a_person_reads_them(listed, capsys):
    in_block(parameters=7, version=2)(listed)
    assert verify(listed) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == f"{NAME:<32} 2 differences"
    assert shown.out.splitlines()[1].startswith("  parameters: 7 -> ")
    assert shown.out.splitlines()[2:] == ["  version: 2 -> 1"]
    assert shown.err.startswith("error: 1 of 1 models differ from the catalogue (the first: parameters: 7 -> ")
    assert shown.err.count("\n") == 1


def test_only_a_new_evaluation_finds_a_figure_that_was_never_measured(listed, capsys):
    folder = listed / "cards" / NAME

    def better(config: Any) -> None:
        config["metrics"]["tvd"].update(value=config["metrics"]["tvd"]["value"] - 3 * TOLERANCE)

    edit(folder / "config.json", better)
    cards.write(folder)
    assert add(listed, "--replace") == 0
    assert verify(listed) == 0
    capsys.readouterr()
    assert verify(listed, "--metrics") == 1
    assert "metrics.tvd.value: " in capsys.readouterr().out
    edit(folder / "config.json", lambda c: [m.update(n=9) for m in c["metrics"].values()])
    cards.write(folder)
    assert add(listed, "--replace") == 0
    assert verify(listed, "--metrics") == 1
    assert "metrics.accuracy.n: 9 -> 8, measured again" in capsys.readouterr().out


def test_withdrawn_models_are_not_verified(listed, capsys):
    in_block(status="withdrawn", path="cards/gone")(listed)
    assert verify(listed) == 0
    assert "withdrawn, not verified" in capsys.readouterr().out


def test_an_empty_catalogue(top, capsys):
    assert verify(top) == 0
    assert capsys.readouterr().out == "the catalogue lists no models\n"


def test_the_projects_own_catalogue_is_right():
    assert run(["registry", "verify"]) == 0


@pytest.mark.slow
def test_a_third_partys_catalogue_is_verified_too(listed, tmp_path):
    code = f"""
from icll_zoo import hookimpl

@hookimpl
def register_pretrained(register):
    register({str(listed / "registry.yaml")!r})
    register({str(tmp_path / "broken.yaml")!r})
"""
    (tmp_path / "broken.yaml").write_text("models: {a.b: {}}")
    install(tmp_path / "site", "theirs", code)
    done = command("registry", "verify", "--json", cwd=tmp_path, path=tmp_path / "site")
    assert done.code == 1
    broken, *good = done.json["models"]
    assert "catalogue of plugin 'theirs' left out: missing key" in broken["differences"][0]
    assert {"name": NAME, "ok": True, "differences": []} in good
    assert all(report["ok"] for report in good)


# -- the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub to which the model was pushed."""
    with LoopHub() as running:
        for key, value in running.environment(tmp_path / "hf").items():
            monkeypatch.setenv(key, value)
        running.create("alice/tiny")
        running.push("alice/tiny", {name: (made / name).read_bytes() for name in LAYOUT})
        yield running


def test_a_model_on_the_hub(hub, top, capsys):
    file = str(top / "registry.yaml")
    commit = hub.repos["alice/tiny"].branches["main"]
    words = ["registry", "add", "hf-hub:alice/tiny@main", "--name", NAME, "--file", file]
    assert run(words) == 2
    assert "may move (name the commit" in capsys.readouterr().err
    assert run([*words, "--allow-floating"]) == 0
    assert f"alice/tiny@{commit}" in capsys.readouterr().out
    entry = catalogue.read(file)[NAME]
    assert (entry.repo, entry.revision, entry.path) == ("alice/tiny", commit, None)
    assert set(entry.files) == set(LAYOUT)
    words[2] = f"hf-hub:alice/tiny@{commit}"
    assert run([*words, "--replace"]) == 0
    assert verify(top, "--metrics") == 0, capsys.readouterr()
    # Somebody moves the branch: the pinned commit is what it was.
    hub.push("alice/tiny", {"README.md": b"other"})
    assert verify(top) == 0
    in_block(parameters=7)(top)
    assert verify(top) == 1
    assert "parameters: 7 -> " in capsys.readouterr().out


def test_a_repository_that_is_not_whole(hub, top, capsys):
    hub.create("alice/part")
    commit = hub.push("alice/part", {"README.md": b"x", "config.json": b"{}"})
    before = (top / "registry.yaml").read_bytes()
    source = f"hf-hub:alice/part@{commit}"
    assert run(["registry", "add", source, "--name", NAME, "--file", str(top / "registry.yaml")]) == 2
    assert "no model.safetensors" in capsys.readouterr().err
    assert (top / "registry.yaml").read_bytes() == before


# -- diff --------------------------------------------------------------------------------------------------------------


def test_diff(listed, capsys):
    old, new = listed / "old.yaml", listed / "registry.yaml"
    shutil.copy(new, old)
    assert run(["registry", "diff", str(old), str(new)]) == 0
    assert capsys.readouterr().out == "the two list the same\n"

    def change(data: Any) -> None:
        block = data["models"][NAME]
        data["models"] = {"b.new": block, NAME: {**block, "parameters": 5, "training": {}}}

    edit(new, change)
    edit(old, lambda data: data["models"].update({"c.old": data["models"][NAME]}))
    assert run(["registry", "diff", str(old), str(new)]) == 0
    was = catalogue.read(old)[NAME].parameters
    assert capsys.readouterr().out.splitlines() == [
        "+ b.new",
        "- c.old",
        f"~ {NAME}",
        f"    parameters: {was} -> 5",
        "    training.seed: 3 -> nothing",
        "    training.steps: 3 -> nothing",
    ]
    assert run(["registry", "diff", "--json", str(old), str(new)]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == ["b.new"]
    assert run(["registry", "diff", str(old), str(listed / "absent.yaml")]) == 2


def test_listing_weights_imports_no_torch(listed, tmp_path):
    code = f"""
from icll_zoo import hookimpl

@hookimpl
def register_pretrained(register):
    register({str(listed / "registry.yaml")!r})
"""
    install(tmp_path / "site", "theirs", code)
    spy = "import atexit, sys\natexit.register(lambda: print(*{'torch', 'timm', 'matplotlib'} & set(sys.modules)))"
    (tmp_path / "site" / "sitecustomize.py").write_text(spy)
    done = command("list", "--pretrained", cwd=tmp_path, path=tmp_path / "site")
    assert (done.code, done.err) == (0, "")
    assert NAME in done.out
    assert done.out.endswith("\n\n"), f"imported {done.out.splitlines()[-1]}"
