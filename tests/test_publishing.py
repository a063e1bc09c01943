"""Publishing and loading again, against a Hub on the loopback interface: what others get is what was trained."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, command, install, pip
from huggingface_hub import constants
from torch import nn

import icll_zoo
from icll_zoo import cards, catalogue, hub, hub_patience, measuring, plugins
from icll_zoo.cli import run as run_command
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError
from icll_zoo.publishing import publish
from icll_zoo.testing.loophub import FOR_EVER, LoopHub
from icll_zoo.weights import FILES, load_model, save_model
from icll_zoo.zoo import Vocabulary, Zoo, default_zoo

# huggingface_hub gives httpx a file as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

DATA = {"dataset": "dfa:dfa", "options": {}}
METRICS = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "split": "test", "seeds": [0]}}
TOKENS = torch.arange(60).reshape(3, 20) % 18


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopHub]:
    """A Hub, and this process speaking to it with an empty cache."""
    monkeypatch.setattr(hub_patience, "WAITS", (0.05, 0.05))
    with LoopHub(writers={"alice": {"lab"}}) as running, running.here(tmp_path / "home"):
        yield running


def save(folder: Path, seed: int = 0, metrics: dict[str, Any] | None = None, **more: Any) -> nn.Module:
    """A small model in a folder."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.of(default_zoo().create_dataset("dfa", languages=20, held_out=5))
    model = default_zoo().create_model("lstm", vocabulary=vocabulary, n_layers=1, d_model=16).eval()
    save_model(model, folder, data=DATA, metrics=METRICS if metrics is None else metrics, **more)
    return model


def held(loop: LoopHub, repo: str = "lab/m", branch: str = "main") -> dict[str, bytes]:
    files = loop.repos[repo].commits[loop.repos[repo].branches[branch]].files
    return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}


def answer(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS)


LOGITS = """
import sys, torch, icll_zoo
torch.set_num_threads(1)
model = icll_zoo.load_model(sys.argv[1])
tokens = torch.arange(60).reshape(3, 20) % 18
with torch.inference_mode():
    sys.stdout.buffer.write(model(tokens).contiguous().numpy().tobytes())
"""


