"""registry.yaml: read strictly, merged with the plugins' own files; what it names is verified before it is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mixers import zoo_of_tests

from icll_zoo import catalogue, files
from icll_zoo.catalogue import find, load_catalogue, own_path, read
from icll_zoo.errors import AmbiguousName, InputError, IntegrityError, UnknownName
from icll_zoo.plugins import Plugin
from icll_zoo.weights import load_model, save_model
from icll_zoo.zoo import PluginWarning, Zoo

NAME = "sum-small.dfa-10k"
FACTS = {"sha256": "0" * 64, "bytes": 1}
BLOCK: dict[str, Any] = {
    "architecture": "script:sum",
    "version": 1,
    "plugins": {"script": ">=0.1,<2"},
    "path": "cards/sum-small.dfa-10k",
    "files": dict.fromkeys(("config.json", "model.safetensors", "fingerprint.safetensors"), FACTS),
    "parameters": 1,
    "state": {"bytes_64": 64, "bytes_512": 64},
    "data": {"dataset": "dfa:dfa", "options": {"languages": 10_000}},
    "training": {"steps": 1},
    "metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "seeds": [0]}},
    "license": "Apache-2.0",
    "paper": "arXiv:2401.12973",
}


def write(folder: Path, models: Any, top: str = "models") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "registry.yaml"
    path.write_text(json.dumps({top: models}))  # which is YAML too
    return path


def zoo_with(*catalogues: tuple[str, Path]) -> Zoo:
    """A zoo of the tests' mixers and of plugins that bring these catalogues."""
    zoo = zoo_of_tests()
    zoo.plugins = [Plugin(name, name.title(), "1", name, catalogues=[str(path)]) for name, path in catalogues]
    return zoo


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A catalogue whose one model lies beside it."""
    zoo = zoo_of_tests()
    folder = tmp_path / "cards" / NAME
    save_model(zoo.create_model("sum", 5, d_model=8, n_layers=1), folder, zoo=zoo)
    facts = {p.name: {"sha256": files.sha256_of(p), "bytes": p.stat().st_size} for p in folder.iterdir()}
    return write(tmp_path, {NAME: {**BLOCK, "files": facts}})


def test_the_projects_own_file_is_found_and_good():
    assert own_path().name == "registry.yaml"
    entries = read(own_path())
    assert list(entries) == sorted(entries)
    assert set(load_catalogue(Zoo())) == set(entries)


def brought(entries):
    """The names that plugins brought, without the project's own models."""
    return [name for name, entry in entries.items() if entry.owner != catalogue.DISTRIBUTION]


def test_a_model_is_loaded_by_its_name(published):
    zoo = zoo_with(("mine", published))
    assert brought(load_catalogue(zoo)) == [NAME]
    loaded: Any = load_model(NAME, zoo=zoo)
    assert loaded.zoo_spec.architecture == "script:sum"
    assert load_model(f"mine:{NAME}", zoo=zoo).state_dict().keys() == loaded.state_dict().keys()


def test_every_listed_file_is_verified_before_anything_is_read(published):
    config = published.parent / "cards" / NAME / "config.json"
    config.write_text(config.read_text().replace('"training": {}', '"training":{ }'))
    with pytest.raises(IntegrityError, match=r"config\.json .* another sha256"):
        load_model(NAME, zoo=zoo_with(("mine", published)))


def test_a_name_of_two_owners_is_said_in_full(tmp_path):
    zoo = zoo_with(("one", write(tmp_path / "1", {NAME: BLOCK})), ("two", write(tmp_path / "2", {NAME: BLOCK})))
    assert brought(load_catalogue(zoo)) == [f"one:{NAME}", f"two:{NAME}"]
    with pytest.raises(AmbiguousName, match=f"claimed by one and two .*'one:{NAME}' or 'two:{NAME}'"):
        find(NAME, zoo)
    assert find(f"two:{NAME}", zoo).owner == "two"


def test_names_that_are_not_there(tmp_path):
    zoo = zoo_with(("mine", write(tmp_path, {NAME: BLOCK})))
    for name, says in [
        ("sum-small.dfa-1k", f"did you mean '{NAME}'"),
        ("sum", "it is an architecture, and untrained"),
        (f"yours:{NAME}", "unknown weights"),
    ]:
        with pytest.raises(UnknownName, match=re.escape(says)):
            find(name, zoo)


