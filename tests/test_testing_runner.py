"""The conformance kit as its users meet it: names, counts, expected failures, and the verb `check`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, command, install
from mutants import Healthy, LeaksOneToken, zoo_of_mutants
from torch import Tensor, nn

from icll_zoo import testing
from icll_zoo.errors import InputError, UnknownName
from icll_zoo.registry import SCRIPT, entries_of
from icll_zoo.testing import CHECKS, CheckFailed, NotApplicable, Outcome, Report, run_checks, runner
from icll_zoo.testing.runner import expand, run_check
from icll_zoo.zoo import Zoo, default_zoo


def statuses(report: Report) -> dict[str, str]:
    return {outcome.check: outcome.status for outcome in report.outcomes}


# -- checks as functions ---------------------------------------------------------------------------------------------


def test_a_check_is_a_function_that_raises_with_the_evidence() -> None:
    zoo = zoo_of_mutants()
    testing.check_is_causal(zoo, "healthy")
    with pytest.raises(CheckFailed, match="leaks-one-token: is_causal: tokens from position 1 on change") as caught:
        testing.check_is_causal(zoo, "leaks-one-token")
    assert isinstance(caught.value, AssertionError)
    with pytest.raises(NotApplicable, match="no step"):
        testing.check_step_equals_forward(zoo, "leaks-one-token")
    with pytest.raises(UnknownName, match="did you mean 'healthy'"):
        testing.check_is_causal(zoo, "helthy")


def test_every_check_of_the_kit_is_a_public_function_that_says_what_it_checks() -> None:
    for space, checks in CHECKS.items():
        for name in checks:
            function = getattr(testing, f"check_{name}")
            assert function.__doc__, (space, name)
            assert function.__name__ == f"check_{name}"
            assert f"check_{name}" in dir(testing)


def test_every_check_function_is_in_the_kit() -> None:
    import importlib

    listed = {(module, name) for checks in CHECKS.values() for name, module in checks.items()}
    for module in {module for module, _ in listed}:
        home = importlib.import_module(f"icll_zoo.testing.{module}")
        made = {n.removeprefix("check_") for n in vars(home) if n.startswith("check_")}
        assert {(module, name) for name in made} <= listed


def test_a_check_leaves_the_process_as_it_was() -> None:
    zoo = zoo_of_mutants()
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run_checks(zoo, "healthy")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()


def test_what_a_plugin_raises_is_a_failure_with_its_place() -> None:
    class Explodes(Healthy):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("on purpose")

    zoo = Zoo()
    zoo.register("mixer", "explodes", Explodes)
    outcome = run_check(zoo, "model", "explodes", "is_causal")
    assert outcome.status == "failed"
    assert "explodes: is_causal: ZeroDivisionError: on purpose (in test_testing_runner.py:" in outcome.reason


def test_a_small_model_is_as_wide_as_its_heads_need() -> None:
    class Wide(nn.Module):
        def __init__(self, d_model: int) -> None:
            super().__init__()
            if d_model % 64:
                raise InputError(f"heads of 64 do not fit into d_model {d_model}")
            self.proj = nn.Linear(d_model, d_model)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x.cumsum(1) / 8)

    zoo = Zoo()
    zoo.register("mixer", "wide", Wide, presets={"huge": {"d_model": 8192, "n_layers": 60}})
    from icll_zoo.testing.subject import Model

    for name in ("wide", "wide-huge"):
        options = Model(zoo, name).spec.options
        assert (options["d_model"], options["n_layers"]) == (64, 2)


def test_the_options_that_a_class_asks_to_be_checked_with() -> None:
    class Asks(Healthy):
        icll_zoo_check_options = {"gain": 0.5, "n_layers": 1}  # noqa: RUF012

    zoo = Zoo()
    zoo.register("mixer", "asks", Asks)
    from icll_zoo.testing.subject import Model

    options = Model(zoo, "asks").spec.options
    assert (options["gain"], options["n_layers"], options["d_model"]) == (0.5, 1, 32)


# -- counting --------------------------------------------------------------------------------------------------------


def test_the_line_counts_every_check() -> None:
    report = run_checks(zoo_of_mutants(), "leaks-one-token")
    assert len(report.outcomes) == len(CHECKS["model"]) == 29
    assert report.line() == (
        "leaks-one-token: 29 checks, 20 passed, 1 failed, 5 not applicable, 3 left out"
    )  # no step (4), registered in a script (1); slow (1), gpu (2)
    assert all(outcome.reason for outcome in report.outcomes if outcome.status != "passed")


def test_a_shrunken_battery_is_red() -> None:
    report = run_checks(zoo_of_mutants(), "brier")
    assert report.ok
    shorter = Report(report.name, report.space, report.outcomes[:-1])
    assert not shorter.ok
    assert shorter.missing == ["known_values"]
    assert shorter.line() == "brier: 10 checks, 8 passed, 1 not applicable, 1 missing"
    assert shorter.failures[0].reason == "brier: known_values: it was never run"
    assert not shorter.to_json()["ok"]


def test_a_check_that_the_kit_lists_and_nobody_wrote_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKS["metric"], "is_kind", "metrics")
    report = run_checks(zoo_of_mutants(), "brier")
    assert [outcome.check for outcome in report.failures] == ["is_kind"]


# -- expected failures -----------------------------------------------------------------------------------------------


def test_an_expected_failure_is_counted_with_its_reason() -> None:
    report = run_checks(zoo_of_mutants(), "leaks-one-token", expected={"is_causal": "bidirectional by design"})
    assert report.ok
    assert "1 expected failure" in report.line()
    kept = next(outcome for outcome in report.outcomes if outcome.check == "is_causal")
    assert (kept.status, kept.reason) == ("expected failure", "bidirectional by design")


def test_a_class_states_its_own_expected_failures() -> None:
    class Bidirectional(LeaksOneToken):
        icll_zoo_expected_failures = {"is_causal": "bidirectional by design"}  # noqa: RUF012

    zoo = Zoo()
    zoo.register("mixer", "both-ways", Bidirectional, license="Apache-2.0", paper="unpublished")
    stated = {"backbone": {"layers": ["both-ways"]}, "license": "MIT", "paper": "unpublished"}
    zoo.registry.add(entries_of("mixer", SCRIPT, SCRIPT, "mixed", None, **stated))
    for name in ("both-ways", "mixed"):
        assert statuses(run_checks(zoo, name))["is_causal"] == "expected failure"


@pytest.mark.parametrize(
    ("check", "why"),
    [("is_causal", "and passed"), ("presets_build", "and passed"), ("import_is_light", "and not applicable")],
)
def test_an_expected_failure_that_does_not_happen_is_red(check: str, why: str) -> None:
    report = run_checks(zoo_of_mutants(), "healthy", expected={check: "I thought so"})
    (failure,) = report.failures
    assert failure.check == check
    assert f"expected to fail (I thought so), {why}" in failure.reason


def test_an_expected_failure_needs_a_reason_and_a_check() -> None:
    zoo = zoo_of_mutants()
    with pytest.raises(InputError, match="without a reason"):
        run_checks(zoo, "healthy", expected={"is_causal": " "})
    with pytest.raises(InputError, match=r"no check of a model.*did you mean 'is_causal'"):
        run_checks(zoo, "healthy", expected={"is_casual": "typo"})


# -- names -----------------------------------------------------------------------------------------------------------


def test_names_plugins_and_wildcards() -> None:
    zoo = default_zoo()
    assert expand(zoo, ["transformer"]) == [("model", "transformer")]
    assert expand(zoo, ["baselines:lstm", "lstm"]) == [("model", "lstm")]
    assert expand(zoo, ["dfa"]) == [("dataset", "dfa")]
    assert ("metric", "tvd") in expand(zoo, ["dfa:*"])
    baselines = expand(zoo, ["baselines"])
    assert {("model", "transformer"), ("model", "lstm"), ("model", "ngram")} <= set(baselines)
    assert ("model", "ngram-3") not in baselines
    assert expand(zoo, ["ngram-[12]"]) == [("model", "ngram-1"), ("model", "ngram-2")]
    with pytest.raises(UnknownName, match="did you mean 'transformer'"):
        expand(zoo, ["transfromer"])
    with pytest.raises(InputError, match="registers no model"):
        expand(zoo, ["tensorboard"])


def test_everything_is_all_but_mere_presets() -> None:
    zoo = default_zoo()
    everything = expand(zoo, [], everything=True)
    names = {name for _, name in everything}
    assert {"transformer", "ngram-head-stack", "transformer-ngram", "dfa", "accuracy"} <= names
    assert not names & {"ngram-3", "lstm-paper", "dfa-stated"}
    assert len(everything) == len(set(everything))


# -- a plugin that is heavy to list ----------------------------------------------------------------------------------

HEAVY = """
import torch
from icll_zoo import hookimpl

