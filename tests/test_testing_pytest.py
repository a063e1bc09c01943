"""The kit under pytest: `--icll-zoo-check`, and the three-line test file, each in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

# An installed distribution loads it by its entry point; pytest takes no plugin twice.
INSTALLED = any(point.name == "icll-zoo" for point in entry_points(group="pytest11"))
PLUGIN = [] if INSTALLED else ["-p", "icll_zoo.testing.pytest_plugin"]
TESTS = Path(__file__).parent
FILE = """
import sys
sys.path.insert(0, {tests!r})
from mutants import zoo_of_mutants
from icll_zoo.testing import parametrize

@parametrize({arguments}, zoo=zoo_of_mutants())
def test_conformance(check):
    {body}
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`pytest WORDS` in a folder of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGIN, "-p", "no:cacheprovider", "-rsxf", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def conformance(folder: Path, arguments: str, body: str = "check()") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (folder / "test_mine.py").write_text(FILE.format(tests=str(TESTS), arguments=arguments, body=body))


def test_a_name_and_no_file_at_all(tmp_path: Path) -> None:
    done = run(tmp_path, "--icll-zoo-check", "tvd", "--icll-zoo-check", "kl")
    assert done.returncode == 0, done.stdout
    assert "tvd: 10 checks, 10 passed\n" in done.stdout
    assert "kl: 10 checks, 10 passed\n" in done.stdout
    assert "20 passed" in done.stdout


@pytest.mark.slow
def test_the_project_s_own_tests_run_only_if_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other():\n    assert False\n")
    assert run(tmp_path, "--icll-zoo-check", "tvd").returncode == 0
    done = run(tmp_path, "--icll-zoo-check", "tvd", "test_other.py")
    assert done.returncode == 1
    assert "1 failed, 10 passed" in done.stdout


def test_without_the_option_nothing_of_it_shows(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\ndef test_other():\n    assert 'torch' not in sys.modules and 'icll_zoo.zoo' not in sys.modules\n"
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "conformance" not in done.stdout


def test_a_battery_that_lacks_checks_is_red(tmp_path: Path) -> None:
    done = run(tmp_path, "--icll-zoo-check", "tvd", "-k", "additive")
    assert done.returncode == 1
    assert "tvd: 10 checks, 1 passed, 9 missing\n" in done.stdout
    assert run(tmp_path, "--icll-zoo-check", "tvd", "-k", "nothing_at_all").returncode == 1


@pytest.mark.slow
def test_slow_checks_are_left_out_by_their_mark_and_counted(tmp_path: Path) -> None:
    done = run(tmp_path, "--icll-zoo-check", "ngram-2", "-m", "not slow and not gpu")
    assert done.returncode == 0, done.stdout
    assert "ngram-2: 29 checks, 12 passed, 14 not applicable, 3 left out\n" in done.stdout
    assert "SKIPPED" in done.stdout
    assert "not applicable: it has no parameters" in done.stdout


def test_collecting_alone_is_not_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, "--icll-zoo-check", "tvd", "--collect-only", "-q")
    assert done.returncode == 0
    assert "icll-zoo::tvd::padding_invariant" in done.stdout


def test_an_unknown_name_is_a_usage_error(tmp_path: Path) -> None:
    done = run(tmp_path, "--icll-zoo-check", "tvdd")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "did you mean 'tvd'?" in done.stderr


def test_three_lines_are_a_test_of_every_check(tmp_path: Path) -> None:
    conformance(tmp_path, "'brier'")
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "brier: 10 checks, 9 passed, 1 not applicable\n" in done.stdout
    assert "9 passed, 1 skipped" in done.stdout
    verbose = run(tmp_path, "-v", "-k", "padding").stdout
    assert "test_mine.py::test_conformance[padding_invariant] PASSED" in verbose


def test_a_failure_shows_the_evidence_and_expected_ones_their_reason(tmp_path: Path) -> None:
    conformance(tmp_path / "a", "'counts-pads'")
    done = run(tmp_path / "a")
    assert done.returncode == 1
    assert "counts-pads: padding_invariant: 1 more pads change its sums by" in done.stdout
    assert "counts-pads: 10 checks, 8 passed, 1 failed, 1 not applicable\n" in done.stdout
    expected = "expected_failures={'padding_invariant': 'it is a mean over the window'}"
    conformance(tmp_path / "b", f"'counts-pads', {expected}")
    done = run(tmp_path / "b")
    assert done.returncode == 0, done.stdout
    assert "it is a mean over the window" in done.stdout
    assert "counts-pads: 10 checks, 8 passed, 1 expected failure, 1 not applicable\n" in done.stdout
    conformance(tmp_path / "c", f"'brier', {expected}")
    done = run(tmp_path / "c")
    assert done.returncode == 1
    assert "expected to fail (it is a mean over the window), and passed" in done.stdout


def test_a_test_that_never_calls_its_check_has_failed(tmp_path: Path) -> None:
    conformance(tmp_path, "'brier'", body="check if check.check != 'additive' else check()")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "brier: known_values: the test never called `check()`" in done.stdout
    assert "brier: 10 checks, 1 passed, 9 missing\n" in done.stdout


def test_several_names_in_one_file(tmp_path: Path) -> None:
    conformance(tmp_path, "'brier', 'counts-pads'")
    done = run(tmp_path, "-v")
    assert "test_mine.py::test_conformance[brier-additive] PASSED" in done.stdout
    assert "test_mine.py::test_conformance[counts-pads-padding_invariant] FAILED" in done.stdout