def test_a_plugins_bad_file_is_left_out_with_one_warning(tmp_path):
    good, bad = write(tmp_path / "good", {NAME: BLOCK}), write(tmp_path / "bad", {NAME: {}})
    zoo = zoo_with(("bad", bad), ("good", good), ("gone", tmp_path / "absent.yaml"))
    lines: list[str] = []
    assert brought(load_catalogue(zoo, lines.append)) == [NAME]
    assert [line.split(" left out")[0] for line in lines] == ["catalogue of plugin 'bad'", "catalogue of plugin 'gone'"]
    assert all(line.isprintable() for line in lines)
    with pytest.warns(PluginWarning, match="left out"):
        load_catalogue(zoo)


def test_the_projects_own_bad_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "own_path", lambda: write(tmp_path, {NAME: {}}))
    with pytest.raises(InputError, match="missing key"):
        load_catalogue(Zoo())


def test_what_lies_elsewhere(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    entries = read(write(tmp_path / "top", {"a.absent": BLOCK, "a.link": {**BLOCK, "path": "link"}}))
    (tmp_path / "top" / "link").symlink_to(outside)
    for name, says in [("a.absent", "no folder"), ("a.link", "points outside")]:
        with pytest.raises(InputError, match=says):
            entries[name].folder()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("extra", 1, "unknown key 'extra'"),
        ("license", None, "wrong value for 'license'"),
        ("architecture", "gla", "wrong value for 'architecture'"),
        ("version", 0, "wrong value for 'version'"),
        ("version", "1", "wrong value for 'version'"),
        ("plugins", {"script": "0.1"}, "not a version specifier"),
        ("path", "../secret", "not a plain relative path"),
        ("path", "/etc", "not a plain relative path"),
        ("path", None, "either repo or path"),
        ("repo", "org/name", "either repo or path"),
        ("revision", "a" * 40, "repo and revision go together"),
        ("revision", "main", "wrong value for 'revision'"),
        ("files", {"config.json": FACTS}, "files does not list model.safetensors"),
        ("files", {"../x": FACTS}, "not a plain relative path"),
        ("files", {**BLOCK["files"], "Config.json": FACTS}, "one where capitals do not count"),
        ("path", "./a", "not a plain relative path"),
        ("path", "c\u0430rds/a", "not a plain relative path"),
        ("plugins", {"scr\u0456pt": ">=0.1"}, "wrong value for 'plugins"),
        ("paper", "a\nb", "characters that cannot be printed"),
        ("files", {"config.json": {"sha256": "0" * 63, "bytes": 1}}, "files.config.json.sha256"),
        ("parameters", -1, "wrong value for 'parameters'"),
        ("metrics", {"accuracy": 0.5}, "metrics.accuracy"),
        ("metrics", {"accuracy": {**BLOCK["metrics"]["accuracy"], "seeds": []}}, "metrics.accuracy.seeds"),
        ("status", "new", "wrong value for 'status'"),
    ],
)
def test_a_wrong_block_is_refused_with_its_key(tmp_path, key, value, says):
    read(write(tmp_path, {NAME: BLOCK}))
    block = {**BLOCK, key: value}
    with pytest.raises(InputError) as caught:
        read(write(tmp_path, {NAME: {k: v for k, v in block.items() if v is not None or k == "license"}}))
    assert says in str(caught.value)
    assert NAME in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["sum", "Sum.a", "sum.", ".sum", "sum.a/b", "s\x1b.a", "a." + "b" * 130, 7])
def test_illegal_names(tmp_path, name):
    with pytest.raises(InputError, match="illegal name") as caught:
        read(write(tmp_path, {name: BLOCK}))
    assert str(caught.value).isprintable()


def test_every_fault_of_a_file_is_told(tmp_path):
    with pytest.raises(InputError) as caught:
        read(write(tmp_path, {"a.b": {**BLOCK, "version": 0}, "c.d": {**BLOCK, "license": 3}, "bad": BLOCK}))
    assert len(caught.value.faults) == 3
    for models, top in [([], "models"), ({}, "weights"), (None, "models")]:
        with pytest.raises(InputError, match="must hold one key, `models`"):
            read(write(tmp_path, models, top))
