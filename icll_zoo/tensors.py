"""A model's tensors, and safetensors files that nobody vouches for.

The safetensors library checks offsets and sizes; this module adds what it leaves open: files that are not regular, the
names and number of tensors, and a comparison of names, shapes and types with what the reader wants, before anything is
allocated. Format: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the tensors' bytes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo import files
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError, printable

HEADER_LIMIT = 16 * 2**20  # bytes; the format allows 100 MB
TENSOR_LIMIT = 50_000
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
LOOKS_LIKE = {
    b"PK": "a zip archive or torch.save",
    b"\x80": "a pickle",
    b"<": "a web page",
    b"version ": "an LFS pointer",
}


@dataclass(frozen=True)
class Shape:
    """The type and the sizes of a tensor."""

    dtype: torch.dtype
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Shape:
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.sizes)}"


def stored_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's state, each tensor once, and the other names of those that are tied: {name: the name it has here}."""
    first: dict[int, str] = {}
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"the model's state {name!r} is a {type(tensor).__name__}, not a tensor")
        if (kept := first.setdefault(id(tensor), name)) == name:
            stored[name] = tensor.detach()
        else:
            tied[name] = kept
    return stored, tied


def shapes(stored: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The type and sizes of each tensor."""
    return {name: Shape.of(tensor) for name, tensor in stored.items()}


def compare(found: Mapping[str, Shape], wanted: Mapping[str, Shape], where: str) -> None:
    """Raise IntegrityError, with every fault, unless names, shapes and types are exactly the wanted ones."""
    shown = {name: printable(repr(name), 80) for name in {*found, *wanted}}
    faults = [f"{where} lacks tensor {shown[name]}" for name in wanted if name not in found]
    faults += [f"{where} has tensor {shown[name]}, which the model does not" for name in found if name not in wanted]
    faults += [
        f"{where} has tensor {shown[name]} as {found[name]}, and the model wants {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if faults:
        raise IntegrityError(faults[0], faults=faults)


# -- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: its tensors, and the texts under `__metadata__`."""

    tensors: dict[str, Shape]
    metadata: dict[str, str]


def read_header(path: Path, what: str) -> Header:
    """The header of a safetensors file, checked against the file's size.

    Raises InputError if there is no regular file, IntegrityError if it is not a safetensors file or cut short.
    """
    size = files.regular_file(path, what)
    where = f"{what} {str(path)!r}"
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
            kind = next((kind for magic, kind in LOOKS_LIKE.items() if start.startswith(magic)), "")
            reason = f"; it looks like {kind}" if kind else ": its header's length is impossible"
            raise IntegrityError(f"{where} is not a safetensors file, or cut short{reason}")
        raw = file.read(length)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{where} has a header that is not text: {error}") from error
    if not text.startswith("{"):
        raise IntegrityError(f"{where} has a header that does not begin with '{{'")
    header = files.parse_json(text, f"the header of {where}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise IntegrityError(f"{where} has metadata that is not a mapping of texts")
    if len(header) > TENSOR_LIMIT:
        raise IntegrityError(f"{where} lists {len(header)} tensors, more than {TENSOR_LIMIT}")
    tensors = {name: read_shape(name, value, where) for name, value in header.items()}
    expected = 8 + length + sum(shape.bytes for shape in tensors.values())
    if expected != size:
        raise IntegrityError(f"{where} has {size} bytes where its header says {expected}", hint="it is cut or damaged")
    return Header(tensors, metadata)


def read_shape(name: str, value: Any, where: str) -> Shape:
    """One tensor's line in the header."""
    shown = printable(repr(name), 80)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise IntegrityError(f"{where} describes tensor {shown} in no known form")
    sizes = value["shape"]
    if (
        not isinstance(sizes, list)
        or len(sizes) > 64
        or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**48 for n in sizes)
    ):
        raise IntegrityError(f"{where} gives tensor {shown} an impossible shape")
    if not isinstance(value["dtype"], str) or value["dtype"] not in DTYPES:
        raise IntegrityError(f"{where} gives tensor {shown} the unknown type {printable(repr(value['dtype']), 40)}")
    return Shape(DTYPES[value["dtype"]], tuple(sizes))


def read_tensors(path: Path, what: str, wanted: Mapping[str, Shape]) -> dict[str, Tensor]:
    """The tensors of a file whose header says exactly what is wanted, on the CPU. Raises IntegrityError."""
    from safetensors import SafetensorError, safe_open

    where = f"{what} {str(path)!r}"
    compare(read_header(path, what).tensors, wanted, where)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{where} cannot be read: {printable(error, 200)}") from error


def write_tensors(path: Path, stored: Mapping[str, Tensor], about: dict[str, Any] | None = None) -> None:
    """Tensors as safetensors; views of one memory are written as tensors of their own."""
    from safetensors import SafetensorError

    seen: set[int] = set()
    own = {}
    for name, tensor in sorted(stored.items()):
        kept = tensor.cpu().contiguous()
        memory = kept.untyped_storage().data_ptr()
        own[name] = kept.clone() if memory in seen else kept
        seen.add(memory)
    try:
        files.save_tensors(path, own, about)
    except SafetensorError as error:
        raise EnvironmentFault(
            f"cannot write {str(path)!r}: {printable(error, 200)}", hint="is the disk full?"
        ) from error
