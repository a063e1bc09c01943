"""One language by itself: words, printing, JSON, files with all that can be wrong in them, and pictures."""

from __future__ import annotations

import json
import math
import struct
import sys
import time
from itertools import combinations, permutations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from automata.fa.dfa import DFA

from icll_zoo import InputError
from icll_zoo_dfa.dataset import DfaLanguages
from icll_zoo_dfa.drawing import RADIUS, along, bend_of, draw, rim
from icll_zoo_dfa.language import LETTERS, STATES_MAX, Language, Sample, read_samples

SMALL = Language(5, {0: {"a": 2, "b": 5}, 2: {"c": 0}, 5: {"a": 0}})
LINE: dict[str, Any] = {"text": "aac|aa", "start": 5, "delta": {"0": {"a": 2, "b": 5}, "2": {"c": 0}, "5": {"a": 0}}}


def test_words_and_their_states() -> None:
    assert SMALL.states_of("aaca") == [0, 2, 0, 2]
    assert SMALL.states_of("") == []
    assert SMALL.states_of("b") is None
    assert SMALL.states_of("aa|a") is None
    oracle = DFA(
        states={0, 2, 5}, input_symbols=set(LETTERS), transitions={k: dict(v) for k, v in SMALL.delta.items()},
        initial_state=5, final_states={0, 2, 5}, allow_partial=True,
    )  # fmt: skip
    words = ["".join(LETTERS[(number // 4**i) % 4] for i in range(5)) for number in range(4**5)]
    assert [SMALL.states_of(word) is not None for word in words] == [oracle.accepts_input(word) for word in words]
    assert any(SMALL.states_of(word) for word in words)


def test_printing() -> None:
    assert str(SMALL) == "  0  a -> 2   b -> 5\n  2  c -> 0\n> 5  a -> 0"
    assert str(SMALL.canonical()).startswith("> 0  a -> 1\n")


def test_json_and_back() -> None:
    assert SMALL.to_json() == {"start": 5, "delta": {"0": {"a": 2, "b": 5}, "2": {"c": 0}, "5": {"a": 0}}}
    assert SMALL.to_json("aac") == {"text": "aac", **SMALL.to_json()}
    dataset = DfaLanguages(held_out=200, seed=4)
    for index in range(200):
        language = dataset.language("test", index)
        assert Language.from_json(json.loads(json.dumps(language.to_json()))) == language
    unsorted = {"start": 1, "delta": {"1": {"c": 0, "a": 1}, "0": {"b": 1}}}
    assert list(Language.from_json(unsorted).delta.items()) == [(0, {"b": 1}), (1, {"a": 1, "c": 0})]


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(f"\n{json.dumps(LINE)}\r\n   \n{json.dumps({**LINE, 'split': 'validation'})}")
    assert read_samples(file) == [Sample("aac|aa", SMALL), Sample("aac|aa", SMALL, "validation")]


def changed(**more: Any) -> str:
    return json.dumps({**LINE, **more})


def without(key: str) -> str:
    return json.dumps({k: v for k, v in LINE.items() if k != key})


FAULTS = [
    ("{", "bad JSON in line 2 of"),
    ("[" * 100_000, "bad JSON in line 2 of"),
    ('{"text": "aa", "text": "ab"}', "the key 'text' twice"),
    ('{"start": NaN}', "NaN is not JSON"),
    ("[1]", "is not a JSON object"),
    ("7", "is not a JSON object"),
    (changed(colour=1), "unknown key 'colour'"),
    (without("delta"), "'delta' is not a mapping of states to edges"),
    (changed(delta={}), "'delta' is not a mapping of states to edges"),
    (changed(delta=[{"a": 0}]), "'delta' is not a mapping of states to edges"),
    (changed(delta={"x": {"a": 0}}), "state 'x' is not a number"),
    (changed(delta={"00": {"a": 0}}), "state '00' is not a number"),
    (changed(delta={"-1": {"a": -1}}), "state '-1' is not a number"),
    (changed(delta={"٣": {"a": 3}}), "is not a number"),
    (changed(delta={"9" * 5000: {"a": 3}}), "is not a number"),
    (changed(delta={"5": []}), "state '5' has no edges"),
    (changed(delta={"5": {}}), "state '5' has no edges"),
    (changed(delta={"5": {"z": 5}}), "symbol 'z' of state '5' is not one of abcdefghijklmnopqr"),
    (changed(delta={"5": {"ab": 5}}), "symbol 'ab' of state '5'"),
    (changed(delta={"5": {"": 5}}), "symbol '' of state '5'"),
    (changed(delta={"5": {"|": 5}}), "symbol '|' of state '5'"),
    (changed(delta={"5": {"a": 6}}), "edge 'a' of state '5' leads to 6, which is no state"),
    (changed(delta={"5": {"a": "5"}}), "leads to '5', which is no state"),
    (changed(delta={"1": {"a": True}}), "leads to True, which is no state"),
    (changed(delta={"5": {"a": 5.0}}), "leads to 5.0, which is no state"),
    (changed(delta={str(i): {"a": 0} for i in range(64)}), f"'delta' has 64 states, more than {STATES_MAX}"),
    (without("start"), "'start' is None, which is no state"),
    (changed(start=1), "'start' is 1, which is no state"),
    (changed(start="5"), "'start' is '5', which is no state"),
    (changed(start=[5]), "'start' is [5], which is no state"),
    (without("text"), "'text' is not a text of at least two symbols"),
    (changed(text="a"), "'text' is not a text of at least two symbols"),
    (changed(text=["a", "a"]), "'text' is not a text of at least two symbols"),
    (changed(text="aa|"), "'text' holds an empty string"),
    (changed(text="|aa"), "'text' holds an empty string"),
    (changed(text="aa||aa"), "'text' holds an empty string"),
    (changed(text="aa|ba"), "the string 'ba' of 'text' is not in the language of 'delta'"),
    (changed(text="aac." + "a" * 500), "the string 'aac.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' of 'text'"),
    (changed(split="tset"), "'split' is 'tset', not one of train, validation, test"),
    (changed(split=None), "'split' is None"),
    (changed(split=["test"]), "'split' is ['test']"),
]


@pytest.mark.parametrize(("line", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n{line}\n{json.dumps(LINE)}\n")
    with pytest.raises(InputError) as error:
        DfaLanguages(file=str(file))
    assert message in str(error.value)
    assert f"line 2 of '{file}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    def message(name: str) -> str:
        with pytest.raises(InputError) as error:
            DfaLanguages(file=str(tmp_path / name))
        assert name in str(error.value)
        return str(error.value)

    assert "No such file" in message("missing.jsonl")
    (tmp_path / "folder").mkdir()
    assert "is not a regular file" in message("folder")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    assert "is empty" in message("empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe4"}')
    assert "cannot read" in message("latin.jsonl")


def test_an_enormous_language_is_refused_quickly(tmp_path: Path) -> None:
    file = tmp_path / "huge.jsonl"
    file.write_text(changed(delta={str(i): {"a": (i + 1) % 200_000} for i in range(200_000)}))
    start = time.perf_counter()
    with pytest.raises(InputError, match="'delta' has 200000 states, more than 63"):
        read_samples(file)
    assert time.perf_counter() - start < 30


def test_a_picture_as_png_and_svg(tmp_path: Path) -> None:
    language = DfaLanguages(held_out=1, seed=3).language("test", 0)
    draw(language, tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", raw[16:24])
    assert width >= 600
    assert height >= 600
    assert len(raw) > 20_000
    draw(language, tmp_path / "a.svg")
    source = (tmp_path / "a.svg").read_text()
    root = ElementTree.fromstring(source)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # matplotlib notes every text as a comment beside its outlines: the states, and a label for each edge.
    texts = [line.strip()[5:-4] for line in source.splitlines() if line.strip().startswith("<!-- ")]
    assert [t for t in texts if t.isdecimal()] == [str(state) for state in language.delta]
    symbols = sorted(symbol for t in texts if t.isalpha() and len(t) == 1 for symbol in t)
    assert symbols == sorted(symbol for edges in language.delta.values() for symbol in edges)


@pytest.mark.parametrize(
    "language",
    [
        Language(0, {0: {"a": 0}}),
        Language(1, {0: {"a": 0, "b": 1}, 1: {"a": 0, "c": 0, "b": 1}}),
        Language(0, {state: {"a": (state + 1) % 63, "b": (state + 20) % 63} for state in range(63)}),
    ],
    ids=["one state", "merged edges and loops", "63 states"],
)
def test_unusual_languages_can_be_drawn(language: Language, tmp_path: Path) -> None:
    draw(language, tmp_path / "a.svg")
    source = (tmp_path / "a.svg").read_text()
    assert source.count("<!-- a -->") + source.count("<!-- a, c -->") == len(language.delta)


def test_edges_touch_only_their_own_states() -> None:
    for n in range(2, 13):
        place = [(math.cos(2 * math.pi * i / n), -math.sin(2 * math.pi * i / n)) for i in range(n)]
        middles = {}
        for i, j in permutations(range(n), 2):
            here, there, bend = place[i], place[j], bend_of(j - i, n)
            begin, end = rim(here, there, bend, RADIUS), rim(there, here, -bend, RADIUS)
            assert math.dist(here, begin) == pytest.approx(RADIUS)
            assert math.dist(there, end) == pytest.approx(RADIUS)
            curve = [along(begin, end, bend, t / 20) for t in range(21)]
            assert curve[0] == pytest.approx(begin)
            assert curve[-1] == pytest.approx(end)
            others = (state for state in place if state not in (here, there))
            assert all(math.dist(state, point) > 1.05 * RADIUS for state in others for point in curve)
            middles[i, j] = curve[10]
        # The edge back lies beside it.
        assert all(math.dist(middles[i, j], middles[j, i]) > 0.04 for i, j in combinations(range(n), 2))


def test_a_picture_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.xyz", "missing/a.png"):
        with pytest.raises(InputError, match="cannot draw to") as error:
            draw(SMALL, tmp_path / name)
        assert "a name such as language.png" in str(error.value)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"drawing needs matplotlib \(pip install 'icll-zoo\[plots\]'\)"):
        draw(SMALL, tmp_path / "a.png")
