"""What a model loses without some of its heads: the best ones by a score, and as many others.

A head is taken out by replacing its output, its part of what goes into the mixer's `out_proj` (see `reader`), with
zeros or with its mean over all positions. Costs are differences to the whole model on the same sequences, so their
intervals are paired.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo import (
    Accumulator,
    Dataset,
    InputError,
    Metric,
    Split,
    bootstrap,
    interval,
    replaced,
    stored_batches,
    trace,
)

Head = tuple[str, int]
"""A mixer's name and the number of the head in it."""
Value = tuple[float, float, float]
"""A value and its 95 % interval over languages."""


@dataclass(frozen=True)
class Ablation:
    """What metrics say of a model without some heads.

    values, costs: by set of heads, the empty one being the whole model; by metric. A cost is positive where the model
    got worse. excess: by metric, the cost of the best set minus the mean cost of the random sets.
    """

    best: tuple[Head, ...]
    random: tuple[tuple[Head, ...], ...]
    values: dict[tuple[Head, ...], dict[str, Value]]
    costs: dict[tuple[Head, ...], dict[str, Value]]
    random_costs: dict[str, Value]
    excess: dict[str, Value]


def ablate(
    model: nn.Module,
    dataset: Dataset,
    best: Sequence[Head],
    heads: Sequence[Head],
    metrics: Mapping[str, Metric],
    *,
    draws: int = 10,
    mean: bool = False,
    split: Split = "test",
    batch_size: int = 64,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    report: Callable[[int], Any] = lambda done: None,
) -> Ablation:
    """Take out the best heads, and `draws` other sets of as many of `heads`, and measure each time.

    The other sets are drawn from all heads, without repetition; they may hold some of the best, not all. mean: replace
    by means, taken over the sequences that are measured. Raises InputError for a mixer whose heads nothing reads
    alone, or if all heads are to be taken out.
    """
    sets = other_sets(best, heads, draws, seed)
    size = {module: sum(name == module for name, _ in heads) for module, _ in heads}
    readers = {module: reader(model, module) for module in size}
    means = mean_inputs(model, dataset, readers, split, batch_size, limit, device) if mean else {}
    tried: list[tuple[Head, ...]] = [(), tuple(best), *sets]
    sums = {(heads_out, name): Accumulator() for heads_out in tried for name in metrics}
    done = 0
    for batch in stored_batches(dataset, split, batch_size, limit):
        batch = batch.to(device)
        oracle = dataset.oracle(batch) if any(metric.needs_oracle for metric in metrics.values()) else None
        for heads_out in tried:
            with torch.no_grad(), replaced(model, without(heads_out, size, readers, means)):
                probabilities = model(batch.tokens).float().softmax(-1)
            for name, metric in metrics.items():
                sums[heads_out, name].add(batch.group, *metric(probabilities, batch, oracle))
        done += len(batch)
        report(done)

    values: dict[tuple[Head, ...], dict[str, Value]] = {heads_out: {} for heads_out in tried}
    costs: dict[tuple[Head, ...], dict[str, Value]] = {heads_out: {} for heads_out in tried}
    random_costs, excess = {}, {}
    for name, metric in metrics.items():
        sign = 1 if metric.direction == "higher" else -1
        drawn = {heads_out: bootstrap(*sums[heads_out, name].table(), seed=seed) for heads_out in tried}
        cost = {key: tuple(sign * (w - v) for w, v in zip(drawn[()], drawn[key], strict=True)) for key in tried}
        for heads_out in tried:
            values[heads_out][name] = with_interval(*drawn[heads_out])
            costs[heads_out][name] = with_interval(*cost[heads_out])
        others = [torch.stack([cost[key][i] for key in sets]).mean(0) for i in (0, 1)]
        random_costs[name] = with_interval(*others)
        excess[name] = with_interval(*(a - b for a, b in zip(cost[tuple(best)], others, strict=True)))
    return Ablation(tuple(best), tuple(sets), values, costs, random_costs, excess)


def with_interval(value: Tensor, means: Tensor) -> Value:
    low, high = interval(means)
    return float(value), float(low), float(high)


def other_sets(best: Sequence[Head], heads: Sequence[Head], draws: int, seed: int) -> list[tuple[Head, ...]]:
    """Distinct sets of as many heads as the best, none of them the best set: `draws` of them, or all there are."""
    k = len(best)
    if not 0 < k < len(heads):
        raise InputError(
            f"{k} of {len(heads)} heads cannot be compared with as many others", hint="give a lower --ablate"
        )
    own = frozenset(best)
    if math.comb(len(heads), k) - 1 <= draws:
        return [chosen for chosen in itertools.combinations(heads, k) if frozenset(chosen) != own]
    generator, found = random.Random(seed), dict[frozenset[Head], tuple[Head, ...]]()
    while len(found) < draws:
        chosen = tuple(heads[i] for i in sorted(generator.sample(range(len(heads)), k)))
        if frozenset(chosen) != own:
            found[frozenset(chosen)] = chosen
    return list(found.values())


def reader(model: nn.Module, mixer: str) -> str:
    """The name of the module that reads a mixer's heads side by side, (b, l, heads times d): the one that it names in
    `heads_enter`, or `out_proj`. InputError if there is none."""
    name = getattr(model.get_submodule(mixer), "heads_enter", "out_proj")
    if not isinstance(getattr(model.get_submodule(mixer), name, None), nn.Module):
        raise InputError(f"the heads of {mixer!r} cannot be taken out: it has no {name}", hint="give --ablate 0")
    return f"{mixer}.{name}"


def without(
    heads: Sequence[Head],
    size: Mapping[str, int],
    readers: Mapping[str, str],
    means: Mapping[str, Tensor],
) -> dict[str, Callable[[Tensor], Tensor]]:
    """What `replaced` takes for these heads to give zeros, or their means (heads times d,) by module.

    size: the number of heads, readers: what reads them, both by module.
    """

    def replace(module: str) -> Callable[[Tensor], Tensor]:
        numbers = [head for name, head in heads if name == module]

        def change(x: Tensor) -> Tensor:
            parts = x.unflatten(-1, (size[module], -1)).clone()
            instead = means[module].view(size[module], -1)[numbers] if means else 0
            parts[..., numbers, :] = instead
            return parts.flatten(-2)

        return change

    return {f"{readers[module]}:input": replace(module) for module in {name for name, _ in heads}}


def mean_inputs(
    model: nn.Module,
    dataset: Dataset,
    readers: Mapping[str, str],
    split: Split,
    batch_size: int,
    limit: int | None,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """The mean over all positions of a mixer's heads side by side, (heads times d,), by module."""
    total: dict[str, Any] = dict.fromkeys(readers, 0.0)
    count = 0
    for batch in stored_batches(dataset, split, batch_size, limit):
        batch = batch.to(device)
        found = trace(model, batch.tokens, *(f"{name}:input" for name in readers.values()))
        for module, name in readers.items():
            total[module] = total[module] + found[f"{name}:input"][batch.valid].double().sum(0)
        count += int(batch.valid.sum())
    return {module: (value / count).float() for module, value in total.items()}
