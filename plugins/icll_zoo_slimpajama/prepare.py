"""Text files into token shards, in four stages, each of which leaves alone what is done:

    scan         a source file: is it whole, what does it hold, the digest and the split of every document
    duplicates   all scans: which documents are there twice, word for word; the first one stays
    tokenize     a source file into a shard: its ids by split, and a table of its documents
    finish       all shards: the manifest, last of all

What is written depends on the sources and the settings alone, not on how many processes wrote it or how often they
were killed. A stage's work on one file is a function here; `icll_zoo_slimpajama.stages` runs them on many machines.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from icll_zoo import InputError, parse_dataset
from icll_zoo_slimpajama import layout
from icll_zoo_slimpajama.encoding import Encoder
from icll_zoo_slimpajama.fetching import pinned, source_file
from icll_zoo_slimpajama.layout import MANIFEST, PLAN, QUARANTINE, SHARDS, SPLITS, TOKENIZER, VOCABULARY, name_of
from icll_zoo_slimpajama.sources import Damaged, Record, digest, find_sources, records

TRIED = 64
"""Documents of each file on which the fast encoder is compared with the tokenizer itself."""
AT_ONCE = 4 * 2**20
"""Characters encoded at a time."""
PART = 50_000_000
"""Digests compared at a time, 1.7 GB of memory."""


@dataclass(frozen=True)
class Settings:
    """What the result depends on, beside the sources.

    validation, test: the fractions of documents, or of whole groups, held out by a hash of theirs. split: "hash", or
    "folder" where the sources lie in folders called train, validation and test. group_by: a dotted key of the
    records; what has the same value is held out together. duplicates: whether documents may be there twice.
    revision: of the source, where it has one; only written down. On the Hub it is the commit that is read.
    """

    tokenizer_sha256: str
    end: str
    pad: str
    validation: float = 0.01
    test: float = 0.01
    split: str = "hash"
    group_by: str | None = None
    duplicates: bool = False
    revision: str | None = None


def begin(
    source: Path | str,
    output: Path,
    tokenizer: Path,
    encoder: Encoder,
    settings: Settings,
    include: Sequence[str] = (),
) -> dict[str, Any]:
    """Write down what is to be done, or find that the same was begun before; returns the plan.

    source: a folder, or a dataset repository as hf-hub:org/name@revision, of which the plan keeps the commit and the
    hashes: whoever goes on with it asks for neither. include: patterns of the files to take, all if there are none.
    Raises InputError if the folder holds something else.
    """
    faults = [
        (not 0 <= fraction < 1, f"the fraction for {name} is {fraction}, not in [0, 1)")
        for name, fraction in (("validation", settings.validation), ("test", settings.test))
    ]
    faults.append((settings.validation + settings.test >= 1, "nothing is left to train on"))
    if said := [line for wrong, line in faults if wrong]:
        raise InputError(said[0], faults=said)
    path = output / PLAN
    begun = read_plan(output) if path.exists() else None
    if begun is None and output.exists() and any(entry.name not in ("lock", "logs") for entry in output.iterdir()):
        raise InputError(f"{str(output)!r} holds something else", hint="give a folder that is empty or not there")
    if parse_dataset(str(source)) is not None:
        if settings.revision is not None:
            raise InputError("a corpus on the Hub has its revision in its name", hint="hf-hub:org/name@revision")
        name, commit, files = pinned(str(source), include, begun)
        settings = replace(settings, revision=commit)
    else:
        name = str(source)
        files = [
            {"path": file, "bytes": (Path(source) / file).stat().st_size}
            for file in find_sources(Path(source), include)
        ]
    if settings.split == "folder":
        for file in files:
            folder_split(file["path"])
    chosen = {"include": list(include)} if include else {}
    plan = {"schema": layout.SCHEMA, "source": name, **chosen, "files": files, "settings": asdict(settings)}
    written = layout.to_json(plan)
    if begun is not None:
        if path.read_bytes() != written:
            what = next(k for k in ("settings", "source", "include", "files") if begun.get(k) != plan.get(k))
            said = {"source": "another source", "include": "other patterns"}.get(what, f"other {what}")
            raise InputError(f"{str(output)!r} was begun with {said}", hint="give another folder, or remove this one")
        return plan
    for folder in ("scan", "shards", "duplicates"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    layout.write_whole(output / TOKENIZER, tokenizer.read_bytes())
    layout.write_whole(output / VOCABULARY, layout.to_json(vocabulary_of(encoder)))
    layout.write_whole(path, written)
    return plan


def vocabulary_of(encoder: Encoder) -> list[str]:
    """The text of every id; ids that the tokenizer leaves out get a name of their own."""
    words = {number: text for text, number in encoder.tokenizer.get_vocab(with_added_tokens=True).items()}
    words.setdefault(encoder.pad_id, encoder.pad)
    return [words.get(number, f"<unused-{number}>") for number in range(encoder.vocab_size)]


def read_plan(output: Path) -> dict[str, Any]:
    """The plan, which is megabytes for a corpus of many files: read once a process, and not to be changed."""
    about = (output / PLAN).stat()
    return parsed_plan(output / PLAN, (about.st_ino, about.st_mtime_ns, about.st_size))


@lru_cache(maxsize=1)
def parsed_plan(path: Path, stamp: tuple[int, ...]) -> dict[str, Any]:
    return json.loads(path.read_text())


# -- scan --------------------------------------------------------------------------------------------------------------


def scan_file(output: Path, index: int, keep: bool = False) -> None:
    """Read a source file to its end: nothing is believed of one that is damaged anywhere.

    keep: whether a file of the Hub stays on the disk afterwards.
    """
    marker = output / "scan" / f"{name_of(index)}.json"
    if marker.exists():
        return
    plan = read_plan(output)
    settings = Settings(**plan["settings"])
    file = plan["files"][index]["path"]
    rows: list[tuple[int, int, int]] = []
    left_out: list[dict[str, Any]] = []
    damage = None
    with source_file(output, plan, index, keep) as path:
        sha256 = layout.sha256_of(path)
        try:
            for record in records(path, settings.group_by):
                if record.text is None:
                    left_out.append({"line": record.line, "reason": record.reason})
                    continue
                key = digest(record.text)
                split = split_of(record, key, file, settings)
                rows.append((int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"), SPLITS.index(split)))
        except Damaged as error:
            damage, rows, left_out = str(error), [], []
    layout.save_array(marker.with_suffix(".npy"), np.array(rows, layout.SCANNED))
    found = {
        "path": file,
        "sha256": sha256,
        "documents": len(rows),
        "left_out": left_out,
        "damage": damage,
    }
    layout.write_whole(marker, layout.to_json(found))


def split_of(record: Record, key: bytes, file: str, settings: Settings) -> str:
    """Which split a document belongs to, by its group's or its own hash, or by where its file lies."""
    if settings.split == "folder":
        return folder_split(file)
    if record.group is not None:
        key = hashlib.blake2b(record.group.encode(), digest_size=16).digest()
    place = int.from_bytes(key[:8], "little") / 2**64
    if place < settings.test:
        return "test"
    return "validation" if place < settings.test + settings.validation else "train"


