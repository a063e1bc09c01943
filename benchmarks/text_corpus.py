"""A corpus of real text that anyone can make again: the sources of installed Python packages.

    python benchmarks/text_corpus.py OUTPUT

OUTPUT gets folders train, validation and test of .jsonl.gz files in SlimPajama's schema, a package a file, a
byte-level BPE tokenizer trained on the training part alone, and packages.json with versions, documents and bytes.
Whole packages are held out. `icll-zoo prepare-text OUTPUT TOKENS --split folder --tokenizer OUTPUT/tokenizer.json`
removes what is there twice, word for word, also across the parts.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PARTS = {
    "train": ["python", "numpy", "pandas", "scipy", "timm", "mypy", "fonttools", "huggingface-hub", "setuptools"],
    "validation": ["matplotlib", "mpmath"],
    "test": ["scikit-learn", "networkx", "nltk", "pytest"],
}
SUFFIXES = {".py", ".pyi", ".rst", ".md", ".txt"}
LARGEST = 200_000  # bytes; what is longer is mostly tables
TOKENS = 8192


def paths_of(package: str) -> Iterator[Path]:
    """The files of a distribution, or of the standard library for "python"."""
    if package == "python":
        root = Path(sysconfig.get_paths()["stdlib"])
        yield from (p for p in root.rglob("*") if not {"site-packages", "dist-packages", "idlelib"} & set(p.parts))
        return
    for file in importlib.metadata.files(package) or []:
        if ".." not in file.parts and not any(part.endswith(".dist-info") for part in file.parts):
            yield Path(str(file.locate()))


def texts_of(package: str) -> Iterator[str]:
    """The readable text files of a package, in the order of their paths."""
    for path in sorted(set(paths_of(package))):
        if path.suffix not in SUFFIXES or not path.is_file() or not 0 < path.stat().st_size <= LARGEST:
            continue
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # tests of encodings
            continue


def train_tokenizer(texts: Iterator[str], path: Path) -> None:
    """A byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def main(output: Path) -> None:
    table = []
    for part, packages in PARTS.items():
        (output / part).mkdir(parents=True, exist_ok=True)
        for package in packages:
            version = platform.python_version() if package == "python" else importlib.metadata.version(package)
            documents = size = 0
            meta = {"redpajama_set_name": "Python", "package": package}
            # No time and no name in the header: the same text gives the same bytes.
            with (
                (output / part / f"{package}.jsonl.gz").open("wb") as raw,
                gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file,
            ):
                for text in texts_of(package):
                    file.write(json.dumps({"text": text, "meta": meta}).encode() + b"\n")
                    documents, size = documents + 1, size + len(text.encode())
            table.append({"part": part, "package": package, "version": version, "documents": documents, "bytes": size})
            print(f"{part:10}  {package:16} {version:10} {documents:6} documents {size / 1e6:8.1f} MB", flush=True)
    (output / "packages.json").write_text(json.dumps(table, indent=2) + "\n")
    train_tokenizer((text for package in PARTS["train"] for text in texts_of(package)), output / "tokenizer.json")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
