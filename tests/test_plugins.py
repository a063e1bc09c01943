"""Plugins are laid into a folder as an installer leaves them, and met by a real process of the command line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from conftest import GOOD, ROOT, command, install

HEAD = "from icll_zoo import hookimpl\n"
OURS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["icll_zoo"])

BROKEN = {
    "raises": ("failed", "raise RuntimeError('at import')", "RuntimeError: at import"),
    "imports-missing": ("failed", "import no_such_module_here", "No module named 'no_such_module_here'"),
    "exits": ("failed", "import sys; sys.exit(0)", "SystemExit"),
    "syntax": ("failed", "def (", "SyntaxError"),
    "nothing": ("failed", "x = 1", "implements no hook"),
    "misspelt": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixer(register): pass",
        "unknown hook 'register_mixer'",
    ),
    "wrong-argument": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(registry): pass",
        "registry",
    ),
    "half": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(register):\n"
        "    register('half-mixer', 'torch.nn:Identity')\n    raise ValueError('half way')",
        "ValueError: half way",
    ),
    "half-over-hooks": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(register): register('half-mixer', 'torch.nn:Identity')\n"
        "@hookimpl\ndef register_datasets(register): register('half-data', 3)",
        "not a class or 'module:Class'",
    ),
    "illegal-name": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(register): register('Ev:il\\nname', 'torch.nn:Identity')",
        "illegal mixer name",
    ),
    "reserved": (
        "failed",
        HEAD + "@hookimpl\ndef register_architectures(register): register('oracle', 'torch.nn:Identity')",
        "reserved",
    ),
    "twice": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(register):\n"
        "    register('same', 'torch.nn:Identity'); register('same', 'torch.nn:Identity')",
        "twice",
    ),
    "bad-target": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(register): register('m', 'os.system')",
        "not of the form 'module:Class'",
    ),
    "bad-version": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(register): register('m', 'torch.nn:Identity', version='2')",
        "not an integer >= 1",
    ),
    "bad-keyword": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(register): register('m', 'torch.nn:Identity', licence='MIT')",
        "licence",
    ),
    "bad-preset": (
        "failed",
        HEAD + "@hookimpl\ndef register_mixers(register):\n"
        "    register('m', 'torch.nn:Identity', presets={'small': 3})",
        "not a mapping",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_reported_and_leaves_the_rest_working(name: str, tmp_path: Path) -> None:
    status, code, reason = BROKEN[name]
    install(tmp_path / "site", name, code)
    install(tmp_path / "site", "good", GOOD)
    found = command("plugins", "--json", cwd=tmp_path, path=tmp_path / "site")
    assert found.code == 0
    reports = {report["name"]: report for report in found.json["plugins"]}
    assert reports[name]["status"] == status
    assert reason in reports[name]["error"]
    assert reports[name]["registered"] == {}
    assert reports[name]["distribution"] == f"icll-zoo-{name}"
    assert reports[name]["version"] == "1.0"
    assert reports["good"]["status"] == "loaded"
    assert reports["good"]["registered"] == {"mixers": ["good-mixer"]}
    assert {r["name"] for r in found.json["plugins"] if r["status"] == "loaded"} >= {
        "baselines",
        "dfa",
        "ngram",
    }
    warnings = [line for line in found.err.splitlines() if line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: plugin '{name}' (icll-zoo-{name} 1.0) {status}:")
    names = [m["name"] for m in command("list", "--json", cwd=tmp_path, path=tmp_path / "site").json["models"]]
    assert "good-mixer" in names
    assert "transformer" in names
    assert not {"half-mixer", "m", "same"} & set(names)


def test_all_the_broken_plugins_at_once(tmp_path: Path) -> None:
    for name, (_, code, _) in BROKEN.items():
        install(tmp_path / "site", name, code)
    found = command("plugins", "--json", cwd=tmp_path, path=tmp_path / "site")
    assert found.code == 0
    failed = {report["name"] for report in found.json["plugins"] if report["status"] == "failed"}
    assert failed == set(BROKEN)


def test_a_plugin_that_requires_another_version_is_incompatible(tmp_path: Path) -> None:
    install(tmp_path / "site", "future", GOOD, requires="icll-zoo>=99")
    report = plugin(tmp_path, "future")
    assert report["status"] == "incompatible"
    assert "icll-zoo>=99" in report["error"]


def test_a_raising_event_or_verb_is_contained(tmp_path: Path) -> None:
    code = HEAD + "@hookimpl\ndef register_commands(cli): raise RuntimeError('no verbs')\n"
    install(tmp_path / "site", "verbs", code)
    found = command("frobnicate", cwd=tmp_path, path=tmp_path / "site")
    assert found.code == 2
    assert "warning: plugin 'verbs' failed to add its verbs: no verbs" in found.err
    assert "error: unknown verb 'frobnicate'" in found.err


def test_a_plugin_adds_a_verb(tmp_path: Path) -> None:
    code = HEAD + (
        "import click\n"
        "@hookimpl\ndef register_commands(cli):\n"
        "    @cli.command()\n    @click.argument('name')\n    def hello(name):\n        print('hi', name)\n"
    )
    install(tmp_path / "site", "verbs", code)
    found = command("hello", "zoo", cwd=tmp_path, path=tmp_path / "site")
    assert (found.code, found.out) == (0, "hi zoo\n")


@pytest.mark.parametrize(
    ("setting", "loaded"),
    [
        ("", set()),
        ("good", {"good"}),
        ("icll-zoo-good/good,dfa", {"good", "dfa"}),
        ("-good", OURS),
        ("-good,-ngram", OURS - {"ngram"}),
    ],
)
def test_plugins_are_chosen_by_the_environment(setting: str, loaded: set[str], tmp_path: Path) -> None:
    install(tmp_path / "site", "good", GOOD)
    found = command("plugins", "--json", cwd=tmp_path, path=tmp_path / "site", ICLL_ZOO_PLUGINS=setting)
    statuses = {report["name"]: report["status"] for report in found.json["plugins"]}
    assert {name for name, status in statuses.items() if status == "loaded"} == loaded
    assert set(statuses.values()) <= {"loaded", "blocked"}


def test_a_choice_that_names_nobody_is_warned_of(tmp_path: Path) -> None:
    found = command("plugins", "--json", cwd=tmp_path, ICLL_ZOO_PLUGINS="-baseline")
    assert "warning: ICLL_ZOO_PLUGINS names 'baseline', which is not installed (did you mean 'baselines'?)" in found.err
    mixed = command("plugins", cwd=tmp_path, ICLL_ZOO_PLUGINS="a,-b")
    assert mixed.code == 2
    assert "mixes names" in mixed.err


def test_strict_mode_raises_the_plugin_s_own_error(tmp_path: Path) -> None:
    install(tmp_path / "site", "raises", BROKEN["raises"][1])
    found = command("list", cwd=tmp_path, path=tmp_path / "site", ICLL_ZOO_STRICT="1", ICLL_ZOO_DEBUG="1")
    assert found.code == 1
    assert "RuntimeError: at import" in found.err


def test_every_first_party_plugin_can_be_left_out(tmp_path: Path) -> None:
    for name in sorted(OURS):
        found = command("list", "--json", cwd=tmp_path, ICLL_ZOO_PLUGINS=f"-{name}")
        assert found.code == 0, found.err
        assert name not in {entry["plugin"] for group in found.json.values() for entry in group}


def test_two_plugins_that_claim_a_name_are_both_reachable(tmp_path: Path) -> None:
    install(tmp_path / "site", "one", GOOD)
    install(tmp_path / "site", "two", GOOD)
    site = tmp_path / "site"
    found = command("plugins", "--json", cwd=tmp_path, path=site)
    assert found.json["clashes"] == {"good-mixer": ["icll-zoo-one/one", "icll-zoo-two/two"]}
    bare = command("show", "good-mixer", cwd=tmp_path, path=site)
    assert bare.code == 2
    assert "claimed by one and two" in bare.err
    assert "'one:good-mixer' or 'two:good-mixer'" in bare.err
    listed = command("list", "good-mixer", cwd=tmp_path, path=site)
    assert "one:good-mixer" in listed.out
    assert "two:good-mixer" in listed.out


@pytest.mark.parametrize("order", [("aaa", "zzz"), ("zzz", "aaa")])
def test_two_distributions_of_one_plugin_name_are_a_reported_clash(order: tuple[str, str], tmp_path: Path) -> None:
    for distribution in order:
        install(tmp_path / "site", "same", GOOD, distribution=distribution)
    site = tmp_path / "site"
    found = command("plugins", "--json", cwd=tmp_path, path=site)
    assert [r["status"] for r in found.json["plugins"] if r["name"] == "same"] == ["loaded", "loaded"]
    assert "plugin name 'same' is claimed by aaa and zzz" in found.err
    qualified = command("show", "same:good-mixer", "--json", cwd=tmp_path, path=site)
    assert qualified.code == 2
    assert "aaa/same" in qualified.err
    assert "zzz/same" in qualified.err
    names = [m["qualified"] for m in command("list", "good*", "--json", cwd=tmp_path, path=site).json["models"]]
    assert names == ["aaa/same:good-mixer", "zzz/same:good-mixer"]


def plugin(tmp_path: Path, name: str) -> dict[str, str]:
    """The report of one plugin of the folder."""
    found = command("plugins", "--json", cwd=tmp_path, path=tmp_path / "site")
    assert found.code == 0
    report: dict[str, str] = next(r for r in found.json["plugins"] if r["name"] == name)
    return report
