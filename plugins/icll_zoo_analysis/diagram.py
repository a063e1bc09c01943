"""An automaton beside what a model believes of it: its mean next-token distribution in each state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from icll_zoo import InputError

if TYPE_CHECKING:
    from icll_zoo import Batch, Dataset, Predictor, Split

MOST_STATES = 40
"""More make no picture that a person can read."""
SEQUENCES = 32
"""How many are read of a dataset that has one language only."""


@dataclass(frozen=True)
class Automaton:
    """delta[state][symbol] is the next state; any other token (a separator, an end) leads back to the start.

    accepting: None where every state accepts.
    """

    start: int
    delta: dict[int, dict[str, int]]
    accepting: frozenset[int] | None

    def states_of(self, texts: Sequence[str]) -> list[int]:
        """The state after each token."""
        state, passed = self.start, []
        for text in texts:
            state = self.delta[state].get(text, self.start)
            passed.append(state)
        return passed


@dataclass(frozen=True)
class Belief:
    """What was predicted in one state, (v,) both: the truth, and the model's mean over so many visits.

    mean_tvd: over the visits, each prediction's own distance from the truth; None without a model or a visit.
    """

    truth: Tensor
    model: Tensor | None
    visits: int
    mean_tvd: float | None

    @property
    def tvd(self) -> float | None:
        """Of the mean prediction."""
        return None if self.model is None else float((self.model - self.truth).abs().sum() / 2)

    @property
    def illegal(self) -> float | None:
        """The mean probability of what cannot follow."""
        return None if self.model is None else float(self.model[self.truth == 0].sum())


def automaton_of(dataset: Dataset, split: Split, index: int) -> Automaton:
    """The automaton of a dataset's language.

    A dataset either has `language(split, index)`, with `start` and `delta`, of a language whose every state accepts, or
    `acceptor`, with `delta` and `accepting`, whose start is state 0. InputError if it has neither, for an index that
    the split does not have, and for more states than can be drawn.
    """
    of_split: Any = getattr(dataset, "language", None)
    single: Any = getattr(dataset, "acceptor", None)
    if callable(of_split):
        size = dataset.size(split)
        if size is None or not 0 <= index < size:
            has = "is endless" if size is None else f"has languages 0 to {size - 1}"
            raise InputError(f"there is no language {index}: the {split} split {has}")
        language = of_split(split, index)
        found = Automaton(language.start, {s: dict(edges) for s, edges in language.delta.items()}, None)
    elif single is not None:
        if index:
            raise InputError(f"there is no language {index}: this dataset has one only")
        found = Automaton(0, {s: dict(edges) for s, edges in enumerate(single.delta)}, frozenset(single.accepting))
    else:
        raise InputError("this dataset has no automaton to draw", hint="dfa and regular-language have")
    if len(found.delta) > MOST_STATES:
        raise InputError(f"{len(found.delta)} states are too many for a picture", hint=f"at most {MOST_STATES}")
    return found


def sequences_of(dataset: Dataset, split: Split, index: int) -> Batch:
    """The sequence of one language of many, or the first ones of the only language."""
    if callable(getattr(dataset, "language", None)):
        return dataset.batch(split, index, 1, None)
    return dataset.batch(split, 0, SEQUENCES, 0 if dataset.size(split) is None else None)


def beliefs(
    automaton: Automaton, dataset: Dataset, batch: Batch, predictor: Predictor | None, skip: int
) -> dict[int, Belief]:
    """What is true and what is believed in each state, the model's predictions from position `skip` on.

    The truth is the oracle's; of a state that the sequences never reach it is uniform over its edges.
    """
    texts = list(dataset.vocabulary)
    states = torch.full(batch.tokens.shape, -1)
    for row, (tokens, valid) in enumerate(zip(batch.tokens.tolist(), batch.valid.sum(1).tolist(), strict=True)):
        states[row, :valid] = torch.tensor(automaton.states_of([texts[token] for token in tokens[:valid]]))
    oracle = dataset.oracle(batch)
    predicted = None if predictor is None else predictor(batch).double().cpu()
    late = (torch.arange(states.size(1)) >= skip).expand_as(states)
    found = {}
    for state, edges in automaton.delta.items():
        here = states == state
        if oracle is not None and here.any():
            truth = oracle.cpu()[here][0].double()
        else:
            truth = torch.zeros(len(texts), dtype=torch.float64)
            truth[[texts.index(symbol) for symbol in edges]] = 1 / max(len(edges), 1)
        seen = here & late
        visits = int(seen.sum())
        if predicted is None or not visits:
            found[state] = Belief(truth, None, visits, None)
            continue
        each = predicted[seen]
        apart = float(((each - truth).abs().sum(-1) / 2).mean())
        found[state] = Belief(truth, each.mean(0), visits, apart)
    return found


def end_of(automaton: Automaton, found: dict[int, Belief], texts: Sequence[str]) -> str | None:
    """The token that ends strings, where that is one that the oracle expects: on no edge, yet probable."""
    symbols = {symbol for edges in automaton.delta.values() for symbol in edges}
    for token, text in enumerate(texts):
        if text not in symbols and any(float(belief.truth[token]) > 0 for belief in found.values()):
            return text
    return None


def edge_texts(automaton: Automaton, found: dict[int, Belief], texts: Sequence[str]) -> list[str]:
    """A line a state: `a -> 3 0.50 (0.47)`, what may follow, where it leads, the truth, (the model's mean)."""
    lines = []
    for state, edges in automaton.delta.items():
        belief, parts = found[state], []
        for token, text in enumerate(texts):
            if text not in edges and not belief.truth[token] > 0:
                continue
            leads = f" -> {edges[text]}" if text in edges else ""
            mean = "" if belief.model is None else f" ({float(belief.model[token]):.2f})"
            parts.append(f"{text}{leads} {float(belief.truth[token]):.2f}{mean}")
        lines.append("  ".join(parts))
    return lines


def columns(automaton: Automaton, found: dict[int, Belief], texts: Sequence[str]) -> dict[str, list[Any]]:
    """A row for each state and token: where it leads, how probable it is, how probable the model finds it."""
    rows = []
    for state, belief in found.items():
        for token, text in enumerate(texts):
            true = float(belief.truth[token])
            model = None if belief.model is None else float(belief.model[token])
            apart = None if model is None else model - true
            rows.append((state, text, automaton.delta[state].get(text), true, model, apart, belief.visits))
    heads = ("state", "token", "target", "true", "model", "difference", "visits")
    return {head: [row[i] for row in rows] for i, head in enumerate(heads)}


def summary(found: dict[int, Belief]) -> dict[str, list[Any]]:
    """A row a state: visits, the distance of the mean belief, the mean distance, the mass on what cannot follow."""
    return {
        "state": list(found),
        "visits": [belief.visits for belief in found.values()],
        "TVD of the mean": [belief.tvd for belief in found.values()],
        "mean TVD": [belief.mean_tvd for belief in found.values()],
        "illegal": [belief.illegal for belief in found.values()],
    }
