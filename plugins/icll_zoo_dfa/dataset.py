"""Random regular languages as a dataset: one fixed sequence a language, split by the languages themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icll_zoo import IGNORED, Batch, InputError, Split, epoch_indices, splitmix64
from icll_zoo_dfa import published
from icll_zoo_dfa.automata import NO_EDGE, SHIFT, Automata, draw_automata
from icll_zoo_dfa.bounds import Bounds
from icll_zoo_dfa.constraint import LegalNext
from icll_zoo_dfa.language import LETTERS, SEPARATOR, VOCABULARY, Language, Sample, read_samples
from icll_zoo_dfa.minimal import canonical, language_hash, split_code
from icll_zoo_dfa.sequences import SEPARATOR_ID, Sequences, draw_sequences

BLOCK = 4096
"""Candidates worked on at a time."""
TOKENS = 1 << 22
"""Tokens worked on at a time, at most: int64 words, 32 MB of them."""
CODES = {"test": 0, "validation": 1, "train": 2}


@dataclass(frozen=True)
class Stored:
    """Languages with a sequence each.

    number: (b,) int64, the candidate's number; from a file, that of the first sequence of the same language.
    """

    automata: Automata
    sequences: Sequences
    number: Tensor

    def __len__(self) -> int:
        return len(self.number)

    @cached_property
    def next_probability(self) -> Tensor:
        """(b, n, v) float32, about 1 kB a language; made once, since every batch takes its rows."""
        return self.automata.next_probability()


class DfaLanguages:
    """In-context regular languages (arXiv:2401.12973, section 3): strings of one language, joined by `|`.

    states_min ... length_max: see `Bounds`. languages: of the training split; None for an endless stream.
    held_out: languages of the validation and of the test split each. seed: fixes languages and strings.
    file: read languages and sequences from JSON lines instead; see `read_samples`.
    buckets: training batches whose sequences are sorted by length together, so that little is padded; 1 for none.

    Candidate language k is a function of (seed, k) alone. A hash of its canonical minimal form decides its split: 1/16
    test, 1/16 validation, the rest training. So no language is in two splits, whatever their sizes. A fixed set is the
    first distinct candidates of its split; an endless stream may repeat a language.
    """

    vocabulary = VOCABULARY
    pad_id = 0
    separator_id = SEPARATOR_ID
    metrics = ("accuracy", "tvd", "cross-entropy")

    def __init__(
        self,
        states_min: int = 4,
        states_max: int = 12,
        symbols_min: int = 4,
        symbols_max: int = 18,
        degree_min: int = 1,
        degree_max: int = 3,
        strings_min: int = 10,
        strings_max: int = 19,
        length_min: int = 1,
        length_max: int = 49,
        languages: int | None = None,
        held_out: int = 500,
        seed: int = 0,
        file: str | None = None,
        buckets: int = 16,
    ) -> None:
        self.bounds = Bounds(
            states_min, states_max, symbols_min, symbols_max, degree_min, degree_max,
            strings_min, strings_max, length_min, length_max,
        )  # fmt: skip
        for name, value, least in (("languages", languages, 1), ("held_out", held_out, 1), ("buckets", buckets, 1)):
            if value is not None and value < least:
                raise InputError(f"wrong value in data.{name}: {value} is less than {least}")
        if not 0 <= seed < 2**63:
            raise InputError(f"wrong value in data.seed: {seed} is not in [0, 2^63)")
        self.seed, self.buckets, self.file = seed, buckets, file
        self.sizes: dict[str, int | None] = {"train": languages, "validation": held_out, "test": held_out}
        self._stored: dict[str, Stored] = {}
        self._window: tuple[tuple[int, int, int], Stored] | None = None
        if file is None:
            self.max_length = self.bounds.longest - 1
        else:
            if languages is not None or self.bounds != Bounds():
                raise InputError(
                    "data.file brings its own languages", hint="give neither data.languages nor bounds beside it"
                )
            samples = read_samples(Path(file))
            self.max_length = max(len(sample.text) for sample in samples) - 1
            for split in self.sizes:
                kept = [(i, sample) for i, sample in enumerate(samples) if sample.split == split]
                self.sizes[split] = len(kept)
                if kept:
                    self._stored[split] = from_samples(kept)

    def size(self, split: Split) -> int | None:
        return self.sizes[split]

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`. `extra` holds each token's state and the states' true next-token probabilities."""
        size = self.sizes[split]
        if size is None:
            stored, k, size, seed = self._stream(k, batch_size, seed)
        else:
            stored = self.stored(split)
        lengths = stored.sequences.length if self.buckets > 1 else None
        index = epoch_indices(size, k, batch_size, seed, lengths, self.buckets)
        return as_batch(stored, index)

    def published(self, metric: str, architecture: str) -> dict[str, dict[str, Any]]:
        """What the paper reports on such languages; nothing where the languages are drawn otherwise than there."""
        if self.bounds != Bounds() or self.file is not None:
            return {}
        return published.beside(metric, architecture, self.sizes["train"])

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: uniform over the edges of the state that the current string has reached."""
        table, state = batch.extra["next_probability"], batch.extra["state"]
        # Rows of one long table, whose last is the padding's.
        b, n, v = table.shape
        rows = torch.nn.functional.pad(table.reshape(b * n, v), (0, 0, 0, 1))
        place = (state + torch.arange(0, b * n, n, device=state.device)[:, None]).where(batch.valid, b * n)
        return rows.index_select(0, place.flatten()).view(*state.shape, v)

    def stored(self, split: Split) -> Stored:
        """The whole of a finite split. InputError if it is endless, or if a file has nothing for it."""
        if not self.sizes[split]:
            endless = self.sizes[split] is None
            raise InputError(f"the {split} split is {'endless' if endless else 'empty'}")
        if split not in self._stored:
            wanted = {name: size or 0 for name, size in self.sizes.items()}
            for name, numbers in self._first_distinct(wanted).items():
                self._stored[name] = self._draw(numbers)
        return self._stored[split]

    def language(self, split: Split, index: int) -> Language:
        """One language of a finite split, in its canonical minimal form."""
        return self.stored(split).automata.language(index).canonical()

    def constraint(self, split: Split, indices: Sequence[int]) -> LegalNext:
        """What may follow in some languages of a finite split: one for all prompts of `icll_zoo.generate`, or one each.

        Raises InputError for an index that the split does not have.
        """
        size = self.sizes[split]
        if size is None or (bad := [i for i in indices if not 0 <= i < size]):
            shown = "is endless" if size is None else f"has languages 0 to {size - 1}, not {bad[0]}"
            raise InputError(f"the {split} split {shown}")
        return LegalNext([self.language(split, index) for index in indices])

    def samples(self, split: Split, count: int) -> Iterator[Sample]:
        """The first languages of a split with their texts, as `data.file` reads them; an endless one's first, too."""
        size = self.sizes[split]
        stored = self.stored(split) if size is not None else self._draw(self._train_numbers(0, count, 0))
        for i in range(min(count, len(stored))):
            yield Sample(stored.sequences.text(i), stored.automata.language(i).canonical(), split)

    def _draw(self, numbers: Tensor) -> Stored:
        """The languages and sequences of some candidates, block by block."""
        parts = []
        for block in numbers.split(max(1, min(BLOCK, TOKENS // self.bounds.longest))):
            automata = draw_automata(self.bounds, self.seed, block)
            parts.append((automata, draw_sequences(automata, self.bounds, self.seed, block)))
        width = max(sequences.ids.size(1) for _, sequences in parts)
        return Stored(
            Automata(torch.cat([a.edges for a, _ in parts], 2), torch.cat([a.degree for a, _ in parts], 1)),
            Sequences(
                torch.cat([widen(s.ids, width) for _, s in parts]),
                torch.cat([widen(s.state, width) for _, s in parts]),
                torch.cat([s.length for _, s in parts]),
            ),
            numbers,
        )

    def _canonical(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Canonical forms and split codes of some candidates."""
        table = canonical(draw_automata(self.bounds, self.seed, numbers))
        return table, split_code(language_hash(table, self.bounds.degree_max))

    def _first_distinct(self, wanted: dict[str, int]) -> dict[str, Tensor]:
        """The numbers of the first distinct candidates of each split. InputError if the bounds allow too few."""
        found: dict[str, list[int]] = {name: [] for name in wanted}
        seen: set[bytes] = set()
        start, fruitless = 0, 0
        while any(len(found[name]) < count for name, count in wanted.items()):
            numbers = torch.arange(start, start + BLOCK)
            start += BLOCK
            table, code = self._canonical(numbers)
            before = sum(map(len, found.values()))
            for name, count in wanted.items():
                for row in (code == CODES[name]).nonzero()[:, 0].tolist():
                    form = table[row].numpy().tobytes()
                    if len(found[name]) < count and form not in seen:
                        seen.add(form)
                        found[name].append(int(numbers[row]))
            fruitless = fruitless + 1 if sum(map(len, found.values())) == before else 0
            if fruitless == 32:
                name = next(name for name, count in wanted.items() if len(found[name]) < count)
                option = "languages" if name == "train" else "held_out"
                raise InputError(
                    f"the bounds of data allow only {len(found[name])} distinct languages in the {name} split, "
                    f"of {wanted[name]} asked for",
                    hint=f"lower data.{option} or widen the bounds",
                )
        return {name: torch.tensor(numbers) for name, numbers in found.items() if numbers}

    def _stream(self, k: int, batch_size: int, seed: int | None) -> tuple[Stored, int, int, int | None]:
        """The part of the endless stream that holds its k-th batch, and the batch's place, size and seed in there."""
        batches = -(-1024 // batch_size)
        window, position = divmod(k, batches)
        key = (seed or 0, window, batch_size)
        if self._window is None or self._window[0] != key:
            size = batches * batch_size
            self._window = key, self._draw(self._train_numbers(window * size, size, seed or 0))
        return self._window[1], position, batches * batch_size, None if seed is None else seed + window

    def _train_numbers(self, start: int, count: int, seed: int) -> Tensor:
        """The candidates at some places of the endless stream of a seed.

        Place r first tries candidate r (of the 2^32 that belong to the seed), and moves on to others as long as the
        one that it has belongs to a held-out split: so that a place can be asked for without those before it. The
        others are negative numbers, which belong to no seed.
        """
        numbers = torch.arange(start, start + count) | (seed & 0x7FFFFFFF) << 32
        pending = torch.arange(count)
        for attempt in range(64):
            if attempt:
                numbers[pending] = splitmix64(numbers[pending]) | -(1 << 63)
            codes = torch.cat([self._canonical(block)[1] for block in numbers[pending].split(BLOCK)])
            pending = pending[codes != CODES["train"]]
            if not pending.numel():
                return numbers
        raise InputError("the bounds of data allow hardly any training language", hint="widen the bounds")


def widen(rows: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.size(1)))


def as_batch(stored: Stored, index: Tensor) -> Batch:
    """Some rows as a batch: what is read, what follows, what is known, padded to the longest of them."""
    sequences = stored.sequences
    length = sequences.length[index] - 1
    width = int(length.max())
    ids = sequences.ids.index_select(0, index)[:, : width + 1].long()
    valid = torch.arange(width) < length[:, None]
    targets = ids[:, 1:].masked_fill(~valid | (ids[:, 1:] == SEPARATOR_ID), IGNORED)
    return Batch(
        tokens=ids[:, :-1] * valid,
        targets=targets,
        valid=valid,
        group=stored.number[index],
        extra={
            "state": sequences.state.index_select(0, index)[:, :width].long(),
            "next_probability": stored.next_probability.index_select(0, index),
        },
    )


def from_samples(samples: list[tuple[int, Sample]]) -> Stored:
    """The languages and texts of a file as tensors."""
    n = max(len(sample.language.delta) for _, sample in samples)
    d = max(len(edges) for _, sample in samples for edges in sample.language.delta.values())
    width = max(len(sample.text) for _, sample in samples)
    edges = torch.full((d, n, len(samples)), NO_EDGE)
    ids = torch.zeros(len(samples), width, dtype=torch.uint8)
    state = torch.zeros(len(samples), width, dtype=torch.int16)
    for row, (_, sample) in enumerate(samples):
        language = sample.language
        # The start becomes state 0, as everywhere here.
        place = {name: i for i, name in enumerate(sorted(language.delta, key=lambda s: (s != language.start, s)))}
        for name, leads in language.delta.items():
            for e, (symbol, target) in enumerate(sorted(leads.items())):
                edges[e, place[name], row] = LETTERS.index(symbol) << SHIFT | place[target]
        passed = [
            place[s]
            for word in sample.text.split(SEPARATOR)
            for s in [*(language.states_of(word) or ()), language.start]
        ]
        ids[row, : len(sample.text)] = torch.tensor([VOCABULARY.index(symbol) for symbol in sample.text])
        state[row, : len(sample.text)] = torch.tensor(passed[:-1])
    automata = Automata(edges, (edges != NO_EDGE).sum(0))
    first: dict[bytes, int] = {}
    forms = [form.tobytes() for form in canonical(automata).numpy()]
    return Stored(
        automata,
        Sequences(ids, state, torch.tensor([len(sample.text) for _, sample in samples])),
        torch.tensor([first.setdefault(form, number) for form, (number, _) in zip(forms, samples, strict=True)]),
    )
