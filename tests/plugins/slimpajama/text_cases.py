"""Small corpora in SlimPajama's schema, tokenizers trained on the spot, and the verb in a process of its own."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUBSETS = ("RedPajamaC4", "RedPajamaBook", "RedPajamaArXiv")
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "s", "ra", "lo")]


def some_texts(count: int, seed: int = 0, longest: int = 120) -> list[str]:
    """Different texts of 3 to `longest` words, some with other scripts, code and runs of white space."""
    rng = random.Random(seed)
    weights = [1 / (i + 2) for i in range(len(WORDS))]
    odd = [
        "naïve café",
        "日本語の文",
        "\n\tx = [i**2 for i in range(10)]\n",
        "   ",
        "it's we'll",
        "1234567",
        "</s>",
        "🙂",
    ]
    made = []
    for i in range(count):
        words = rng.choices(WORDS, weights, k=rng.randint(3, longest))
        if i % 3 == 0:
            words.insert(rng.randrange(len(words)), rng.choice(odd))
        made.append(f"{i} " + " ".join(words) + ".")
    return made


def rows_of(texts: Sequence[str], seed: int = 0, **meta: Any) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"text": text, "meta": {"redpajama_set_name": rng.choice(SUBSETS), **meta}} for text in texts]


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """JSON lines, packed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.name.endswith(".zst"):
        import zstandard

        data = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    elif path.name.endswith(".gz"):
        data = gzip.compress(data)
    path.write_bytes(data)
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, write_page_checksum=True)
    return path


def train_byte_level(path: Path, texts: Sequence[str], size: int = 600, pattern: str | None = None) -> Path:
    """A byte-level BPE as GPT-2 has it, or cut by a pattern as Llama 3 has it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        own = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), own])
    tokenizer.pre_tokenizer = own
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path


def train_pieces(path: Path, texts: Sequence[str], size: int = 900) -> Path:
    """A BPE over marks of spaces with bytes to fall back on, that nothing cuts: as Mistral has it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,  # what is rarer than that falls back on bytes
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.replace("\n", " ") for text in texts), trainer)
    about = json.loads(tokenizer.to_str())
    about["pre_tokenizer"] = None
    about["added_tokens"] = [token for token in about["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(about))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.save(str(path))
    return path


def prepare_words(source: Path | str, output: Path, tokenizer: Path, *more: str) -> list[str]:
    code = "from icll_zoo.cli import main; main()"
    words = ["prepare-text", str(source), str(output), "--tokenizer", str(tokenizer), *more]
    return [sys.executable, "-c", code, *words]


def environment() -> dict[str, str]:
    """One thread, and no other plugin's verbs, one of which imports torch."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "ICLL_ZOO_PLUGINS": "slimpajama"}


def prepare(source: Path | str, output: Path, tokenizer: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`icll-zoo prepare-text` in a process of its own."""
    return subprocess.run(
        prepare_words(source, output, tokenizer, *more),
        env=environment(), cwd=output.parent, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def prepare_here(
    source: Path | str,
    output: Path,
    tokenizer: Path,
    *,
    include: Sequence[str] = (),
    keep: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """The same stages in this process, one file after the other: no interpreter to start."""
    from icll_zoo_slimpajama import layout, prepare
    from icll_zoo_slimpajama.encoding import Encoder

    names = {key: settings.pop(key) for key in ("end", "pad") if key in settings}
    encoder = Encoder(tokenizer, **names)
    chosen = prepare.Settings(layout.sha256_of(tokenizer), encoder.end, encoder.pad, **settings)
    output.mkdir(parents=True, exist_ok=True)
    plan = prepare.begin(source, output, tokenizer, encoder, chosen, include)
    numbers = range(len(plan["files"]))
    for index in numbers:
        prepare.scan_file(output, index, keep)
    prepare.find_duplicates(output)
    for index in numbers:
        prepare.tokenize_file(output, index, encoder, keep)
    return prepare.finish(output)


def fingerprint(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a corpus but the logs and the lock."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("logs", "lock")
    }
