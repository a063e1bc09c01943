"""Checkpoints that a kill, a full disk or a flipped byte cannot turn into a wrong run.

A checkpoint is a folder `step-N` of safetensors and JSON. It is written under another name, manifest last, every file
and folder synced, and renamed: it is there whole or not at all. The manifest holds every file's sha256, which is
compared before anything of it is used; a checkpoint that fails is passed over for the one before.

`Writer` writes them in a thread beside the training, from a copy, one at a time.
"""

from __future__ import annotations

import re
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo import files
from icll_zoo.distributed import cut_as, whole
from icll_zoo.errors import InputError, IntegrityError

MANIFEST, STATE = "manifest.json", "state.json"
GROUP = "group-"


@dataclass(frozen=True)
class Checkpoint:
    """What a run was at one step: tensors by group ("model", "optimizer", ...) and plain state."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step}"


def steps(checkpoints: Path) -> list[int]:
    """The steps that have a folder, ascending."""
    if not checkpoints.is_dir():
        return []
    matches = (re.fullmatch(r"step-(\d+)", path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def save(checkpoints: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole or not at all. Raises EnvironmentFault for what the disk refuses."""
    folder = folder_of(checkpoints, checkpoint.step)
    with files.disk_faults("checkpoint", folder):
        checkpoints.mkdir(exist_ok=True)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for group, tensors in checkpoint.tensors.items():
            files.save_tensors(partial / f"{group}.safetensors", tensors)
        files.write_atomic(partial / STATE, files.pretty_json(checkpoint.state))
        facts = {
            path.name: {"sha256": files.sha256_of(path), "bytes": path.stat().st_size}
            for path in sorted(partial.iterdir())
        }
        manifest = {"step": checkpoint.step, "files": facts}
        files.write_atomic(partial / MANIFEST, files.pretty_json(manifest))
        if folder.exists():  # of a run that went on from an older one, because this one was spoiled
            shutil.rmtree(folder)
        partial.rename(folder)
        files.fsync_directory(checkpoints)
    return folder


def load(checkpoints: Path, step: int) -> Checkpoint:
    """Read a checkpoint, every file compared with the manifest first. Raises IntegrityError naming one that differs."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = folder_of(checkpoints, step)
    manifest = files.read_json(folder / MANIFEST, "manifest")
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or manifest.get("step") != step or STATE not in listed:
        raise IntegrityError(f"the manifest of checkpoint {str(folder)!r} is not one of step {step}")
    for name, facts in listed.items():
        if "/" in name or name.startswith("."):
            raise IntegrityError(f"the manifest of checkpoint {str(folder)!r} names a file {name!r}")
        path = folder / name
        files.regular_file(path, "checkpoint file")
        if files.sha256_of(path) != facts.get("sha256"):
            raise IntegrityError(f"checkpoint file {str(path)!r} has another sha256 than its manifest says")
    try:
        tensors = {
            name.removesuffix(".safetensors"): load_file(folder / name)
            for name in listed
            if name.endswith(".safetensors")
        }
    except SafetensorError as error:
        raise IntegrityError(f"bad safetensors in checkpoint {str(folder)!r}: {error}") from error
    state = files.read_json(folder / STATE, "checkpoint state")
    return Checkpoint(step, tensors, state)


def newest(checkpoints: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a spoiled one is passed over with a warning. None if there is none.

    Raises IntegrityError if there are checkpoints and all of them are spoiled.
    """
    found = steps(checkpoints)
    for step in reversed(found):
        try:
            return load(checkpoints, step)
        except InputError as error:
            if step == found[0]:
                raise
            warnings.warn(f"{error}; going on from an older checkpoint", stacklevel=2)
    return None


