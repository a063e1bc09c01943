"""Metrics: sums and counts of each sequence by itself, a direction that is right, and values that are known."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo.data import IGNORED, Batch
from icll_zoo.testing.kit import CheckFailed, require
from icll_zoo.testing.subject import Score, check, identical, off

V, ROWS, LENGTH, SEPARATOR = 9, 7, 23, 8
EXACT = 1e-9


def some_batch(seed: int = 0, sharp: bool = False) -> tuple[Batch, Tensor]:
    """Rows of different lengths with separators, and a truth over half of the symbols, from which they are drawn.

    sharp: a truth that is certain everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(9, LENGTH + 1, (ROWS,), generator=generator)
    length[0] = LENGTH
    valid = torch.arange(LENGTH) < length[:, None]
    weight = torch.rand(ROWS, LENGTH, V, generator=generator, dtype=torch.float64) ** 2
    weight[..., [0, SEPARATOR]] = 0
    least = weight.sort(dim=-1).values[..., -1 if sharp else 4, None]
    truth = weight.masked_fill(weight < least, 0)
    truth = (truth / truth.sum(-1, keepdim=True)).masked_fill(~valid[..., None], 0)
    drawn = torch.multinomial(truth.flatten(0, 1) + 1e-12, 1, generator=generator).view(ROWS, LENGTH)
    separators = torch.arange(LENGTH) % 6 == 5
    tokens = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    tokens[:, 1:] = drawn[:, :-1].masked_fill(separators[1:], SEPARATOR)
    targets = drawn.masked_fill(~valid, IGNORED)
    targets[:, :-1].masked_fill_(separators[1:], IGNORED)
    return Batch(tokens.masked_fill(~valid, 0), targets, valid, torch.arange(ROWS)), truth.float()


def guess(truth: Tensor, seed: int = 0) -> Tensor:
    """A predictor that is neither right nor hopeless."""
    noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(100 + seed))
    return 0.5 * truth + 0.5 * noise / noise.sum(-1, keepdim=True)


def uniform(truth: Tensor) -> Tensor:
    return torch.full_like(truth, 1 / V)


def take(batch: Batch, index: Tensor | slice) -> Batch:
    """Some rows of a batch."""
    return Batch(batch.tokens[index], batch.targets[index], batch.valid[index], batch.group[index])


def ratio(score: Score, predictor: Callable[[Tensor], Tensor], sharp: bool = False) -> float:
    """The metric of a predictor over one batch, as evaluation reports it; a curve's positions together."""
    batch, truth = some_batch(sharp=sharp)
    sums, counts = score.sums(predictor(truth), batch, truth)
    value = (sums.sum() / counts.sum()).item()
    return math.exp(value) if getattr(score.create(), "transform", None) == "exp" else value


@check
def check_states_direction(score: Score) -> None:
    """`direction` is "higher" or "lower", `needs_oracle` a bool, and it is called (probabilities, batch, oracle)."""
    metric = score.create()
    direction = getattr(metric, "direction", None)
    require(direction in ("higher", "lower"), f"its direction is {direction!r}, neither 'higher' nor 'lower'")
    needs = getattr(metric, "needs_oracle", None)
    require(isinstance(needs, bool), f"its needs_oracle is {needs!r}, neither True nor False")
    taken = list(inspect.signature(metric).parameters)
    require(len(taken) == 3, f"it takes ({', '.join(taken)}), not (probabilities, batch, oracle)")
    transform = getattr(metric, "transform", None)
    require(transform in (None, "exp"), f"its transform is {transform!r}; only 'exp' is known")


@check
def check_sums_and_counts(score: Score) -> None:
    """Finite sums and counts, (b,) or (b, l), for the oracle, a uniform predictor and a learner that says nothing.

    A metric that needs no oracle works without one.
    """
    batch, truth = some_batch()
    metric = score.create()
    for name, predictor in {
        "the oracle": truth,
        "the uniform predictor": uniform(truth),
        "a predictor of zeros": torch.zeros_like(truth),
    }.items():
        sums, counts = metric(predictor, batch, truth)
        shapes = tuple(sums.shape), tuple(counts.shape)
        good = shapes[0] == shapes[1] and shapes[0] in ((ROWS,), (ROWS, LENGTH))
        require(good, f"for {name} sums and counts have shapes {shapes[0]} and {shapes[1]}, not (b,) or (b, l)")
        require(bool(sums.isfinite().all() & (counts >= 0).all()), f"for {name} its sums are not finite")
        require(bool(counts.sum() > 0), f"for {name} it counts nothing")
    if not getattr(metric, "needs_oracle", True):
        with_, without = metric(guess(truth), batch, truth), metric(guess(truth), batch, None)
        same = all(torch.equal(a, b) for a, b in zip(with_, without, strict=True))
        require(same, "it says that it needs no oracle, and answers otherwise without one")


@check
def check_batch_size_invariant(score: Score) -> None:
    """A row's sum and count are the same alone, in company, and in another order."""
    batch, truth = some_batch()
    predicted = guess(truth)
    wanted = score.sums(predicted, batch, truth)
    for size in (1, 3):
        for start in range(0, ROWS, size):
            part = slice(start, start + size)
            found = score.sums(predicted[part], take(batch, part), truth[part])
            for what, a, b in zip(("sum", "count"), found, wanted, strict=True):
                worst = off(a, b[part])
                require(worst <= EXACT, f"the {what} of row {start} is off by {worst:.3g} in a batch of {size}")
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    for a, b in zip(score.sums(predicted[order], take(batch, order), truth[order]), wanted, strict=True):
        require(off(a, b[order]) <= EXACT, "another order of the rows changes them")


