"""icll-zoo prepare-text: text files into token shards."""

from __future__ import annotations

import contextlib
import fcntl
import json as json_library
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from icll_zoo import EnvironmentFault, InputError, ZooError, parse_dataset, parse_words


@click.command("prepare-text")
@click.argument("source")
@click.argument("output", type=Path)
@click.argument("words", nargs=-1, metavar="[cluster.KEY=VALUE]...")
@click.option("--tokenizer", type=Path, required=True, metavar="FILE", help="A Hugging Face tokenizer.json.")
@click.option("--end", metavar="TOKEN", help="Closes each document.  [default: </s>, <|endoftext|> ...]")
@click.option("--pad", metavar="TOKEN", help="Fills rows, and is in no text.  [default: <pad> ..., or a new one]")
@click.option("--validation", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Of all documents.")
@click.option("--test", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Of all documents.")
@click.option(
    "--split",
    type=click.Choice(["hash", "folder"]),
    default="hash",
    show_default=True,
    help="Hold out by hash, or by folders of SOURCE called train, validation and test.",
)
@click.option("--group-by", metavar="KEY", help="Hold out whole groups, such as meta.package.")
@click.option("--include", multiple=True, metavar="GLOB", help="Take these files of SOURCE alone; may be repeated.")
@click.option("--keep-source", is_flag=True, help="Keep what is fetched from the Hub, in OUTPUT/source.")
@click.option("--revision", metavar="COMMIT", help="Of a folder's files, for the manifest.")
@click.option("--keep-duplicates", is_flag=True, help="Keep documents that are there twice, word for word.")
@click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), default="local", show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Processes, or tasks at a time.  [default: the cores here]")
@click.option("--verify", is_flag=True, help="First check every shard's sha256; make those again that differ.")
@click.option("--strict", is_flag=True, help="Exit code 1 if anything was quarantined.")
@click.option("--json", is_flag=True, help="Print the manifest.")
def prepare_text(
    source: str,
    output: Path,
    words: tuple[str, ...],
    tokenizer: Path,
    end: str | None,
    pad: str | None,
    validation: float,
    test: float,
    split: str,
    group_by: str | None,
    include: tuple[str, ...],
    keep_source: bool,
    revision: str | None,
    keep_duplicates: bool,
    executor: str,
    workers: int | None,
    verify: bool,
    strict: bool,
    json: bool,
) -> None:
    """Make token shards of the .jsonl, .jsonl.gz, .jsonl.zst and .parquet files below SOURCE.

    SOURCE is a folder, or a dataset repository as hf-hub:org/name@revision, whose files are fetched one at a time.
    Records are in SlimPajama's schema: `text`, and `meta.redpajama_set_name`. The same command again goes on with what
    is missing. Train on the result with the dataset `text` and data.folder=OUTPUT.
    """
    from icll_zoo_slimpajama import layout, prepare
    from icll_zoo_slimpajama.encoding import Encoder

    options = cluster_options(words)
    if keep_source and parse_dataset(source) is None:
        raise InputError("--keep-source is for what is fetched from the Hub, and SOURCE is a folder")
    try:
        from icll_zoo_slimpajama import stages
    except ImportError as error:
        raise InputError(f"preparing text needs a package: {error}", hint='pip install "icll-zoo[text]"') from error
    encoder = Encoder(tokenizer, end, pad)
    settings = prepare.Settings(
        layout.sha256_of(tokenizer),
        encoder.end,
        encoder.pad,
        validation,
        test,
        split,
        group_by,
        keep_duplicates,
        revision,
    )

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with locked(output):
        prepare.begin(source, output, tokenizer, encoder, settings, include)
        layout.sweep(output)
        lost = prepare.discard_damaged(output) if verify else []
        if lost:
            say(f"damaged, made again: {', '.join(lost[:10])}{' ...' if len(lost) > 10 else ''}")
        done = stages.run(output, executor, workers or len(os.sched_getaffinity(0)), options, say, keep_source)
    if not done:
        print(f"queued; {output / layout.MANIFEST} appears when all is done")
        return
    manifest = json_library.loads((output / layout.MANIFEST).read_text())
    if json:
        print(json_library.dumps(manifest, indent=2, ensure_ascii=False))
    else:
        show(manifest, output)
    found = manifest["quarantine"]
    if found["damaged_files"] or found["left_out_records"]:
        line = (
            f"{found['damaged_files']} of {found['files']} files are damaged and were left out, and "
            f"{found['left_out_records']} records of the others"
        )
        where = str(output / layout.QUARANTINE)
        if strict:
            raise ZooError(line, hint=f"see {where}")
        say(f"warning: {line} (see {where})")


def show(manifest: dict[str, Any], output: Path) -> None:
    """Counts, for people."""
    for split, counts in manifest["splits"].items():
        print(
            f"{split:<12} {counts['documents']:>12,} documents {counts['tokens']:>16,} tokens {counts['bytes']:,} bytes"
        )
    print(f"left out as duplicates: {manifest['duplicates']['duplicates']:,}")
    print(f"data.folder={output}")


def cluster_options(words: tuple[str, ...]) -> dict[str, Any]:
    """`cluster.partition=cpu` as arguments of the executor."""
    given = parse_words(words)
    options = given.pop("cluster", {})
    if given or not isinstance(options, dict):
        raise InputError(
            f"unknown key {next(iter(given), 'cluster')!r} on the command line", hint="keys begin with cluster."
        )
    return options


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """The folder for this process alone. EnvironmentFault if another one prepares there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / "lock").open("w")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {str(output)!r}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EnvironmentFault(f"another process prepares {str(output)!r}", hint="wait for it") from error
        yield
