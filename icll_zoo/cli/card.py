"""card: measure a saved model and write its model card, or say what of the card is out of date."""

from __future__ import annotations

import click

from icll_zoo.cli import app, emit, warn
from icll_zoo.cli.shared import as_json, open_zoo, with_scripts
from icll_zoo.errors import InputError, ZooError

LEARNERS = "ngram-2,ngram-3"


@app.command()
@click.argument("folder")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if anything is out of date.")
@click.option("--evaluate", is_flag=True, help="Measure it on the test split first, as well as the learners.")
@click.option("--learners", default=LEARNERS, show_default=True, metavar="A,B", help="To compare with; '' for none.")
@click.option("--metrics", metavar="A,B", help="To measure; by default those that the dataset names.")
@click.option("--limit", type=click.IntRange(1), help="Measure only so many sequences; of an endless split, always.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--source", metavar="NAME|hf-hub:ORG/NAME", help="What the card says to load it by.")
@with_scripts
@as_json
def card(
    folder: str,
    check: bool,
    evaluate: bool,
    learners: str,
    metrics: str | None,
    limit: int | None,
    batch_size: int,
    device: str,
    source: str | None,
    load: tuple[str, ...],
    json: bool,
) -> int:
    """Write the model card of a saved model: README.md, and its pictures, from config.json.

    FOLDER is a saved model, or the folder of a run. With --evaluate the model, the learners and the oracle are
    measured on the dataset that it was trained on, and config.json keeps that. A model in the folder of its run also
    gets the run's learning curve.
    """
    from icll_zoo import cards, figures, measuring
    from icll_zoo.publishing import model_folder
    from icll_zoo.run import Training, resolve_machine

    if check and (evaluate or source):
        raise InputError("--check writes nothing", hint="leave out --evaluate and --source")
    model = model_folder(folder)
    zoo = open_zoo(load)
    if check:
        return report(str(model), cards.stale(model, zoo), json)
    run = measuring.run_beside(model)
    found = None
    if evaluate:
        found = measuring.measure(
            model,
            zoo,
            learners=[name for name in learners.split(",") if name],
            metrics=metrics.split(",") if metrics else None,
            limit=limit,
            batch_size=batch_size,
            device=resolve_machine(Training(device=device))["device"],
        )
    recorded = measuring.record(model, metrics=found, training=measuring.run_record(run) if run else None)
    changed = (["config.json"] if recorded else []) + cards.write(model, zoo, source)
    if not figures.can_draw():
        warn("matplotlib is not installed, so the card has no new pictures (the extra `plots` brings it)")
    if json:
        emit({"folder": str(model), "changed": changed, "metrics": found})
        return 0
    for name, metric in (found or {}).items():
        print(f"  {name:<20} {metric['value']:.4f}  [{metric['low']:.4f}, {metric['high']:.4f}]  n {metric['n']}")
    print(f"wrote {', '.join(changed)} in {model}" if changed else f"the card in {model} is up to date")
    return 0


def report(where: str, lines: list[str], json: bool) -> int:
    """What is stale; exit code 1 if anything is."""
    if json:
        emit({"folder": where, "ok": not lines, "stale": lines})
        return 1 if lines else 0
    if lines:
        for line in lines:
            print(f"  {line}")
        noun = "file" if len(lines) == 1 else "files"
        raise ZooError(
            f"the card in {where!r} is stale in {len(lines)} {noun}: {lines[0]}", hint=f"`icll-zoo card {where}`"
        )
    print(f"the card in {where} is up to date")
    return 0
