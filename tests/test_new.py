"""`icll-zoo new`: the plugin that it writes is installed for real, found, and passes the conformance kit."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, command, pip

from icll_zoo.cli import run
from icll_zoo.cli.new import FILES, KINDS, class_name
from icll_zoo.errors import EnvironmentFault, InputError

SPACES = {"mixer": "models", "architecture": "models", "dataset": "datasets", "metric": "metrics"}


class Made:
    """One plugin of each kind, written by the command and installed by pip into a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site = folder, folder / "site"
        self.said = {}
        for kind in KINDS:
            done = command("new", f"my-{kind}", "--kind", kind, cwd=folder)
            assert done.code == 0, done.err
            self.said[kind] = done.out
        pip("install", "--target", self.site, *(self.project(kind) for kind in KINDS), cwd=folder)

    def project(self, kind: str) -> Path:
        return self.folder / f"icll-zoo-my-{kind}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("new"))


def test_the_command_says_what_it_wrote_and_what_comes_next(made: Made) -> None:
    for kind, said in made.said.items():
        *files, last = said.splitlines()
        written = sorted(p.relative_to(made.folder) for p in made.project(kind).rglob("*") if p.is_file())
        assert sorted(map(Path, files)) == written
        assert len(files) == len(FILES) == 7
        assert last == f"Next: cd icll-zoo-my-{kind} && pip install -e '.[test]' && icll-zoo check my-{kind}"
    assert not list(made.folder.glob(".*"))


def test_installed_plugins_are_listed_and_shown_by_a_real_process(made: Made) -> None:
    listed = command("list", "my-*", "--json", cwd=made.folder, path=made.site)
    assert listed.code == 0
    assert listed.err == ""
    for kind, space in SPACES.items():
        entry = next(e for e in listed.json[space] if e["name"] == f"my-{kind}")
        assert entry["kind"] == kind
        assert entry["plugin"] == f"my-{kind}"
        assert entry["distribution"] == f"icll-zoo-my-{kind}"
        assert entry["license"] == "Apache-2.0"
    shown = command("show", "my-mixer", "--json", cwd=made.folder, path=made.site).json
    assert shown["options"] == {"gate": {"type": "float", "default": 0.5}}
    assert Path(shown["defined"].rpartition(":")[0]).is_relative_to(made.site)


