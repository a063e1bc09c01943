"""Run the kit over names, and say what came of every check: nothing is skipped without a reason and a count."""

from __future__ import annotations

import importlib
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from icll_zoo.errors import InputError, UnknownName, ZooError, did_you_mean, printable
from icll_zoo.registry import Entry, Space
from icll_zoo.testing.kit import CHECKS, GPU, SLOW, CheckFailed, NotApplicable
from icll_zoo.zoo import Zoo

Status = Literal["passed", "failed", "not applicable", "expected failure", "left out"]
SPACES: tuple[Space, ...] = ("model", "dataset", "metric")


@dataclass(frozen=True)
class Outcome:
    """What came of one check. reason: the evidence, why it does not apply, or why its failure is expected."""

    check: str
    status: Status
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """What came of the whole kit for one name."""

    name: str
    space: Space
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """Checks of the kit without an outcome: a battery that shrank is not a green one."""
        return sorted(set(CHECKS[self.space]) - {outcome.check for outcome in self.outcomes})

    @property
    def failures(self) -> list[Outcome]:
        lost = [Outcome(check, "failed", f"{self.name}: {check}: it was never run") for check in self.missing]
        return [outcome for outcome in self.outcomes if outcome.status == "failed"] + lost

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self.outcomes)

    def line(self) -> str:
        """`cummean: 29 checks, 25 passed, 1 not applicable, 3 left out`."""
        counts = Counter(outcome.status for outcome in self.outcomes)
        return summary_line(self.name, self.space, {status: counts[status] for status in counts}, len(self.missing))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "space": self.space,
            "ok": self.ok,
            "checks": len(CHECKS[self.space]),
            "seconds": round(self.seconds, 2),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
            "missing": self.missing,
        }


ORDER = ("passed", "failed", "expected failure", "not applicable", "left out")


def summary_line(name: str, space: Space, counts: Mapping[str, int], missing: int) -> str:
    """How many checks the kit has for a name, and what came of them."""
    parts = [f"{name}: {len(CHECKS[space])} checks"]
    parts += [f"{counts[status]} {status}" for status in ORDER if counts.get(status)]
    return ", ".join(parts + ([f"{missing} missing"] if missing else []))


def run_check(zoo: Zoo, space: Space, name: str, check: str, expected: str | None = None) -> Outcome:
    """Run one check and catch whatever it raises. expected: why it is expected to fail, if it is."""
    start = time.perf_counter()

    def outcome(status: Status, reason: str) -> Outcome:
        return Outcome(check, status, printable(" ".join(reason.split()), 1000), round(time.perf_counter() - start, 3))

    try:
        module = importlib.import_module(f"icll_zoo.testing.{CHECKS[space][check]}")
        getattr(module, f"check_{check}")(zoo, name, space)
    except NotApplicable as why:
        if expected is not None:
            return outcome("failed", f"{name}: {check}: expected to fail ({expected}), and not applicable: {why}")
        return outcome("not applicable", str(why))
    except CheckFailed as failure:
        return outcome("expected failure", expected) if expected else outcome("failed", str(failure))
    except Exception as error:  # noqa: BLE001  a plugin may raise anything
        if expected:
            return outcome("expected failure", expected)
        return outcome("failed", f"{name}: {check}: {type(error).__name__}: {error} (in {where_raised(error)})")
    if expected is not None:
        return outcome("failed", f"{name}: {check}: expected to fail ({expected}), and passed")
    return outcome("passed", "")


def where_raised(error: BaseException) -> str:
    """file:line of the innermost frame that is not torch's."""
    place, traceback = "?", error.__traceback__
    while traceback is not None:
        file = Path(traceback.tb_frame.f_code.co_filename)
        if "torch" not in file.parts:
            place = f"{file.name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def expected_failures(zoo: Zoo, space: Space, name: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The failures that the class, or whoever runs the kit, expects. InputError for one without a reason."""
    from icll_zoo.testing.subject import SUBJECTS

    try:
        stated = SUBJECTS[space](zoo, name).stated("icll_zoo_expected_failures")
    except Exception:  # noqa: BLE001  it cannot be imported or resolved, whatever its module raises: the checks say so
        stated = {}
    expected = {**stated, **(more or {})}
    for check, reason in expected.items():
        if check not in CHECKS[space]:
            hint = did_you_mean(check, CHECKS[space])
            raise InputError(f"{name!r} expects the failure of {check!r}, which is no check of a {space}", hint=hint)
        if not isinstance(reason, str) or not reason.strip():
            raise InputError(f"{name!r} expects the failure of {check!r} without a reason", hint="say why")
    return expected


