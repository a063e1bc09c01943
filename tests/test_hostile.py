"""Hostile model folders and catalogues (hostile.py) met by the real command line: refused quickly, without a trace.

Measured of each case, in a child of a process that has imported torch and run the same commands once: its processor
time, which on an idle machine is its time; the peak of its resident memory above what it began with; what changed
under its folder, cwd, HOME and TMPDIR. Five cases go through processes of their own, from the first import on.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
import yaml
from conftest import command, install
from hostile import CATALOGUES, CONFIG, FOLDERS, HARMLESS, MODEL, PRINT, Case

from icll_zoo import catalogue
from icll_zoo.errors import InputError
from icll_zoo.weights import load_model

CASES = [*FOLDERS, *CATALOGUES]
GOOD = [Case(f"good {base}", lambda _: None, "", base) for base in hostile.BASES]
MET = [*GOOD, *HARMLESS, *CASES]
WORKERS = 2
MEGABYTES = 500
SECONDS = 4  # under 2 on an idle machine; there are some that are half as fast


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    hostile.write_bases(folder)
    return folder


@pytest.fixture(scope="module")
def met(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every case, by its name."""
    top = tmp_path_factory.mktemp("hostile")
    jobs = []
    for index, case in enumerate(MET):
        root = top / str(index)
        place = hostile.write_case(case, bases, root)
        catalogue = str(hostile.registry(place)) if case.by_name else None
        jobs.append({"root": str(root), "words": hostile.words_of(case, place), "catalogue": catalogue})
    warm = [hostile.words_of(Case("", lambda _: None, "", base), bases / base) for base in ("transformer", "catalogue")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ICLL_ZOO_", "HF_"))}
    workers = []
    for index in range(WORKERS):
        told = tmp_path_factory.mktemp("worker") / "told"
        told.write_text(json.dumps({"warm": warm, "jobs": jobs[index::WORKERS]}))
        words = [sys.executable, hostile.__file__, str(told)]
        with (told.parent / "log").open("w") as log:
            worker = subprocess.Popen(
                words, env={**environment, "OMP_NUM_THREADS": "1"}, cwd=told.parent, stdout=log, stderr=log
            )
        workers.append((worker, told))
    found: dict[str, Any] = {}
    for index, (worker, told) in enumerate(workers):
        assert worker.wait() == 0, (told.parent / "log").read_text()
        results = json.loads(told.with_name("results").read_text())
        found |= zip([case.name for case in MET[index::WORKERS]], results, strict=True)
    return found


def test_the_corpus_is_large_and_its_names_are_its_own():
    assert len(CASES) > 350
    assert len({case.name for case in MET}) == len(MET)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_what_the_cases_are_made_from_is_good(met, case):
    found = met[case.name]
    assert (found["code"], found["err"], found["changed"]) == (0, "", [])
    assert found["out"].startswith("a a ")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(met, case):
    found = met[case.name]
    assert refused(found["code"], found["out"], found["err"], case.code), found
    assert case.says in found["err"]
    assert found["changed"] == []
    assert found["cpu"] < SECONDS
    assert found["seconds"] < 10 * SECONDS, "it must not wait either"
    assert found["memory"] < MEGABYTES * 2**20


def refused(code: int, out: str, err: str, wanted: int = 2) -> bool:
    """The exit code, nothing on stdout, and one line of at most 400 printable characters on stderr."""
    line = err.removesuffix("\n")
    return code == wanted and out == "" and line.startswith("error: ") and line.isprintable() and len(line) <= 400


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.name)
def test_what_a_stranger_may_write_does_nothing(met, case):
    found = met[case.name]
    assert (found["code"], found["err"], found["changed"]) == (0, "", [])
    assert found["out"].removesuffix("\n").isprintable()


END_TO_END = ["weights that are a pickle", "config.json is a pipe", "s4d d_state 16777216", "a bomb of anchors"]


