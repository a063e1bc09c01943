"""What several tests need: the command line in a process of its own, and plugins installed into a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


class Result:
    """A finished command: exit code, stdout, stderr, and stdout as JSON."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(*words: str, cwd: Path, path: Path | None = None, seconds: float = 240, **environment: str) -> Result:
    """Run `icll-zoo WORDS` in a fresh process, with `path` in front of the import path, for so long at most."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ICLL_ZOO_")}
    env |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH", "")]))
    code = "from icll_zoo.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    return Result(done)


@pytest.fixture
def icll_zoo_command(tmp_path: Path) -> Callable[..., Result]:
    """`icll_zoo_command("list", "--json")` in an empty folder."""
    return lambda *words, **settings: command(*words, **{"cwd": tmp_path, **settings})


def install(
    site: Path,
    name: str,
    code: str,
    *,
    distribution: str | None = None,
    point: str | None = None,
    requires: str = "icll-zoo",
    version: str = "1.0",
) -> None:
    """Lay a distribution into `site` as an installer leaves it: a module, METADATA and entry_points.txt."""
    distribution = distribution or f"icll-zoo-{name}"
    module = distribution.replace("-", "_")
    site.mkdir(parents=True, exist_ok=True)
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Dist: {requires}\n"
    )
    (info / "entry_points.txt").write_text(f"[icll_zoo]\n{name} = {point or module}\n")
    (info / "RECORD").write_text(f"{module}.py,,\n")


GOOD = """
from icll_zoo import hookimpl

@hookimpl
def register_mixers(register):
    register("good-mixer", "torch.nn:Identity")
"""


def pip(*words: str | Path, cwd: Path) -> None:
    """pip with nothing but what is on this machine."""
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, words), *offline],
        cwd=cwd, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
