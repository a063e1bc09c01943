"""Multi-query associative recall: its sequences, its splits, its truth, and that a model learns it."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

import icll_zoo_tasks
from icll_zoo import IGNORED, InputError, Run, Zoo, evaluate, split_codes, stream_key, train
from icll_zoo.hashing import mix64
from icll_zoo_tasks.mqar import MultiQueryRecall
from icll_zoo_tasks.words import choices, weighted_choices, words

OPTIONS = [
    {},
    {"pairs": 1, "vocab_size": 4},
    {"pairs": 3, "vocab_size": 12, "length": 40},
    {"pairs": 4, "vocab_size": 20, "queries": 11, "length": 44},
    {"pairs": 5, "vocab_size": 30, "queries": 2},
]


def whole(dataset, batch):
    """The full sequences as lists of texts: the last token is a target only, or a blank."""
    last = batch.targets[:, -1:]
    rows = torch.cat([batch.tokens, torch.where(last == IGNORED, 1, last)], 1)
    return [[dataset.vocabulary[i] for i in row] for row in rows.tolist()]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_sequence_is_pairs_and_then_queries_with_the_same_values(options):
    dataset = MultiQueryRecall(held_out=3, **options)
    pairs, queries = dataset.pairs, dataset.queries
    batch = dataset.batch("train", 0, 50, 1)
    assert batch.tokens.shape == batch.targets.shape == (50, dataset.length - 1)
    assert batch.valid.all()
    for row, targets in zip(whole(dataset, batch), batch.targets.tolist(), strict=True):
        assert len(row) == dataset.length
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(k[0] == "k" and v[0] == "v" for k, v in zip(keys, values, strict=True))
        value_of = dict(zip(keys, values, strict=True))
        slots = list(zip(row[2 * pairs :: 2], row[2 * pairs + 1 :: 2], strict=True))
        asked = [key for key, _ in slots if key != "_"]
        assert all(answer == value_of.get(key, "_") for key, answer in slots)
        assert len(asked) == queries
        for start in range(0, queries, pairs):  # each round asks for every pair once, if it is whole
            assert len(set(asked[start : start + pairs])) == min(pairs, queries - start)
        # The targets are the answers, at their queries, and the token that follows.
        expected = [IGNORED] * (dataset.length - 1)
        for i in range(2 * pairs, dataset.length, 2):
            if row[i] != "_":
                expected[i] = dataset.vocabulary.index(row[i + 1])
        assert targets == expected


def test_the_default_is_sixteen_pairs_and_a_vocabulary_of_sixty_four():
    dataset = MultiQueryRecall()
    assert len(dataset.vocabulary) == len(set(dataset.vocabulary)) == 64
    assert dataset.batch("train", 0, 2, 0).tokens.shape == (2, 63)
    assert (dataset.batch("train", 0, 2, 0).targets != IGNORED).sum() == 32
    assert [dataset.size(split) for split in ("train", "validation", "test")] == [None, 500, 500]


def test_sequence_i_depends_on_nothing_but_seeds_split_and_i():
    dataset = MultiQueryRecall(held_out=20)
    rows = torch.cat([dataset.batch("train", k, 10, 3).tokens for k in range(6)])
    for batch_size in (1, 15, 60):
        again = MultiQueryRecall(held_out=5)
        k = 60 // batch_size - 1  # the last batch first
        assert torch.equal(again.batch("train", k, batch_size, 3).tokens, rows[-batch_size:])
    far = MultiQueryRecall().batch("train", 5000, 7, 3)
    assert torch.equal(far.group, torch.arange(35_000, 35_007))
    assert torch.equal(MultiQueryRecall().batch("train", 35_003, 1, 3).tokens[0], far.tokens[3])
    held_out = [dataset.batch("test", k, 8, None) for k in range(3)]
    assert [len(batch) for batch in held_out] == [8, 8, 4]
    assert torch.equal(
        torch.cat([b.tokens for b in held_out]),
        MultiQueryRecall(held_out=20)._rows.take("test", 0, 20, None)[0][:, :-1],
    )
    assert torch.equal(
        MultiQueryRecall(held_out=99).batch("test", 0, 20, None).tokens, torch.cat([b.tokens for b in held_out])
    )


def test_seeds_make_different_sequences():
    def first(data_seed, seed, split="train"):
        return MultiQueryRecall(seed=data_seed).batch(split, 0, 1, seed).tokens[0].tolist()

    made = [first(0, 0), first(0, 1), first(1, 0), first(1, 1), first(0, None, "test"), first(0, None, "validation")]
    made += [first(1, None, "test")]
    assert len({tuple(row) for row in made}) == len(made)


@pytest.mark.parametrize("options", [{}, {"pairs": 1, "vocab_size": 34}, {"pairs": 2, "vocab_size": 10}])
def test_no_sequence_is_in_two_splits(options):
    """Also with so few sequences (256 of them, or 288) that chance alone would put the same ones everywhere."""
    dataset = MultiQueryRecall(held_out=200, **options)
    found = {"train": {tuple(r) for r in whole(dataset, dataset.batch("train", 0, 2000, 0))}}
    for split in ("validation", "test"):
        found[split] = {tuple(r) for r in whole(dataset, dataset.batch(split, 0, 200, None))}
    for one, two in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert found[one]
        assert not found[one] & found[two]


def test_a_sixteenth_of_all_sequences_is_held_out_for_each_split():
    ids = torch.stack([choices(words(stream_key(1, torch.arange(16_000)), 40), 40)]).squeeze(0)
    shares = split_codes(ids).bincount(minlength=3) / 16_000
    # Four standard deviations of a share of 1/16 of 16,000 are 0.0077.
    torch.testing.assert_close(shares, torch.tensor([1 / 16, 1 / 16, 14 / 16]), rtol=0, atol=0.0105)


def test_too_few_sequences_for_a_split_is_an_error():
    dataset = MultiQueryRecall(pairs=1, vocab_size=4)  # the only sequence there is
    code = split_codes(torch.tensor([[2, 3, 2, 3]])).item()
    split = "test" if code else "validation"
    with pytest.raises(InputError, match=f"hardly any sequence in the {split} split"):
        dataset.batch(split, 0, 1, None)


# -- randomness --------------------------------------------------------------------------------------------------------


def test_keys_values_and_queries_are_uniform():
    dataset = MultiQueryRecall(pairs=4, vocab_size=18)
    rows = whole(dataset, dataset.batch("train", 0, 8000, 0))
    for place, count in ((0, 8), (1, 8), (6, 8), (7, 8)):
        shares = [n / 8000 for n in Counter(row[place] for row in rows).values()]
        assert len(shares) == count
        assert max(abs(share - 1 / 8) for share in shares) < 4.5 * math.sqrt(1 / 8 * 7 / 8 / 8000)
    for place in (8, 14):  # which pair is asked first, and last
        shares = [n / 8000 for n in Counter(row[:8:2].index(row[place]) for row in rows).values()]
        assert max(abs(share - 1 / 4) for share in shares) < 4.5 * math.sqrt(1 / 4 * 3 / 4 / 8000)
    # Keys in turn are independent but for being different: 56 ordered pairs.
    both = Counter((row[0], row[2]) for row in rows)
    assert len(both) == 56
    assert sum((n - 8000 / 56) ** 2 / (8000 / 56) for n in both.values()) < 101  # chi-squared, 55 degrees, p = 1e-4


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_gaps_follow_the_power_law(power):
    dataset = MultiQueryRecall(pairs=1, vocab_size=34, length=18, power=power)  # one query in eight slots
    batch = dataset.batch("train", 0, 10_000, 0)
    slot = (batch.targets != IGNORED).long().argmax(1) // 2 - 1
    shares = slot.bincount(minlength=8) / len(slot)
    weight = torch.arange(1, 9) ** (power - 1.0)
    torch.testing.assert_close(shares, weight / weight.sum(), rtol=0, atol=4.5 * 0.5 / 100)


def test_weighted_choices_are_one_after_the_other():
    weight = torch.tensor([4.0, 2.0, 1.0, 1.0])
    chosen = weighted_choices(words(stream_key(5, torch.arange(20_000)), 4), weight, 2)
    shares = torch.zeros(4, 4)
    for (i, j), n in Counter(map(tuple, chosen.tolist())).items():
        shares[i, j] = n / 20_000
    expected = weight[:, None] / 8 * weight / (8 - weight)[:, None]
    expected.fill_diagonal_(0)
    torch.testing.assert_close(shares, expected, rtol=0, atol=4.5 * 0.5 / math.sqrt(20_000))


def test_words_are_those_of_splitmix64():
    """The generator's published first words for the seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    mask = (1 << 64) - 1
    assert [word & mask for word in words(torch.tensor([1234567]), 5)[0].tolist()] == known
    assert len(mix64(torch.arange(1000)).unique()) == 1000
    keys = stream_key(torch.arange(30)[:, None], torch.arange(30))
    assert len(keys.unique()) == 900  # (1, 2) is not (2, 1)


