"""evaluate and generate: what a saved model, a learner or the oracle is worth, and what a model says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import (
    as_json,
    default_metrics,
    open_zoo,
    split_words,
    with_scripts,
)
from icll_zoo.errors import InputError, printable

if TYPE_CHECKING:
    from icll_zoo.data import Split
    from icll_zoo.generation import Constraint
    from icll_zoo.zoo import Vocabulary, Zoo

SPLITS = ("train", "validation", "test")


@app.command()
@click.argument("model")
@click.argument("dataset")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--metrics", metavar="A,B", help="Metrics by name; by default those that the dataset names.")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only so many sequences; of an endless split, always.")
@click.option("--device", default="cpu", show_default=True)
@with_scripts
@as_json
def evaluate(
    model: str,
    dataset: str,
    words: tuple[str, ...],
    metrics: str | None,
    split: Split,
    batch_size: int,
    limit: int | None,
    device: str,
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Evaluate a model on a split of a dataset, with 95 % bootstrap intervals over languages or documents.

    MODEL is local-dir:PATH, hf-hub:ORG/NAME@REVISION, a catalogue name, a learner such as ngram-3, or oracle.

    Keys are data.* and model.*.
    """
    from icll_zoo import evaluation
    from icll_zoo.predictors import open_model
    from icll_zoo.run import Training, resolve_machine

    zoo = open_zoo(load)
    settings = split_words(words, ("data", "model"))
    where = resolve_machine(Training(device=device))["device"]
    made = {name: zoo.create_metric(name) for name in metrics.split(",")} if metrics else None
    data = zoo.create_dataset(dataset, **settings["data"])
    predictor = open_model(zoo, model, settings["model"], data)
    if not isinstance(predictor, str):
        predictor.to(where)
    scores = evaluation.evaluate(
        predictor,
        data,
        made or {name: zoo.create_metric(name) for name in default_metrics(data)},
        split=split,
        batch_size=batch_size,
        device=where,
        limit=limit,
        zoo=zoo,
    )
    shown = {name: score.to_json() for name, score in scores.items()}
    if json:
        emit({"model": model, "dataset": dataset, "split": split, "metrics": shown})
        return
    print(f"{model} on {dataset} ({split})")
    for name, score in scores.items():
        if isinstance(score.value, list):
            print(f"  {name:<20} {len(score.value)} positions (--json gives them)")
            continue
        beside = f"  oracle {score.oracle:.4f}" if score.oracle is not None else ""
        print(f"  {name:<20} {score.value:.4f}  [{score.low:.4f}, {score.high:.4f}]  n {score.n}{beside}")


@app.command()
@click.argument("model")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--prompt", "prompts", multiple=True, required=True, help="Tokens, such as 'a b c | a b'; repeatable.")
@click.option("--tokens", type=click.IntRange(1), default=20, show_default=True, help="How many to add.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the sampling.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="0 takes the most probable.",
)
@click.option("--greedy", is_flag=True, help="Take the most probable.")
@click.option("--top-k", type=click.IntRange(1), help="Draw from the K most probable.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Draw from the fewest whose probabilities add up to P.",
)
@click.option("--constraint", metavar="DATASET", help="Add only what may follow in a sequence of its test split.")
@click.option(
    "--index",
    "indices",
    type=click.IntRange(0),
    multiple=True,
    help="Which sequence; given once, or once a prompt.  [default: 0]",
)
@with_scripts
@as_json
def generate(
    model: str,
    words: tuple[str, ...],
    prompts: tuple[str, ...],
    tokens: int,
    seed: int,
    temperature: float,
    greedy: bool,
    top_k: int | None,
    top_p: float | None,
    constraint: str | None,
    indices: tuple[int, ...],
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Continue prompts token by token; each --prompt goes on from its own end.

    Padding is never generated, nor is a separator: models are not trained to end a string. With --constraint dfa
    data.file=FILE only what the language on the first line of FILE allows is added. Keys are data.*, of that dataset.
    """
    import torch

    from icll_zoo.generation import decode, encode, row_seeds
    from icll_zoo.generation import generate as continue_prompts
    from icll_zoo.predictors import is_source
    from icll_zoo.weights import load_model

    zoo = open_zoo(load)
    settings = split_words(words, ("data",))
    if constraint is None and (indices or settings["data"]):
        given = "--index" if indices else f"data.{next(iter(settings['data']))}"
        raise InputError(f"{given} says which sequence constrains what is added", hint="give --constraint DATASET")
    if not is_source(zoo, model):
        entry = zoo.entry("model", model)
        raise InputError(f"model {entry.name!r} is untrained", hint="give local-dir:RUN/model or a catalogue name")
    network: Any = load_model(model, zoo=zoo)
    vocabulary = network.zoo_vocabulary
    if vocabulary.tokens is None:
        raise InputError(f"{model!r} was saved without the texts of its tokens")
    read = [encode(prompt, vocabulary.tokens) for prompt in prompts]
    if not all(read):
        raise InputError("the prompt is empty", hint="give --prompt 'a b c', say")
    legal = None if constraint is None else constraint_of(zoo, constraint, settings["data"], indices, vocabulary)
    special = [i for i in (vocabulary.pad_id, vocabulary.separator_id) if i is not None]
    greedy = greedy or temperature == 0
    seeds = row_seeds(seed, len(read)).tolist()
    made = continue_prompts(
        network,
        [torch.tensor(ids) for ids in read],
        tokens,
        temperature=1.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        greedy=greedy,
        seed=seeds,
        exclude=special,
        constraint=legal,
    )
    rows = [
        {"prompt": prompt, "continuation": decode(row[len(ids) :].tolist(), vocabulary.tokens), "seed": own}
        for prompt, ids, row, own in zip(prompts, read, made, seeds, strict=True)
    ]
    if json:
        # Of one prompt also without the list, as it was before there could be several.
        emit({"model": model, **(rows[0] if len(rows) == 1 else {}), "generated": rows})
        return
    for row in rows:
        # The tokens' texts are those of the model's file, which anybody may have written.
        print(printable(f"{row['prompt']} {row['continuation']}", 10**9))


def constraint_of(
    zoo: Zoo, name: str, options: dict[str, Any], indices: tuple[int, ...], vocabulary: Vocabulary
) -> Constraint:
    """What a dataset allows after some sequences of its test split. InputError if it is no help to this model."""
    dataset: Any = zoo.create_dataset(name, **options)
    if not callable(getattr(dataset, "constraint", None)):
        raise InputError(f"dataset {name!r} has no constraint on what may follow", hint="dfa has one")
    if list(dataset.vocabulary) != list(vocabulary.tokens or ()):
        raise InputError(f"the tokens of dataset {name!r} are not those that the model was trained on")
    made: Constraint = dataset.constraint("test", indices or (0,))
    return made
