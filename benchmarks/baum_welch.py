"""The Baum-Welch learner, refitted at every position, against fitting one position after the other; one CPU thread.

    python benchmarks/baum_welch.py [--positions 6] [--pairs 7] [--json]

The learner reads a whole sequence of a random regular language. The peer fits a few of its positions, spread evenly,
with matrices over all 144 x 144 pairs of edges in logarithms, all strings of a fit at once, in float32, as the paper's
reference implementation does; the ratio is per position. First the likelihoods of those fits and their predictions have
to agree in float64; exits 1 if they do not.
"""

from __future__ import annotations

import argparse
import sys

import torch
from side_by_side import compare, report

import icll_zoo
from icll_zoo_baselines.baum_welch import BaumWelchLearner, random_start
from icll_zoo_baselines.baum_welch_reference import dense, fitted, predicted

VOCAB_SIZE, SEPARATOR_ID, PAD_ID = 20, 19, 0
STATES, ITERATIONS, TARGET = 12, 10, 60


def strings_of(tokens: list[int]) -> list[list[int]]:
    """The strings between separators; the last one is open."""
    strings: list[list[int]] = [[]]
    for token in tokens:
        if token == SEPARATOR_ID:
            strings.append([])
        else:
            strings[-1].append(token)
    return strings


def plain(tokens: list[int], position: int, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    """The likelihood and the prediction of one position's fit."""
    start = random_start(torch.tensor([position]), STATES, VOCAB_SIZE, 0, 0, dtype)
    strings = strings_of(tokens[: position + 1])
    model, likelihood = fitted([s for s in strings if s], dense(start, 0), ITERATIONS, PAD_ID)
    return likelihood, predicted(strings[-1], model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=6, help="how many the peer fits")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.positions < 1 or given.pairs < 1:
        parser.error("give at least one position and one pair")
    torch.set_num_threads(1)
    dataset = icll_zoo.create_dataset("dfa", held_out=50)
    batch = dataset.batch("test", 0, 50, None)
    lengths = batch.valid.sum(1)
    # The one whose length is nearest to the mean of all, 375.
    row = int((lengths - 375).abs().argmin())
    tokens = batch.tokens[row, : lengths[row]].tolist()
    whole = torch.tensor([tokens])
    # In the middle of equal parts, so that their mean cost is that of all; next to a separator, the symbol before it.
    few = [int((i + 0.5) * len(tokens) / given.positions) for i in range(given.positions)]
    few = [t if tokens[t] != SEPARATOR_ID else t - 1 for t in few]

    learner = BaumWelchLearner(VOCAB_SIZE, SEPARATOR_ID, PAD_ID, states=STATES, iterations=ITERATIONS)
    exact = BaumWelchLearner(
        VOCAB_SIZE, SEPARATOR_ID, PAD_ID, states=STATES, iterations=ITERATIONS, precision="float64"
    )
    predictions, likelihoods = exact.read(whole)
    off, apart = 0.0, 0.0
    for t in few:
        likelihood, prediction = plain(tokens, t, torch.float64)
        off = max(off, abs(likelihoods[0, t].item() / likelihood - 1))
        apart = max(apart, (predictions[0, t] - prediction).abs().max().item())
    if not (off <= 1e-8 and apart <= 1e-6):
        sys.exit(f"the learner is wrong: its likelihoods are off by up to {off:.1e}, its predictions by {apart:.1e}")
    single = learner.read(whole)[1]
    ratio = compare(
        lambda: learner(whole),
        lambda: [plain(tokens, t, torch.float32) for t in few],
        given.pairs,
        target=TARGET,
        work=len(tokens) / len(few),
    )
    facts = {
        "largest relative difference of likelihoods, float64": off,
        "largest difference of predictions, float64": apart,
        "largest relative difference of float32's likelihoods to float64's": (single / likelihoods - 1)[
            likelihoods.isfinite()
        ]
        .abs()
        .max()
        .item(),
        "positions, all and fitted by the peer": [len(tokens), len(few)],
        "seconds a sequence, the peer": round(ratio.slow_s * len(tokens) / len(few), 1),
        "CPU seconds a sequence, the learner and the peer": [
            round(ratio.cpu_fast_s, 2), round(ratio.cpu_slow_s * len(tokens) / len(few), 1)
        ],
    }  # fmt: skip
    report({f"Baum-Welch, {STATES} states, {ITERATIONS} rounds": ratio}, facts)


if __name__ == "__main__":
    main()
