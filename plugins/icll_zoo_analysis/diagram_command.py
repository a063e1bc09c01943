"""icll-zoo diagram: the automaton of a language, beside what a model believes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from icll_zoo_analysis.words import SPLITS, common, read_words, short

if TYPE_CHECKING:
    from icll_zoo import Split

USAGE = "icll-zoo diagram DATASET, such as icll-zoo diagram dfa --model ngram-3"


@click.command()
@click.argument("words", nargs=-1, metavar="DATASET [KEY=VALUE]...")
@click.option("--model", metavar="NAME", help="Whose belief to draw beside the truth: a saved model, or a learner.")
@click.option("--language", type=click.IntRange(0), default=0, show_default=True, help="Which of the split's.")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--skip", type=click.IntRange(0), help="Predictions not counted.  [default: half of the sequence]")
@click.option("--output", type=Path, metavar="FOLDER", help="Write the picture and the numbers into a folder.")
@common
def diagram(
    words: tuple[str, ...],
    model: str | None,
    language: int,
    split: Split,
    skip: int | None,
    output: Path | None,
    device: str,
    load: tuple[str, ...],
    json: bool,
) -> None:
    """Draw the automaton of a language, and what a model believes of it: its mean predictions in each state.

    The beliefs are those of the second half of the language's sequence. Keys are data.*
    """
    from icll_zoo import InputError, check_device, emit, open_predictor, open_zoo
    from icll_zoo_analysis import diagram as automata
    from icll_zoo_analysis import pictures, tables

    names, dataset, given = read_words(words, 0, USAGE)
    if names:
        raise InputError(f"one dataset is drawn, not {' and '.join([*names, dataset])}", hint="give --model NAME")
    pictures.output_folder(output)
    zoo = open_zoo(load)
    data = zoo.create_dataset(dataset, **given)
    automaton = automata.automaton_of(data, split, language)
    check_device(device, "--device ")
    predictor = None if model is None else open_predictor(model, data, device=device, zoo=zoo)
    batch = automata.sequences_of(data, split, language).to(device)
    late = batch.tokens.size(1) // 2 if skip is None else skip
    found = automata.beliefs(automaton, data, batch, predictor, late)
    texts = list(data.vocabulary)
    rows, states = automata.columns(automaton, found, texts), automata.summary(found)
    files: list[Path] = []
    if output is not None:
        from icll_zoo_analysis.diagram_drawing import draw, layout_of

        titles = [f"Language {language} of {dataset} ({split})"]
        if automaton.accepting is not None:
            titles = [f"The language of {dataset}"]
        if model is not None:
            titles.append(f"What {short([model])[0]} expects after {late} tokens and more, on average")
        layout, end = layout_of(automaton), automata.end_of(automaton, found, texts)
        files = pictures.save(
            output,
            "diagram",
            lambda figure, _: draw(figure, automaton, found, layout, texts, titles, end),
            rows,
            titles[0],
        )
        files += tables.write(output / "diagram", rows) + tables.write(output / "diagram-states", states)
    if json:
        about = {"dataset": dataset, "split": split, "language": language, "model": model, "start": automaton.start}
        accepting = None if automaton.accepting is None else sorted(automaton.accepting)
        written = [str(path) for path in files]
        emit(
            {
                **about,
                "accepting": accepting,
                "states": tables.rows(states),
                "tokens": tables.rows(rows),
                "files": written,
            }
        )
        return
    print(f"language {language} of {dataset} ({split}), {len(automaton.delta)} states, start {automaton.start}")
    table = {"state": states["state"], "leads to": automata.edge_texts(automaton, found, texts)}
    if model is not None:
        print(f"{model} after {late} tokens and more, its mean prediction in brackets")
        table |= {key: states[key] for key in states if key != "state"}
    print(tables.text(table))
    for path in files:
        print(f"wrote {path}")
