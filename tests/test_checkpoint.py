"""Checkpoints: whole or not at all, verified, purged; optimizers packed and put back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from icll_zoo import checkpoint
from icll_zoo.checkpoint import Checkpoint
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError


def made(step: int) -> Checkpoint:
    tensors = {"w": torch.full((3,), float(step)), "step": torch.tensor(7.0)}
    return Checkpoint(step, {"model": tensors, "optimizer": {}}, {"best": {"loss": "inf"}, "n": step})


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", made(5))
    loaded = checkpoint.load(tmp_path / "c", 5)
    assert loaded.state == made(5).state
    assert loaded.tensors["optimizer"] == {}
    assert all(torch.equal(loaded.tensors["model"][k], v) for k, v in made(5).tensors["model"].items())
    assert not list(tmp_path.rglob("*.partial")) + list(tmp_path.rglob("*.tmp*"))


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json", "optimizer.safetensors"])
@pytest.mark.parametrize("fault", ["flip", "cut", "gone"])
def test_a_spoiled_file_is_noticed_and_the_one_before_used(name: str, fault: str, tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, made(step))
    file = tmp_path / "step-2" / name
    content = bytearray(file.read_bytes())
    if fault == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif fault == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    with pytest.raises(InputError, match="step-2"):
        checkpoint.load(tmp_path, 2)
    with pytest.warns(UserWarning, match="going on from an older checkpoint"):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_nothing_whole_left_is_an_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None
    checkpoint.save(tmp_path, made(1))
    (tmp_path / "step-1" / "state.json").write_text("{}")
    with pytest.raises(IntegrityError, match="sha256"):
        checkpoint.newest(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, made(1))
    manifest = tmp_path / "step-1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("model.safetensors", "../model.safetensors"))
    with pytest.raises(IntegrityError, match="names a file"):
        checkpoint.load(tmp_path, 1)


def test_purge_keeps_the_newest_and_the_best_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, made(step))
    (tmp_path / "step-9.partial").mkdir()
    checkpoint.purge(tmp_path, 2, {1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-3", "step-4"]


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file where the folder should be")
    with pytest.raises(EnvironmentFault, match="cannot write checkpoint"):
        checkpoint.save(tmp_path / "c", made(1))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "adafactor", "radam", "lion", "nadamw", "muon"])
def test_an_optimizer_goes_on_as_if_never_stopped(name: str) -> None:
    from timm.optim import create_optimizer_v2

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for i in range(count):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 8 + 0 * i).reshape(2, 4)).square().sum().backward()
            optimizer.step()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        return model, create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.1)

    model, optimizer = fresh()
    steps(model, optimizer, 3)
    tensors, plain = checkpoint.pack_optimizer(optimizer)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = {key: value.clone() for key, value in tensors.items()}
    steps(model, optimizer, 3)

    other, again = fresh()
    other.load_state_dict(weights)
    checkpoint.unpack_optimizer(again, tensors, plain)
    steps(other, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_an_optimizer_that_keeps_more_than_tensors_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter]["history"] = [1, 2]
    with pytest.raises(InputError, match="keeps 'history' as a list"):
        checkpoint.pack_optimizer(optimizer)
