"""A folder as transformers saves it: config.json, and model.safetensors or shards with an index. Only these are read.

Nothing in it is trusted: files are regular and inside the folder, JSON is strict and short, and what the tensors are is
known from their headers before any memory is taken for them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icll_zoo import EnvironmentFault, InputError, parse_json, read_text
from icll_zoo_transformers.settings import shown

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HEADER_LIMIT = 16 * 2**20  # bytes; the format allows 100 MB
SHARD_LIMIT = 1000
SHARD = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors")
# A string, whole or cut off, which is passed over, or the bare word; in one pass, whatever the text is.
INFINITY = re.compile(r'"(?:[^"\\]|\\.)*+"?|\bInfinity\b', re.DOTALL)
DTYPES = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Checkpoint:
    """A configuration, the type and sizes of every tensor, and how to get one."""

    where: str
    config: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    get: Callable[[str], Tensor]


def read_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises InputError for one that is not whole, or not safe to read."""
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r} to import a model from")
    where = f"checkpoint {str(folder)!r}"
    config = read_config(folder / CONFIG)
    homes: dict[str, Path] = {}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in weight_files(folder, where):
        for name, facts in read_header(path).items():
            if name in tensors:
                raise InputError(f"{where} has tensor {shown(name)} twice")
            homes[name], tensors[name] = path, facts

    def get(name: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(homes[name]), framework="pt", device="cpu") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{where} cannot be read: {error}") from error

    return Checkpoint(where, config, tensors, get)


def read_config(path: Path) -> dict[str, Any]:
    """config.json. Older releases of transformers write a bare Infinity, which is not JSON: it becomes a text."""
    text = read_text(regular(path), CONFIG)
    text = INFINITY.sub(lambda found: '"Infinity"' if found[0] == "Infinity" else found[0], text)
    config = parse_json(text, f"{CONFIG} {str(path)!r}")
    if not isinstance(config, dict):
        raise InputError(f"{CONFIG} {str(path)!r} is not a mapping")
    if config.get("library") == "icll-zoo":
        raise InputError(f"{CONFIG} {str(path)!r} is of a model of icll-zoo", hint=f"load local-dir:{path.parent}")
    return config


def weight_files(folder: Path, where: str) -> list[Path]:
    """model.safetensors, or the shards that its index names."""
    if os.path.lexists(folder / WEIGHTS):
        return [regular(folder / WEIGHTS)]
    if not os.path.lexists(folder / INDEX):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise InputError(
                f"{where} has its weights as a pickle, {shown(pickles[0])}, which is never read",
                hint="save it again with transformers: model.save_pretrained(FOLDER)",
            )
        raise InputError(f"{where} has neither {WEIGHTS} nor {INDEX}")
    index = parse_json(read_text(regular(folder / INDEX), INDEX, 64 * 2**20), INDEX)
    mapping = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
        raise InputError(f"{INDEX} of {where} has no weight_map of file names")
    names = sorted(set(mapping.values()))
    if not names or len(names) > SHARD_LIMIT:
        raise InputError(f"{INDEX} of {where} names {len(names)} files, not 1 to {SHARD_LIMIT}")
    for name in names:
        if not SHARD.fullmatch(name):
            raise InputError(f"{INDEX} of {where} names the file {shown(name)}, not NAME.safetensors beside it")
    return [regular(folder / name) for name in names]


def regular(path: Path) -> Path:
    """`path`, a file whose content lies in its folder or, as in the cache of huggingface_hub, in its blobs.

    A link to anywhere else could pass off a private file as part of the model.
    """
    folder, target = path.parent.resolve(), path.resolve()
    if path.is_symlink() and target.parent not in (folder, folder.parent.parent / "blobs"):
        raise InputError(f"{path.name} in {str(path.parent)!r} is a link to outside the folder")
    if not target.is_file():
        raise InputError(f"no {path.name} in {str(path.parent)!r}")
    return path


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and sizes of each tensor in a safetensors file, which the library checks against the file's size."""
    from safetensors import SafetensorError, safe_open

    where = f"{path.name} in {str(path.parent)!r}"
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8 or int.from_bytes(start, "little") > HEADER_LIMIT:
        raise InputError(f"{where} is not a safetensors file, or its header has more than {HEADER_LIMIT} bytes")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
            found = {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{where} is not a safetensors file, or damaged: {error}") from error
    for name, (dtype, _) in found.items():
        if dtype not in DTYPES:
            raise InputError(f"{where} has tensor {shown(name)} as {dtype}, and only {', '.join(DTYPES)} are read")
    return found


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint to a folder that is absent or empty, whole or not at all."""
    from safetensors.torch import save_file

    target = Path(os.path.realpath(folder))
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"cannot export a model to {str(folder)!r}: it is there", hint="name a new or empty folder")
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # transformers refuses files that do not name the framework.
        save_file(dict(tensors), str(partial / WEIGHTS), {"format": "pt"})
        (partial / WEIGHTS).chmod(0o644)
        (partial / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            with (partial / name).open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(target)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {str(folder)!r}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
