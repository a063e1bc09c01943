"""The README's snippets and commands, run as they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(marker: str) -> list[str]:
    return re.findall(rf"<!-- {marker} -->\s*```\w+\n(.*?)```", README, re.S)


def test_the_ten_line_architecture_is_the_design_s() -> None:
    (mine,) = blocks("mine.py")
    assert len([line for line in mine.splitlines() if line.strip()]) == 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_works_as_written(tmp_path: Path) -> None:
    (mine,) = blocks("mine.py")
    (tmp_path / "mine.py").write_text(mine)
    commands = [line for block in blocks("commands") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 8
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "icll-zoo"
        done = command(*words, cwd=tmp_path, seconds=1200)
        assert done.code == 0, f"{line}\n{done.err}"


@pytest.mark.slow
def test_the_python_snippet_works(tmp_path: Path) -> None:
    (snippet,) = blocks("python")
    check = "\nassert 0 < scores['accuracy'].value <= 1\n"
    done = subprocess.run(
        [sys.executable, "-c", snippet + check], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_the_setup_commands_name_what_exists() -> None:
    (quick,), (test,) = blocks("quickstart"), blocks("test")
    for text in (quick, test):
        assert "constraints.txt" in text
    assert (ROOT / "constraints.txt").is_file()
    assert "icll-zoo quickstart" in quick
    assert "pytest" in test


def test_every_name_in_the_table_is_registered() -> None:
    from icll_zoo.zoo import default_zoo

    zoo = default_zoo()
    known = {name for space in ("model", "dataset", "metric") for name in zoo.registry.names(space)} | {"oracle"}  # type: ignore[arg-type]
    table = README.split("## What is in the zoo")[1].split("\n\n")[1]
    for row in table.splitlines()[2:-1]:
        for name in re.findall(r"`([a-z0-9-]+)`", row.split("|")[2]):
            assert name in known, name


def test_the_page_on_adding_an_architecture_shows_the_source_as_it_is() -> None:
    page = (ROOT / "docs" / "adding-an-architecture.md").read_text(encoding="utf-8")
    shown = re.findall(r"<!-- (file|line): (\S+) -->\s*```python\n(.*?)```", page, re.S)
    assert [kind for kind, *_ in shown] == ["file", "line"]
    for kind, path, code in shown:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert code == source if kind == "file" else code in source, path


def test_no_address_of_a_package_registry_is_anywhere() -> None:
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "registry.npmjs" + ".org", "deb.debian" + ".org")
    kinds = {".md", ".toml", ".txt", ".py", ".yaml", ".cfg", ""}
    for path in ROOT.rglob("*"):
        if path.suffix in kinds and path.is_file() and not {".git", ".venv"} & set(path.parts):
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not any(host in text for host in hosts), path