# -- the oracle --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_the_oracle_is_a_distribution_that_knows_the_answers(options):
    dataset = MultiQueryRecall(held_out=1, **options)
    batch = dataset.batch("train", 0, 20, 0)
    truth = dataset.oracle(batch)
    assert truth.shape == (20, dataset.length - 1, len(dataset.vocabulary))
    torch.testing.assert_close(truth.sum(-1), torch.ones(20, dataset.length - 1))
    asked = batch.targets != IGNORED
    assert (truth[asked].gather(-1, batch.targets[asked][:, None]) == 1).all()
    following = truth[:, :-1].gather(-1, batch.tokens[:, 1:, None])
    assert (following > 0).all()  # what comes is always possible
    scores = evaluate("oracle", dataset, ["token-accuracy", "cross-entropy", "accuracy"], limit=20, split="train")
    assert scores["token-accuracy"].value == 1.0
    assert scores["cross-entropy"].value == 0.0
    assert scores["accuracy"].value == 1.0


def test_the_oracle_by_hand():
    dataset = MultiQueryRecall(pairs=2, vocab_size=8, queries=3, length=12)
    assert dataset.vocabulary == (".", "_", "k0", "k1", "k2", "v0", "v1", "v2")
    batch = next(b for k in range(100) if (b := dataset.batch("train", k, 1, 0)).targets[0, 6] == IGNORED)
    row = whole(dataset, batch)[0]
    truth = [
        {dataset.vocabulary[i]: round(p, 3) for i, p in enumerate(line) if p}
        for line in dataset.oracle(batch)[0].tolist()
    ]
    even = dict.fromkeys
    assert truth[0] == even({"v0", "v1", "v2"}, 0.333)
    assert truth[1] == even({"k0", "k1", "k2"} - {row[0]}, 0.5)
    assert truth[2] == even({"v0", "v1", "v2"} - {row[1]}, 0.5)
    value_of = {row[0]: row[1], row[2]: row[3]}
    left = set(value_of)
    for i in range(3, 11):
        if row[i + 1] == "_":
            assert truth[i] == {"_": 1.0}
        elif row[i] in value_of:
            assert truth[i] == {value_of[row[i]]: 1.0}
        else:
            assert truth[i] == even(left, round(1 / len(left), 3))
            left = (left - {row[i + 1]}) or set(value_of)


