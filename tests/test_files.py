"""Strict readers, and writers that a crash cannot interrupt halfway."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from icll_zoo import files
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": [1, 2.5, null, true, "x"]}', {"a": [1, 2.5, None, True, "x"]}), ("3", 3), ('"é"', "é")],
)
def test_json_that_is_json(text, value):
    assert files.parse_json(text, "here") == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"b": {"a": 1, "a": 1}}', "'a' twice"),
        ("{" + "".join(f'"{i}":0,' for i in range(100_000)) + '"7":0}', "'7' twice"),
        ("[1e999]", "1e999 is no number that a computer holds"),
        ('["\\ud83d"]', "surrogates not allowed"),
        ("[" + "{}," * files.ITEM_LIMIT + "{}]", "values"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("[" * 33 + "]" * 33, "nested deeper"),
        ("[" * 100_000, "bad JSON"),
        ("1" * 5000, "bad JSON"),
        ("{'a': 1}", "bad JSON"),
        ("", "bad JSON"),
        ("{} {}", "bad JSON"),
    ],
)
def test_json_that_is_refused(text, reason):
    with pytest.raises(IntegrityError, match="here") as caught:
        files.parse_json(text, "here")
    assert reason in str(caught.value)


def test_json_nested_to_the_limit_is_read():
    text = "[" * files.DEPTH_LIMIT + "]" * files.DEPTH_LIMIT
    assert files.depth(files.parse_json(text, "here")) == files.DEPTH_LIMIT


def test_depth():
    assert [files.depth(v) for v in (1, [], {}, [1], [[]], {"a": [{}]})] == [0, 1, 1, 1, 2, 3]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "file"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture(params=["C", "Python"])
def either_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's parser in C, and the one in Python that there is where it was built without."""
    if request.param == "Python":
        monkeypatch.delattr("yaml.CSafeLoader")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3", {"a": 0.001}),
        ("a: 0.5\nb: -3", {"a": 0.5, "b": -3}),
        ("a: true\nb: null", {"a": True, "b": None}),
        # What YAML 1.1 would turn into something else stays text.
        (
            "a: no\nb: 12:30:45\nc: 0123\nd: 1_000\ne: 2024-01-01\nf: .inf\ng: 0x10",
            {"a": "no", "b": "12:30:45", "c": "0123", "d": "1_000", "e": "2024-01-01", "f": ".inf", "g": "0x10"},
        ),
        ("a: '1'", {"a": "1"}),
        ("a: 'true'\nb: ''\nc:\nd: ~", {"a": "true", "b": "", "c": None, "d": None}),
        # A key is a text, as JSON's are.
        ("7: x\ntrue: y\n'': z", {"7": "x", "true": "y", "": "z"}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("a: &x 1", {"a": 1}),
        ("--- \na: |\n  two\n  lines\n...\n", {"a": "two\nlines\n"}),
        ("# nothing", None),
        ("a: [[], {}, [{b: [1]}]]", {"a": [[], {}, [{"b": [1]}]]}),
        ("- 1\n- [2, x]", [1, [2, "x"]]),
    ],
)
def test_yaml_means_what_json_means(tmp_path, either_parser, text, value):
    found = files.read_yaml(write(tmp_path, text), "description")
    assert found == value
    assert files.canonical_json(found) == files.canonical_json(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "a key twice"),
        ("x: {b: 1, b: 2}", "a key twice"),
        ("a: &x 1\nb: *x", "alias"),
        ("a: [", "bad YAML"),
        ("a: !!python/object/apply:os.system [ls]", "bad YAML"),
        ("a: \t1\n\tb: 2", "bad YAML"),
        ("a: 1\n---\nb: 2", "second document"),
        ("a: !!timestamp never", "a tag at line 1"),
        ("a: !!bool perhaps", "a tag"),
        ("a: !!int ''", "a tag"),
        ("a: ! b", "a tag"),
        ("!!set {a, b}", "a tag"),
        ("? [a]\n: b", "a key at line 1 that is not a text"),
        ("a: -1e999", "no number that a computer holds"),
        ("a: " + "9" * 5000, "bad YAML"),
        ("[" + "1," * files.YAML_ITEM_LIMIT + "]", "values"),
        (b"\xff\xfe\xfa", "cannot read"),
        ("[" * 40 + "]" * 40, "nested deeper"),
        ("a: " + "x" * 2**20, "more than"),
        ("[" * 50_000, "bad YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path, either_parser, text, reason):
    with pytest.raises(InputError, match=reason):
        files.read_yaml(write(tmp_path, text), "description")


def test_what_is_not_a_regular_file_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in [("fifo", "not a regular"), ("loop", "no thing at"), ("absent", "no thing"), (".", "regular")]:
        with pytest.raises(InputError, match=reason):
            files.read_text(tmp_path / name, "thing")


def test_a_symbolic_link_to_a_file_is_followed(tmp_path):
    path = write(tmp_path, "text")
    (tmp_path / "link").symlink_to(path)
    assert files.read_text(tmp_path / "link", "thing") == "text"


def test_read_text_is_bounded(tmp_path):
    path = write(tmp_path, "12345")
    assert files.read_text(path, "thing", limit=5) == "12345"
    with pytest.raises(InputError, match="5 bytes, more than 4"):
        files.read_text(path, "thing", limit=4)


def test_sha256(tmp_path):
    assert files.sha256_of(write(tmp_path, b"abc")) == hashlib.sha256(b"abc").hexdigest()


def test_canonical_json_does_not_depend_on_order():
    assert files.canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"\\u00e9"],"b":1}'
    with pytest.raises(ValueError, match="JSON compliant"):
        files.canonical_json({"a": float("nan")})


