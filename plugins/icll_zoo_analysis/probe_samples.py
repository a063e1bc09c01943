"""What probes are asked: n-gram counts, ratios and existence, and whether two positions have the same state.

The questions of Akyurek et al. 2024 (arXiv:2401.12973, section on probing), at a random position t of a sequence, with
m = n - 1 and c the last of the n symbols asked for:

    count-1    how often x_t occurred up to t                                        query: x_t
    count-n    how often c followed the last m tokens up to t                        query: the last m tokens, c
    ratio-n    count-n over how often anything followed them; count-1 over t + 1
    exists-n   whether c ever followed them: half the time c did, half the time not
    same-state whether two positions of a sequence have the same state               query: the two tokens

c is drawn from what followed, by how often it did; what did not follow is drawn from the symbols that occurred. No
separator is asked for: models are not trained to predict one. Positions of separators are not probed; contexts may
span them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo import Batch, Dataset, InputError, Split, trace
from icll_zoo_analysis.attention import contexts

SAME_STATE = "same-state"


@dataclass(frozen=True)
class Questions:
    """The samples of one task.

    place: (n,) int64, or (n, 2) of same-state: rows of the hidden states. query: (n, k) tokens. target: (n,) float,
    0 or 1 of a task that is a yes or no. group: (n,) the language of each.
    """

    place: Tensor
    query: Tensor
    target: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Samples:
    """Hidden states (places, d) by layer, and the questions by task."""

    hidden: dict[str, Tensor]
    tasks: dict[str, Questions]


def is_binary(task: str) -> bool:
    return task == SAME_STATE or task.startswith("exists")


def task_names(orders: Iterable[int], states: bool) -> list[str]:
    """All tasks: counts and ratios of every order, existence of those above 1, and states where there are any."""
    orders = list(orders)
    names = [f"{what}-{n}" for what in ("count", "ratio") for n in orders]
    return names + [f"exists-{n}" for n in orders if n > 1] + [SAME_STATE] * states


def has_states(dataset: Dataset) -> bool:
    """Whether a dataset says which state each token leads to."""
    return "state" in dataset.batch("train", 0, 1, 0 if dataset.size("train") is None else None).extra


def collect(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    sequences: int,
    *,
    patterns: Sequence[str],
    orders: Sequence[int] = (1, 2, 3),
    positions: int = 8,
    start: int = 75,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    report: Callable[[int], Any] = lambda done: None,
) -> Samples:
    """Questions at `positions` random places from `start` on of each of the first sequences of a split.

    A shorter sequence has no questions. Raises InputError if all are shorter, or if the split has too few sequences.
    """
    generator = torch.Generator().manual_seed(seed)
    size = dataset.size(split)
    if size is not None and size < sequences:
        raise InputError(f"{sequences} sequences of a {split} split of {size}", hint="ask for fewer")
    hidden: dict[str, list[Tensor]] = {}
    asked: dict[str, list[Questions]] = {}
    done = places = 0
    for k in range(-(-sequences // batch_size)):
        batch = dataset.batch(split, k, batch_size, None if size is not None else 0).first(sequences - done)
        eligible = batch.valid & (torch.arange(batch.tokens.size(1)) >= start)
        if dataset.separator_id is not None:
            eligible &= batch.tokens != dataset.separator_id
        done += len(batch)
        batch, eligible = kept(batch, eligible)
        if len(batch):
            anchors = torch.multinomial(eligible.double(), positions, replacement=True, generator=generator)
            partners, same = state_pairs(batch, eligible, anchors, generator)
            both = anchors if partners is None else torch.cat([anchors, partners], 1)
            for name, tensor in trace(model, batch.tokens.to(device), *patterns).items():
                if not isinstance(tensor, Tensor) or tensor.shape[:-1] != batch.tokens.shape:
                    raise InputError(f"{name!r} gives no vector for each token", hint="probe a part that does")
                chosen = tensor.cpu().gather(1, both[..., None].expand(-1, -1, tensor.size(-1)))
                hidden.setdefault(name, []).append(chosen.flatten(0, 1).float())
            row = torch.arange(len(batch))[:, None]
            place = places + row * both.size(1) + torch.arange(positions)
            for name, found in ngram_questions(batch, anchors, place, orders, dataset.separator_id, generator).items():
                asked.setdefault(name, []).append(found)
            if partners is not None and same is not None:
                pair = torch.stack([place, place + positions], -1).flatten(0, 1)
                tokens = torch.stack([batch.tokens.gather(1, anchors), batch.tokens.gather(1, partners)], -1)
                group = batch.group[:, None].expand_as(anchors).flatten()
                found = Questions(pair, tokens.flatten(0, 1), same.flatten().float(), group)
                asked.setdefault(SAME_STATE, []).append(found)
            places += both.numel()
        report(done)
    if not places:
        raise InputError(f"no sequence of the {split} split has more than {start} tokens", hint="give a lower --start")
    return Samples(
        {name: torch.cat(parts) for name, parts in hidden.items()},
        {name: joined(parts) for name, parts in asked.items()},
    )


def kept(batch: Batch, eligible: Tensor) -> tuple[Batch, Tensor]:
    """The rows that have an eligible position."""
    rows = eligible.any(1)
    extra = {name: tensor[rows] for name, tensor in batch.extra.items()}
    smaller = Batch(batch.tokens[rows], batch.targets[rows], batch.valid[rows], batch.group[rows], extra)
    return smaller, eligible[rows]


def joined(parts: Sequence[Questions]) -> Questions:
    names = ("place", "query", "target", "group")
    return Questions(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def state_pairs(
    batch: Batch, eligible: Tensor, anchors: Tensor, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """A second position for each anchor (b, p), half the time of the same state, and whether it is; or None, None.

    Where all eligible positions have the same state, or no other has it, the pair is what there is.
    """
    if "state" not in batch.extra:
        return None, None
    state = batch.extra["state"]
    equal = state.gather(1, anchors)[:, :, None] == state[:, None]  # (b, p, l)
    other = eligible[:, None] & (torch.arange(state.size(1)) != anchors[..., None])
    other = torch.where(other.any(-1, keepdim=True), other, eligible[:, None])
    wanted = torch.rand(anchors.shape, generator=generator) < 0.5
    fitting = other & (equal == wanted[..., None])
    candidates = torch.where(fitting.any(-1, keepdim=True), fitting, other)
    partners = torch.multinomial(candidates.flatten(0, 1).double(), 1, generator=generator).view(anchors.shape)
    return partners, equal.gather(2, partners[..., None])[..., 0]


def ngram_questions(
    batch: Batch,
    anchors: Tensor,
    place: Tensor,
    orders: Sequence[int],
    separator_id: int | None,
    generator: torch.Generator,
) -> dict[str, Questions]:
    """The tasks of counts, ratios and existence at the anchors (b, p); those without an earlier occurrence drop out."""
    tokens, length = batch.tokens, batch.tokens.size(1)
    at = torch.arange(length)
    symbol = torch.ones_like(tokens, dtype=torch.bool) if separator_id is None else tokens != separator_id
    read = at <= anchors[..., None]  # (b, p, l)
    group = batch.group[:, None].expand_as(anchors)
    now = tokens.gather(1, anchors)
    found: dict[str, Questions] = {}

    def ask(name: str, query: Tensor, target: Tensor, some: Tensor) -> None:
        found[name] = Questions(place[some], query[some], target[some].float(), group[some])

    for n in orders:
        if n == 1:
            count = (read & (tokens[:, None] == now[..., None])).sum(-1)
            ask("count-1", now[..., None], count, count > 0)
            ask("ratio-1", now[..., None], count / (anchors + 1), count > 0)
            continue
        code = contexts(tokens, n - 1)
        before = torch.nn.functional.pad(code, (1, 0), value=-1)[:, :length]
        own = code.gather(1, anchors)
        followed = read & symbol[:, None] & (before[:, None] == own[..., None]) & (own >= 0)[..., None]
        some = followed.any(-1)
        next_token = tokens.gather(1, drawn(followed, generator))
        count = (followed & (tokens[:, None] == next_token[..., None])).sum(-1)
        context = torch.stack([tokens.gather(1, (anchors - back).clamp(min=0)) for back in range(n - 2, -1, -1)], -1)
        query = torch.cat([context, next_token[..., None]], -1)
        ask(f"count-{n}", query, count, some)
        ask(f"ratio-{n}", query, count / followed.sum(-1).clamp(min=1), some)
        # A symbol that occurred, at a position whose symbol is none of those that followed.
        known = torch.zeros(*anchors.shape, int(tokens.max()) + 1, dtype=torch.bool)
        known.scatter_(2, torch.where(followed, tokens[:, None], next_token[..., None]), True)
        absent = read & symbol[:, None] & ~known.gather(2, tokens[:, None].expand(-1, anchors.size(1), -1))
        exists = torch.rand(anchors.shape, generator=generator) < 0.5
        asked = torch.where(exists, next_token, tokens.gather(1, drawn(absent, generator)))
        ask(f"exists-{n}", torch.cat([context, asked[..., None]], -1), exists, some & absent.any(-1))
    return found


def drawn(mask: Tensor, generator: torch.Generator) -> Tensor:
    """A random position of each row of a mask (b, p, l), (b, p); any where there is none."""
    weight = torch.where(mask.any(-1, keepdim=True), mask, True).flatten(0, 1).double()
    return torch.multinomial(weight, 1, generator=generator).view(mask.shape[:-1])