def folder_split(file: str) -> str:
    for part in Path(file).parts[:-1]:
        if part in SPLITS:
            return part
    raise InputError(
        f"{file!r} lies in no folder called train, validation or test", hint="--split hash holds out by hash"
    )


# -- duplicates --------------------------------------------------------------------------------------------------------


def find_duplicates(output: Path) -> None:
    """Which documents equal an earlier one, by their digests; for each file the numbers of those, in order."""
    marker = output / "duplicates.json"
    if marker.exists():
        return
    plan = read_plan(output)
    count = len(plan["files"])
    dropped: dict[int, list[np.ndarray]] = {}
    total, across = 0, 0
    if not plan["settings"]["duplicates"]:
        sizes = [len(np.load(scan_of(output, index), mmap_mode="r")) for index in range(count)]
        parts = -(-sum(sizes) // PART)
        for part in range(parts):
            found, between = twice(output, count, part, parts)
            across += between
            for index, numbers in found.items():
                dropped.setdefault(index, []).append(numbers)
                total += len(numbers)
    for index, pieces in dropped.items():
        layout.save_array(output / "duplicates" / f"{name_of(index)}.npy", np.sort(np.concatenate(pieces)))
    layout.write_whole(marker, layout.to_json({"duplicates": total, "across_splits": across}))


def scan_of(output: Path, index: int) -> Path:
    return output / "scan" / f"{name_of(index)}.npy"


def twice(output: Path, count: int, part: int, parts: int) -> tuple[dict[int, np.ndarray], int]:
    """The later ones of equal documents, by file, among those whose digest falls into a part; and how many of them
    would have been in another split than the first."""
    rows, files, numbers = [], [], []
    for index in range(count):
        scanned = np.load(scan_of(output, index))
        chosen = np.flatnonzero(scanned["high"] % parts == part)
        rows.append(scanned[chosen])
        files.append(np.full(len(chosen), index, np.int32))
        numbers.append(chosen)
    row, file, number = np.concatenate(rows), np.concatenate(files), np.concatenate(numbers)
    order = np.lexsort((row["low"], row["high"]))  # stable: equal ones stay in the order of the files
    high, low = row["high"][order], row["low"][order]
    again = np.zeros(len(order), bool)
    again[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    split = row["split"][order]
    later = order[again]
    found = {int(index): number[later][file[later] == index] for index in np.unique(file[later])}
    return found, int((again & (split != split[first])).sum())


# -- tokenize ----------------------------------------------------------------------------------------------------------


class SplitWriter:
    """The ids of one split of a shard, and the table of its documents."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.tokens = layout.HashedFile(folder / f"{split}.tokens")
        self.rows: list[tuple[int, int, int, int]] = []
        self.end = 0

    def add(self, ids: np.ndarray, closing: bytes, size: int, key: int, group: int) -> None:
        self.tokens.write(ids.tobytes())
        self.tokens.write(closing)
        self.end += len(ids) + 1
        self.rows.append((self.end, size, key, group))

    def close(self) -> dict[str, Any]:
        about = {f"{self.split}.tokens": self.tokens.close()}
        buffer = io.BytesIO()
        np.save(buffer, np.array(self.rows, layout.DOCUMENT), allow_pickle=False)
        table = layout.HashedFile(self.folder / f"{self.split}.documents.npy")
        table.write(buffer.getvalue())
        return {**about, f"{self.split}.documents.npy": table.close()}


def tokenize_file(output: Path, index: int, encoder: Encoder, keep: bool = False) -> None:
    """Make a shard of a source file. Raises InputError if a text holds the padding or the file has changed.

    keep: whether a file of the Hub stays on the disk afterwards.
    """
    target = output / "shards" / name_of(index)
    if target.exists():
        return
    plan = read_plan(output)
    settings = Settings(**plan["settings"])
    scanned = json.loads((output / "scan" / f"{name_of(index)}.json").read_text())
    if scanned["damage"] is not None:
        return
    file = scanned["path"]
    drop = output / "duplicates" / f"{name_of(index)}.npy"
    dropped = set(np.load(drop).tolist()) if drop.exists() else set()
    closing = np.array([encoder.end_id], encoder.dtype).tobytes()
    writers: dict[str, SplitWriter] = {}
    counts: dict[str, Counter[str]] = {}
    used, number, kept = encoder.kind, 0, 0
    with source_file(output, plan, index, keep) as path, layout.whole_folder(target) as folder:
        for batch in in_pieces(read_again(path, file, settings)):
            chosen = []
            for record in batch:
                if number not in dropped:
                    chosen.append(record)
                number += 1
            texts = [record.text or "" for record in chosen]
            if not kept and used != "tokenizer" and not agrees(encoder, texts[:TRIED]):
                used = "tokenizer"
            kept += len(chosen)
            made = encoder.encode(texts) if used == encoder.kind else encoder.reference(texts)
            for record, text, ids in zip(chosen, texts, made, strict=True):
                if encoder.pad_id < encoder.size and (ids == encoder.pad_id).any():
                    raise InputError(
                        f"line {record.line} of {file!r} holds the padding {encoder.pad!r}", hint="--pad names another"
                    )
                key, size = digest(text), len(text.encode())
                split = split_of(record, key, file, settings)
                if split not in writers:
                    writers[split] = SplitWriter(folder, split)
                own = number_of(key)
                group = own if record.group is None else number_of(digest(record.group))
                writers[split].add(ids, closing, size, own, group)
                found = counts.setdefault(f"{record.subset}\n{split}", Counter())
                found.update(documents=1, tokens=len(ids) + 1, bytes=size)
        if number != scanned["documents"]:
            raise InputError(f"{file!r} has changed since it was scanned", hint="give another output folder")
        files: dict[str, Any] = {}
        for split in sorted(writers):
            files |= writers[split].close()
        about = {
            "shard": name_of(index),
            "encoder": used,
            "duplicates": len(dropped),
            "subsets": nested(counts),
            "files": files,
        }
        layout.write_whole(folder / "shard.json", layout.to_json(about))


def read_again(path: Path, file: str, settings: Settings) -> Iterator[Record]:
    """The documents of a file that was whole when it was scanned."""
    try:
        for record in records(path, settings.group_by):
            if record.text is not None:
                yield record
    except Damaged as error:
        raise InputError(f"{file!r} was whole when it was scanned: now {error}") from error


def in_pieces(stream: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in lists of some million characters."""
    piece: list[Record] = []
    size = 0
    for record in stream:
        piece.append(record)
        size += len(record.text or "")
        if size >= AT_ONCE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def agrees(encoder: Encoder, texts: list[str]) -> bool:
    """Whether the fast way gives the very ids of the tokenizer itself."""
    return all(np.array_equal(a, b) for a, b in zip(encoder.encode(texts), encoder.reference(texts), strict=True))


def number_of(key: bytes) -> int:
    """63 bits of a digest."""
    return int.from_bytes(key[:8], "little") >> 1


def nested(counts: dict[str, Counter[str]]) -> dict[str, dict[str, dict[str, int]]]:
    """By subset, then by split, in order."""
    made: dict[str, dict[str, dict[str, int]]] = {}
    for name in sorted(counts):
        subset, split = name.rsplit("\n", 1)
        made.setdefault(subset, {})[split] = dict(counts[name])
    return made


# -- finish ------------------------------------------------------------------------------------------------------------


def finish(output: Path) -> dict[str, Any]:
    """Write the manifest and what it sums up; returns it."""
    plan = read_plan(output)
    lines, quarantine = [], []
    subsets: dict[str, dict[str, Counter[str]]] = {}
    encoders: Counter[str] = Counter()
    totals: Counter[str] = Counter(files=len(plan["files"]))
    for index, source in enumerate(plan["files"]):
        scanned = json.loads((output / "scan" / f"{name_of(index)}.json").read_text())
        shard = None
        if scanned["damage"] is not None:
            totals["damaged_files"] += 1
            quarantine.append({"file": scanned["path"], "line": None, "reason": scanned["damage"]})
        else:
            shard = json.loads((output / "shards" / name_of(index) / "shard.json").read_text())
            encoders[shard["encoder"]] += 1
            for subset, splits in shard["subsets"].items():
                for split, counts in splits.items():
                    subsets.setdefault(subset, {}).setdefault(split, Counter()).update(counts)
        quarantine += [{"file": scanned["path"], **record} for record in scanned["left_out"]]
        totals["left_out_records"] += len(scanned["left_out"])
        own = {key: scanned[key] for key in ("path", "sha256", "damage")}
        lines.append({**own, "bytes": source["bytes"], "left_out": len(scanned["left_out"]), **(shard or {})})
    splits = {split: Counter(documents=0, tokens=0, bytes=0) for split in SPLITS}
    for by_split in subsets.values():
        for split, counts in by_split.items():
            splits[split].update(counts)
    encoder = open_encoder(output)
    written = "".join(map(layout.to_line, lines)).encode()
    layout.write_whole(output / SHARDS, written)
    layout.write_whole(output / QUARANTINE, "".join(map(layout.to_line, quarantine)).encode())
    manifest = {
        "schema": layout.SCHEMA,
        "source": plan["source"],
        **({"include": plan["include"]} if "include" in plan else {}),
        "revision": plan["settings"]["revision"],
        "settings": plan["settings"],
        "tokenizer": {
            "sha256": plan["settings"]["tokenizer_sha256"],
            "vocabulary": encoder.vocab_size,
            "end": [encoder.end, encoder.end_id],
            "pad": [encoder.pad, encoder.pad_id],
            "type": encoder.dtype.str,
        },
        "encoders": dict(sorted(encoders.items())),
        "quarantine": {key: totals[key] for key in ("files", "damaged_files", "left_out_records")},
        "duplicates": json.loads((output / "duplicates.json").read_text()),
        "splits": {split: dict(counts) for split, counts in splits.items()},
        "subsets": {name: {s: dict(subsets[name][s]) for s in sorted(subsets[name])} for name in sorted(subsets)},
        "shards_sha256": hashlib.sha256(written).hexdigest(),
        "vocabulary_sha256": layout.sha256_of(output / VOCABULARY),
    }
    layout.write_whole(output / MANIFEST, layout.to_json(manifest))
    return manifest


def open_encoder(output: Path) -> Encoder:
    """The encoder of a preparation that has begun."""
    settings = read_plan(output)["settings"]
    known = json.loads((output / TOKENIZER).read_text())
    words = {token["content"] for token in known.get("added_tokens") or []} | set((known.get("model") or {})["vocab"])
    # A padding behind the vocabulary is not in the file: the encoder finds it again by itself.
    return Encoder(output / TOKENIZER, settings["end"], settings["pad"] if settings["pad"] in words else None)


def discard_damaged(output: Path) -> list[str]:
    """Remove every shard whose bytes are no longer those that were written, so that it is made again; their names."""
    lost = []
    for folder in sorted((output / "shards").iterdir()):
        about = json.loads((folder / "shard.json").read_text())
        for name, facts in about["files"].items():
            file = folder / name
            if not file.is_file() or layout.sha256_of(file) != facts["sha256"]:
                lost.append(folder.name)
                trash = folder.with_name(f".{folder.name}.{layout.own()}.partial")
                folder.rename(trash)
                break
    layout.sweep(output)
    return lost
