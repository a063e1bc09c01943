"""The distribution as a whole, against what the paper's own data show (arXiv:2401.12973)."""

from __future__ import annotations

import pytest
import torch

from icll_zoo import Split, Vocabulary, create_model, evaluate
from icll_zoo_dfa.automata import draw_automata
from icll_zoo_dfa.dataset import DfaLanguages


def lengths_and_entropies(dataset: DfaLanguages, split: Split, count: int) -> tuple[float, float]:
    """The mean number of input tokens, and the oracle's cross-entropy in nats a target, of a split's beginning."""
    length = entropy = targets = 0.0
    seed = None if dataset.size(split) is not None else 0
    for k in range(count // 500):
        batch = dataset.batch(split, k, 500, seed)
        in_loss = batch.targets != -100
        length += int(batch.valid.sum())
        entropy += float((dataset.oracle(batch) > 0).sum(-1).clamp(min=1).double().log()[in_loss].sum())
        targets += int(in_loss.sum())
    return length / count, entropy / targets


def test_fresh_languages_have_the_published_lengths_and_entropy() -> None:
    length, entropy = lengths_and_entropies(DfaLanguages(), "train", 10_000)
    assert length == pytest.approx(375, abs=3)
    assert entropy == pytest.approx(0.585, abs=0.006)


def test_distinct_languages_are_a_little_harder() -> None:
    """3 % of candidates emit one symbol for ever, or alternate between a few; most of those repeat earlier ones. A set
    of 10,000 distinct languages out of 160,000 candidates has few of them, and so 2 % more entropy a target."""
    dataset = DfaLanguages(held_out=10_000)
    length, entropy = lengths_and_entropies(dataset, "test", 10_000)
    assert length == pytest.approx(375, abs=3)
    assert entropy == pytest.approx(0.595, abs=0.006)
    kept = dataset.stored("test").number
    candidates = torch.arange(int(kept[-1]) + 1)
    test = torch.cat([block[dataset._canonical(block)[1] == 0] for block in candidates.split(4096)])
    repeated = test[~torch.isin(test, kept)]
    assert len(repeated) / len(test) == pytest.approx(0.023, abs=0.006)
    # Nearly all that repeat leave nothing to chance: one edge a state.
    automata = draw_automata(dataset.bounds, 0, repeated)
    plain = [automata.language(index).canonical() for index in range(len(repeated))]
    certain = [all(len(edges) == 1 for edges in language.delta.values()) for language in plain]
    assert sum(certain) / len(certain) > 0.95


@pytest.mark.parametrize(
    ("order", "accuracy", "within", "distance", "within_distance"),
    [(2, 0.826, 0.006, 0.327, 0.006), (3, 0.934, 0.004, 0.258, 0.005)],
)
def test_the_learners_score_as_published(
    order: int, accuracy: float, within: float, distance: float, within_distance: float
) -> None:
    dataset = DfaLanguages()
    learner = create_model(f"ngram-{order}", vocabulary=Vocabulary.of(dataset))
    scores = evaluate(learner, dataset, ["accuracy", "tvd"], split="train", limit=5000, resamples=10)
    assert scores["accuracy"].n == 5000
    assert scores["accuracy"].value == pytest.approx(accuracy, abs=within)
    assert scores["tvd"].value == pytest.approx(distance, abs=within_distance)
