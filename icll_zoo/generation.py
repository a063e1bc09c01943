"""Continue sequences token by token, with a recurrent state where the model has one.

Prompts of different lengths need no padding: those of equal length are read together, and each row goes on from its
own end. Where a state has one shape whatever was read, all rows then go on as one batch; caches, which grow, stay
apart. How a token is chosen is in `icll_zoo.sampling`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, Unpack, cast, overload

import torch
from torch import Tensor, nn

from icll_zoo.errors import InputError, did_you_mean, printable
from icll_zoo.sampling import Sampling, distribution, may_follow, row_seeds, uniforms

__all__ = ["Constraint", "can_step", "decode", "distribution", "encode", "generate", "row_seeds", "stream"]

State = dict[str, Tensor]
Prompts = Tensor | Sequence[Tensor | Sequence[int]]


class Constraint(Protocol):
    """What may be generated: it reads as a model does, and says which tokens may follow instead of how likely.

    The same pair of methods as a model's, so that its cost a token does not grow with what was read. Everything is on
    the CPU. A dataset may offer one: `dataset.constraint(split, indices)`, of those of its sequences.
    """

    def init_state(self, batch_size: int) -> State:
        """Before the first token: tensors by name, batch first."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The next k tokens (b, k): what may follow the last of them, (b, v) bool, and the state after it."""


def can_step(model: nn.Module) -> bool:
    """Whether the model can go on from a state, `init_state` and `step`, instead of reading everything again."""
    said = getattr(model, "has_step", None)
    has = callable(getattr(model, "step", None)) and callable(getattr(model, "init_state", None))
    return has if said is None else bool(said)


class Settings(TypedDict, total=False):
    """The keywords of `generate`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    greedy: bool
    seed: int | Sequence[int] | None
    exclude: Sequence[int]
    constraint: Constraint | None


@overload
def generate(model: nn.Module, tokens: Tensor, n: int, **settings: Unpack[Settings]) -> Tensor: ...
@overload
def generate(
    model: nn.Module, tokens: Sequence[Tensor | Sequence[int]], n: int, **settings: Unpack[Settings]
) -> list[Tensor]: ...
def generate(
    model: nn.Module,
    tokens: Prompts,
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int | Sequence[int] | None = None,
    exclude: Sequence[int] = (),
    constraint: Constraint | None = None,
) -> Tensor | list[Tensor]:
    """The prompts and n further tokens each.

    tokens: (b, l) gives (b, l + n) on the same device; a list of prompts of any lengths gives a list of tensors, on
        the CPU.
    greedy takes the most probable token, the lowest id of equals. top_k, top_p: only the k most probable, only the
    fewest whose probabilities reach top_p. exclude: ids that are never generated. constraint: what may follow.
    seed: of the sampling; None is a fresh one. Row r equals its prompt alone with the seed `row_seeds(seed, b)[r]`;
    a list of seeds gives one to each row. Where a model says nothing at all, every token that may come is as likely.
    Raises InputError for an empty prompt, ids out of range, or settings that leave no token.
    """
    columns = stream(
        model, tokens, n, temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy, seed=seed,
        exclude=exclude, constraint=constraint,
    )  # fmt: skip
    if isinstance(tokens, Tensor):
        return torch.cat([tokens, *columns], 1)
    added = torch.cat(list(columns), 1)
    return [torch.cat([as_row(row)[0], new]) for row, new in zip(tokens, added, strict=True)]


def stream(
    model: nn.Module,
    tokens: Prompts,
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int | Sequence[int] | None = None,
    exclude: Sequence[int] = (),
    constraint: Constraint | None = None,
) -> Iterator[Tensor]:
    """As `generate`, but each new column (b, 1) as soon as it is known. Faults of the request are raised at once."""
    prompts = [tokens] if isinstance(tokens, Tensor) else [as_row(row) for row in tokens]
    if not prompts:
        raise InputError("there is no prompt")
    for number, prompt in enumerate(prompts, 1):
        check_prompt(model, prompt, "the prompt" if len(prompts) == 1 else f"prompt {number}")
    if n < 1:
        raise InputError(f"cannot generate {n} tokens", hint="at least 1")
    sampling = Sampling(temperature, top_k, top_p, greedy, exclude)
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_length.setdefault(prompt.size(1), []).append(row)
    if isinstance(tokens, Tensor):
        groups = [Group(torch.arange(tokens.size(0)), tokens.long().cpu())]
    else:
        groups = [Group(torch.tensor(rows), torch.cat([prompts[r] for r in rows])) for rows in by_length.values()]
    seeds = row_seeds(secrets.randbits(63) if seed is None else seed, sum(len(group.rows) for group in groups))
    if constraint is not None:
        begin = constraint.init_state(len(seeds))
        for group in groups:
            group.legal = {name: tensor[group.rows] for name, tensor in begin.items()}
    return _columns(model, groups, n, sampling, seeds, constraint, prompts[0].device)


@dataclass
class Group:
    """Rows of equal length, which are read together.

    rows: (g,) their places in the batch. new: (g, k) ids that nobody has read yet, on the CPU.
    state: of the model; without one, `seen` is all that it read. legal: the state of the constraint.
    """

    rows: Tensor
    new: Tensor
    state: State | None = None
    seen: Tensor | None = None
    legal: State | None = None

    def read(self, model: nn.Module, device: torch.device) -> Tensor:
        """The model's output after the new tokens, (g, v)."""
        new = self.new.to(device)
        if not can_step(model):
            self.seen = new if self.seen is None else torch.cat([self.seen, new], 1)
            return model(self.seen)[:, -1]
        stepper: Any = model
        if self.state is None:
            dtype = next((t.dtype for t in model.parameters()), torch.float32)
            self.state = stepper.init_state(len(self.rows), device, dtype)
        output, self.state = stepper.step(new, self.state)
        return output[:, -1]