@pytest.mark.parametrize("name", END_TO_END)
def test_refused_from_the_first_import_on(bases, tmp_path, name):
    case = next(case for case in CASES if case.name == name)
    place = hostile.write_case(case, bases, tmp_path / "root")
    before = hostile.snapshot(tmp_path / "root")
    found = in_a_process(hostile.words_of(case, place), tmp_path / "root")
    assert refused(found.code, found.out, found.err), found.err
    assert case.says in found.err
    assert hostile.snapshot(tmp_path / "root") == before


def in_a_process(words: list[str], root: Path, path: Path | None = None) -> Any:
    places = {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    return command(*words, cwd=root / "cwd", path=path, **places)


PLUGIN = """
from icll_zoo import hookimpl

@hookimpl
def register_pretrained(register):
    register({path!r})
"""


def test_a_plugins_hostile_catalogue_is_left_out(bases, tmp_path):
    """It is the plugin's fault and nobody else's: one warning, and the rest of the list."""
    case = next(case for case in CASES if case.name == "a Python object")
    place = hostile.write_case(case, bases, tmp_path / "root")
    install(tmp_path / "site", "mine", PLUGIN.format(path=str(hostile.registry(place))))
    before = hostile.snapshot(tmp_path / "root")
    found = in_a_process(["list", "--pretrained"], tmp_path / "root", tmp_path / "site")
    assert found.code == 0
    assert found.err.startswith("warning: catalogue of plugin 'mine' left out: bad YAML")
    assert found.err.removesuffix("\n").isprintable()
    assert hostile.snapshot(tmp_path / "root") == before


# -- at random -------------------------------------------------------------------------------------------------------


def logits(folder: Path) -> torch.Tensor:
    """What the model of a folder answers to three sequences, after it was loaded as a stranger's."""
    tokens = torch.randint(1, 5, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_model(f"local-dir:{folder}")(tokens)


def survives(folder: Path) -> torch.Tensor | None:
    """The logits, or None if the folder is refused in one line. Anything else is raised."""
    try:
        return logits(folder)
    except InputError as error:
        line = str(error)
    assert line.isprintable()
    assert len(line) <= 2100
    return None


def damage(content: bytes, draw: random.Random) -> bytes:
    """A file with a bit, some bytes or its end changed."""
    kind, at = draw.randrange(4), draw.randrange(len(content))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
    if kind == 2:
        return content[:at] + draw.randbytes(draw.randrange(1, 16)) + content[at + draw.randrange(16) :]
    return content[:at] + content[at : at + draw.randrange(1, 64)] + content[at:]


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**16, 2**24, 2**31, 2**53, 2**63, 2**64, 10**400, 0.0, -0.0, 0.5, 1e-300,
    1e15, 1e300, "", "a", "\0", "\x1b[31m", "\u202e", "../x", "/etc/passwd", "a" * 300, "os:system", [], [1], [[]],
    ["a"], {}, {"a": 1}, {"_target_": "os.system"}, [{"mixer": "baselines:lstm"}], "reference", "learned", "none",
]  # fmt: skip


def mutate(value: Any, draw: random.Random) -> Any:
    """A description with one of its values, keys or items replaced, taken out, doubled or moved."""
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key in inner if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    value = json.loads(json.dumps(value))
    walk(value)
    inner, key = draw.choice(places)
    other, other_key = draw.choice(places)
    kind = draw.randrange(6)
    if kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner[draw.choice(["x", "", "d_model", "__class__", "layers", str(key) + "s"])] = inner.pop(key)
    elif kind == 2:
        inner[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 3 and isinstance(inner[key], int | float) and not isinstance(inner[key], bool):
        inner[key] = draw.choice([-1, 1, 2, 1000, 0.5]) * inner[key] + draw.choice([0, 1, -1])
    else:
        inner[key] = draw.choice(VALUES)
    return value


@pytest.fixture
def copy(bases: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda base: shutil.copytree(bases / base, tmp_path / base, dirs_exist_ok=True)


def fuzz_bytes(copy: Callable[[str], Path], rounds: int, seed: int) -> None:
    """Damage to a file is refused, or is none; where config.json vouches for it, it changes nothing that one sees."""
    draw = random.Random(seed)
    folder = copy("transformer")
    good, clean = logits(folder), {name: (folder / name).read_bytes() for name in (CONFIG, MODEL, PRINT)}
    loaded = 0
    for index in range(rounds):
        name = draw.choice([CONFIG, MODEL, PRINT])
        (folder / name).write_bytes(damage(clean[name], draw))
        vouched = name != CONFIG and index % 2 == 1
        if vouched:
            hostile.vouch(folder, name)
        found = survives(folder)
        if found is not None:
            loaded += 1
            bound = 1e-3 * good.abs().max() if vouched else 0
            assert (found - good).abs().max() <= bound, (index, name)
        for kept, content in clean.items():
            (folder / kept).write_bytes(content)
    assert loaded < rounds / 2
    assert torch.equal(logits(folder), good)


def fuzz_config(copy: Callable[[str], Path], base: str, rounds: int, seed: int) -> None:
    """A changed config.json is refused, or the model answers exactly as before."""
    draw = random.Random(seed)
    folder = copy(base)
    good, clean = logits(folder), hostile.config_of(folder)
    loaded = 0
    for index in range(rounds):
        changed = mutate(clean, draw)
        (folder / CONFIG).write_text(json.dumps(changed))
        found = survives(folder)
        if found is not None:
            loaded += 1
            assert torch.equal(found, good), (index, changed)
    assert 0 < loaded < rounds


def fuzz_header(copy: Callable[[str], Path], rounds: int, seed: int) -> None:
    """A changed header that config.json vouches for is refused, or means the same."""
    draw = random.Random(seed)
    folder = copy("transformer")
    good, clean = logits(folder), {name: (folder / name).read_bytes() for name in (CONFIG, MODEL, PRINT)}
    for index in range(rounds):
        name = draw.choice([MODEL, PRINT])
        header, data = hostile.parts(clean[name])
        (folder / name).write_bytes(hostile.packed(mutate(header, draw), data))
        hostile.vouch(folder, name)
        found = survives(folder)
        assert found is None or torch.equal(found, good), (index, name)
        for kept, content in clean.items():
            (folder / kept).write_bytes(content)


def fuzz_catalogue(copy: Callable[[str], Path], rounds: int, seed: int) -> None:
    """A changed catalogue is refused in one line, or is a catalogue."""
    draw = random.Random(seed)
    path = hostile.registry(copy("catalogue"))
    clean = json.loads(path.read_text())
    read = 0
    for index in range(rounds):
        changed = mutate(clean, draw) if index % 2 else clean
        text = yaml.safe_dump(changed) if index % 3 else json.dumps(changed, indent=1)
        path.write_bytes(text.encode() if index % 2 else damage(text.encode(), draw))
        try:
            entries = catalogue.read(path)
        except InputError as error:
            line = str(error)
        else:
            read += 1
            line = " ".join(entries)
        assert line.isprintable()
    assert 0 < read < rounds


@pytest.mark.parametrize("seed", [0, 1])
def test_random_damage(copy, seed):
    fuzz_bytes(copy, 75, seed)


@pytest.mark.parametrize("base", ["transformer", "layers"])
def test_random_configs(copy, base):
    fuzz_config(copy, base, 75, 0)


def test_random_headers_and_catalogues(copy):
    fuzz_header(copy, 75, 0)
    fuzz_catalogue(copy, 75, 0)


@pytest.mark.slow
def test_much_random_damage(copy):
    fuzz_bytes(copy, 2000, 2)
    fuzz_header(copy, 2000, 1)
    fuzz_catalogue(copy, 2000, 1)


@pytest.mark.slow
@pytest.mark.parametrize("base", hostile.BASES)
def test_many_random_configs(copy, base):
    fuzz_config(copy, base, 300, 1)
