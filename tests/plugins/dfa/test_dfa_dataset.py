"""The dataset: splits, order, batches, what the oracle knows, files, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from icll_zoo import SPLITS, Batch, InputError, Split, create_dataset, passes
from icll_zoo_dfa.automata import draw_automata
from icll_zoo_dfa.bounds import LONGEST, Bounds
from icll_zoo_dfa.dataset import DfaLanguages
from icll_zoo_dfa.language import VOCABULARY
from icll_zoo_dfa.minimal import canonical, language_hash, split_code

TINY = {"states_min": 2, "states_max": 3, "symbols_min": 1, "symbols_max": 2, "degree_max": 1}


def forms(dataset: DfaLanguages, split: Split) -> list[bytes]:
    return [row.tobytes() for row in canonical(dataset.stored(split).automata).numpy()]


def assert_same(found: Batch, wanted: Batch) -> None:
    for name in ("tokens", "targets", "valid", "group"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    assert found.extra.keys() == wanted.extra.keys()
    for name, tensor in found.extra.items():
        assert torch.equal(tensor, wanted.extra[name])


def a_pass(dataset: DfaLanguages, split: Split, batch_size: int, seed: int | None, epoch: int = 0) -> list[Batch]:
    size = dataset.size(split)
    assert size is not None
    count = passes(size, batch_size)
    return [dataset.batch(split, epoch * count + k, batch_size, seed) for k in range(count)]


def test_presets_have_the_published_and_the_stated_bounds() -> None:
    assert Bounds() == Bounds(4, 12, 4, 18, 1, 3, 10, 19, 1, 49)
    plain, stated = create_dataset("dfa"), create_dataset("dfa-stated", languages=3000)
    assert isinstance(plain, DfaLanguages)
    assert isinstance(stated, DfaLanguages)
    assert plain.bounds == Bounds()
    assert (plain.vocabulary, plain.pad_id, plain.separator_id) == (VOCABULARY, 0, 19)
    assert "".join(VOCABULARY) == ".abcdefghijklmnopqr|" == "".join(sorted(VOCABULARY))
    assert stated.bounds == Bounds(4, 12, 4, 18, 1, 4, 10, 20, 1, 50)
    stored = stated.stored("train")
    assert stored.automata.degree.max() == 4
    words = [stored.sequences.text(i).split("|") for i in range(3000)]
    assert max(map(len, words)) == 20
    assert max(len(word) for row in words for word in row) == 50
    assert [plain.size(split) for split in SPLITS] == [None, 500, 500]
    assert [stated.size(split) for split in SPLITS] == [3000, 500, 500]


@pytest.mark.parametrize("bounds", [{}, {"degree_max": 4}, TINY])
def test_splits_share_no_language(bounds: dict[str, int]) -> None:
    held_out = 15 if bounds is TINY else 1000
    dataset = DfaLanguages(**bounds, languages=10 * held_out, held_out=held_out, seed=1)
    found = {split: forms(dataset, split) for split in SPLITS}
    for split in SPLITS:
        assert len(found[split]) == dataset.size(split)
        assert len(set(found[split])) == len(found[split])
    together = set().union(*found.values())
    assert len(together) == 12 * held_out
    endless = DfaLanguages(**bounds, held_out=held_out, seed=1)
    held = set(found["test"]) | set(found["validation"])
    d = endless.bounds.degree_max
    for seed in (0, 1, 2**24, 2**31 - 1):
        for start in (0, 5000, 2**31):
            table = canonical(draw_automata(endless.bounds, 1, endless._train_numbers(start, 2048, seed)))
            assert not held & {row.tobytes() for row in table.numpy()}
            assert (split_code(language_hash(table, d)) == 2).all()
    if bounds is TINY:  # nearly everything there is was seen: the test means something
        assert len(set(found["train"]) & {row.tobytes() for row in table.numpy()}) > 50


@pytest.mark.parametrize("bounds", [{}, TINY])
def test_a_fixed_set_is_the_first_distinct_candidates(bounds: dict[str, int]) -> None:
    wanted = {"train": 80, "validation": 8, "test": 8}
    dataset = DfaLanguages(**bounds, languages=80, held_out=8, seed=2)
    expected: dict[str, list[int]] = {split: [] for split in wanted}
    seen: list[object] = []
    number = 0
    while any(len(expected[split]) < count for split, count in wanted.items()):
        drawn = draw_automata(dataset.bounds, 2, torch.tensor([number]))
        code = split_code(language_hash(canonical(drawn), dataset.bounds.degree_max))
        split = ("test", "validation", "train")[int(code)]
        plain = drawn.language(0).canonical()
        if plain not in seen:
            seen.append(plain)
            if len(expected[split]) < wanted[split]:
                expected[split].append(number)
        number += 1
    for split in SPLITS:
        assert dataset.stored(split).number.tolist() == expected[split]
        assert dataset.language(split, 5) == dataset.stored(split).automata.language(5).canonical()
    if bounds is TINY:
        assert number > 300  # most candidates were languages that had been seen


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    few = DfaLanguages(languages=100, held_out=30, seed=3)
    more = DfaLanguages(languages=1000, held_out=200, seed=3)
    endless = DfaLanguages(held_out=300, seed=3)
    for split in SPLITS:
        a, b = few.stored(split), more.stored(split)
        assert torch.equal(b.number[: len(a)], a.number)
        assert [a.sequences.text(i) for i in range(len(a))] == [b.sequences.text(i) for i in range(len(a))]
    assert torch.equal(endless.stored("test").number[:200], more.stored("test").number)
    assert not torch.equal(DfaLanguages(held_out=30, seed=4).stored("test").number, few.stored("test").number)


QUERIES: list[tuple[Split, int, int, int | None]] = [
    ("train", 0, 16, 5),
    ("train", 7, 16, 5),
    ("train", 9, 24, 5),
    ("train", 100, 16, 5),
    ("train", 7, 16, 6),
    ("train", 7, 8, 5),
    ("test", 0, 16, None),
    ("test", 2, 16, None),
    ("validation", 3, 8, 5),
    ("train", 10**6, 64, 2**31 - 1),
]


@pytest.mark.parametrize("languages", [None, 200])
def test_a_batch_is_a_function_of_its_index(languages: int | None) -> None:
    options: dict[str, Any] = {"languages": languages, "held_out": 40, "seed": 6}
    alone = [DfaLanguages(**options).batch(*query) for query in QUERIES]
    used = DfaLanguages(**options)
    for order in (range(len(QUERIES)), reversed(range(len(QUERIES)))):
        for i in order:
            assert_same(used.batch(*QUERIES[i]), alone[i])
    digests = [(batch.tokens.shape, batch.tokens.numpy().tobytes()) for batch in alone]
    assert len(set(digests)) == len(QUERIES)


def test_the_endless_stream_is_all_its_places_each_once() -> None:
    dataset = DfaLanguages(seed=7)
    for seed in (0, 3):
        seen = torch.cat([dataset.batch("train", k, 24, seed).group for k in range(2 * 43)])
        assert torch.equal(seen.sort().values, dataset._train_numbers(0, 2 * 43 * 24, seed).sort().values)
    assert len(seen.unique()) == len(seen)
    # The order of storage is that of the places, and what `samples` gives.
    stored = torch.cat([dataset.batch("train", k, 24, None).group for k in range(43)])
    assert torch.equal(stored, dataset._train_numbers(0, 43 * 24, 0))
    first = dataset.batch("train", 0, 24, None)
    for row, sample in zip(first.tokens, dataset.samples("train", 24), strict=True):
        assert "".join(VOCABULARY[i] for i in row[row > 0].tolist()) == sample.text[:-1]
        assert sample.split == "train"


def test_seeds_of_an_endless_stream_have_languages_of_their_own() -> None:
    dataset = DfaLanguages()
    numbers = [dataset._train_numbers(0, 3000, seed) for seed in (0, 1, 2**24, 2**24 + 1, 2**31 - 1)]
    assert len(torch.cat(numbers).unique()) == 5 * 3000
    # Most places keep their own candidate; one in eight belongs to a held-out split.
    own = (numbers[0] == torch.arange(3000)).double().mean()
    assert 0.85 < own < 0.90


@pytest.mark.parametrize("buckets", [1, 16])
def test_every_sequence_once_an_epoch(buckets: int) -> None:
    dataset = DfaLanguages(languages=205, held_out=10, buckets=buckets)
    orders = []
    for epoch in range(3):
        batches = a_pass(dataset, "train", 16, 1, epoch)
        order = torch.cat([batch.group for batch in batches])
        assert torch.equal(order.sort().values, dataset.stored("train").number.sort().values)
        assert sorted(map(len, batches)) == [13] + [16] * 12
        orders.append(order)
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])
    stored = torch.cat([batch.group for batch in a_pass(dataset, "train", 16, None)])
    assert torch.equal(stored, dataset.stored("train").number)


def waste(batches: list[Batch]) -> float:
    return 1 - sum(int(b.valid.sum()) for b in batches) / sum(b.valid.numel() for b in batches)


def test_buckets_pad_little() -> None:
    fixed, endless = DfaLanguages(languages=2000), DfaLanguages()
    assert waste(a_pass(fixed, "train", 32, 0)) < 0.06
    assert waste([endless.batch("train", k, 16, 0) for k in range(128)]) < 0.06
    assert waste(a_pass(DfaLanguages(languages=2000, buckets=1), "train", 32, 0)) > 0.25


@pytest.mark.parametrize("split", SPLITS)
def test_what_a_batch_holds(split: Split) -> None:
    dataset = DfaLanguages(languages=60, held_out=40, seed=8)
    stored = dataset.stored(split)
    rows = {int(number): i for i, number in enumerate(stored.number)}
    for batch in a_pass(dataset, split, 16, 2):
        truth = dataset.oracle(batch)
        assert batch.tokens.shape == batch.targets.shape == batch.valid.shape
        assert truth.shape == (*batch.tokens.shape, 20)
        assert batch.valid.sum(1).max() == batch.tokens.size(1) <= dataset.max_length
        for i in range(len(batch)):
            index = rows[int(batch.group[i])]
            text, language = stored.sequences.text(index), dataset.language(split, index)
            length = len(text) - 1
            padding = batch.tokens.size(1) - length
            ids = [VOCABULARY.index(symbol) for symbol in text]
            assert batch.tokens[i].tolist() == ids[:-1] + [0] * padding
            assert batch.targets[i].tolist() == [-100 if t == 19 else t for t in ids[1:]] + [-100] * padding
            assert batch.valid[i].tolist() == [True] * length + [False] * padding
            for t in range(length):
                state = language.start
                for symbol in text[: t + 1].rpartition("|")[2]:
                    state = language.delta[state][symbol]
                row = [0.0] * 20
                for symbol in language.delta[state]:
                    row[VOCABULARY.index(symbol)] = 1 / len(language.delta[state])
                assert truth[i, t].tolist() == pytest.approx(row, abs=1e-7)
            assert not truth[i, length:].any()


def test_the_oracle_is_a_distribution_over_what_may_follow() -> None:
    dataset = DfaLanguages(held_out=300)
    for batch in a_pass(dataset, "test", 64, None):
        truth = dataset.oracle(batch)
        total = truth.sum(-1)
        assert (total[batch.valid] - 1).abs().max() < 1e-6
        assert (total[~batch.valid] == 0).all()
        assert (truth[..., [0, 19]] == 0).all()
        # Uniform: every legal token has the row's largest probability.
        assert ((truth == truth.amax(-1, keepdim=True)) | (truth == 0)).all()
        target = truth.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
        assert (target[batch.targets >= 0] > 0).all()


def test_the_oracle_follows_a_batch_that_is_cut() -> None:
    dataset = DfaLanguages(held_out=20)
    batch = dataset.batch("test", 0, 20, None)
    assert torch.equal(dataset.oracle(batch.first(7)), dataset.oracle(batch)[:7])
    assert torch.equal(dataset.oracle(batch.to("cpu")), dataset.oracle(batch))


def test_the_longest_sequence_fits() -> None:
    dataset = DfaLanguages(strings_min=3, strings_max=3, length_min=5, length_max=5, held_out=4)
    assert dataset.max_length == 3 * 5 + 2 - 1
    assert dataset.batch("test", 0, 4, None).tokens.shape == (4, 16)
    assert DfaLanguages().max_length == 19 * 50 - 2


def test_blocks_of_long_sequences_are_smaller_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DfaLanguages(held_out=100).stored("test")
    monkeypatch.setattr("icll_zoo_dfa.dataset.TOKENS", 30_000)  # 31 sequences of at most 949 tokens
    parts = DfaLanguages(held_out=100).stored("test")
    assert torch.equal(parts.sequences.ids, whole.sequences.ids)
    assert torch.equal(parts.sequences.state, whole.sequences.state)
    assert torch.equal(parts.automata.edges, whole.automata.edges)
    long = DfaLanguages(strings_min=1, strings_max=2, length_min=3000, length_max=5000, held_out=2)
    assert long.batch("test", 0, 2, None).tokens.size(1) >= 2999


# Sets of languages on which published results rest: another digest means other data under the same options. Raise the
# version of the dataset (`register(..., version=2)`) with any change here.
FIRST_TEST_LANGUAGES = "dbb7370c3b65f2471e80179566d5f647554d8c39bbf4d4db8fe7a82c87f8ed98"
FIRST_TRAINING_LANGUAGES = "77162b5859d293e5527fc5f0013b1547c7fb4c7db455bb58b5f4bf682a84fa13"
FIRST_OF_THE_STREAM = "3354fc7c82c3114526453f000d78fb3356f066c0a9e852624a133067db96c2b8"


@pytest.mark.parametrize(
    ("split", "options", "wanted"),
    [
        ("test", {"held_out": 1000}, FIRST_TEST_LANGUAGES),
        ("train", {"languages": 1000}, FIRST_TRAINING_LANGUAGES),
        ("train", {}, FIRST_OF_THE_STREAM),
    ],
)
def test_the_first_thousand_stay_what_they_are(split: Split, options: dict[str, int], wanted: str) -> None:
    samples = DfaLanguages(**options).samples(split, 1000)
    lines = [json.dumps(sample.language.to_json(sample.text)) for sample in samples]
    assert len(lines) == 1000
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == wanted


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    drawn = DfaLanguages(languages=50, held_out=20, seed=9)
    file = tmp_path / "languages.jsonl"
    samples = [sample for split in SPLITS for sample in drawn.samples(split, 50)]
    lines = [json.dumps({**s.language.to_json(s.text), "split": s.split}) for s in samples]
    file.write_text("\n".join([*lines[:3], "", *lines[3:], ""]))
    read = DfaLanguages(file=str(file))
    assert [read.size(split) for split in SPLITS] == [50, 20, 20]
    assert read.max_length == max(len(sample.text) for sample in samples) - 1
    for split in SPLITS:
        a, b = drawn.batch(split, 0, 50, None), read.batch(split, 0, 50, None)
        for name in ("tokens", "targets", "valid"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(drawn.oracle(a), read.oracle(b))
        assert len(b.group.unique()) == len(b)
        assert list(read.samples(split, 100)) == [sample for sample in samples if sample.split == split]
        assert read.language(split, 3) == drawn.language(split, 3)


def test_the_file_of_another_program(tmp_path: Path) -> None:
    """As the issue writes it: any numbers as states, any of them the start, "test" where no split is named."""
    file = tmp_path / "test.jsonl"
    swapped = {"text": "ba|ab", "start": 9, "delta": {"9": {"a": 3, "b": 3}, "3": {"a": 9, "b": 9}}}
    file.write_text(
        '{"text": "ab|ba", "start": 5, "delta": {"0": {"a": 2, "b": 5}, "2": {"a": 0}, "5": {"a": 0, "b": 2}}}\n'
        '{"delta": {"1": {"r": 1}}, "text": "rrr", "start": 1}\n'
        '{"text": "ab|ba", "start": 5, "delta": {"5": {"b": 5, "a": 5}}}\n' + json.dumps(swapped) + "\n"
    )
    dataset = DfaLanguages(file=str(file))
    assert [dataset.size(split) for split in SPLITS] == [0, 0, 4]
    batch = dataset.batch("test", 0, 4, None)
    truth = dataset.oracle(batch)
    a, b, r = (VOCABULARY.index(symbol) for symbol in "abr")
    legal = [[set(row.nonzero()[:, 0].tolist()) for row in rows] for rows in truth]
    assert legal[0] == [{a, b}, {a, b}, {a, b}, {a}]
    assert legal[1] == [{r}, {r}, set(), set()]
    assert legal[2] == legal[3] == [{a, b}] * 4
    # The last two are one language under two names of its states: one group of the bootstrap.
    assert batch.group.tolist() == [0, 1, 2, 2]
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=f"the {split} split is empty"):
            dataset.batch(split, 0, 4, None)
    assert torch.equal(dataset.batch("test", 0, 4, None).tokens, batch.tokens)


@pytest.mark.parametrize("options", [{"languages": 10}, {"degree_max": 4}])
def test_a_file_goes_with_no_other_choice_of_languages(tmp_path: Path, options: dict[str, int]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "aa", "start": 0, "delta": {"0": {"a": 0}}}\n')
    with pytest.raises(InputError, match=r"data\.file brings its own languages"):
        DfaLanguages(file=str(file), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"states_min": 13}, "data.states_min=13 is more than data.states_max=12"),
        ({"states_min": 1, "degree_min": 1}, "data.states_min: 1 is less than 2"),
        ({"states_max": 64}, "data.states_max: 64 is more than 63"),
        ({"symbols_max": 19}, "data.symbols_max: 19 is more than 18"),
        ({"degree_min": 0}, "data.degree_min: 0 is less than 1"),
        ({"degree_min": 4, "degree_max": 4}, "data.degree_min=4 edges to different states"),
        ({"degree_max": 12}, "data.degree_max=12 is never reached"),
        ({"strings_min": 20}, "data.strings_min=20 is more than data.strings_max=19"),
        ({"strings_max": 40000}, "data.strings_max: 40000 is more than 32768"),
        ({"strings_min": 1}, "one string of length 1 leaves nothing to predict"),
        ({"length_min": -1}, "data.length_min: -1 is less than 1"),
        ({"length_max": 32768}, f"are 622610 tokens, more than {LONGEST}"),
        ({"languages": 0}, "data.languages: 0 is less than 1"),
        ({"held_out": 0}, "data.held_out: 0 is less than 1"),
        ({"buckets": 0}, "data.buckets: 0 is less than 1"),
        ({"seed": -1}, "data.seed: -1 is not in"),
        ({"seed": 2**63}, "is not in [0, 2^63)"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as error:
        DfaLanguages(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_faults_of_the_bounds_are_told() -> None:
    with pytest.raises(InputError, match=r"\(and 2 more\)") as error:
        DfaLanguages(states_max=64, symbols_max=19, length_min=50)
    assert len(error.value.faults) == 3


def test_more_languages_than_there_are_is_refused() -> None:
    letters = {**TINY, "states_max": 2, "symbols_max": 1}
    # One symbol for ever: 18 languages, of which 17 are for training, one for validation and none for the test.
    table = torch.full((18, 2), -1, dtype=torch.int16)
    table[:, 0] = torch.arange(18) << 6
    assert split_code(language_hash(table, 1)).bincount().tolist() == [0, 1, 17]
    with pytest.raises(InputError, match="allow only 0 distinct languages in the test split, of 1 asked for") as error:
        DfaLanguages(**letters, held_out=1).stored("test")
    assert "lower data.held_out" in str(error.value)
    with pytest.raises(InputError, match=r"allow only \d+ distinct languages in the train split") as error:
        DfaLanguages(**TINY, languages=10_000, held_out=5).stored("train")
    assert "lower data.languages" in str(error.value)
    with pytest.raises(InputError, match="the train split is endless"):
        DfaLanguages().language("train", 0)
    with pytest.raises(IndexError, match="single pass of 2 batches"):
        DfaLanguages(held_out=10).batch("test", 2, 5, None)


def test_the_constructor_takes_every_bound() -> None:
    assert {field.name for field in fields(Bounds)} < set(DfaLanguages.__init__.__annotations__)
    dataset = DfaLanguages(5, 6, 7, 8, 2, 3, 4, 5, 6, 7)
    assert dataset.bounds == Bounds(5, 6, 7, 8, 2, 3, 4, 5, 6, 7)
