"""train: run a description, from words, from a YAML file, or from a folder that it began in."""

from __future__ import annotations

import click

from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import as_json, open_zoo, with_scripts
from icll_zoo.errors import InputError


@app.command(options_metavar="[OPTIONS]")
@click.argument("words", nargs=-1, metavar="ARCHITECTURE DATASET [KEY=VALUE]... | FILE.yaml [KEY=VALUE]...")
@click.option("--resume", metavar="RUN", help="Go on with the run in this folder.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@with_scripts
@as_json
def train(words: tuple[str, ...], resume: str | None, quiet: bool, load: tuple[str, ...], json: bool) -> None:
    """Train an architecture on a dataset.

    Keys: steps, epochs, seed, output, recipe (default, paper, paper-grouped), metrics, model.* (options of the
    architecture), data.* (of the dataset), optimizer.* (name, lr, weight_decay, decay_all, betas, eps, clip),
    schedule.* (name, warmup, warmup_lr, min_lr, warmup_prefix), train.* (batch_size, accumulate, pad_to,
    validate_every, checkpoint_every, log_every, keep_last, ema, precision, parallel, compile, device, threads,
    keep_freed, on_nan, trackers, strict_resume).

    The same command again goes on with an unfinished run, and prints the result of a finished one. Several
    processes share a run under `torchrun --nproc-per-node N -m icll_zoo train ...`.
    """
    from icll_zoo.distributed import is_first
    from icll_zoo.run import Run, merge, parse_words

    zoo = open_zoo(load)
    positional = [word for word in words if "=" not in word]
    settings = parse_words([word for word in words if "=" in word])
    if resume is not None:
        from icll_zoo.training import resume as resume_run

        if words:
            raise InputError("--resume takes the description from its folder", hint=f"leave out {words[0]!r}")
        result = resume_run(resume, zoo=zoo, quiet=quiet or json)
    else:
        from icll_zoo.training import train as train_run

        description = Run.parse(merge(from_positional(positional), settings), "the run")
        result = train_run(description, zoo=zoo, quiet=quiet or json)
    if not is_first():
        return
    if json:
        emit(result)
        return
    if result["validation_loss"] is None:
        print(f"no validation loss was finite in {result['steps']} steps; saved is the last step's model")
    else:
        print(f"validation loss {result['validation_loss']:.4f} at step {result['best_step']} of {result['steps']}")
    print(f"saved {result['folder']}/model: icll-zoo evaluate local-dir:{result['folder']}/model DATASET")


def from_positional(positional: list[str]) -> dict[str, object]:
    """The description that the words without `=` give: a YAML file, or an architecture and a dataset."""
    from icll_zoo.run import Run

    if len(positional) == 1 and positional[0].endswith((".yaml", ".yml")):
        return Run.read(positional[0])
    if len(positional) != 2:
        got = " ".join(positional) or "nothing"
        raise InputError(f"train takes an architecture and a dataset, or one FILE.yaml, not {got!r}")
    return {"architecture": positional[0], "dataset": positional[1]}