def test_write_atomic(tmp_path):
    path = tmp_path / "name"
    files.write_atomic(path, "one")
    files.write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert [found.name for found in tmp_path.iterdir()] == ["name"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch, call):
    path = tmp_path / "name"
    files.write_atomic(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(EnvironmentFault, match="free some space"), files.disk_faults("thing", path):
        files.write_atomic(path, "new and longer")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["name"]


KILLED = """
import os, signal, sys
from pathlib import Path
from icll_zoo import files
real = os.fsync
def fsync(handle):
    real(handle)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
files.write_atomic(Path(sys.argv[1]), "new" * 10000)
"""


def test_a_killed_writer_leaves_the_old_content(tmp_path):
    path = tmp_path / "name"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


MODES = """
import os, sys
os.umask(int(sys.argv[2], 8))
from pathlib import Path
import torch
from icll_zoo import files
folder = Path(sys.argv[1])
files.save_tensors(folder / "tensors", {"a": torch.ones(2)})
files.write_atomic(folder / "text", "x")
"""


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("077", 0o600), ("002", 0o664)])
def test_modes_follow_the_umask(tmp_path, umask, mode):
    subprocess.run([sys.executable, "-c", MODES, str(tmp_path), umask], check=True)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "tensors": mode,
        "text": mode,
    }


def test_save_tensors_gives_the_same_bytes_again(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16)}
    hashes = set()
    for k in range(8):
        files.save_tensors(tmp_path / str(k), tensors, {"x": 1, "y": [2, 3], "z": "w"})
        hashes.add(files.sha256_of(tmp_path / str(k)))
    assert len(hashes) == 1


def test_whole_folder_replaces_what_was_there(tmp_path):
    target = tmp_path / "a" / "name"
    for text in ("one", "two"):
        with files.whole_folder(target, "thing") as new:
            (new / text).write_text(text)
        assert [path.name for path in target.iterdir()] == [text]
    assert [path.name for path in target.parent.iterdir()] == ["name"]


def test_whole_folder_keeps_the_old_one_if_anything_fails(tmp_path, monkeypatch):
    target = write(tmp_path, "kept").parent / "name"
    (target / "inner").mkdir(parents=True)
    real = Path.rename

    def fail_into_place(self, to):
        if to == target and self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(EnvironmentFault, match="cannot write thing"), files.whole_folder(target, "thing") as new:
        (new / "half").write_text("x")
    assert [path.name for path in target.iterdir()] == ["inner"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "name"]
