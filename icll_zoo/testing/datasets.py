"""Datasets: batches that are functions of their index, targets that are what follows, splits that share nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from icll_zoo.data import IGNORED, SPLITS, Batch, Dataset, Split, passes
from icll_zoo.testing.kit import CheckFailed, NotApplicable, require
from icll_zoo.testing.subject import Data, check, identical, seed_everything

BATCH = 16
LARGEST = 5000
"""Sequences of a split that are read whole; of a larger one only the first so many."""


@check
def check_no_network_in_constructor(data: Data) -> None:
    """It is created, and says its vocabulary and its sizes, without a network connection."""
    with no_network():
        dataset = data.create()
        words = list(dataset.vocabulary)
        sizes = [dataset.size(split) for split in SPLITS]
    require(all(size is None or size >= 0 for size in sizes), f"its splits have the sizes {sizes}")
    require(len(words) > 0 and all(isinstance(word, str) for word in words), "its vocabulary is not a list of texts")
    require(len(set(words)) == len(words), "its vocabulary holds a text twice")
    for name in ("pad_id", "separator_id"):
        value = getattr(dataset, name)
        allowed = value is None and name == "separator_id"
        require(allowed or 0 <= value < len(words), f"{name} {value!r} is no id of its {len(words)} tokens")
    require(dataset.pad_id != dataset.separator_id, "padding and separator are one token")


@contextmanager
def no_network() -> Iterator[None]:
    """Any attempt to look up a host or to connect is a failed check."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise CheckFailed("its constructor asks for a network connection")

    network: Any = socket
    kept = network.getaddrinfo, network.socket.connect, network.create_connection
    network.getaddrinfo = network.socket.connect = network.create_connection = refuse
    try:
        yield
    finally:
        network.getaddrinfo, network.socket.connect, network.create_connection = kept


def live_splits(dataset: Dataset) -> list[Split]:
    """The splits that hold anything."""
    found: list[Split] = [split for split in SPLITS if dataset.size(split) != 0]
    require(bool(found), "all of its splits are empty")
    return found


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    return {
        "tokens": batch.tokens,
        "targets": batch.targets,
        "valid": batch.valid,
        "group": batch.group,
        **{f"extra {name!r}": tensor for name, tensor in batch.extra.items()},
    }


@check
def check_batches_have_the_stated_form(data: Data) -> None:
    """tokens and targets (b, l) int64, valid (b, l) bool, group (b,) int64; known ids; padding on the right only."""
    dataset = data.dataset
    for split in live_splits(dataset):
        batch = dataset.batch(split, 0, BATCH, 0)
        where = f"of the {split} split"
        shape = tuple(batch.tokens.shape)
        require(len(shape) == 2 and 0 < shape[0] <= BATCH and shape[1] > 0, f"tokens {where} have shape {shape}")
        size = dataset.size(split)
        require(shape[0] == BATCH or size is not None, f"an endless stream gives {shape[0]} rows where {BATCH} are due")
        for name, wanted, dtype in (
            ("tokens", shape, torch.int64),
            ("targets", shape, torch.int64),
            ("valid", shape, torch.bool),
            ("group", shape[:1], torch.int64),
        ):
            tensor = getattr(batch, name)
            good = tuple(tensor.shape) == wanted and tensor.dtype == dtype
            require(good, f"{name} {where} are {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {wanted}")
        for name, tensor in batch.extra.items():
            require(tensor.size(0) == shape[0], f"extra {name!r} {where} is not batch first")
        count = len(list(dataset.vocabulary))
        inside = bool(((batch.tokens >= 0) & (batch.tokens < count)).all())
        require(inside, f"tokens {where} are not all ids of the vocabulary, 0 to {count - 1}")
        kept = (batch.targets == IGNORED) | ((batch.targets >= 0) & (batch.targets < count))
        require(bool(kept.all()), f"targets {where} are neither ids nor {IGNORED}")
        ended = batch.valid[:, 1:] & ~batch.valid[:, :-1]
        require(not ended.any(), f"a row {where} has padding before its end")
        require(bool(batch.valid.any(1).all()), f"a row {where} is all padding")
        pads = batch.tokens[~batch.valid]
        require(bool((pads == dataset.pad_id).all()), f"padding {where} is not pad_id {dataset.pad_id}")