def test_the_files_are_what_they_should_be(made: Made) -> None:
    for kind in KINDS:
        project = made.project(kind)
        facts = tomllib.loads((project / "pyproject.toml").read_text())
        assert facts["project"]["entry-points"] == {"icll_zoo": {f"my-{kind}": f"icll_zoo_my_{kind}"}}
        assert (project / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
        workflow = yaml.safe_load((project / ".github" / "workflows" / "test.yml").read_text())
        assert workflow["jobs"]["test"]["steps"][-1] == {"run": "pytest"}
        assert len((project / "tests" / "test_conformance.py").read_text().split("\n\n\n")[1].splitlines()) == 3
        for file in (p for p in project.rglob("*") if p.is_file()):
            assert "$" not in file.read_text(), file


def test_the_files_are_clean(made: Made) -> None:
    for words in (["check", "--select", "E,F,W,I,B,UP,C4,SIM"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--isolated", "--line-length", "120", *map(made.project, KINDS)],
            cwd=made.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_the_kit(made: Made, kind: str) -> None:
    """By the command that `new` prints, and by the test file that it writes."""
    done = command("check", f"my-{kind}", "--json", cwd=made.folder, path=made.site)
    assert done.code == 0, done.out
    (report,) = done.json["reports"]
    assert report["name"] == f"my-{kind}"
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=made.project(kind),
        env={**os.environ, "PYTHONPATH": str(made.site), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout
    assert "passed" in tests.stdout


@pytest.mark.slow
def test_the_examples_do_what_their_readme_says(made: Made) -> None:
    sizes = ["--quiet", "train.batch_size=4"]
    small = ["model.d_model=16", "data.languages=20", "data.held_out=5"]
    for words in (
        ["train", "my-mixer", "dfa", "steps=3", "output=run-mixer", *sizes, *small],
        ["train", "my-architecture", "dfa", "steps=3", "output=run-architecture", *sizes, *small],
        ["train", "lstm", "my-dataset", "steps=3", "output=run-dataset", "model.d_model=16", *sizes],
        ["evaluate", "ngram-3", "dfa", "data.held_out=5", "--metrics", "my-metric"],
        ["generate", "local-dir:run-mixer/model", "--prompt", "a b c", "--tokens", "5"],
    ):
        done = command(*words, cwd=made.folder, path=made.site)
        assert done.code == 0, done.err


@pytest.mark.slow
def test_the_templates_are_in_the_wheel(tmp_path: Path) -> None:
    pip("wheel", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("icll_zoo-*.whl")
    packed = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("icll_zoo/templates/")}
    assert packed == {path.name for path in (ROOT / "icll_zoo" / "templates").iterdir()}
    assert "mixer.py.txt" in packed


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("my-first", "mixer", "MyFirstMixer"),
        ("my_mixer", "mixer", "MyMixer"),
        ("mixer", "mixer", "MixerMixer"),
        ("batch", "dataset", "BatchDataset"),
        ("f", "dataset", "FDataset"),
        ("none", "metric", "NoneMetric"),
        ("2x-a--b", "architecture", "Architecture2xAB"),
    ],
)
def test_class_names_and_that_the_code_is_python(name: str, kind: str, expected: str, tmp_path: Path) -> None:
    assert class_name(name, kind) == expected
    assert run(["new", name, "--kind", kind, "--output", str(tmp_path)]) == 0
    package = tmp_path / f"icll-zoo-{name}" / f"icll_zoo_{name.replace('-', '_')}"
    defined = [n.name for n in ast.parse((package / f"{kind}.py").read_text()).body if isinstance(n, ast.ClassDef)]
    assert defined == [expected]
    assert f'"{package.name}.{kind}:{expected}"' in (package / "__init__.py").read_text()


def test_json_and_a_folder_with_a_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a b").mkdir()
    assert run(["new", "my-one", "--output", str(tmp_path / "a b"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(tmp_path / "a b" / "icll-zoo-my-one")
    assert len(said["files"]) == 7
    assert all((Path(said["folder"]) / file).is_file() for file in said["files"])
    assert said["next"].startswith(f"cd '{said['folder']}' && pip install")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["My"], "illegal plugin name 'My'"),
        (["../x"], "illegal plugin name"),
        (["a b"], "illegal plugin name"),
        ([""], "illegal plugin name"),
        (["a-"], "ends in a letter or a digit"),
        (["x" * 65], "illegal plugin name"),
        (["oracle"], "reserved"),
        (["dfa"], "icll-zoo already has a plugin 'dfa'"),
        (["lstm"], "plugin 'baselines' already registers the mixer 'lstm'"),
        (["tvd", "--kind", "metric"], "already registers the metric 'tvd'"),
        (["my-one", "--kind", "layer"], "'layer' is not one of"),
        (["my-one", "--output", "nowhere"], "no folder 'nowhere'"),
        (["taken"], "'icll-zoo-taken' exists already"),
        (["dangling"], "'icll-zoo-dangling' exists already"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "icll-zoo-taken").mkdir()
    (tmp_path / "icll-zoo-dangling").symlink_to("nothing")
    before = sorted(tmp_path.rglob("*"))
    assert run(["new", *words]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from icll_zoo.cli.new import write_plugin

    write: Callable[..., Any] = Path.write_text

    def full(path: Path, *words: Any, **more: Any) -> Any:
        if path.name == "mixer.py":
            raise OSError(28, "No space left on device")
        return write(path, *words, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        write_plugin("my-one", "mixer", tmp_path / "icll-zoo-my-one")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_plugin("my-one", "mixer", tmp_path / "icll-zoo-my-one")
    with pytest.raises(InputError, match="exists already"):
        write_plugin("my-one", "mixer", tmp_path / "icll-zoo-my-one")