@hookimpl
def register_mixers(register):
    register("heavy", "torch.nn:Identity")
"""


def test_a_plugin_that_imports_torch_when_it_is_listed_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "heavy", HEAVY)
    install(tmp_path, "light", HEAVY.replace("import torch\n", "").replace('"heavy"', '"light"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    zoo = Zoo.discover()
    testing.check_import_is_light(zoo, "light")
    with pytest.raises(CheckFailed, match=r"listing plugin 'heavy' imports torch, at .*icll_zoo_heavy\.py:2"):
        testing.check_import_is_light(zoo, "heavy")


# -- the verb --------------------------------------------------------------------------------------------------------

FILE = """
import sys
sys.path.insert(0, {tests!r})
import icll_zoo as zoo
from mutants import Healthy, LeaksOneToken
about = dict(license="Apache-2.0", paper="unpublished")
zoo.register_mixer("healthy", **about)(Healthy)
zoo.register_mixer("leaky", **about)(LeaksOneToken)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(tests=str(Path(__file__).parent)))
    return file


def test_the_verb_counts_and_exits_by_what_it_found(tmp_path: Path, script: Path) -> None:
    done = command("check", "healthy", "tvd", "--load", str(script), cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("healthy: 29 checks, 24 passed, 2 not applicable, 3 left out  (")
    assert lines[1].startswith("tvd: 10 checks, 10 passed  (")
    done = command("check", "leaky", "--load", str(script), cwd=tmp_path)
    assert done.code == 1
    assert "  failed  leaky: is_causal: tokens from position 1 on change the output before it" in done.out
    assert done.err.startswith("error: 1 check failed (the first: leaky: is_causal: ")
    assert done.err.count("\n") == 1


@pytest.mark.slow
def test_the_verb_in_two_processes_and_as_json(tmp_path: Path, script: Path) -> None:
    done = command("check", "leaky", "tvd", "kl", "--jobs", "2", "--json", "--load", str(script), cwd=tmp_path)
    assert done.code == 1
    assert done.err == ""
    assert not done.json["ok"]
    assert [report["name"] for report in done.json["reports"]] == ["leaky", "tvd", "kl"]
    assert [report["ok"] for report in done.json["reports"]] == [False, True, True]
    assert len(done.json["failures"]) == 1
    outcomes = {o["check"]: o for o in done.json["reports"][0]["outcomes"]}
    assert outcomes["is_causal"]["status"] == "failed"
    assert outcomes["compiles"]["status"] == "left out"


def test_the_verb_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    def refused(*words: str) -> Result:
        done = command("check", *words, cwd=tmp_path)
        assert done.code == 2
        assert done.out == ""
        return done

    assert "nothing to check" in refused().err
    assert "did you mean 'transformer'" in refused("transfromer").err
    if not torch.cuda.is_available():
        assert "needs a CUDA device" in refused("tvd", "--gpu").err


def test_jobs_and_one_process_agree() -> None:
    zoo = default_zoo()
    targets = expand(zoo, ["tvd", "kl"])
    alone: list[Any] = [report.to_json() for report in runner.run_all(zoo, targets)]
    together: list[Any] = [report.to_json() for report in runner.run_all(zoo, targets, jobs=2)]
    for report in (*alone, *together):
        del report["seconds"]
        for outcome in report["outcomes"]:
            del outcome["seconds"]
    assert alone == together


def test_outcomes_are_plain_data() -> None:
    outcome = Outcome("is_causal", "failed", "why", 0.5)
    report = Report("x", "model", [outcome])
    assert json.loads(json.dumps(report.to_json()))["outcomes"] == [
        {"check": "is_causal", "status": "failed", "reason": "why", "seconds": 0.5}
    ]


def test_importing_the_kit_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, icll_zoo.testing.pytest_plugin; from icll_zoo.testing import CHECKS, parametrize; "
        "print([m for m in ('torch', 'numpy', 'timm', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