def purge(checkpoints: Path, keep_last: int, keep: set[int]) -> None:
    """Delete all but the newest checkpoints and those of the steps to keep, and what a kill left half-written."""
    found = steps(checkpoints)
    for step in set(found[:-keep_last]) - keep:
        # Renamed first: a kill in the middle of deleting must not leave a folder that looks like a checkpoint.
        doomed = folder_of(checkpoints, step).rename(checkpoints / f"step-{step}.partial")
        shutil.rmtree(doomed, ignore_errors=True)
    for left in checkpoints.glob("step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)


class Writer:
    """Writes a run's checkpoints beside its training, at most one at a time, and deletes those that are not kept.

    Whoever ends a run calls `join`: the folder must not be given to another process while something is still written.
    """

    def __init__(self, checkpoints: Path, keep_last: int) -> None:
        self.checkpoints, self.keep_last = checkpoints, keep_last
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def save(self, checkpoint: Checkpoint, keep: set[int]) -> None:
        """Begin to write; the tensors must be nobody else's. Raises what went wrong with the one before."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(checkpoint, keep), name="checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Until nothing is being written, whatever came of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong."""
        self.join()
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    @property
    def failed(self) -> bool:
        """Whether something went wrong that `wait` will raise."""
        return self._fault is not None

    def _write(self, checkpoint: Checkpoint, keep: set[int]) -> None:
        try:
            save(self.checkpoints, checkpoint)
            purge(self.checkpoints, self.keep_last, keep)
        except BaseException as error:  # noqa: BLE001  raised where somebody can hear it
            self._fault = error


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by name, tied ones once, as they lie there: perhaps cut over processes."""
    seen: set[Any] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # A tensor that is cut over processes has no place of its own, but tied names then share one object.
        place = (tensor.data_ptr(), tuple(tensor.shape)) if type(tensor.data) is Tensor else id(tensor)
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            found[name] = tensor.detach()
    return found


def pack_model(model: nn.Module) -> dict[str, Tensor]:
    """A model's whole tensors by name, tied ones once. Of a sharded one, every process has to ask."""
    return {name: whole(tensor) for name, tensor in own_tensors(model).items()}


@torch.no_grad()
def unpack_model(model: nn.Module, packed: dict[str, Tensor]) -> None:
    """Put back what `pack_model` took out, in the model's own types."""
    own = own_tensors(model)
    if {name: tensor.shape for name, tensor in own.items()} != {name: t.shape for name, t in packed.items()}:
        raise InputError("the checkpoint holds the weights of another model")
    for name, tensor in own.items():
        tensor.copy_(cut_as(packed[name], tensor))


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as whole tensors by "parameter.name" or "group-N.name", and its plain values.

    Of a sharded model's, every process has to ask. Raises InputError if it keeps anything else.
    """
    stored = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for parameter, name, value in entries(stored["state"]):
        if isinstance(value, Tensor):
            tensors[f"{parameter}.{name}"] = whole(value.detach())
        elif value is None or isinstance(value, bool | int | float | str):
            plain[f"{parameter}.{name}"] = value
        else:
            kind = type(optimizer).__name__
            raise InputError(f"optimizer {kind} keeps {name!r} as a {type(value).__name__}, which cannot be saved")
    # `params` are indices that the optimizer itself makes; the rest of a group may change as it runs (LAMB counts its
    # steps there, in a tensor).
    for index, group in enumerate(stored["param_groups"]):
        tensors |= {f"{GROUP}{index}.{name}": v.detach() for name, v in group.items() if isinstance(v, Tensor)}
    groups = [
        {key: value for key, value in group.items() if isinstance(value, bool | int | float | str)}
        for group in stored["param_groups"]
    ]
    return tensors, {"state": plain, "groups": groups}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Put back what `pack_optimizer` took out."""
    stored = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, **kept} for group, kept in zip(stored["param_groups"], plain["groups"], strict=True)]
    for key, value in [*tensors.items(), *plain["state"].items()]:
        owner, _, name = key.partition(".")
        if owner.startswith(GROUP):
            groups[int(owner.removeprefix(GROUP))][name] = value
        else:
            index = int(owner)
            kept = cut_as(value, parameters[index]) if isinstance(value, Tensor) else value
            state.setdefault(index, {})[name] = kept
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def entries(state: Mapping[Any, Mapping[str, Any]]) -> Iterator[tuple[Any, str, Any]]:
    for parameter, values in state.items():
        for name, value in values.items():
            yield parameter, name, value