def _columns(
    model: nn.Module,
    groups: list[Group],
    n: int,
    sampling: Sampling,
    seeds: Tensor,
    constraint: Constraint | None,
    home: torch.device,
) -> Iterator[Tensor]:
    device = next((t.device for t in model.parameters()), home)
    kind = getattr(model, "output", "logits")
    was_training = model.training
    for index in range(n):
        # The modes are set anew for each column: between two of them the caller's own code runs.
        model.eval()
        try:
            with torch.inference_mode():
                back = torch.cat([group.rows for group in groups]).argsort()
                output = torch.cat([group.read(model, device) for group in groups])[back]
                allowed = None
                if constraint is not None:
                    allowed = torch.cat([advance(constraint, group) for group in groups])[back]
                    if lost := (~may_follow(output, sampling.exclude, allowed).any(-1)).nonzero().flatten().tolist():
                        after = f"prompt {lost[0] + 1}" + (f" and {index} further tokens" if index else "")
                        raise InputError(
                            f"nothing that may be generated follows {after}",
                            hint="the prompt itself may not be allowed",
                        )
                column = sampling.choose(output, kind, uniforms(seeds, index), allowed)
                if index == 0 and not getattr(model, "state_grows", False):
                    groups = joined(groups)
                for group in groups:
                    group.new = column[group.rows]
        finally:
            model.train(was_training)
        yield column.clone().to(home)


def advance(constraint: Constraint, group: Group) -> Tensor:
    """What may follow a group's new tokens, (g, v) bool."""
    allowed, group.legal = constraint.step(group.new, cast(State, group.legal))
    return allowed


def joined(groups: list[Group]) -> list[Group]:
    """All rows as one group, if states of different lengths look the same; otherwise the groups as they are."""

    def form(state: State | None) -> dict[str, Any] | None:
        return None if state is None else {name: (t.shape[1:], t.dtype) for name, t in state.items()}

    def cat(states: list[State | None]) -> State | None:
        known = [state for state in states if state is not None]
        return {name: torch.cat([state[name] for state in known]) for name in known[0]} if known else None

    first = groups[0]
    alike = all(form(g.state) == form(first.state) and form(g.legal) == form(first.legal) for g in groups)
    if first.state is None or not alike:
        return groups
    rows = torch.cat([group.rows for group in groups])
    state, legal = cat([group.state for group in groups]), cat([group.legal for group in groups])
    return [Group(rows, first.new, state, None, legal)]


def as_row(prompt: Tensor | Sequence[int]) -> Tensor:
    """One prompt of a list as (1, l) on the CPU."""
    if not isinstance(prompt, Tensor):
        try:
            prompt = torch.tensor(list(prompt), dtype=None if len(prompt) else torch.int64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"a prompt is a list of token ids, not {printable(repr(prompt), 60)}") from error
    if prompt.ndim != 1:
        raise InputError(f"a prompt of a list has one dimension, not the shape {list(prompt.shape)}")
    return prompt.cpu()[None]


def check_prompt(model: nn.Module, tokens: Tensor, what: str = "the prompt") -> None:
    """Raise InputError unless `tokens` is a batch of prompts that the model can read."""
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise InputError(f"prompts are token ids (batch, length), not {tokens.dtype} of shape {list(tokens.shape)}")
    if not tokens.numel():
        raise InputError(f"{what} is empty", hint="give at least one token")
    vocabulary: Any = getattr(model, "zoo_vocabulary", None)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary.size):
        size = "" if vocabulary is None else f", and the model has ids 0 to {vocabulary.size - 1}"
        raise InputError(f"{what} has token id {low if low < 0 else high}{size}")


def encode(text: str, vocabulary: Sequence[str]) -> list[int]:
    """Token ids of a text: words between white space, or, where there is none, the longest tokens from the left.

    Raises InputError for the first thing that is no token.
    """
    ids = {token: index for index, token in enumerate(vocabulary)}
    if any(c.isspace() for c in text):
        words = text.split()
        for position, word in enumerate(words):
            if word not in ids:
                raise unknown_token(word, f"word {position + 1}", vocabulary)
        return [ids[word] for word in words]
    longest = max(map(len, vocabulary), default=0)
    found, start = [], 0
    while start < len(text):
        pieces = (text[start : start + length] for length in range(min(longest, len(text) - start), 0, -1))
        piece = next((piece for piece in pieces if piece in ids), None)
        if piece is None:
            raise unknown_token(text[start], f"character {start + 1}", vocabulary)
        found.append(ids[piece])
        start += len(piece)
    return found


def decode(ids: Sequence[int], vocabulary: Sequence[str]) -> str:
    """The tokens' texts, a space between them; `encode` gives the ids back where no token has a space."""
    if bad := [i for i in ids if not 0 <= i < len(vocabulary)]:
        raise InputError(f"no token has id {bad[0]}: the vocabulary has {len(vocabulary)}")
    return " ".join(vocabulary[i] for i in ids)


def unknown_token(word: str, place: str, vocabulary: Sequence[str]) -> InputError:
    some = " ".join(map(repr, vocabulary[:8])) + (" ..." if len(vocabulary) > 8 else "")
    hint = did_you_mean(word[:40], vocabulary) or f"it knows {printable(some, 160)}"
    return InputError(f"{place} of the text, {printable(repr(word), 60)}, is no token of this model", hint=hint)
