"""Rows out of shards: every token a target once, the same batches whatever the shards, the ranks and the restarts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from text_cases import prepare_here, some_texts, train_byte_level, write_jsonl
from text_cases import rows_of as rows_of_texts

from icll_zoo import IGNORED, Batch, InputError, Run, create_metric, evaluate, load_model, passes, train
from icll_zoo.testing.runner import run_checks
from icll_zoo.zoo import default_zoo
from icll_zoo_slimpajama.dataset import SAMPLE, Text
from icll_zoo_slimpajama.order import permuted, rows_of

SPLIT = {"validation": 0.15, "test": 0.15}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same documents in one shard and in seven, some of which have no document of a held-out split."""
    folder, texts = tmp_path_factory.mktemp("corpora"), some_texts(84, longest=60)
    tokenizer = train_byte_level(folder / "tokenizer.json", texts, 400)
    for name, parts in (("one", 1), ("seven", 7)):
        for i in range(parts):
            each = len(texts) // parts
            write_jsonl(folder / name / f"{i}.jsonl", rows_of_texts(texts[i * each : (i + 1) * each]))
        prepare_here(folder / name, folder / f"{name}-out", tokenizer, **SPLIT)
    return {name: str(folder / f"{name}-out") for name in ("one", "seven")}


def stream_of(folder: str, split: str) -> list[int]:
    paths = sorted((Path(folder) / "shards").glob(f"*/{split}.tokens"))
    return [i for path in paths for i in np.fromfile(path, "<u2").tolist()]


def all_rows(data: Text, split: str, batch_size: int, seed: int | None = None) -> list[Batch]:
    return [data.batch(split, k, batch_size, seed) for k in range(passes(data.size(split), batch_size))]


def cat(batches: list[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


@pytest.mark.parametrize("length", [1, 7, 64, 1000, 10**5])
@pytest.mark.parametrize("split", ["train", "test"])
def test_packed_rows_hold_every_token_but_the_first_once(corpora: dict[str, str], length: int, split: str) -> None:
    for folder in corpora.values():
        data = Text(folder, length, evaluation="packed")
        stream = stream_of(folder, split)
        batches = all_rows(data, split, 5)
        tokens, targets, valid = (cat(batches, name) for name in ("tokens", "targets", "valid"))
        assert targets[valid].tolist() == stream[1:]
        assert tokens[valid].tolist() == stream[:-1]
        assert valid.equal(targets != IGNORED)
        assert (tokens[~valid] == data.pad_id).all()


@pytest.mark.parametrize("length", [1, 7, 64, 1000])
def test_documents_have_rows_of_their_own(corpora: dict[str, str], length: int) -> None:
    """Each token is predicted once, the first from the end of another document; a row is never of two."""
    for folder in corpora.values():
        data = Text(folder, length)
        stream = stream_of(folder, "test")
        batches = all_rows(data, "test", 3)
        targets, valid = cat(batches, "targets"), cat(batches, "valid")
        assert targets[valid].tolist() == stream
        ends = (targets == data.end_id).sum(1)
        assert ends.max() == 1
        assert int(ends.sum()) == stream.count(data.end_id) == len(set(cat(batches, "group").tolist()))
        tokens = cat(batches, "tokens")
        before = [data.end_id, *stream[:-1]]
        assert tokens[valid].tolist() == before
        table = data.streams["test"].table()
        assert sum(float(b.extra["bytes"].sum()) for b in batches) == pytest.approx(table["bytes"].sum(), rel=1e-12)


def test_shards_change_nothing(corpora: dict[str, str]) -> None:
    for length, evaluation in ((16, "packed"), (16, "documents"), (50, "documents")):
        one, seven = (Text(corpora[name], length, evaluation=evaluation, held_out=9) for name in ("one", "seven"))
        for split in ("train", "validation", "test"):
            assert one.size(split) == seven.size(split)
            for k in range(4):
                a, b = one.batch(split, k, 6, 3), seven.batch(split, k, 6, 3)
                assert a.tokens.equal(b.tokens)
                assert a.targets.equal(b.targets)
                assert a.group.equal(b.group)
                assert all(a.extra[name].equal(b.extra[name]) for name in a.extra)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 255, 256, 257, 1000, 70_001])
def test_a_shuffle_is_a_permutation(size: int) -> None:
    for key in (0, 1, -5):
        assert permuted(torch.arange(size), size, key).sort().values.equal(torch.arange(size))


