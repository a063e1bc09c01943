"""check: the conformance kit, on any names, plugins or everything that is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import as_json, open_zoo, with_scripts
from icll_zoo.errors import InputError, ZooError, printable

if TYPE_CHECKING:
    from icll_zoo.testing.runner import Report


@app.command()
@click.argument("names", nargs=-1, metavar="[NAME|PLUGIN]...")
@click.option("--all", "everything", is_flag=True, help="Everything but mere presets.")
@click.option("--slow", is_flag=True, help="Also the checks that take minutes.")
@click.option("--gpu", is_flag=True, help="Also the checks that need a CUDA device.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--verbose", is_flag=True, help="A line for every check.")
@with_scripts
@as_json
def check(
    names: tuple[str, ...],
    everything: bool,
    slow: bool,
    gpu: bool,
    jobs: int,
    verbose: bool,
    load: tuple[str, ...],
    json: bool,
) -> int:
    """Check that models, datasets and metrics keep their contracts, each with all the checks of the kit.

    NAME may have wildcards. Exit code 1 if a check fails, or passes where a failure is expected.
    """
    from icll_zoo.testing.runner import expand, run_all

    zoo = open_zoo(load)
    if not names and not everything:
        raise InputError("nothing to check", hint="name a model, dataset, metric or plugin, or say --all")
    if gpu:
        import torch

        if not torch.cuda.is_available():
            raise InputError("--gpu needs a CUDA device, and there is none here")
    reports = []
    for report in run_all(zoo, expand(zoo, names, everything), slow=slow, gpu=gpu, jobs=jobs):
        reports.append(report)
        if not json:
            show(report, verbose)
    failures = [outcome.reason for report in reports for outcome in report.failures]
    if json:
        emit({"ok": not failures, "failures": failures, "reports": [report.to_json() for report in reports]})
        return 1 if failures else 0
    if failures:
        noun = "check" if len(failures) == 1 else "checks"
        raise ZooError(f"{len(failures)} {noun} failed", hint=f"the first: {printable(failures[0], 200)}")
    return 0


def show(report: Report, verbose: bool) -> None:
    """The count and the failures; with `verbose` every check with its reason and its seconds."""
    print(f"{report.line()}  ({report.seconds:.1f} s)", flush=True)
    failed = {outcome.check for outcome in report.failures}
    for outcome in report.outcomes:
        if verbose:
            reason = f"  {outcome.reason}" if outcome.reason else ""
            print(f"  {outcome.check:<30} {outcome.status:<16} {outcome.seconds:6.2f} s{reason}")
        elif outcome.check in failed:
            print(f"  failed  {outcome.reason}")
    for check_name in report.missing:
        print(f"  failed  {report.name}: {check_name}: it was never run")