@check
def check_additive(score: Score) -> None:
    """One instance keeps nothing from call to call, so that shards may be added up in any order."""
    parts = [some_batch(seed) for seed in range(3)]
    metric = score.create()
    answers: list[dict[int, tuple[Tensor, Tensor]]] = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        found = {}
        for index in order:
            batch, truth = parts[index]
            found[index] = metric(guess(truth, index), batch, truth)
        answers.append(found)
    for found in answers[1:]:
        for index, (sums, counts) in found.items():
            before = answers[0][index]
            same = identical(sums, before[0]) and identical(counts, before[1])
            require(same, "its answer to one batch depends on the batches before it: shards cannot be added up")


@check
def check_padding_invariant(score: Score) -> None:
    """More padding on the right changes no sum and no count, whatever is predicted there."""
    batch, truth = some_batch()
    wanted = score.sums(guess(truth), batch, truth)
    for pads in (1, 6):
        wide = Batch(
            F.pad(batch.tokens, (0, pads)),
            F.pad(batch.targets, (0, pads), value=IGNORED),
            F.pad(batch.valid, (0, pads)),
            batch.group,
        )
        predicted = F.pad(guess(truth), (0, 0, 0, pads), value=1 / V)
        found = score.sums(predicted, wide, F.pad(truth, (0, 0, 0, pads)))
        for what, a, b in zip(("sums", "counts"), found, wanted, strict=True):
            if a.ndim == 2:
                extra = bool(a[:, LENGTH:].any())
                require(not extra, f"its {what} of padding are not zero")
                a = a[:, :LENGTH]
            worst = off(a, b)
            require(worst <= EXACT, f"{pads} more pads change its {what} by {worst:.3g} of the largest")


@check
def check_direction_is_right(score: Score) -> None:
    """The oracle is better than the uniform predictor, and no worse than one that is half right."""
    direction = getattr(score.create(), "direction", "higher")
    sign = 1 if direction == "higher" else -1
    own, flat, half = (ratio(score, predictor) for predictor in (lambda truth: truth, uniform, guess))
    require(
        sign * own > sign * flat,
        f"{direction} is said to be better; the oracle has {own:.4f} and the uniform predictor {flat:.4f}",
    )
    require(
        sign * own >= sign * half - EXACT,
        f"{direction} is said to be better; the oracle has {own:.4f} and a half right predictor {half:.4f}",
    )


@check
def check_known_values(score: Score) -> None:
    """A perfect predictor of a certain truth scores 1 or 0, and the contract's metrics have their defined values.

    `icll_zoo_perfect = VALUE` on a metric says what else a perfect predictor scores.
    """
    metric = score.create()
    own = ratio(score, lambda truth: truth, sharp=True)
    exp = getattr(metric, "transform", None) == "exp"
    perfect = getattr(metric, "icll_zoo_perfect", None)
    if perfect is None:
        higher = getattr(metric, "direction", "higher") == "higher"
        allowed = [1.0, 0.0] if higher else [1.0 if exp else 0.0]
    else:
        allowed = [perfect]
    require(
        any(abs(own - value) <= 1e-6 for value in allowed),
        f"a perfect predictor of a certain truth scores {own:.6g}, not {' or '.join(map(str, allowed))}",
    )
    defined = DEFINED.get(score.entry.name.removesuffix("-curve"))
    if defined is None:
        return
    batch, truth = some_batch()
    predictors = {"the oracle": lambda truth: truth, "the uniform predictor": uniform, "a guess": guess}
    for what, predictor in predictors.items():
        wanted = defined(predictor(truth).double(), batch, truth.double())
        found = ratio(score, predictor)
        if not abs(found - wanted) <= 1e-4 * max(1.0, abs(wanted)):
            raise CheckFailed(f"{what} scores {found:.6f}, and by the definition {wanted:.6f}")


# -- the metrics that the contract defines, position by position -----------------------------------------------------


def mean_over(counted: Tensor, value: Callable[[int, int], float]) -> float:
    places = [(int(i), int(j)) for i, j in counted.nonzero()]
    return sum(value(i, j) for i, j in places) / len(places)


def legal(p: Tensor, batch: Batch, truth: Tensor, counted: Tensor) -> float:
    return mean_over(counted, lambda i, j: float(truth[i, j, int(p[i, j].argmax())] > 0))


def cross_entropy(p: Tensor, batch: Batch, truth: Tensor) -> float:
    return mean_over(batch.targets != IGNORED, lambda i, j: -math.log(p[i, j, int(batch.targets[i, j])]))


def divergence(p: Tensor, truth: Tensor) -> float:
    return sum(t * math.log(t / q) for t, q in zip(truth.tolist(), p.tolist(), strict=True) if t > 0)


DEFINED: dict[str, Callable[[Tensor, Batch, Tensor], float]] = {
    "accuracy": lambda p, b, o: legal(p, b, o, b.valid),
    "accuracy-loop": lambda p, b, o: legal(p, b, o, b.targets != IGNORED),
    "token-accuracy": lambda p, b, o: mean_over(
        b.targets != IGNORED, lambda i, j: float(p[i, j].argmax() == b.targets[i, j])
    ),
    "tvd": lambda p, b, o: mean_over(b.valid, lambda i, j: 0.5 * float((p[i, j] - o[i, j]).abs().sum())),
    "kl": lambda p, b, o: mean_over(b.valid, lambda i, j: divergence(p[i, j], o[i, j])),
    "cross-entropy": cross_entropy,
    "perplexity": lambda p, b, o: math.exp(cross_entropy(p, b, o)),
}
"""The names whose meaning the contract fixes, by their definitions."""
