"""sweep: many runs from one file."""

from __future__ import annotations

from typing import Any, Literal

import click

from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import as_json, open_zoo, print_table, with_scripts
from icll_zoo.errors import ZooError, printable

HIDDEN = ("device", "threads", "hash", "folder", "reason", "best_step", "tokens")


@app.command(options_metavar="[OPTIONS]")
@click.argument("file", metavar="FILE")
@click.option("--output", metavar="FOLDER", help="The sweep's folder; by default FILE without its suffix.")
@click.option("--jobs", type=int, help="Runs at a time; by default one a core, or four a GPU.")
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Processes of this machine, or a Ray cluster.",
)
@click.option("--address", metavar="ADDRESS", help="Of the Ray cluster; without it, the one Ray finds or starts.")
@click.option("--retries", type=int, default=0, show_default=True, help="How often a failed run is tried again.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@with_scripts
@as_json
def sweep(
    file: str,
    output: str | None,
    jobs: int | None,
    engine: Literal["processes", "ray"],
    address: str | None,
    retries: int,
    quiet: bool,
    load: tuple[str, ...],
    json: bool,
) -> int:
    """Train the runs that FILE describes, several at a time.

    FILE is YAML: a list of descriptions as for train, or base, runs, grid (dotted keys with lists of values) and seeds,
    of which every combination is a run. Or Python, with a list `runs` or a function that yields runs.

    The same command again goes on: what is finished is not run again, and what failed is. Results are in FOLDER as
    results.csv and results.parquet. Exit code 1 if a run failed.
    """
    from icll_zoo.sweeps.sweeping import sweep as run_sweep

    rows = run_sweep(
        file,
        output,
        jobs=jobs,
        engine=engine,
        address=address,
        retries=retries,
        zoo=open_zoo(load),
        quiet=quiet or json,
    )
    failed = [row for row in rows if row["status"] == "failed"]
    if json:
        emit({"runs": rows})
        return 1 if failed else 0
    show(rows)
    if failed:
        first = f"the first: {failed[0]['folder']}: {failed[0]['reason']}"
        raise ZooError(f"{len(failed)} of {len(rows)} runs failed", hint=printable(first, 250))
    return 0


def show(rows: list[dict[str, Any]]) -> None:
    """The table of results, without what only a file has room for."""
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if c not in HIDDEN]
    print_table(columns, [[row.get(column) for column in columns] for row in rows])
