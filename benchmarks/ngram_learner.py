"""The n-gram learner (order 3, back-off) against counting again at every position, one thread, on a CPU.

    python benchmarks/ngram_learner.py [--sequences 500] [--recounted 4] [--pairs 7] [--json]

The learner reads a batch of sequences of random regular languages. The peers rebuild dictionaries of counts from
everything read so far at every position; they get a few of the sequences, and the ratio is per token. First all have
to agree to 1e-12; exits 1 if they do not.

published: from these counts each symbol's probability on its own, as the paper's reference implementation does.
lean: what the symbols share is worked out once.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable

import torch
from side_by_side import compare, report
from torch import Tensor

import icll_zoo
from icll_zoo_baselines.ngram import ngram_probabilities

ORDER, VOCAB_SIZE, SEPARATOR_ID = 3, 20, 19
SMOOTHINGS = ("backoff", "none", "add-one")
TARGETS = {"published": 400, "lean": 100}
Predict = Callable[[str, list[str], list[str], list[Counter[str]], str], list[float]]


def recount(tokens: list[int], predict: Predict, order: int = ORDER, smoothing: str = "backoff") -> list[list[float]]:
    """What the learner predicts after each token, from dictionaries made anew at each."""
    text = "".join("|" if token == SEPARATOR_ID else chr(ord("a") + token) for token in tokens)
    rows = []
    for t in range(1, len(text) + 1):
        strings = text[:t].split("|")
        seen = sorted(set("".join(strings)))
        counts: list[Counter[str]] = [Counter() for _ in range(order + 1)]
        for string in strings:
            string = "_" * (order - 1) + string
            for n in range(1, order + 1):
                for i in range(len(string) - n + 1):
                    counts[n][string[i : i + n]] += 1
        context = ("_" * (order - 1) + strings[-1])[len(strings[-1]) :]
        row = [0.0] * VOCAB_SIZE
        for symbol, p in zip(seen, predict(context, seen, seen, counts, smoothing), strict=True):
            row[ord(symbol) - ord("a")] = p
        rows.append(row)
    return rows


def published(context: str, asked: list[str], seen: list[str], counts: list[Counter[str]], kind: str) -> list[float]:
    """The asked symbols' probabilities after a context, each on its own: a symbol that never followed the context sums
    over all that did, and asks the shorter context about all that did not."""
    n, extra = len(context) + 1, kind == "add-one"

    def chance(symbol: str) -> float:
        if context:
            return (counts[n][context + symbol] + extra) / (counts[n - 1][context] + extra * len(seen))
        unigrams = {
            gram: (count + extra) / (counts[1].total() + extra * len(counts[1])) for gram, count in counts[1].items()
        }
        return unigrams[symbol]

    row = []
    for symbol in asked:
        if context + symbol in counts[n]:
            row.append(chance(symbol))
        elif kind == "none":
            row.append(0.0)
        else:
            left = 1 - sum(chance(other) for other in seen if context + other in counts[n])
            others = [other for other in seen if context + other not in counts[n]]
            shorter = published(context[1:], others, seen, counts, kind)
            row.append(left / sum(shorter) * shorter[others.index(symbol)])
    return row


def lean(context: str, asked: list[str], seen: list[str], counts: list[Counter[str]], kind: str) -> list[float]:
    """The same, with what all symbols share worked out once."""
    n, extra = len(context) + 1, kind == "add-one"
    total = counts[n - 1][context] if context else counts[1].total()
    kinds = len(seen) if context else len(counts[1])
    found = {
        symbol: (counts[n][context + symbol] + extra) / (total + extra * kinds)
        for symbol in seen
        if context + symbol in counts[n]
    }
    others = [symbol for symbol in seen if symbol not in found]
    if others and kind != "none":
        shorter = lean(context[1:], others, seen, counts, kind)
        scale = (1 - sum(found.values())) / sum(shorter)
        found |= {symbol: scale * p for symbol, p in zip(others, shorter, strict=True)}
    return [found.get(symbol, 0.0) for symbol in asked]


PEERS: dict[str, Predict] = {"published": published, "lean": lean}


def largest_difference(rows: list[list[int]], tokens: Tensor) -> float:
    """Between the learner and the peers, over all positions of the given rows and every smoothing."""
    worst = 0.0
    for smoothing in SMOOTHINGS:
        found = ngram_probabilities(tokens, VOCAB_SIZE, SEPARATOR_ID, ORDER, smoothing)
        for row, ids in zip(found, rows, strict=True):
            for predict in PEERS.values():
                wanted = torch.tensor(recount(ids, predict, ORDER, smoothing), dtype=torch.float64)
                worst = max(worst, (row[: len(ids)] - wanted).abs().max().item())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=500, help="how many the learner reads")
    parser.add_argument("--recounted", type=int, default=4, help="how many of them the peer reads")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not 1 <= given.recounted <= given.sequences or given.pairs < 1:
        parser.error("give at least one pair, and no more sequences to the peer than there are")
    torch.set_num_threads(1)
    dataset = icll_zoo.create_dataset("dfa", held_out=given.sequences)
    batch = dataset.batch("test", 0, given.sequences, None)
    lengths = batch.valid.sum(1).tolist()
    rows = [ids[:length] for ids, length in zip(batch.tokens.tolist(), lengths, strict=True)]

    # Spread over the batch, so that their lengths are typical.
    few = rows[:: -(-len(rows) // given.recounted)]
    difference = largest_difference(few, batch.tokens[:: -(-len(rows) // given.recounted)])
    if not difference <= 1e-12:
        sys.exit(f"the learner is wrong: it differs from a recount by up to {difference:.1e}")
    read, reread = sum(lengths), sum(map(len, few))
    ratios = {
        name: compare(
            lambda: ngram_probabilities(batch.tokens, VOCAB_SIZE, SEPARATOR_ID, ORDER),
            lambda predict=predict: [recount(ids, predict) for ids in few],
            given.pairs,
            target=TARGETS[name],
            work=read / reread,
        )
        for name, predict in PEERS.items()
    }
    facts: dict[str, object] = {
        "largest difference": difference,
        "tokens read by the learner and by the peers": [read, reread],
        "tokens a second, learner": round(read / ratios["published"].fast_s),
    }
    facts |= {f"tokens a second, {name}": round(reread / ratio.slow_s) for name, ratio in ratios.items()}
    report({f"learner, order {ORDER}, back-off, against {name}": ratio for name, ratio in ratios.items()}, facts)


if __name__ == "__main__":
    main()