def run_checks(
    zoo: Zoo,
    name: str,
    space: Space | None = None,
    *,
    slow: bool = False,
    gpu: bool = False,
    expected: Mapping[str, str] | None = None,
) -> Report:
    """The whole kit for one name. slow, gpu: also the checks that take minutes, or need a GPU.

    space: "model", "dataset" or "metric", if the name is in several. Raises UnknownName, or InputError for an
    expected failure that is no check or has no reason; a check that fails is in the report.
    """
    from icll_zoo.testing.subject import space_of

    space = space or space_of(zoo, name)
    reasons = expected_failures(zoo, space, name, expected)
    report = Report(name, space)
    for check in CHECKS[space]:
        wanted = {"slow": slow, "gpu": gpu}
        if lacking := [mark for mark in marks_of(check) if not wanted[mark]]:
            report.outcomes.append(Outcome(check, "left out", lacking[0]))
            continue
        report.outcomes.append(run_check(zoo, space, name, check, reasons.get(check)))
    return report


def marks_of(check: str) -> list[str]:
    """What keeps a check out of an everyday run: "slow", "gpu" or nothing."""
    return [mark for mark, checks in (("slow", SLOW), ("gpu", GPU)) if check in checks]


# -- names -----------------------------------------------------------------------------------------------------------


def worth_checking(entry: Entry) -> bool:
    """Whether an entry is checked when nobody names it: what is not a mere preset, or lists layers of its own."""
    return entry.preset_of is None or "layers" in entry.options


def expand(zoo: Zoo, names: Sequence[str], everything: bool = False) -> list[tuple[Space, str]]:
    """What is meant by names, plugins and wildcards: spaces and qualified names, each once.

    An exact name comes before a plugin of that name; `plugin:*` is everything of the plugin, presets included.
    """
    found: list[tuple[Space, str]] = []
    if everything:
        found += [(e.space, short_name(zoo, e)) for space in SPACES for e in zoo.list(space) if worth_checking(e)]
    for name in names:
        found += meant_by(zoo, name)
    return list(dict.fromkeys(found))


def meant_by(zoo: Zoo, name: str) -> list[tuple[Space, str]]:
    exact: list[tuple[Space, str]] = []
    for space in SPACES:
        try:
            exact.append((space, short_name(zoo, zoo.entry(space, name))))
        except UnknownName:
            continue
    if exact:
        return exact
    wild = any(sign in name for sign in "*?[")
    matching = [
        (e.space, short_name(zoo, e))
        for space in SPACES
        for e in zoo.list(space, name if wild else f"{name}:*")
        if wild or worth_checking(e)
    ]
    if matching:
        return matching
    if any(plugin.name == name for plugin in zoo.plugins):
        raise InputError(f"plugin {name!r} registers no model, dataset or metric here", hint="see `icll-zoo plugins`")
    known = [entry_name for space in SPACES for entry_name in zoo.registry.names(space)]
    known += [plugin.name for plugin in zoo.plugins]
    raise UnknownName("name or plugin", name, known)


def short_name(zoo: Zoo, entry: Entry) -> str:
    """The bare name, or the qualified one where two plugins share the bare one."""
    return entry.qualified if entry.name in zoo.registry.clashes() else entry.name


# -- many names ------------------------------------------------------------------------------------------------------


def run_all(
    zoo: Zoo, targets: Sequence[tuple[Space, str]], *, slow: bool = False, gpu: bool = False, jobs: int = 1
) -> Iterator[Report]:
    """The reports of several names in their order, as they are ready; by `jobs` processes if that is more than one."""
    if jobs <= 1 or len(targets) <= 1:
        for space, name in targets:
            yield run_checks(zoo, name, space, slow=slow, gpu=gpu)
        return
    with processes(jobs, zoo) as pool:
        waiting = [(name, pool.submit(_work, space, name, slow, gpu)) for space, name in targets]
        for name, future in waiting:
            try:
                yield future.result()
            except BrokenProcessPool as error:
                raise ZooError(
                    f"a process died before the report on {name!r}", hint="--jobs 1 shows at which check"
                ) from error


def processes(count: int, zoo: Zoo) -> ProcessPoolExecutor:
    """Further processes that know what `zoo` does, by `process_zoo`: its plugins, and its user's scripts.

    Fresh interpreters: a forked one would inherit torch's threads in whatever state they are.
    """
    scripts = [str(path) for path in zoo.scripts]
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin, initargs=(scripts,))


_zoo: list[Zoo] = []


def _begin(scripts: Iterable[str]) -> None:
    """Discover the plugins once a process."""
    from icll_zoo.zoo import default_zoo

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first process has said which plugins are broken
        zoo = default_zoo()
    for script in scripts:
        zoo.load_script(script)
    _zoo[:] = [zoo]


def process_zoo() -> Zoo:
    """The zoo of one of `processes`."""
    return _zoo[0]


def _work(space: Space, name: str, slow: bool, gpu: bool) -> Report:
    return run_checks(process_zoo(), name, space, slow=slow, gpu=gpu)
