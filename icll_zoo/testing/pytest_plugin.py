"""`pytest --icll-zoo-check NAME`, and the three-line test file. Until one of them is used, nothing else is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from icll_zoo.registry import Space
    from icll_zoo.testing.runner import Status
    from icll_zoo.zoo import Zoo

Key = tuple["Space", str]
"""The space and the name of what is checked."""
ASKED = pytest.StashKey[list[Key]]()
SEEN = pytest.StashKey[dict[Key, dict[str, str]]]()
PROPERTY = "icll_zoo_check"


class Check:
    """One check of one name, to be called: `check()`. Not applicable is a skip, an expected failure an xfail."""

    def __init__(self, space: Space, name: str, check: str, zoo: Zoo | None, expected: Mapping[str, str]) -> None:
        self.space, self.name, self.check, self.zoo, self.expected = space, name, check, zoo, expected
        self.status: Status | None = None
        """What came of it, once it was called."""

    def __call__(self) -> None:
        from icll_zoo.testing.kit import CheckFailed
        from icll_zoo.testing.runner import expected_failures, run_check
        from icll_zoo.zoo import default_zoo

        __tracebackhide__ = True
        zoo = self.zoo or default_zoo()
        reasons = expected_failures(zoo, self.space, self.name, self.expected)
        outcome = run_check(zoo, self.space, self.name, self.check, reasons.get(self.check))
        self.status = outcome.status
        if outcome.status == "not applicable":
            pytest.skip(f"not applicable: {outcome.reason}")
        if outcome.status == "expected failure":
            pytest.xfail(outcome.reason)
        if outcome.status == "failed":
            raise CheckFailed(outcome.reason)

    def __repr__(self) -> str:
        return f"<check {self.check} of {self.name}>"


def parametrize(
    *names: str, expected_failures: Mapping[str, str] | None = None, zoo: Zoo | None = None
) -> pytest.MarkDecorator:
    """Decorate `def test_conformance(check): check()`, to make a test of every check of the kit for every name.

    names: of models, datasets or metrics, or of a plugin. expected_failures: {check: why it is expected to fail}.
    zoo: instead of that of the installed plugins and of this process. Raises UnknownName with the nearest name.
    """
    from icll_zoo.testing.runner import expand
    from icll_zoo.zoo import default_zoo

    made = []
    targets = expand(zoo or default_zoo(), names)
    for check in checks_of(targets, zoo, expected_failures or {}):
        label = check.check if len(targets) == 1 else f"{check.name}-{check.check}"
        made.append(pytest.param(check, id=label, marks=[getattr(pytest.mark, mark) for mark in marks(check)]))
    return pytest.mark.parametrize("check", made)


def checks_of(targets: list[tuple[Space, str]], zoo: Zoo | None, expected: Mapping[str, str]) -> Iterator[Check]:
    from icll_zoo.testing.kit import CHECKS

    for space, name in targets:
        for check in CHECKS[space]:
            yield Check(space, name, check, zoo, expected)


def marks(check: Check) -> list[str]:
    from icll_zoo.testing.runner import marks_of

    return marks_of(check.check)


class CheckItem(pytest.Item):
    """A check that no test file asked for, but `--icll-zoo-check`."""

    def __init__(self, *, check: Check, **more: Any) -> None:
        super().__init__(**more)
        self.check = check
        for mark in marks(check):
            self.add_marker(mark)

    def runtest(self) -> None:
        self.check()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, int | None, str]:
        return "icll-zoo", None, f"{self.check.name}: {self.check.check}"


class Kit(pytest.Collector):
    """The checks of one name as a node of the session."""

    def __init__(self, *, checks: list[Check], **more: Any) -> None:
        super().__init__(**more)
        self.checks = checks

    def collect(self) -> list[CheckItem]:
        return [CheckItem.from_parent(self, name=check.check, check=check) for check in self.checks]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("icll-zoo").addoption(
        "--icll-zoo-check",
        action="append",
        default=[],
        metavar="NAME",
        help="run the conformance kit of icll-zoo on a model, dataset, metric or plugin (may be given again)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.stash[SEEN] = {}
    config.stash[ASKED] = []
    # `pytest --icll-zoo-check NAME` alone is that check alone, not the project's own tests too.
    if config.getoption("icll_zoo_check") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before the others, so that `-m` and `-k` choose among the checks as among tests."""
    names = config.getoption("icll_zoo_check")
    if not names:
        return
    from icll_zoo.errors import ZooError
    from icll_zoo.testing.runner import expand
    from icll_zoo.zoo import default_zoo

    try:
        targets = expand(default_zoo(), names)
    except ZooError as error:
        raise pytest.UsageError(str(error)) from error
    for target in targets:
        checks = list(checks_of([target], None, {}))
        kit = Kit.from_parent(session, name=target[1], nodeid=f"icll-zoo::{target[1]}", checks=checks)
        report = config.hook.pytest_make_collect_report(collector=kit)
        config.hook.pytest_collectreport(report=report)
        items.extend(report.result)
    config.stash[ASKED] = list(targets)


def check_of(item: pytest.Item) -> Check | None:
    """The check that a test runs, if it runs one."""
    if isinstance(item, CheckItem):
        return item.check
    callspec = getattr(item, "callspec", None)
    given = None if callspec is None else callspec.params.get("check")
    return given if isinstance(given, Check) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write into the report what came of which check; a test that takes a check and does not call it has failed."""
    report = yield
    check = check_of(item)
    if check is not None and report.when == "call":
        if check.status is not None:
            report.user_properties.append((PROPERTY, [check.space, check.name, check.check, check.status]))
        elif report.passed:
            report.outcome, report.longrepr = "failed", f"{check.name}: {check.check}: the test never called `check()`"
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A battery that was asked for by name and lacks a check is a failed one."""
    if session.config.option.collectonly or session.exitstatus not in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        return
    if any(missing(session.config, key) for key in session.config.stash[ASKED]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def missing(config: pytest.Config, key: Key) -> list[str]:
    """The checks without a result, but for those that are left out for being slow or for want of a GPU."""
    from icll_zoo.testing.kit import CHECKS
    from icll_zoo.testing.runner import marks_of

    seen = config.stash[SEEN].get(key, {})
    return [check for check in CHECKS[key[0]] if check not in seen and not marks_of(check)]


class Recorder:
    """Hears of every report, also of those that other processes send."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY:
                of: Any = value
                self.config.stash[SEEN].setdefault((of[0], of[1]), {})[of[2]] = of[3]


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(Recorder(session.config), "icll-zoo-recorder")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for each name: how many checks there are, and what came of them."""
    seen, asked = config.stash[SEEN], config.stash[ASKED]
    if not seen and (not asked or config.option.collectonly):
        return
    from icll_zoo.testing.kit import CHECKS
    from icll_zoo.testing.runner import summary_line

    terminalreporter.section("icll-zoo conformance")
    for key in dict.fromkeys([*asked, *seen]):
        counts = Counter(seen.get(key, {}).values())
        gone = len(missing(config, key))
        counts["left out"] = len(CHECKS[key[0]]) - len(seen.get(key, {})) - gone
        terminalreporter.line(summary_line(key[1], key[0], counts, gone))