def test_a_shuffle_shuffles() -> None:
    """Where each of 200 places goes, over 400 keys, and which pairs follow each other: as uniform as it should be."""
    keys, size = 400, 200
    orders = torch.stack([permuted(torch.arange(size), size, key) for key in range(keys)])
    for counts, cells in (
        (torch.stack([torch.bincount(orders[:, i], minlength=size) for i in range(size)]), size),
        (torch.bincount((orders[:, :-1] * size + orders[:, 1:]).flatten(), minlength=size * size), None),
    ):
        seen = counts.double()
        if cells is None:  # all ordered pairs of different places
            seen = seen.view(size, size)[~torch.eye(size, dtype=torch.bool)]
        expected = seen.sum() / seen.numel()
        chi, freedom = float(((seen - expected) ** 2 / expected).sum()), seen.numel() - 1
        assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5


def test_an_order_is_of_its_seed_and_epoch_alone() -> None:
    size = 100_000  # more than one window
    epochs = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            whole = rows_of(size, epoch, size, seed)
            epochs[seed, epoch] = whole
            for batch_size in (1, 7, 4096):
                count = passes(size, batch_size)
                for position in (0, 5, count // 2, count - 1):
                    part = rows_of(size, epoch * count + position, batch_size, seed)
                    assert part.equal(whole[position * batch_size : (position + 1) * batch_size])
    orders = list(epochs.values())
    assert all(not a.equal(b) for i, a in enumerate(orders) for b in orders[:i])
    with pytest.raises(IndexError):
        rows_of(10, 2, 5, None)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_sees_the_same_global_batches(corpora: dict[str, str], ranks: int) -> None:
    """Each rank has a reader of its own, begun at a step of its own, and takes every R-th row of the global batch."""
    whole = Text(corpora["seven"], 24)
    for step in (5, 0, 77):
        wanted = whole.batch("train", step, 12, 1)
        parts = [Text(corpora["seven"], 24).batch("train", step, 12, 1)._each(lambda t, r=r: t[r::ranks])
                 for r in range(ranks)]  # fmt: skip
        together = torch.empty_like(wanted.tokens)
        for r, part in enumerate(parts):
            together[r::ranks] = part.tokens
        assert together.equal(wanted.tokens)


def test_what_crosses_a_boundary_may_be_left_out(corpora: dict[str, str]) -> None:
    plain, masked = (Text(corpora["seven"], 40, evaluation="packed", document_mask=on) for on in (False, True))
    for split in ("train", "test"):
        for k in range(3):
            a, b = plain.batch(split, k, 4, 0), masked.batch(split, k, 4, 0)
            assert a.tokens.equal(b.tokens)
            crossing = a.tokens == plain.end_id
            assert b.targets.equal(a.targets.masked_fill(crossing, IGNORED))
            for row, numbers in zip(b.tokens.tolist(), b.extra["document"].tolist(), strict=True):
                number = 0
                for token, found in zip(row, numbers, strict=True):
                    assert found == number
                    number += token == plain.end_id


def test_held_out_documents_are_a_choice_that_stays(corpora: dict[str, str]) -> None:
    groups = {n: set(cat(all_rows(Text(corpora["one"], 30, held_out=n), "test", 4), "group").tolist()) for n in (3, 6)}
    assert groups[3] < groups[6]
    assert {n: len(found) for n, found in groups.items()} == {3: 3, 6: 6}
    packed = Text(corpora["one"], 8, evaluation="packed", held_out=5)
    assert packed.size("test") == 5


def test_intervals_are_over_documents_or_groups(tmp_path: Path) -> None:
    texts = some_texts(60)
    rows = [row for i, text in enumerate(texts) for row in rows_of_texts([text], package=f"p{i % 12}")]
    write_jsonl(tmp_path / "source" / "a.jsonl", rows)
    tokenizer = train_byte_level(tmp_path / "t.json", texts)
    manifest = prepare_here(tmp_path / "source", tmp_path / "out", tokenizer, validation=0.2, test=0.4,
                            group_by="meta.package")  # fmt: skip
    counts = {}
    for interval in ("document", "group"):
        data = Text(str(tmp_path / "out"), 20, interval=interval)
        counts[interval] = len(set(cat(all_rows(data, "test", 16), "group").tolist()))
    assert counts["document"] == manifest["splits"]["test"]["documents"] == 5 * counts["group"]


class Even(torch.nn.Module):
    """The same probability for every token but one, which it never expects."""

    output = "probabilities"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.full((*tokens.shape, self.size), 1 / self.size)


def test_perplexity_and_bits_per_byte_of_a_known_model(corpora: dict[str, str]) -> None:
    """Bits for a byte are those of all tokens over the bytes of all documents, however rows are cut."""
    for evaluation, length in (("documents", 1000), ("documents", 13)):
        data = Text(corpora["seven"], length, evaluation=evaluation)
        names = ["perplexity", "bits-per-byte"]
        size = len(data.vocabulary)
        scores = evaluate(Even(size), data, names, batch_size=5, resamples=200)
        counts = data.corpus.about["splits"]["test"]
        assert scores["perplexity"].value == pytest.approx(size, rel=1e-5)
        bits = np.log2(size) * counts["tokens"] / counts["bytes"]
        assert scores["bits-per-byte"].value == pytest.approx(bits, rel=1e-6)
        assert scores["bits-per-byte"].n == counts["documents"]
        assert scores["bits-per-byte"].low < bits < scores["bits-per-byte"].high


def test_a_model_trains_on_it_and_resumes(tmp_path: Path) -> None:
    """The sample through the trainer, at once and in two parts: the same weights and the same scores."""
    words = {
        "architecture": "transformer",
        "dataset": "text",
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2},
        "data": {"folder": str(SAMPLE), "length": 24, "held_out": 4},
        "metrics": ["perplexity", "bits-per-byte", "in-context-2gram-loss"],
        "steps": 6,
        "train": {"batch_size": 4, "checkpoint_every": 3, "validate_every": 3, "device": "cpu", "threads": 1},
    }
    results = [train(Run.parse({**words, "output": str(tmp_path / name)}), quiet=True) for name in ("one", "two")]
    folder = tmp_path / "two"
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "step-6")
    results.append(train(Run.parse({**words, "output": str(folder)}), quiet=True))
    assert results[0]["metrics"] == results[1]["metrics"] == results[2]["metrics"]
    assert 1 < results[0]["metrics"]["validation_perplexity"] < 400
    model = load_model(f"local-dir:{folder / 'model'}")
    scores = evaluate(model, Text(str(SAMPLE), 24), ["perplexity", "bits-per-byte"], resamples=100)
    assert scores["perplexity"].n == 14
    assert scores["perplexity"].low < scores["perplexity"].value < scores["perplexity"].high


