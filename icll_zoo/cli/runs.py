"""runs: the run folders that are here, listed or compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import as_json, print_table
from icll_zoo.errors import InputError

LISTED = (
    "folder",
    "status",
    "architecture",
    "dataset",
    "seed",
    "step",
    "steps",
    "validation_loss",
    "train_loss",
    "seconds",
)


@app.command(options_metavar="[OPTIONS]")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...")
@click.option("--sort", metavar="KEY", help="validation_loss, model.d_model ...; -KEY for the largest first.")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only runs that say so; texts may have wildcards.")
@click.option("--plot", metavar="FILE", help="Draw their losses into an .svg or .png.")
@as_json
def runs(folders: tuple[str, ...], sort: str | None, where: tuple[str, ...], plot: str | None, json: bool) -> None:
    """List the runs below FOLDERs, by default below this one; or compare runs, if each of several FOLDERs is one.

    Comparing shows where the descriptions differ and what came out, side by side.
    """
    from icll_zoo import runs as found_runs
    from icll_zoo.run import parse_value
    from icll_zoo.run_folder import RUN

    wanted = {}
    for word in where:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InputError(f"--where {word!r} is not of the form KEY=VALUE", hint="such as status=finished")
        wanted[key] = parse_value(text)
    locks = found_runs.held_locks()
    rows = [found_runs.describe(folder, locks) for folder in found_runs.find(folders or ["."])]
    rows = list(found_runs.matching(rows, wanted))
    if sort is not None:
        rows = found_runs.ordered(rows, sort)
    comparing = len(folders) > 1 and all((Path(folder) / RUN).is_file() for folder in folders) and len(rows) > 1
    if plot is not None:
        found_runs.picture(rows, Path(plot))
    if json:
        both = {"differences": found_runs.differences(rows), "results": found_runs.results(rows)} if comparing else {}
        emit({"runs": rows, **both})
    elif comparing:
        show_comparison(rows)
    elif rows:
        asked = [*wanted, *([sort.removeprefix("-")] if sort else [])]
        columns = list(dict.fromkeys([*LISTED, *asked]))
        columns += ["reason"] if any(row.get("reason") for row in rows) else []
        print_table(columns, [[short(key, found_runs.value_of(row, key)) for key in columns] for row in rows])
    else:
        print("no runs here")


def short(key: str, value: Any) -> Any:
    """A value for the table: names without their plugin."""
    return value.rpartition(":")[2] if key in ("architecture", "dataset") and isinstance(value, str) else value


def show_comparison(rows: list[dict[str, Any]]) -> None:
    """Two tables with a column for each run: where the descriptions differ, and what came out."""
    from icll_zoo import runs as found_runs

    heads = [row["folder"] for row in rows]
    for name, held in (("differs", found_runs.differences(rows)), ("result", found_runs.results(rows))):
        if held:
            print_table([name, *heads], [[key, *values] for key, values in held.items()])
        else:
            print("the descriptions are the same")
        print()
