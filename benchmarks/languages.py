"""Random regular languages, their batches and their metrics, against plain Python loops; one thread, on a CPU.

    python benchmarks/languages.py [--peers 200] [--pairs 7] [--mallopt] [--json]

Every side draws the distribution that the paper's code has: same bounds, every string in its language, canonical forms
equal to those of the slow `Language.canonical`, mean numbers of tokens and states equal to within the sampling error.
That is checked first; exits 1 if it does not hold. A missed target is printed.

published, lean: see `plain_languages.py`. The published side always minimises, as the reference does.
plain: a list of tensors, shuffled and padded batch by batch by torch's DataLoader without workers.
--mallopt: tells glibc to keep freed memory instead of handing it back page by page, for every side.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ngram_head import keep_freed_memory
from plain_languages import BOUNDS, IDS, MINIMISER, Delta, lean, lean_scores, published, published_scores
from side_by_side import compare, report
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import icll_zoo
from icll_zoo_dfa.automata import Automata, draw_automata
from icll_zoo_dfa.dataset import BLOCK
from icll_zoo_dfa.language import LETTERS, SEPARATOR, VOCABULARY, Language
from icll_zoo_dfa.metrics import accuracy, tvd
from icll_zoo_dfa.minimal import canonical, language_hash, split_code
from icll_zoo_dfa.sequences import Sequences, draw_sequences

TARGETS = {"minimised": 150, "not minimised": 400, "fixed set": 100, "oracle": 100}
FIXED, LOADED, ROWS = 10_000, 2_500, 32


def ours(numbers: Tensor, minimised: bool = True) -> tuple[Automata, Sequences, Tensor | None, Tensor | None]:
    """The plugin's way, a block at a time, with the split that the canonical form decides."""
    automata = draw_automata(BOUNDS, 0, numbers)
    sequences = draw_sequences(automata, BOUNDS, 0, numbers)
    if not minimised:
        return automata, sequences, None, None
    table = canonical(automata)
    return automata, sequences, table, split_code(language_hash(table, BOUNDS.degree_max))


def check_languages(count: int) -> dict[str, Any]:
    """Means of all sides; exits 1 if a language, a string or a canonical form is wrong, or the means are too far."""
    automata, sequences, table, _ = ours(torch.arange(BLOCK))
    forms = [form.tobytes() for form in table.numpy()]
    lengths = {"ours": sequences.length.tolist()}
    states = {"ours": (table.view(BLOCK, BOUNDS.states_max, -1) >= 0).any(2).sum(1).tolist()}
    for i in range(count):
        language, text = automata.language(i), sequences.text(i)
        check_one(f"our language {i}", language.delta, language, text)
        if rows_of(language.canonical()).tobytes() != forms[i]:
            sys.exit(f"the canonical form of our language {i} is wrong")
        passed = [state for word in text.split(SEPARATOR) for state in [*(language.states_of(word) or ()), 0]][:-1]
        if passed != sequences.state[i, : len(text)].tolist():
            sys.exit(f"the states of our sequence {i} are wrong")
    for name, drawn in (("published", published(count)), ("lean", lean(count))):
        for i, (raw, (start, delta), text) in enumerate(zip(drawn.raw, drawn.minimal, drawn.texts, strict=True)):
            check_one(f"language {i} of {name}", raw, Language(start, delta), text)
            form = Language(0, raw).canonical()
            if Language(start, delta).canonical() != form or len(form.delta) != len(delta):
                sys.exit(f"language {i} of {name} is not minimal, or another one")
        lengths[name] = [len(text) for text in drawn.texts]
        states[name] = [len(delta) for _, delta in drawn.minimal]
    for what, values in (("tokens", lengths), ("states", states)):
        for name in ("published", "lean"):
            error = sum(statistics.variance(values[side]) / len(values[side]) for side in ("ours", name)) ** 0.5
            if not (distance := abs(statistics.mean(values["ours"]) - statistics.mean(values[name])) / error) < 4:
                sys.exit(f"mean {what} of ours and of {name} are {distance:.1f} standard errors apart")
    return {
        f"mean {what}, " + ", ".join(values): [round(statistics.mean(v), 2) for v in values.values()]
        for what, values in (("tokens in a sequence", lengths), ("states of a minimal automaton", states))
    }


def check_one(name: str, raw: Delta, language: Language, text: str) -> None:
    """The bounds of an automaton as drawn, and of its strings, which the language has to accept."""
    words, used = text.split(SEPARATOR), {symbol for leads in raw.values() for symbol in leads}
    kept = (
        BOUNDS.states_min <= len(raw) <= BOUNDS.states_max
        and len(used) <= BOUNDS.symbols_max
        and all(BOUNDS.degree_min <= len(leads) <= BOUNDS.degree_max for leads in raw.values())
        and all(len({state, *leads.values()}) == len(leads) + 1 for state, leads in raw.items())
        and BOUNDS.strings_min <= len(words) <= BOUNDS.strings_max
        and all(BOUNDS.length_min <= len(word) <= BOUNDS.length_max for word in words)
    )
    if not kept:
        sys.exit(f"{name} is outside the bounds")
    if any(language.states_of(word) is None for word in words):
        sys.exit(f"{name} does not accept its strings")


def rows_of(form: Language) -> Any:
    """A canonical form laid out as `minimal.canonical` does."""
    table = np.full((BOUNDS.states_max, BOUNDS.degree_max), -1, dtype=np.int16)
    for state, leads in form.delta.items():
        table[state, : len(leads)] = [LETTERS.index(symbol) << 6 | target for symbol, target in leads.items()]
    return table


