"""The kit on things that are wrong in one way: exactly the check that is meant for the fault finds it."""

from __future__ import annotations

import mutants
import pytest
from mutants import DATASETS, METRICS, MIXERS, REGISTRATIONS, name_of, zoo_of_mutants

from icll_zoo.registry import Space
from icll_zoo.testing import CHECKS, run_checks
from icll_zoo.testing.kit import GPU

WRONG: list[tuple[Space, str, str]] = [
    *(("model", name_of(target), check) for target, check in MIXERS.items()),
    *(("model", name, check) for name, (_, check) in REGISTRATIONS.items()),
    *(("dataset", name_of(target), check) for target, check in DATASETS.items()),
    *(("metric", name_of(target), check) for target, check in METRICS.items()),
    ("metric", "brier-unlicensed", "has_licence"),
]


@pytest.mark.parametrize(("space", "name", "check"), WRONG, ids=[name for _, name, _ in WRONG])
def test_a_mutant_is_caught_by_the_check_meant_for_it_and_no_other(space: Space, name: str, check: str) -> None:
    report = run_checks(zoo_of_mutants(), name, space)
    assert {outcome.check: outcome.reason for outcome in report.failures}.keys() == {check}, report.failures
    (failure,) = report.failures
    assert failure.reason.startswith(f"{name}: {check}: ")
    assert not report.missing


@pytest.mark.parametrize(("space", "name"), [("model", "healthy"), ("dataset", "coins"), ("metric", "brier")])
def test_the_healthy_twin_passes_everything(space: Space, name: str) -> None:
    report = run_checks(zoo_of_mutants(), name, space)
    assert report.ok, report.failures
    kept_back = {o.check: o.status for o in report.outcomes if o.status != "passed"}
    # Nothing that was registered in a script can be listed without running it.
    wanted = {"import_is_light": "not applicable"}
    if space == "model":
        wanted |= {"compiles": "left out", "gpu_equals_cpu": "left out", "fast_equals_reference_on_gpu": "left out"}
    assert kept_back == wanted


def test_a_wrapper_that_initialises_again_is_caught() -> None:
    report = run_checks(zoo_of_mutants(mutants.Reinitialising), "healthy")
    assert [outcome.check for outcome in report.failures] == ["keeps_its_own_init"]
    assert "'proj.weight' of mixer 0" in report.failures[0].reason


def test_every_check_has_a_mutant() -> None:
    caught: dict[Space, set[str]] = {space: set() for space in CHECKS}
    for space, _, check in WRONG:
        caught[space].add(check)
    elsewhere = {"keeps_its_own_init", "compiles", "import_is_light", "has_licence_and_paper", "signature_is_config"}
    for space, checks in CHECKS.items():
        assert set(checks) - caught[space] - GPU <= elsewhere


@pytest.mark.slow
def test_a_model_that_breaks_the_graph_does_not_compile_and_the_healthy_one_does() -> None:
    zoo = zoo_of_mutants()
    assert run_checks(zoo, "healthy", slow=True).ok
    report = run_checks(zoo, "breaks-the-graph", slow=True)
    assert [outcome.check for outcome in report.failures] == ["compiles"]
