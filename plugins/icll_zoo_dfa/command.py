"""icll-zoo languages: print languages, write them as JSON lines, draw one."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from icll_zoo import InputError, create_dataset, parse_words

if TYPE_CHECKING:
    from icll_zoo import Split
    from icll_zoo_dfa.dataset import DfaLanguages


@click.command()
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="How many languages.")
@click.option("--draw", metavar="FILE", type=Path, help="Draw the last one as a .png, .svg or .pdf.")
@click.option("--json", "json", is_flag=True, help="Print JSON lines, which data.file=PATH reads.")
def languages(words: tuple[str, ...], split: Split, count: int, draw: Path | None, json: bool) -> None:
    """Show random regular languages in their canonical minimal form, each with its sequence.

    Keys are data.*: icll-zoo languages data.seed=3 --count 2
    """
    from icll_zoo_dfa.drawing import draw as draw_language

    settings = parse_words(words)
    options = settings.pop("data", {})
    if settings or not isinstance(options, dict):
        raise InputError(
            f"unknown key {next(iter(settings), 'data')!r} on the command line", hint="keys begin with data."
        )
    if split != "train" and "file" not in options:
        # The first languages of a split are the same, whatever its size.
        options.setdefault("held_out", count)
    dataset = cast("DfaLanguages", create_dataset("dfa", **options))
    shown = list(dataset.samples(split, count))
    if draw is not None:
        draw_language(shown[-1].language, draw)
    for number, sample in enumerate(shown):
        if json:
            print(dumps({**sample.language.to_json(sample.text), "split": split}))
        else:
            print(f"{split} language {number}\n{sample.language}\n{sample.text}")