def loader_sides() -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """One pass over a fixed set by our batches and by the plain loader, and the batches in it; checked."""
    dataset = icll_zoo.create_dataset("dfa", languages=LOADED)
    stored = dataset.stored("train")
    items = []
    for ids, length in zip(stored.sequences.ids, stored.sequences.length.tolist(), strict=True):
        ids = ids[:length].long()
        items.append((ids[:-1], ids[1:].masked_fill(ids[1:] == IDS[SEPARATOR], icll_zoo.IGNORED)))

    def pad(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*pairs, strict=True)
        return pad_sequence(inputs, True, 0), pad_sequence(targets, True, icll_zoo.IGNORED)

    plain = DataLoader(items, ROWS, shuffle=True, collate_fn=pad, generator=torch.Generator().manual_seed(0))
    batches = -(-LOADED // ROWS)
    place = {int(number): i for i, number in enumerate(stored.number)}
    wanted = sorted((x.tolist(), y.tolist()) for x, y in items)

    def found(pairs: Any) -> list[tuple[list[int], list[int]]]:
        """All sequences without their padding; a pad is never an input elsewhere."""
        return sorted((x[x > 0].tolist(), y[x > 0].tolist()) for batch in pairs for x, y in zip(*batch, strict=True))

    mine = [dataset.batch("train", k, ROWS, 0) for k in range(batches)]
    if {place[int(g)] for batch in mine for g in batch.group} != set(range(LOADED)):
        sys.exit("our batches do not hold every sequence once")
    if found((batch.tokens, batch.targets) for batch in mine) != wanted or found(plain) != wanted:
        sys.exit("a loader gives other sequences")
    return lambda: [dataset.batch("train", k, ROWS, 0) for k in range(batches)], lambda: list(plain), batches


def metric_sides() -> dict[str, Callable[[], tuple[float, float]]]:
    """Accuracy and distance of a batch of random predictions, by every side; checked."""
    dataset = icll_zoo.create_dataset("dfa", held_out=ROWS)
    batch = dataset.batch("test", 0, ROWS, None)
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(*batch.tokens.shape, len(VOCABULARY), generator=generator).mul(2).softmax(-1)
    stored = dataset.stored("test")
    texts = [stored.sequences.text(i)[:-1] for i in range(ROWS)]
    deltas = [stored.automata.language(i).delta for i in range(ROWS)]

    def tensors() -> tuple[float, float]:
        oracle = dataset.oracle(batch)
        sums = [metric(probabilities, batch, oracle) for metric in (accuracy, tvd)]
        return tuple(float(total.sum() / count.sum()) for total, count in sums)

    def loops(scores: Callable[[str, Delta, Any], tuple[int, float]]) -> tuple[float, float]:
        found = [scores(*row) for row in zip(texts, deltas, probabilities.numpy(), strict=True)]
        return tuple(sum(column) / sum(map(len, texts)) for column in zip(*found, strict=True))

    sides = {
        "ours": tensors,
        "published": functools.partial(loops, published_scores),
        "lean": functools.partial(loops, lean_scores),
    }
    values = {name: side() for name, side in sides.items()}
    if any(abs(a - b) > 1e-6 for value in values.values() for a, b in zip(value, values["ours"], strict=True)):
        sys.exit(f"accuracy and tvd differ: {values}")
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=200, help="languages that a peer draws; we draw 4,096 at a time")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--mallopt", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.peers < 50 or given.pairs < 1:
        parser.error("give at least 50 peers and one pair")
    torch.set_num_threads(1)
    if given.mallopt:
        keep_freed_memory()
    facts: dict[str, Any] = {"torch": torch.__version__, "mallopt": given.mallopt, "published minimises by": MINIMISER}
    facts |= check_languages(min(5 * given.peers, BLOCK))
    loader, plain, batches = loader_sides()
    scores = metric_sides()

    numbers, blocks = torch.arange(BLOCK), 8
    row = functools.partial(compare, pairs=given.pairs)
    draw = functools.partial(row, work=BLOCK / given.peers, calls=blocks)
    slow, quick = functools.partial(published, given.peers), functools.partial(lean, given.peers)
    ratios = {
        "minimised, against published": draw(lambda: ours(numbers), slow, target=TARGETS["minimised"]),
        "not minimised, against published": draw(lambda: ours(numbers, False), slow, target=TARGETS["not minimised"]),
        "neither minimised": draw(lambda: ours(numbers, False), lambda: slow(minimised=False)),
        "minimised, against lean": draw(lambda: ours(numbers), quick),
        "fixed set without repetitions, against published": row(
            lambda: icll_zoo.create_dataset("dfa", languages=FIXED).stored("train"),
            slow,
            target=TARGETS["fixed set"],
            work=FIXED / given.peers,
        ),
        "batches of 32, against plain": row(loader, plain),
        "oracle, accuracy, tvd, against published": row(
            scores["ours"], scores["published"], target=TARGETS["oracle"], calls=50
        ),
        "oracle, accuracy, tvd, against lean": row(scores["ours"], scores["lean"], calls=20),
    }
    for name, ratio in list(ratios.items())[:5]:
        drawn = FIXED if name.startswith("fixed") else BLOCK
        facts[f"languages a second, {name}"] = [round(drawn / ratio.fast_s), round(given.peers / ratio.slow_s)]
    for name in ("batches of 32, against plain", "oracle, accuracy, tvd, against published"):
        count = batches if name.startswith("batches") else 1
        fast, slow = ratios[name].fast_s / count, ratios[name].slow_s / count
        facts[f"batches of 32 a second, {name.split(' of ')[0]}"] = [round(1 / fast), round(1 / slow)]
    report(ratios, facts)


if __name__ == "__main__":
    main()