def test_the_oracle_is_calibrated():
    """Over many sequences the mean of the oracle's entropy is the mean of its own cross-entropy: it is no guess."""
    dataset = MultiQueryRecall(pairs=3, vocab_size=12, queries=4)
    batch = dataset.batch("train", 0, 4000, 0)
    truth = dataset.oracle(batch)[:, :-1].double()
    entropy = torch.special.entr(truth).sum(-1)
    nats = -truth.gather(-1, batch.tokens[:, 1:, None])[..., 0].log()
    torch.testing.assert_close(nats.mean(0), entropy.mean(0))  # every kind is uniform, so that both are equal
    # Not only equally many, but equally often: each token that may follow comes with its probability.
    excess = (F.one_hot(batch.tokens[:, 1:], truth.size(-1)) - truth).mean(0)
    spread = (truth * (1 - truth)).mean(0).sqrt() / math.sqrt(len(truth))
    assert (excess.abs() <= 4.8 * spread + 1e-12).all()


@pytest.mark.parametrize(("pairs", "expected"), [(16, 0.2113), (4, 0.5208)])
def test_what_guessing_without_the_keys_is_worth(pairs, expected):
    """The chance of a guess among the values of the sequence that were no answers yet."""
    batch = MultiQueryRecall(pairs=pairs).batch("train", 0, 20, 0)
    size = 64
    count = F.one_hot(batch.tokens, size).cumsum(1)
    unsaid = (count == 1) & (torch.arange(size) >= 33)
    asked = batch.targets != IGNORED
    right = unsaid[asked].gather(-1, batch.targets[asked][:, None])[:, 0] / unsaid[asked].sum(-1)
    assert right.mean().item() == pytest.approx(expected, abs=1e-4)


