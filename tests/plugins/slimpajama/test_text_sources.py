"""Reading files that nobody vouches for: what is whole is read, what is damaged says where."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from text_cases import rows_of, some_texts, write_jsonl, write_parquet

from icll_zoo import EnvironmentFault, InputError
from icll_zoo_slimpajama import sources
from icll_zoo_slimpajama.sources import Damaged, find_sources, records

KINDS = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet")


def write(path: Path, rows: list[dict]) -> Path:
    return write_parquet(path, rows) if path.suffix == ".parquet" else write_jsonl(path, rows)


@pytest.mark.parametrize("name", KINDS)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    rows = rows_of(some_texts(50), package="p")
    found = list(records(write(tmp_path / name, rows), "meta.package"))
    assert [(r.line, r.text, r.subset, r.group) for r in found] == [
        (i + 1, row["text"], row["meta"]["redpajama_set_name"], "p") for i, row in enumerate(rows)
    ]


def test_records_without_a_text_are_left_out_one_by_one(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"no": 1}, {"text": 5}, {"text": ""}, [1], {"text": "b", "meta": {"package": None}}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with path.open("a") as file:
        file.write('\n{"text": "\\ud800 half"}\n')
    assert [(r.line, r.text, r.reason) for r in records(path)] == [
        (1, "a", ""),
        (2, None, "no text"),
        (3, None, "its text is not a text"),
        (4, None, "an empty text"),
        (5, None, "not an object"),
        (6, "b", ""),
        (8, None, "half of a surrogate pair in its text"),
    ]
    assert [r.text for r in records(path, "meta.package")] == [None] * 7


@pytest.mark.parametrize("name", KINDS)
def test_a_file_cut_anywhere_is_damaged_and_never_merely_short(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, rows_of(some_texts(60)))
    data = path.read_bytes()
    whole = [r.text for r in records(path)]
    for cut in random.Random(0).sample(range(1, len(data) - 1), 40):
        path.write_bytes(data[:cut])
        if name == "a.jsonl" and data[cut - 1 : cut + 1].count(b"\n"):
            continue  # cut between two lines: nothing can know
        with pytest.raises(Damaged, match=r"line|row"):
            list(records(path))
    path.write_bytes(data)
    assert [r.text for r in records(path)] == whole


@pytest.mark.parametrize("name", KINDS[1:])
def test_a_flipped_byte_of_a_packed_file_is_found(tmp_path: Path, name: str) -> None:
    """All three formats have checksums; a flip that changes no text (a date in a header, say) may pass."""
    path = write(tmp_path / name, rows_of(some_texts(60)))
    data, whole = path.read_bytes(), [r.text for r in records(path)]
    rng, found = random.Random(1), 0
    for _ in range(60):
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :])
        try:
            assert [r.text for r in records(path)] == whole, place
        except Damaged:
            found += 1
    assert found > 30


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 2 is not JSON"),
        (b'{"text": "\xff"}', "line 2 is not UTF-8"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b"\x00", "line 2 is not JSON"),
    ],
)
def test_damage_names_its_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    with pytest.raises(Damaged, match=reason):
        list(records(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_that_never_ends_is_not_unpacked_for_ever(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LINE_LIMIT", 10_000)
    path = write_jsonl(tmp_path / name, [{"text": "x" * 50_000_000}])
    assert path.stat().st_size < 100_000
    with pytest.raises(Damaged, match="line 1 is longer"):
        list(records(path))


def test_a_table_without_text_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="no column text"):
        list(records(write_parquet(tmp_path / "a.parquet", [{"content": "a"}])))


def test_meta_may_be_json_in_a_column(tmp_path: Path) -> None:
    row = {"text": "a", "meta": json.dumps({"redpajama_set_name": "RedPajamaC4"})}
    assert [r.subset for r in records(write_parquet(tmp_path / "a.parquet", [row]))] == ["RedPajamaC4"]


def test_sources_are_found_in_order_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.jsonl.zst", "a.parquet", "readme.md", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_sources(tmp_path) == ["a.parquet", "b/1.jsonl.zst", "b/2.jsonl"]
    with pytest.raises(InputError, match="is a file"):
        find_sources(tmp_path / "readme.md")
    with pytest.raises(InputError, match="no folder"):
        find_sources(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.jsonl"):
        find_sources(tmp_path / "empty")


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path, name: str) -> None:
    """One that went away; and a folder in its place, which for all but pyarrow fails as a bad disk does."""
    with pytest.raises(EnvironmentFault, match="cannot read"):
        list(records(tmp_path / name))
    (tmp_path / name).mkdir()
    with pytest.raises(Damaged if name == "a.parquet" else EnvironmentFault):
        list(records(tmp_path / name))
