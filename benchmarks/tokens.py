"""Tokenizing text and reading token shards, against the tokenizer's own batches and against nanoGPT's reader.

    python benchmarks/tokens.py [--json] [FOLDER]

The text is the Python sources and documentation below FOLDER, by default those of the standard library. Both sides run
on one thread, and the ids of both tokenizers and the rows of both readers are compared before anything is timed.
The last rows read shards in the ways that others do; nanoGPT's `get_batch` is written here as it stands there
(https://github.com/karpathy/nanoGPT, train.py): a map opened for each batch and a conversion for each row, and rows
drawn with replacement.
"""

from __future__ import annotations

import os
import random
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
import torch
from side_by_side import compare, report

from icll_zoo_slimpajama import layout, prepare
from icll_zoo_slimpajama.dataset import Text
from icll_zoo_slimpajama.encoding import Encoder

MEGABYTES = 3
LENGTH, ROWS = 1024, 64


def some_texts(folder: Path) -> list[str]:
    """Files in an order of their own, so many megabytes of them."""
    paths = sorted(path for pattern in ("*.py", "*.rst", "*.txt") for path in folder.rglob(pattern))
    random.Random(0).shuffle(paths)
    found, size = [], 0
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text:
            found.append(text)
            size += len(text)
        if size > MEGABYTES * 2**20:
            break
    return found


def train_tokenizer(path: Path, texts: list[str]) -> Path:
    """A byte-level BPE of 32,000 tokens on other texts than those that are timed."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<|endoftext|>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path


def make_corpus(folder: Path, tokenizer: Path, texts: list[str], files: int) -> Text:
    """The texts, eight times over, as a corpus of some shards."""
    import json

    source, output = folder / "source", folder / f"out-{files}"
    for i in range(files):
        path = source / str(files) / f"{i}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (texts * 8)[i::files]))
    encoder = Encoder(tokenizer)
    settings = prepare.Settings(layout.sha256_of(tokenizer), encoder.end, encoder.pad, 0.0, 0.0, duplicates=True)
    output.mkdir()
    prepare.begin(source / str(files), output, tokenizer, encoder, settings)
    for index in range(files):
        prepare.scan_file(output, index)
    prepare.find_duplicates(output)
    for index in range(files):
        prepare.tokenize_file(output, index, encoder)
    prepare.finish(output)
    return Text(str(output), LENGTH)


def nanogpt_batch(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    data = np.memmap(path, dtype=np.uint16, mode="r")
    ix = torch.randint(len(data) - LENGTH, (ROWS,))
    x = torch.stack([torch.from_numpy((data[i : i + LENGTH]).astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy((data[i + 1 : i + 1 + LENGTH]).astype(np.int64)) for i in ix])
    return x, y


def reading(data: Text, files: int) -> dict[str, Any]:
    """The rows about one corpus."""
    stream = data.streams["train"]
    path, shards = stream.paths[0], "one shard" if files == 1 else f"{files} shards"
    whole = np.fromfile(path, "<u2")
    rng = np.random.default_rng(0)

    def drawn() -> np.ndarray:
        return rng.integers(0, len(whole) - LENGTH - 1, ROWS)

    starts = drawn()
    windows = stream.windows(starts, LENGTH + 1)
    assert all((windows[i].numpy() == whole[s : s + LENGTH + 1]).all() for i, s in enumerate(starts))
    steps = iter(range(10**9))
    found = {}
    if files == 1:
        found["13 reading, one shard: windows"] = compare(
            lambda: stream.windows(drawn(), LENGTH + 1), lambda: nanogpt_batch(path), target=10, calls=20
        )
    found[f"13 reading, {shards}: batches, shuffled, with groups and masks"] = compare(
        lambda: data.batch("train", next(steps), ROWS, 0), lambda: nanogpt_batch(path), calls=20
    )
    return found


def main() -> None:
    torch.set_num_threads(1)
    named = [word for word in sys.argv[1:] if not word.startswith("--")]
    texts = some_texts(Path(named[0]) if named else Path(sysconfig.get_paths()["stdlib"]))
    half = len(texts) // 2
    training, timed = texts[:half], texts[half:]
    rows: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(folder / "tokenizer.json", training)
        encoder = Encoder(tokenizer)
        assert encoder.kind == "byte-level"
        mine, own = encoder.encode(timed), encoder.reference(timed)
        assert all(np.array_equal(a, b) for a, b in zip(mine, own, strict=True))
        count = sum(map(len, own))
        facts["tokens timed, identical"] = count

        def cold() -> None:
            Encoder(tokenizer).encode(timed)

        rows["12 tokenizing, words known, to encode_batch"] = compare(
            lambda: encoder.encode(timed), lambda: encoder.reference(timed), target=3
        )
        rows["12 the same with no word known, loading the tokenizer included"] = compare(
            cold, lambda: encoder.reference(timed), pairs=3, warm_up=False
        )
        rows["12 tokenizing, words known, to encode_batch_fast"] = compare(
            lambda: encoder.encode(timed), lambda: encoder._own(timed), pairs=3
        )
        for files in (1, 8):
            rows |= reading(make_corpus(folder, tokenizer, timed, files), files)
    for label, ratio in rows.items():
        if label.startswith("12"):
            facts[f"{label}: M tokens/s"] = f"{count / ratio.fast_s / 1e6:.2f} to {count / ratio.slow_s / 1e6:.2f}"
        else:
            tokens = ROWS * LENGTH
            facts[f"{label}: M tokens/s"] = f"{tokens / ratio.fast_s / 1e6:.0f} to {tokens / ratio.slow_s / 1e6:.0f}"
    report(rows, facts)


if __name__ == "__main__":
    main()
