"""Hidden states of a model beside the states of the automaton that it reads: do positions of one state lie together?

Of each position the nearest other position of the same sequence (Euclidean, among the hidden states of one layer) is
looked up; the rate at which both are in the same state of the automaton says how far a layer tells states apart. Two
controls shuffle the states: over all positions of the sequence, and only among positions with the same token, which
leaves what the last token alone says of the state.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from icll_zoo import Accumulator, InputError, bootstrap, interval, trace
from icll_zoo_analysis.diagram import automaton_of

if TYPE_CHECKING:
    from icll_zoo import Dataset, Split

SHUFFLES = 20
RATES = ("same state", "shuffled", "shuffled within tokens")
LIBRARIES = {"tsne": ("sklearn.manifold", "scikit-learn", "t-SNE"), "umap": ("umap", "umap-learn", "UMAP")}


@dataclass(frozen=True)
class Reading:
    """What one sequence was read as. hidden[layer]: (n, d) of the positions that count; position, token and state: (n,)
    of those."""

    index: int
    hidden: dict[str, Tensor]
    position: Tensor
    token: Tensor
    state: Tensor


def read(
    model: nn.Module, dataset: Dataset, index: int, *, split: Split = "test", skip: int = 50, device: str = "cpu"
) -> Reading:
    """One sequence of a split through the model; separators and the first `skip` positions do not count.

    The layers are "embedding" and "block 1", "block 2" ...: the residual stream after each.
    Raises InputError as `automaton_of` does, for a model without blocks, and for a sequence without two positions.
    """
    automaton = automaton_of(dataset, split, index if callable(getattr(dataset, "language", None)) else 0)
    batch = dataset.batch(split, index, 1, 0 if dataset.size(split) is None else None)
    tokens = batch.tokens[0, batch.valid[0]]
    texts = [dataset.vocabulary[token] for token in tokens.tolist()]
    state = torch.tensor(automaton.states_of(texts))
    counted = torch.arange(len(tokens)) >= skip
    if dataset.separator_id is not None:
        counted &= tokens != dataset.separator_id
    if int(counted.sum()) < 2:
        raise InputError(f"sequence {index} has no two positions from {skip} on", hint="give a smaller --skip")
    if not isinstance(getattr(model, "blocks", None), nn.ModuleList):
        raise InputError("this model has no blocks whose states could be read", hint="those of the zoo's backbone have")
    traced = trace(model, tokens[None].to(device), "blocks.0:input", "blocks.*")
    hidden = {layer_name(name): value[0].cpu()[counted].double() for name, value in traced.items()}
    return Reading(index, hidden, counted.nonzero()[:, 0], tokens[counted], state[counted])


def layer_name(name: str) -> str:
    return "embedding" if name.endswith(":input") else f"block {int(name.removeprefix('blocks.')) + 1}"


def nearest(hidden: Tensor) -> Tensor:
    """(n,): the number of the row nearest to each of the rows (n, d), itself excepted; the first of equals."""
    # Without the matrix product, whose rounding would move near rows.
    apart = torch.cdist(hidden, hidden, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.fill_diagonal_(torch.inf).argmin(1)


def rates(reading: Reading, seed: int = 0) -> dict[str, Tensor]:
    """How many positions have a nearest neighbour of their state, in each layer: (3,) with the mean of the controls."""
    generator = torch.Generator().manual_seed(seed + reading.index)
    shuffled = [shuffle(reading.state, torch.zeros_like(reading.token), generator) for _ in range(SHUFFLES)]
    within = [shuffle(reading.state, reading.token, generator) for _ in range(SHUFFLES)]
    found = {}
    for layer, hidden in reading.hidden.items():
        near = nearest(hidden)

        def same(state: Tensor, near: Tensor = near) -> float:
            return float((state[near] == state).sum())

        control = [sum(map(same, some)) / SHUFFLES for some in (shuffled, within)]
        found[layer] = torch.tensor([same(reading.state), *control], dtype=torch.float64)
    return found


def shuffle(state: Tensor, token: Tensor, generator: torch.Generator) -> Tensor:
    """The states exchanged at random among positions of equal token."""
    order = torch.randperm(len(state), generator=generator)
    mixed = order[token[order].argsort(stable=True)]
    plain = token.argsort(stable=True)
    exchanged = torch.empty_like(state)
    exchanged[plain] = state[mixed]
    return exchanged


class Rates:
    """The rates of many sequences, added up one by one."""

    def __init__(self) -> None:
        self.summed: dict[str, Accumulator] = {}

    def add(self, reading: Reading, seed: int = 0) -> None:
        for layer, hits in rates(reading, seed).items():
            count = torch.full_like(hits, len(reading.state))
            self.summed.setdefault(layer, Accumulator()).add(torch.tensor([reading.index]), hits[None], count[None])

    def table(self, resamples: int = 1000, seed: int = 0) -> dict[str, list[Any]]:
        """A row a layer: the rate and its controls over all sequences, with 95 % intervals over sequences."""
        table: dict[str, list[Any]] = {"layer": list(self.summed)}
        for summed in self.summed.values():
            value, draws = bootstrap(*summed.table(), resamples, seed)
            low, high = interval(draws)
            for name, *ends in zip(RATES, value.tolist(), low.tolist(), high.tolist(), strict=True):
                for key, end in zip((name, f"{name} low", f"{name} high"), ends, strict=True):
                    table.setdefault(key, []).append(end)
        return table


def project(hidden: Tensor, method: str, seed: int = 0) -> tuple[Tensor, list[float] | None]:
    """(n, d) -> (n, 2) by pca, tsne or umap, and the shares of the variance for PCA.

    Raises InputError where the library for t-SNE (scikit-learn) or UMAP (umap-learn) is not installed.
    """
    if method == "pca":
        return pca(hidden)
    made = check_method(method)
    if method == "tsne":
        fit = made.TSNE(2, perplexity=min(30.0, (len(hidden) - 1) / 3), init="pca", random_state=seed)
    else:
        fit = made.UMAP(n_components=2, random_state=seed, n_jobs=1)
    return torch.from_numpy(fit.fit_transform(hidden.numpy())).double(), None


def pca(hidden: Tensor) -> tuple[Tensor, list[float]]:
    """The two directions of most variance, each turned so that its largest coefficient is positive."""
    centred = hidden - hidden.mean(0)
    _, scale, directions = torch.linalg.svd(centred, full_matrices=False)
    two = directions[:2]
    two = two * two.gather(1, two.abs().argmax(1, keepdim=True)).sign()
    flat = centred @ two.T
    variance = scale.square()
    shares = (variance[:2] / variance.sum().clamp(min=1e-30)).tolist()
    # One dimension or two positions leave a direction out.
    missing = 2 - flat.size(1)
    return nn.functional.pad(flat, (0, missing)), [*shares, *[0.0] * missing]


def check_method(method: str) -> Any:
    """The library that a method comes from. InputError where it is not installed."""
    module, package, what = LIBRARIES[method]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{what} needs {package}", hint=f"pip install {package}, or --method pca") from error
