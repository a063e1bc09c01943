"""publish: send a run's model to the Hub."""

from __future__ import annotations

import dataclasses

import click

from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import as_json, open_zoo, with_scripts


@app.command()
@click.argument("run_or_folder", metavar="RUN_OR_FOLDER")
@click.argument("repo", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private, if it is a new one.")
@click.option("--revision", default="main", show_default=True, metavar="BRANCH", help="Made if it is not there.")
@click.option("--dry-run", is_flag=True, help="Show the files and the card, and send nothing.")
@with_scripts
@as_json
def publish(
    run_or_folder: str, repo: str, private: bool, revision: str, dry_run: bool, load: tuple[str, ...], json: bool
) -> None:
    """Publish a run's model, or a saved model, on the Hub, in one commit.

    It is loaded back before anything is sent. Publishing again sends what changed and says what that is. Log in with
    `hf auth login`, or set HF_TOKEN.
    """
    from icll_zoo.publishing import publish as send

    done = send(run_or_folder, repo, private=private, revision=revision, dry_run=dry_run, zoo=open_zoo(load))
    if json:
        emit(dataclasses.asdict(done))
        return
    if dry_run:
        print(done.card)
        print(f"would publish to {done.repo} ({done.revision}):")
        for name, size in done.files.items():
            print(f"  {size:>12,}  {name}")
        return
    print(f"published {done.url}" if done.changed else f"nothing has changed: {done.url}")
    print(f"commit {done.commit}")
    for line in done.changed:
        print(f"  {line}")
    print(f"Load it: icll-zoo evaluate hf-hub:{done.repo}@{done.commit} DATASET")
