"""bench: how fast architectures are, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import as_json, open_zoo, print_table, with_scripts
from icll_zoo.errors import InputError

KEYS = ("model", "train", "optimizer")


@app.command(options_metavar="[OPTIONS]")
@click.argument("words", nargs=-1, required=True, metavar="NAME... [KEY=VALUE]...")
@click.option("--length", "lengths", type=click.IntRange(1), multiple=True, help="Of a sequence; 512 unless told.")
@click.option(
    "--what", "whats", type=click.Choice(["forward", "step", "generate"]), multiple=True, help="All unless told."
)
@click.option("--new-tokens", type=click.IntRange(1), default=32, show_default=True, help="That are generated.")
@click.option("--vocab-size", type=click.IntRange(2), default=20, show_default=True, help="Token ids.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns of each.")
@click.option("--output", metavar="PATH", help="Write the table as PATH.csv, and as PATH.parquet.")
@with_scripts
@as_json
def bench(
    words: tuple[str, ...],
    lengths: tuple[int, ...],
    whats: tuple[str, ...],
    new_tokens: int,
    vocab_size: int,
    rounds: int,
    output: str | None,
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Time architectures side by side: a forward pass, a training step, and generation after a prompt.

    Each has to pass its checks first. Then they take turns; `times` is how many times as fast as the first NAME, with
    quartiles over the turns. Memory is the peak of a fresh process. A script given by --load may register a model of
    another library, which then takes part like any other.

    Keys: model.* (options of every NAME), train.batch_size, train.precision, train.compile, train.device,
    train.threads, optimizer.*.
    """
    from icll_zoo.bench import USED, WHATS
    from icll_zoo.bench import bench as run_bench
    from icll_zoo.run import Run, parse_words

    zoo = open_zoo(load)
    names = list(dict.fromkeys(word for word in words if "=" not in word))
    given = parse_words([word for word in words if "=" in word])
    if not names:
        raise InputError("nothing to time", hint="name a model: `icll-zoo list` shows them")
    settings = given.get("train", {})
    unused = [key for key in given if key not in KEYS]
    unused += [f"train.{key}" for key in (settings if isinstance(settings, dict) else ()) if key not in USED]
    if unused:
        raise InputError(f"a benchmark has no key {unused[0]!r}", hint="see `icll-zoo bench --help`")
    described = Run.parse({"architecture": names[0], "dataset": "", **given}, "the benchmark")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise InputError(f"no folder {str(Path(output).parent)!r} for --output")
    rows, facts = run_bench(
        names,
        lengths or (512,),
        whats or WHATS,  # type: ignore[arg-type]  # click has checked them
        model=described.model,
        train=described.train,
        optimizer=described.optimizer,
        vocab_size=vocab_size,
        new_tokens=new_tokens,
        rounds=rounds,
        zoo=zoo,
        said=(lambda _: None) if json else lambda line: click.echo(line, err=True),
    )
    written = write(Path(output), rows) if output is not None else []
    if json:
        emit({"rows": rows, "facts": facts, "written": written})
        return
    show(rows, facts)
    for path in written:
        print(f"wrote {path}")


def write(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    from icll_zoo.tables import write_table

    return [str(made) for made in write_table(path, {key: [row[key] for row in rows] for key in rows[0]})]


def show(rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """The table as a person reads it, and below it what it was measured on."""
    columns = ["what", "length", "name", "parameters", "tokens/s", "quartiles", "times", "quartiles", "MB"]
    with_mfu = any(row["mfu"] is not None for row in rows)
    table = [
        [
            row["what"],
            row["length"],
            row["name"],
            row["parameters"],
            round(row["tokens_per_s"]),
            f"[{row['tokens_per_s_low']:.0f}, {row['tokens_per_s_high']:.0f}]",
            f"{row['times']:.2f}",
            f"[{row['times_low']:.2f}, {row['times_high']:.2f}]",
            None if row["peak_memory"] is None else round(row["peak_memory"] / 1e6),
            *([None if row["mfu"] is None else f"{row['mfu']:.1%}"] if with_mfu else []),
        ]
        for row in rows
    ]
    print_table([*columns, *(["MFU"] if with_mfu else [])], table)
    busy, threads, first = facts["cores_used_by_others"], facts["threads"], rows[0]
    cores = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
    print(f"{first['batch_size']} sequences, {first['precision']}, {facts['device']}{cores}, torch {facts['torch']}")
    if busy > 0.25:
        print(f"BUSY: other processes used {busy:.2f} cores meanwhile")
