"""No run is lost: killed or stopped at any moment, on a full disk, beside another process, it ends with the same bits.

Whatever stops it is said in one line, with the exit code of its kind.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from nursery import Nursery

WORDS = [
    "train", "transformer", "dfa", "steps=40", "model.d_model=16", "model.n_layers=1", "data.languages=40",
    "data.held_out=8", "data.length_max=9", "train.batch_size=4", "train.threads=1", "train.checkpoint_every=3",
    "train.validate_every=5", "train.ema=0.9", "--quiet",
]  # fmt: skip


def bits(folder: Path) -> dict[str, bytes]:
    """All that a run leaves, but for the lock and what says how long it took."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json" and path.name != "lock"]
    kept += [folder / "run.json", folder / "model" / "config.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def begun(nursery: Nursery, tmp_path: Path, moment: str, number: signal.Signals = signal.SIGKILL) -> tuple[Path, int]:
    """The folder of a run that was sent a signal once it had a file there, and its exit code.

    On a busy machine a run may be over before we look: then it is another one's turn.
    """
    for attempt in range(5):
        folder = tmp_path / f"begun-{attempt}" / "run"
        pid = nursery.start(*WORDS, f"output={folder}")
        wait_for(lambda folder=folder: (folder / moment).exists() or (folder / "result.json").exists())
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        code = nursery.end()
        if not (folder / "result.json").exists():
            return folder, code
    raise AssertionError("every run was over before it was looked at")


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as made:
        yield made


@pytest.fixture(scope="module")
def expected(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bits of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, said = nursery.run(*WORDS, f"output={folder}")
    assert code == 0, said
    return bits(folder)


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
def test_killed_at_random_moments(kills: int, nursery: Nursery, expected: dict[str, bytes], tmp_path: Path) -> None:
    choose = random.Random(kills)
    began = time.monotonic()
    nursery.run(*WORDS, f"output={tmp_path / 'timed'}")
    whole = time.monotonic() - began
    done, finished = 0, 0
    while done < kills or finished < max(1, kills // 10):
        folder = tmp_path / f"run-{finished}"
        pid = nursery.start(*WORDS, f"output={folder}")
        if done < kills:
            # From before the first update to the last file of the export.
            time.sleep(choose.uniform(0, whole))
            with suppress(ProcessLookupError):  # it was faster
                os.kill(pid, signal.SIGKILL)
        code = nursery.end()
        if code == -signal.SIGKILL:
            done += 1
            continue
        assert code == 0, nursery.said.read_text()
        assert bits(folder) == expected
        assert not [path for path in folder.rglob("*") if "tmp" in path.name or "partial" in path.name]
        finished += 1
    assert done == kills


def test_killed_again_and_again_at_chosen_moments(nursery: Nursery, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # In the middle of writing a checkpoint, after the last one, and while it finishes.
    moments: list[Callable[[], bool]] = [
        lambda: any(folder.glob("checkpoints/step-*.partial/model.safetensors")),
        lambda: (folder / "checkpoints/step-27.partial").exists(),
        lambda: (folder / "checkpoints/step-40").exists(),
        lambda: any(path.name.startswith(".") for path in folder.iterdir()),  # the export, before it has its name
    ]
    kills = 0
    for moment in moments:
        pid = nursery.start(*WORDS, f"output={folder}")
        wait_for(lambda moment=moment: moment() or (folder / "result.json").exists())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        kills += nursery.end() == -signal.SIGKILL
    assert kills >= 2
    code, said = nursery.run(*WORDS, f"output={folder}")
    assert code == 0, said
    assert bits(folder) == expected
    assert not [path for path in folder.rglob("*") if "tmp" in path.name or "partial" in path.name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_a_run_saves_and_goes_on(
    number: signal.Signals, code: int, nursery: Nursery, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder, ended = begun(nursery, tmp_path, "checkpoints/step-6", number)
    assert ended == code
    said = nursery.said.read_text()
    assert said.startswith(f"stopped: {number.name} after step ")
    assert said.count("\n") == 1
    code, said = nursery.run(*WORDS, f"output={folder}")
    assert code == 0, said
    assert bits(folder) == expected


def test_resume_after_a_spoiled_checkpoint(nursery: Nursery, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder, ended = begun(nursery, tmp_path, "checkpoints/step-9")
    assert ended == -signal.SIGKILL
    newest = max((folder / "checkpoints").glob("step-*[0-9]/model.safetensors"), key=lambda p: int(p.parent.name[5:]))
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    code, said = nursery.run(*WORDS, f"output={folder}")
    assert code == 0, said
    assert said.startswith("warning: ")
    assert "another sha256" in said
    assert bits(folder) == expected


# Bytes that a file may have: the description and the log fit, then a checkpoint's weights, then those of the optimizer.
@pytest.mark.parametrize("most", [2_000, *(pytest.param(most, marks=pytest.mark.slow) for most in (500, 30_000))])
def test_a_disk_that_takes_no_more(most: int, nursery: Nursery, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, said = nursery.run(*WORDS, f"output={folder}", RLIMIT_FSIZE=most)
    assert code == 3, said
    assert said.count("\n") == 1
    assert said.startswith("error: cannot write ")
    assert str(folder) in said
    assert "File too large" in said
    assert not (folder / "result.json").exists()
    code, said = nursery.run(*WORDS, f"output={folder}")
    assert (code, said.startswith("validation loss")) == (0, True), said
    assert bits(folder) == expected


def test_a_disk_that_fills_up_later_keeps_what_is_saved(
    nursery: Nursery, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder, ended = begun(nursery, tmp_path, "checkpoints/step-15/manifest.json")
    assert ended == -signal.SIGKILL
    code, said = nursery.run(*WORDS, f"output={folder}", RLIMIT_FSIZE=10_000)
    assert (code, said.count("\n")) == (3, 1), said
    assert list((folder / "checkpoints").glob("step-*/manifest.json"))
    code, said = nursery.run(*WORDS, f"output={folder}")
    assert code == 0, said
    assert bits(folder) == expected


def test_a_folder_that_nobody_may_write(nursery: Nursery) -> None:
    code, said = nursery.run(*WORDS, "output=/proc/icll-zoo/run")
    assert (code, said.count("\n")) == (3, 1), said
    assert said.startswith("error: cannot write output folder '/proc/icll-zoo/run'")


def test_too_little_memory_names_the_step_and_the_batch(nursery: Nursery, tmp_path: Path) -> None:
    more = ["model.d_model=512", "train.batch_size=512", "data.length_max=49", "data.languages=600"]
    words = [word for word in WORDS if not word.startswith(("model.d_model", "train.batch_size", "data.l"))]
    code, said = nursery.run(*words, *more, f"output={tmp_path / 'run'}", RLIMIT_AS=1 << 29)
    assert (code, said.count("\n")) == (3, 1), said
    assert said.startswith("error: out of memory on cpu at step 1, train batch 0 of 512x")
    assert "train.accumulate" in said
    code, said = nursery.run(*WORDS, "model.mlp_ratio=4000000", f"output={tmp_path / 'other'}", RLIMIT_AS=1 << 29)
    assert (code, said.count("\n")) == (3, 1), said
    assert said.startswith("error: out of memory on cpu while the model was made (")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_of_two_processes_in_one_folder_one_is_refused(
    nursery: Nursery, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with Nursery(tmp_path) as another:
        pid = another.start(*WORDS, f"output={folder}")
        wait_for((folder / "run.json").exists)
        os.kill(pid, signal.SIGSTOP)
        code, said = nursery.run(*WORDS, f"output={folder}")
        assert (code, said.count("\n")) == (3, 1), said
        assert "another process is training in" in said
        os.kill(pid, signal.SIGCONT)
        assert another.end() == 0
    assert bits(folder) == expected