def test_it_passes_the_kit() -> None:
    report = run_checks(default_zoo(), "text")
    assert report.ok, [outcome.reason for outcome in report.failures]
    applied = {outcome.check for outcome in report.outcomes if outcome.status == "passed"}
    assert len(applied) == len(report.outcomes) - 2  # an oracle is nobody's


def test_the_sample_is_what_the_tokenizer_makes() -> None:
    data = Text(str(SAMPLE), 32)
    words = data.vocabulary
    row = data.batch("test", 0, 1, None)
    text = "".join(words[i] for i in row.tokens[row.valid].tolist()).replace("Ġ", " ")
    assert text.startswith("<|endoftext|>The ")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"folder": ""}, "data.folder is not given"),
        ({"folder": "nowhere"}, "no manifest of a corpus"),
        ({"length": 0}, "data.length is less than 1"),
        ({"held_out": 0}, "data.held_out is less than 1"),
        ({"manifest": "00"}, "the manifest of .* has sha256"),
    ],
)
def test_bad_options_are_refused(options: dict, what: str) -> None:
    with pytest.raises(InputError, match=what):
        Text(**{"folder": str(SAMPLE), **options})


def test_an_unfinished_or_damaged_corpus_is_refused(tmp_path: Path) -> None:
    texts = some_texts(20)
    write_jsonl(tmp_path / "source" / "a.jsonl", rows_of_texts(texts))
    output, tokenizer = tmp_path / "out", train_byte_level(tmp_path / "t.json", texts)
    prepare_here(tmp_path / "source", output, tokenizer, **SPLIT)
    path = output / "shards" / "00000" / "train.tokens"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(InputError, match="--verify"):
        Text(str(output))
    path.write_bytes(whole)
    Text(str(output))
    lines = (output / "shards.jsonl").read_bytes()
    (output / "shards.jsonl").write_bytes(lines.replace(b"0", b"1"))
    with pytest.raises(InputError, match="not the file that the manifest names"):
        Text(str(output))
    (output / "shards.jsonl").write_bytes(lines)
    (output / "manifest.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        Text(str(output))


def test_metrics_are_there() -> None:
    assert create_metric("bits-per-byte").direction == "lower"