@check
def check_batch_is_pure(data: Data) -> None:
    """Batch k of a split, a size and a seed is the same after other calls, in a new instance, under any global seed."""
    first = data.create()
    for split in live_splits(first):
        size = first.size(split)
        last = 3 if size is None else min(3, passes(size, BATCH) - 1)
        asked = [(k, size_, seed) for seed in (0, 7) for k, size_ in ((last, BATCH), (0, BATCH), (0, 5))]
        wanted = [tensors_of(first.batch(split, *one)) for one in asked]
        for what, dataset in (("asked again, in another order", first), ("asked of a new instance", data.create())):
            seed_everything(11)
            state = torch.get_rng_state()
            for one, before in reversed(list(zip(asked, wanted, strict=True))):
                now = tensors_of(dataset.batch(split, *one))
                k, batch_size, seed = one
                for name, tensor in before.items():
                    if not identical(now[name], tensor):
                        raise CheckFailed(
                            f"{what}, batch {k} of {batch_size} of the {split} split (seed {seed}) has other {name}"
                        )
            if split == "train" or size is not None:
                drew = not torch.equal(state, torch.get_rng_state())
                require(not drew, f"batches of the {split} split draw from torch's global generator")


@check
def check_every_sequence_once(data: Data) -> None:
    """One pass over a finite split holds each of its sequences once, in the order of storage and shuffled."""
    dataset = data.dataset
    whole = [split for split in live_splits(dataset) if 0 < (dataset.size(split) or 0) <= LARGEST]
    if not whole:
        raise NotApplicable(f"no split is finite and has at most {LARGEST} sequences")
    for split in whole:
        size = dataset.size(split) or 0
        stored = sorted(rows(dataset, split, size, None))
        require(len(stored) == size, f"a pass over the {split} split has {len(stored)} sequences, not {size}")
        for seed in (0, 1):
            shuffled = sorted(rows(dataset, split, size, seed))
            require(shuffled == stored, f"a pass over the {split} split with seed {seed} has other sequences")
        second = dataset.batch(split, passes(size, BATCH), BATCH, 0)
        require(len(second) > 0, f"the {split} split ends after one pass, and training may ask for more")
        try:
            dataset.batch(split, passes(size, BATCH), BATCH, None)
        except Exception:  # noqa: BLE001  the contract does not say which
            continue
        raise CheckFailed(f"the {split} split without a seed is one pass, and gives a batch after its end")


Row = tuple[int, tuple[int, ...]]
"""A sequence's group and its tokens without padding."""


def rows(dataset: Dataset, split: Split, count: int, seed: int | None) -> list[Row]:
    """The sequences of the first batches that hold `count` of them."""
    found: list[Row] = []
    for k in range(passes(count, BATCH)):
        batch = dataset.batch(split, k, BATCH, seed)
        for group, tokens, valid in zip(batch.group.tolist(), batch.tokens, batch.valid, strict=True):
            found.append((group, tuple(tokens[valid].tolist())))
    return found


@check
def check_splits_are_disjoint(data: Data) -> None:
    """No sequence, and no language or document (`group`), is in two splits.

    Groups that only number the rows of each split, 0, 1, 2 ..., identify nothing and are not compared.
    """
    dataset = data.dataset
    live = live_splits(dataset)
    if len(live) < 2:
        raise NotApplicable(f"only its {live[0]} split holds anything")
    held: dict[Split, list[Row]] = {}
    for split in live:
        size = dataset.size(split)
        count = LARGEST if size is None else min(size, LARGEST)
        held[split] = rows(dataset, split, count if size is not None else 512, None if size is not None else 0)
    for i, one in enumerate(live):
        for other in live[i + 1 :]:
            both = {tokens for _, tokens in held[one]} & {tokens for _, tokens in held[other]}
            require(not both, f"{len(both)} sequences are in {one} and in {other}, such as {min(both, default=())[:8]}")
            if numbers_rows(held[one]) and numbers_rows(held[other]):
                continue
            groups = {group for group, _ in held[one]} & {group for group, _ in held[other]}
            require(
                not groups,
                f"{len(groups)} groups, such as {min(groups, default=0)}, are in {one} and {other}: number languages "
                "or documents across the splits, and keep each in one",
            )


def numbers_rows(stored: list[Row]) -> bool:
    return [group for group, _ in stored] == list(range(len(stored)))


@check
def check_targets_are_shifted(data: Data) -> None:
    """A target is the next token or -100; padding, and what is followed by a separator or by nothing, is -100."""
    dataset = data.dataset
    for split in live_splits(dataset):
        batch = dataset.batch(split, 0, BATCH, 0)
        counted = batch.targets != IGNORED
        require(bool(counted.any()), f"no position of the {split} split is in the loss")
        require(not (counted & ~batch.valid).any(), f"padding of the {split} split is in the loss")
        following, inner = batch.tokens[:, 1:], batch.valid[:, 1:]
        wrong = counted[:, :-1] & inner & (batch.targets[:, :-1] != following)
        if wrong.any():
            row, at = wrong.nonzero()[0].tolist()
            raise CheckFailed(
                f"at row {row}, position {at} of the {split} split the target is {int(batch.targets[row, at])}, and "
                f"the next token is {int(following[row, at])}"
            )
        targets = batch.targets[counted]
        named = [dataset.pad_id] + ([dataset.separator_id] if dataset.separator_id is not None else [])
        require(not any((targets == i).any() for i in named), "a separator or padding is a target")