# -- options, and use --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pairs": 0}, "data.pairs: 0"),
        ({"queries": 0}, "data.queries: 0"),
        ({"held_out": 0}, "data.held_out: 0"),
        ({"vocab_size": 63}, "63 is odd"),
        ({"vocab_size": 32}, "data.vocab_size: 32 has 15 keys, and data.pairs=16"),
        ({"length": 62}, "62 is less than the 64 tokens"),
        ({"length": 65}, "65 is odd"),
        ({"power": 0.0}, "data.power"),
        ({"seed": -1}, "data.seed"),
    ],
)
def test_impossible_options(options, says):
    with pytest.raises(InputError, match=says):
        MultiQueryRecall(**options)


def zoo_with_tasks():
    """The installed plugins and this one, whether it is installed or not."""
    zoo = Zoo.discover()
    zoo.register("dataset", "mqar", MultiQueryRecall, license="Apache-2.0")
    return zoo


def test_the_plugin_names_the_class():
    made = []
    icll_zoo_tasks.register_datasets(lambda *words, **about: made.append((*words, about["license"])))
    assert made[0] == ("mqar", f"{MultiQueryRecall.__module__}:{MultiQueryRecall.__name__}", "Apache-2.0")


def test_a_model_trains_on_it(tmp_path):
    """Two pairs out of four keys: an induction head has it in a few steps."""
    run = Run(
        architecture="ngram-head", dataset="script:mqar", steps=60, metrics=["token-accuracy"], seed=1,
        model={"d_model": 32, "n_layers": 1, "order": 1}, data={"pairs": 2, "vocab_size": 10, "held_out": 50},
        optimizer={"lr": 2e-2}, output=str(tmp_path / "run"),
    )  # fmt: skip
    result = train(run, zoo=zoo_with_tasks(), quiet=True)
    assert result["metrics"]["validation_token-accuracy"] > 0.9


def test_a_bigram_learner_answers_as_the_context_says():
    """The 2-gram learner counts what followed the key: the answer, once per sequence and certain."""
    dataset = MultiQueryRecall(held_out=50)
    zoo = zoo_with_tasks()
    model = zoo.create_model("ngram-2", vocab_size=64)
    scores = evaluate(model, dataset, ["token-accuracy", "cross-entropy"], zoo=zoo)
    assert scores["token-accuracy"].value == 1.0