def elsewhere(source: str, cwd: Path, site: Path | None = None) -> bytes:
    """The bits of the logits of a model that a fresh process loads."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site or "")}
    done = subprocess.run(
        [sys.executable, "-c", LOGITS, source], cwd=cwd, env=env, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def hf(*words: str, cwd: Path) -> str:
    """The official command line."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hf")), *words],
        cwd=cwd, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_exactly_the_layout_in_one_commit(loop: LoopHub, tmp_path: Path) -> None:
    save(tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("private")
    (tmp_path / "m" / ".cache").mkdir()
    done = icll_zoo.publish(tmp_path / "m", "lab/m")
    sent = held(loop)
    assert {name for name in sent if not name.startswith("figures/")} == set(FILES)
    assert {name: len(data) for name, data in sent.items()} == done.files
    for name in ("config.json", "model.safetensors", "fingerprint.safetensors"):
        assert sent[name] == (tmp_path / "m" / name).read_bytes()
    commits = loop.repos["lab/m"].commits
    assert len(commits) == 2
    assert (done.commit, done.url) == (loop.repos["lab/m"].branches["main"], f"{loop.url}/lab/m")
    assert commits[done.commit].message == "Publish baselines:lstm"
    card = sent["README.md"].decode()
    assert card == done.card
    assert 'zoo.load_model("hf-hub:lab/m")' in card
    matter = yaml.safe_load(card.split("---\n")[1])
    assert (matter["library_name"], matter["license"]) == ("icll-zoo", "apache-2.0")
    assert matter["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    # The folder itself is as it was.
    assert "local-dir:PATH" in (tmp_path / "m" / "README.md").read_text()


def test_publishing_again_sends_what_changed_and_says_so(loop: LoopHub, tmp_path: Path) -> None:
    save(tmp_path / "m")
    first = publish(tmp_path / "m", "lab/m")
    loop.push("lab/m", {"LICENSE": b"a file of somebody else"})
    loop.log.clear()
    again = publish(tmp_path / "m", "lab/m")
    assert again.changed == []
    assert again.commit == loop.repos["lab/m"].branches["main"]
    assert loop.requests("POST", "/commit/") == []
    assert loop.requests("PUT") == []

    better = {"accuracy": {**METRICS["accuracy"], "value": 0.75}, "tvd": {**METRICS["accuracy"], "value": 0.25}}
    save(tmp_path / "m", metrics=better)
    loop.log.clear()
    second = publish(tmp_path / "m", "lab/m")
    assert "metric accuracy 0.5 -> 0.75" in second.changed
    assert "metric tvd none -> 0.25" in second.changed
    assert "the card changed" in second.changed
    assert not any("weights" in line for line in second.changed)
    assert loop.requests("PUT") == []
    assert held(loop)["LICENSE"] == b"a file of somebody else"

    save(tmp_path / "m", seed=1, metrics=better)
    third = publish(tmp_path / "m", "lab/m")
    assert third.changed == ["the description changed", "the weights changed", "the fingerprint changed"]
    assert len({first.commit, second.commit, third.commit}) == 3
    # All three can be had.
    for done, value in [(first, 0.5), (second, 0.75), (third, 0.75)]:
        loaded: Any = load_model(f"hf-hub:lab/m@{done.commit}")
        assert loaded.zoo_config.metrics["accuracy"]["value"] == value


def test_a_picture_that_is_no_longer_drawn_is_removed(loop: LoopHub, tmp_path: Path) -> None:
    curve = [{"step": step, "loss": 1 / step, "validation_loss": 1 / step} for step in range(1, 9)]
    save(tmp_path / "m", training={"curve": curve})
    publish(tmp_path / "m", "lab/m")
    assert held(loop)["figures/learning-curve.svg"].startswith(b"<?xml")
    assert publish(tmp_path / "m", "lab/m").changed == []
    save(tmp_path / "m")
    assert "figures/learning-curve.svg removed" in publish(tmp_path / "m", "lab/m").changed
    assert "figures/learning-curve.svg" not in held(loop)


def test_a_run_and_a_branch(loop: LoopHub, tmp_path: Path) -> None:
    run = icll_zoo.Run.parse(
        {
            "architecture": "lstm",
            "dataset": "dfa",
            "steps": 2,
            "output": str(tmp_path / "run"),
            "model": {"d_model": 8, "n_layers": 1},
            "data": {"languages": 20, "held_out": 5},
            "train": {"batch_size": 4},
        }
    )
    icll_zoo.train(run, quiet=True)
    with pytest.raises(InputError, match=r"nothing was measured of it .`icll-zoo card .* --evaluate`"):
        publish(tmp_path / "run", "lab/run")
    folder = tmp_path / "run" / "model"
    measuring.record(folder, metrics=measuring.measure(folder, learners=["ngram-2"]))
    done = publish(tmp_path / "run", "lab/run", revision="trial", private=True)
    assert done.url == f"{loop.url}/lab/run/tree/trial"
    assert loop.repos["lab/run"].private
    assert held(loop, "lab/run") == {}
    assert set(held(loop, "lab/run", "trial")) >= set(FILES)
    loaded = load_model("hf-hub:lab/run@trial")
    assert torch.equal(answer(loaded), answer(load_model(f"local-dir:{folder}")))


# -- what is not sent --------------------------------------------------------------------------------------------------


class Copy(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d_model))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (lambda f: flip(f / "model.safetensors"), "cannot be loaded back: model.* another sha256"),
    "a flipped bit of the fingerprint": (lambda f: flip(f / "fingerprint.safetensors"), "fingerprint.* another sha256"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded back: no model.safetensors"),
    "other parameters": (lambda f: edit(f, parameters=1), "parameters, and its config.json says otherwise"),
    "a missing plugin": (
        lambda f: edit(
            f, architecture="absent:x", plugins={"absent": {"distribution": "some-plugin", "version": "1"}}
        ),
        "distribution 'some-plugin' '1', which is not installed",
    ),
    "several faults": (lambda f: edit(f, parameters="x", version=0), "wrong value for 'version' .* .and 1 more.$"),
    "nothing measured": (lambda f: edit(f, metrics={}), "nothing was measured of it .`icll-zoo card .* --evaluate`"),
    "a run's validation loss": (lambda f: edit(f, metrics={"validation_loss": 1.5}), "nothing was measured of it"),
    "metrics that are none": (lambda f: edit(f, metrics={"accuracy": "high"}), "nothing was measured of it"),
    "a script": (lambda f: edit(f, architecture="script:x", script="x.py"), "registered in a script, which nobody"),
    "a script's layer": (lambda f: edit(f, model={"layers": [{"mixer": "script:x"}]}), "registered in a script"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "bad JSON"),
    "no description": (lambda f: (f / "config.json").unlink(), "no saved model and no run in"),
    "a link": (lambda f: link(f / "README.md"), "README.md in .* is a symbolic link"),
}  # fmt: skip


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("case", REFUSED)
def test_what_others_could_not_use_is_refused_before_anything_is_asked(
    loop: LoopHub, tmp_path: Path, case: str
) -> None:
    harm, says = REFUSED[case]
    save(tmp_path / "m")
    harm(tmp_path / "m")
    with pytest.raises(InputError, match=says) as refusal:
        publish(tmp_path / "m", "lab/m")
    assert "\n" not in str(refusal.value)
    assert loop.log == []


def test_a_model_of_a_script_is_refused_although_it_loads_here(loop: LoopHub, tmp_path: Path) -> None:
    zoo = Zoo.discover()
    zoo.register("mixer", "copy", Copy, license="MIT")
    save_model(zoo.create_model("copy", n_layers=1, d_model=8), tmp_path / "m", data=DATA, metrics=METRICS, zoo=zoo)
    load_model(f"local-dir:{tmp_path / 'm'}", zoo=zoo)
    with pytest.raises(InputError, match=r"registered in a script.*`icll-zoo new` makes a plugin"):
        publish(tmp_path / "m", "lab/m", zoo=zoo)
    assert loop.log == []


def test_what_has_no_licence_is_refused(loop: LoopHub, tmp_path: Path) -> None:
    save(tmp_path / "m")
    found, _ = plugins.discover()
    for plugin in found:
        plugin.entries = [dataclasses.replace(entry, license=None) for entry in plugin.entries]
    with pytest.raises(InputError, match="'baselines:lstm' has no licence"):
        publish(tmp_path / "m", "lab/m", zoo=Zoo(found))
    assert loop.log == []


@pytest.mark.parametrize(
    ("repo", "revision", "says"),
    [
        ("m", "main", "is not a repository"),
        ("lab/m@v1", "main", "names a revision .say --revision BRANCH"),
        ("lab/m", "../x", "is not a revision"),
        ("lab/m", "0" * 40, "is a commit, and nothing can be added to it"),
    ],
)
def test_bad_names(loop: LoopHub, tmp_path: Path, repo: str, revision: str, says: str) -> None:
    save(tmp_path / "m")
    with pytest.raises(InputError, match=says):
        publish(tmp_path / "m", repo, revision=revision)
    assert loop.log == []


def test_a_run_without_a_model_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no model yet .the same `icll-zoo train` goes on with it"):
        publish(tmp_path / "run", "lab/m")


# -- two at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [None, 409])
def test_a_foreign_commit_in_between_is_built_upon(loop: LoopHub, tmp_path: Path, status: int | None) -> None:
    """The Hub answers 412, or 409."""
    save(tmp_path / "m")
    publish(tmp_path / "m", "lab/m")
    save(tmp_path / "m", seed=1)
    loop.fail("POST", "/commit/", before=lambda: loop.push("lab/m", {"LICENSE": b"theirs"}), status=status)
    done = publish(tmp_path / "m", "lab/m")
    assert done.commit == loop.repos["lab/m"].branches["main"]
    assert held(loop)["LICENSE"] == b"theirs"
    assert held(loop)["model.safetensors"] == (tmp_path / "m" / "model.safetensors").read_bytes()


def test_a_folder_that_changes_meanwhile_is_not_published_half(loop: LoopHub, tmp_path: Path) -> None:
    """As when a run ends just then: the description is of the old weights, and the new ones are there."""
    save(tmp_path / "m")
    publish(tmp_path / "m", "lab/m")
    before = held(loop)
    save(tmp_path / "m", seed=1)
    loop.fail("GET", "/api/models/lab/m", before=lambda: save(tmp_path / "m", seed=2))
    with pytest.raises(EnvironmentFault, match=r"model\.safetensors changed while it was sent, and nothing was publi"):
        publish(tmp_path / "m", "lab/m")
    assert held(loop) == before
    publish(tmp_path / "m", "lab/m")
    assert held(loop)["model.safetensors"] == (tmp_path / "m" / "model.safetensors").read_bytes()
    load_model("hf-hub:lab/m")


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_a_commit_to_the_same_files_in_between_is_reported(loop: LoopHub, tmp_path: Path, name: str) -> None:
    save(tmp_path / "m")
    publish(tmp_path / "m", "lab/m")
    save(tmp_path / "m", seed=1)
    loop.fail("POST", "/commit/", before=lambda: loop.push("lab/m", {name: b"theirs"}))
    with pytest.raises(EnvironmentFault, match=r"another commit came to 'lab/m' .* nothing was published .look at it"):
        publish(tmp_path / "m", "lab/m")
    sent = held(loop)
    assert sent[name] == b"theirs"
    assert sent["fingerprint.safetensors"] != (tmp_path / "m" / "fingerprint.safetensors").read_bytes()


def test_foreign_commits_without_end_are_reported(loop: LoopHub, tmp_path: Path) -> None:
    save(tmp_path / "m")
    publish(tmp_path / "m", "lab/m")
    save(tmp_path / "m", seed=1)
    count = iter(range(99))
    loop.fail("POST", "/commit/", times=FOR_EVER, before=lambda: loop.push("lab/m", {"x": str(next(count)).encode()}))
    with pytest.raises(hub.Moved):
        publish(tmp_path / "m", "lab/m")
    assert len(loop.requests("POST", "/commit/")) == 3  # the first publishing, and twice now


# -- loading -----------------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_published(loop: LoopHub, tmp_path: Path) -> None:
    model = save(tmp_path / "m")
    done = publish(tmp_path / "m", "lab/m")
    loop.repos["lab/m"].tags["v1"] = str(done.commit)
    save(tmp_path / "m", seed=1)
    publish(tmp_path / "m", "lab/m")
    for revision, equal in [("v1", True), (done.commit, True), ("main", False)]:
        assert torch.equal(answer(icll_zoo.load_model(f"hf-hub:lab/m@{revision}")), answer(model)) is equal


def test_a_stranger_who_serves_other_weights_is_caught(loop: LoopHub, tmp_path: Path) -> None:
    """Everything is as the Hub says, and yet config.json lists another sha256."""
    save(tmp_path / "m")
    publish(tmp_path / "m", "lab/m")
    data = bytearray(held(loop)["model.safetensors"])
    data[-3] ^= 1
    loop.push("lab/m", {"model.safetensors": bytes(data)})
    with pytest.raises(IntegrityError, match=r"model\.safetensors .* has another sha256 than it must"):
        load_model("hf-hub:lab/m")


def test_a_repository_of_something_else(loop: LoopHub) -> None:
    loop.create("lab/gpt")
    loop.push("lab/gpt", {"config.json": b"{}", "model.safetensors": b"x" * 10**6})
    with pytest.raises(InputError, match=r"no fingerprint\.safetensors in 'lab/gpt'"):
        load_model("hf-hub:lab/gpt")
    assert loop.requests("GET", "/_cdn/") == []


def test_a_catalogued_model_on_the_hub(loop: LoopHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(tmp_path / "m")
    done = publish(tmp_path / "m", "lab/m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    files = dict(config["files"])
    text = (tmp_path / "m" / "config.json").read_bytes()
    files["config.json"] = {"sha256": hub.digest(text, git=False), "bytes": len(text)}
    block = {
        "architecture": "baselines:lstm",
        "version": 1,
        "plugins": {"baselines": ">=0"},
        "repo": "lab/m",
        "revision": done.commit,
        "files": files,
        "parameters": config["parameters"],
        "data": DATA,
        "metrics": {},
        "license": "Apache-2.0",
    }
    path = tmp_path / "registry.yaml"
    monkeypatch.setattr(catalogue, "own_path", lambda: path)

    def listed(**changes: Any) -> None:
        path.write_text(yaml.safe_dump({"models": {"lstm.small": {**block, **changes}}}))

    listed()
    assert torch.equal(answer(load_model("lstm.small")), answer(model))
    # The repository is registered anew, and the same commit is of other bytes: the catalogue's sha256 decides.
    shutil.rmtree(tmp_path / "home")
    save(tmp_path / "other", seed=1)
    other = (tmp_path / "other" / "model.safetensors").read_bytes()
    repo = loop.repos["lab/m"]
    commit = repo.commits[str(done.commit)]
    changed = {**commit.files, "model.safetensors": dataclasses.replace(commit.files["model.safetensors"], data=other)}
    repo.commits[commit.oid] = dataclasses.replace(commit, files=changed)
    with pytest.raises(
        IntegrityError, match=r"model\.safetensors of 'lab/m' .* another file than the one .* catalogued"
    ):
        load_model("lstm.small")
    # So it does for what the cache holds already.
    repo.commits[commit.oid] = commit
    load_model("hf-hub:lab/m")
    listed(files={**files, "model.safetensors": {**files["model.safetensors"], "sha256": "0" * 64}})
    with pytest.raises(IntegrityError, match=r"model\.safetensors .* has another sha256"):
        load_model("lstm.small")
    listed(revision="0" * 40)
    with pytest.raises(InputError, match="no revision '0000"):
        load_model("lstm.small")


# -- the command line --------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_card_and_the_files_and_asks_nobody(
    loop: LoopHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run_command(["publish", str(tmp_path / "m"), "lab/m", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "# lstm on `dfa`" in said.out
    assert "would publish to lab/m (main):" in said.out
    for name in FILES:
        assert f"  {name}\n" in said.out
    assert loop.log == []


def test_the_verb_prints_the_address_and_the_commit(
    loop: LoopHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "m")
    assert run_command(["publish", str(tmp_path / "m"), "lab/m"]) == 0
    commit = loop.repos["lab/m"].branches["main"]
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[:2] == [f"published {loop.url}/lab/m", f"commit {commit}"]
    assert lines[-1] == f"Load it: icll-zoo evaluate hf-hub:lab/m@{commit} DATASET"
    assert run_command(["publish", str(tmp_path / "m"), "lab/m", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["commit"], said["changed"], said["repo"]) == (commit, [], "lab/m")


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ({"status": 401}, 2, "does not accept the token"),
        ({"status": 403}, 2, "the token may not do this"),
        ({"status": 409}, 3, "answers 409 for 'lab/m', also when asked again"),
        ({"status": 429, "retry_after": 999}, 3, "asks to wait 999 s"),
        ({"status": 500}, 3, "answers 500 for 'lab/m', also when asked again"),
        ({"cut_upload": 3}, 3, "the connection to 127.0.0.1"),
    ],
)
def test_failures_are_one_line_and_publish_nothing(
    loop: LoopHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: dict[str, Any], code: int, says: str
) -> None:
    save(tmp_path / "m")
    loop.create("lab/m")
    loop.fail("POST", "/commit/", times=FOR_EVER, **fault)
    assert run_command(["publish", str(tmp_path / "m"), "lab/m"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert says in said.err
    assert "hf_alice" not in said.err
    assert held(loop) == {}
    loop.faults.clear()
    assert run_command(["publish", str(tmp_path / "m"), "lab/m"]) == 0
    assert set(held(loop)) >= set(FILES)


# -- the whole way, in real processes ----------------------------------------------------------------------------------


def test_from_here_to_a_process_that_has_only_the_hub(
    loop: LoopHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """publish -> `hf download` -> load elsewhere: the same bits; by name, offline and in `evaluate` too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    model = save(tmp_path / "m")
    publish(tmp_path / "m", "lab/m")
    bits = answer(model).contiguous().numpy().tobytes()
    shutil.rmtree(tmp_path / "m")
    out = tmp_path / "out"
    hf("download", "lab/m", "--local-dir", str(out), cwd=tmp_path)
    assert "All checksums match" in hf("cache", "verify", "lab/m", "--local-dir", str(out), cwd=tmp_path)
    assert {path.name for path in out.iterdir()} - {".cache", ".gitattributes", "figures"} == set(FILES)
    assert "lab/m" in hf("models", "ls", "--filter", "in-context-learning", "--format", "json", cwd=tmp_path)
    assert cards.stale(out) == []
    assert elsewhere(f"local-dir:{out}", tmp_path) == bits
    hf("download", "lab/m", cwd=tmp_path)
    loop.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run_command(["evaluate", "hf-hub:lab/m@main", "dfa", "data.languages=20", "data.held_out=5", "--json"]) == 0
    assert {"accuracy", "tvd"} <= set(json.loads(capsys.readouterr().out)["metrics"])
    assert loop.log == []
    flip(out / "model.safetensors")
    assert run_command(["evaluate", f"local-dir:{out}", "dfa"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "model.safetensors" in said
    assert "has another sha256" in said


@pytest.mark.slow
def test_a_third_partys_model_goes_round(loop: LoopHub, tmp_path: Path) -> None:
    """Trained with a plugin from its wheel, published, and loaded where neither its run nor a script is left."""
    site, maker, reader = tmp_path / "site", tmp_path / "maker", tmp_path / "reader"
    maker.mkdir()
    reader.mkdir()
    pip("wheel", "--wheel-dir", tmp_path / "wheels", ROOT / "plugins" / "example-cummean", cwd=tmp_path)
    pip("install", "--target", site, *(tmp_path / "wheels").glob("*.whl"), cwd=tmp_path)
    words = ["train", "cummean", "dfa", "steps=3", "output=run", "--quiet", "train.batch_size=4", "model.d_model=16"]
    sizes = ["data.languages=20", "data.held_out=5"]
    for step in ([*words, *sizes], ["card", "run", "--evaluate"], ["publish", "run", "lab/cummean"]):
        done = command(*step, cwd=maker, path=site)
        assert done.code == 0, done.err
    bits = elsewhere("local-dir:run/model", maker, site)
    shutil.rmtree(maker)
    hf("download", "lab/cummean", "--local-dir", "got", cwd=reader)
    assert elsewhere("local-dir:got", reader, site) == bits
    assert elsewhere("hf-hub:lab/cummean", reader, site) == bits
    for source in ("local-dir:got", "hf-hub:lab/cummean"):
        absent = command("evaluate", source, "dfa", *sizes, cwd=reader)
        assert absent.code == 2
        assert absent.err.count("\n") == 1
        assert "plugin 'cummean', distribution 'icll-zoo-cummean' '0.1.0', which is not installed" in absent.err
        assert "pip install" not in absent.err
    flip(reader / "got" / "model.safetensors")
    flipped = command("evaluate", "local-dir:got", "dfa", *sizes, cwd=reader, path=site)
    assert flipped.code == 2
    assert "model.safetensors 'got/model.safetensors' has another sha256" in flipped.err
    again = command("publish", "got", "lab/cummean", cwd=reader, path=site)
    assert again.code == 2
    assert "cannot be loaded back" in again.err


def test_a_plugin_that_is_not_here_is_named(loop: LoopHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of somebody's plugin: loaded by a zoo that has it, and refused with its name by one that has not."""
    source = (ROOT / "plugins" / "example-cummean" / "icll_zoo_cummean" / "mixer.py").read_text()
    code = source + (
        "\nfrom icll_zoo import hookimpl\n"
        "@hookimpl\ndef register_mixers(register):\n"
        "    register('cummean', 'icll_zoo_cummean:CumulativeMean', license='Apache-2.0')\n"
    )
    install(tmp_path / "site", "cummean", code)
    with monkeypatch.context() as here:
        here.syspath_prepend(str(tmp_path / "site"))
        zoo = Zoo.discover()
        model = zoo.create_model("cummean", n_layers=1, d_model=8).eval()
        save_model(model, tmp_path / "m", data=DATA, metrics=METRICS, zoo=zoo)
        publish(tmp_path / "m", "lab/cummean", zoo=zoo)
        assert torch.equal(answer(load_model("hf-hub:lab/cummean", zoo=zoo)), answer(model))
    sys.modules.pop("icll_zoo_cummean")
    named = (
        r"needs 'cummean:cummean' of plugin 'cummean', distribution 'icll-zoo-cummean' '1\.0', which is not installed"
    )
    with pytest.raises(InputError, match=named) as caught:
        load_model("hf-hub:lab/cummean")
    assert "pip install" not in str(caught.value)  # the name is a stranger's
