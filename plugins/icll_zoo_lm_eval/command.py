"""icll-zoo to-lm-eval: a split of a dataset as tasks of lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from icll_zoo import InputError

if TYPE_CHECKING:
    from icll_zoo import Split


@click.command("to-lm-eval")
@click.argument("dataset")
@click.argument("folder", type=Path)
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only so many sequences; of an endless split, always.")
@click.option("--name", help="What the tasks' names begin with.  [default: icll-zoo-DATASET]")
def to_lm_eval(
    dataset: str, folder: Path, words: tuple[str, ...], split: Split, limit: int | None, name: str | None
) -> None:
    """Write a split of a dataset as tasks of lm-eval.

    FOLDER gets perplexity.yaml and, where the dataset knows what may follow, next-token.yaml, each with its JSON lines.
    Keys are data.*: icll-zoo to-lm-eval dfa tasks data.languages=1000 --limit 100
    """
    from icll_zoo import create_dataset, parse_words
    from icll_zoo_lm_eval.writing import write_tasks

    settings = parse_words(words)
    options = settings.pop("data", {})
    if settings or not isinstance(options, dict):
        raise InputError(
            f"unknown key {next(iter(settings), 'data')!r} on the command line", hint="keys begin with data."
        )
    prefix = name or f"icll-zoo-{dataset.replace(':', '-')}"
    for task in write_tasks(create_dataset(dataset, **options), folder, prefix, split, limit):
        print(f"wrote {task} to {folder / task.removeprefix(f'{prefix}-')}.yaml")
