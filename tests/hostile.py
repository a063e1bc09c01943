"""Model folders and catalogues that somebody made to do harm: small functions, each of which writes one.

Every case starts from a folder that `save_model` wrote, or from a catalogue whose one model lies beside it, and spoils
it. Run as a program this file is the worker of test_hostile.py: it imports torch once, and runs the command line on
each case in a forked child.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import stat
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, MODEL, PRINT = "config.json", "model.safetensors", "fingerprint.safetensors"
NAME = "transformer.tiny"
TOKENS = ["_", "a", "b", "c", "|"]
ESCAPE = "\x1b[31m\x07"
BIDI = "\u202e\u2066"
SIZES = {"d_model": 16, "n_layers": 1}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer", {**SIZES, "n_heads": 2}),
    "layers": ("transformer", {"d_model": 16, "layers": ["lstm", {"mixer": "ngram-head", "order": 1}]}),
    "ngram": ("ngram-3", {}),
    **{
        name: (name, {**SIZES, **options})
        for name, options in {
            "mesanet": {"n_heads": 2},
            "deltanet": {"n_heads": 2},
            "gla": {"n_heads": 2},
            "h3": {},
            "hyena": {},
            "mamba": {},
            "mamba-2": {},
            "ngram-head": {},
            "retnet": {"n_heads": 2},
            "rwkv-6": {"n_heads": 2},
            "s4d": {},
        }.items()
    },
}


@dataclass(frozen=True)
class Case:
    """One attack. spoil: does the harm to a copied folder. says: what the error must say. base: what is copied.

    by_name: load the model by the catalogue's name; a catalogue is otherwise only read. code: the exit code.
    """

    name: str
    spoil: Callable[[Path], object]
    says: str
    base: str = "transformer"
    by_name: bool = False
    code: int = 2


FOLDERS: list[Case] = []
CATALOGUES: list[Case] = []
HARMLESS: list[Case] = []  # what a stranger may write, and what must then do nothing


def case(says: str, into: list[Case] = FOLDERS, **about: Any) -> Callable[[Callable[[Path], object]], object]:
    """Add the decorated function as a case of its own name."""

    def add(spoil: Callable[[Path], object]) -> object:
        into.append(Case(spoil.__name__.replace("_", " "), spoil, says, **about))
        return spoil

    return add


# -- ways to spoil ---------------------------------------------------------------------------------------------------


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


def edit(**changes: Any) -> Callable[[Path], None]:
    """Change keys of config.json; `model`, `data` and `files` are merged, and None there takes a key out."""

    def spoil(folder: Path) -> None:
        config = config_of(folder)
        for key, value in changes.items():
            merged = key in ("model", "data", "files") and isinstance(value, dict)
            config[key] = {**config[key], **value} if merged else value
        (folder / CONFIG).write_text(json.dumps(config))

    return spoil


def text_of(make: Callable[[str], str | bytes], name: str = CONFIG) -> Callable[[Path], None]:
    """Replace a text by what `make` makes of it."""

    def spoil(folder: Path) -> None:
        made = make((folder / name).read_text())
        (folder / name).write_bytes(made.encode() if isinstance(made, str) else made)

    return spoil


def vouch(folder: Path, name: str) -> None:
    """Have config.json vouch for a file as it is now."""
    content = (folder / name).read_bytes()
    edit(files={name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}})(folder)


def content_of(make: Callable[[bytes], bytes], name: str = MODEL, vouched: bool = True) -> Callable[[Path], None]:
    """Replace a file's bytes, and have config.json vouch for them."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_bytes(make(path.read_bytes()))
        if vouched:
            vouch(folder, name)

    return spoil


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def packed(header: str | bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file of a header, JSON or whatever is given, and data."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def header_of(change: Callable[[dict[str, Any]], object], name: str = MODEL) -> Callable[[Path], None]:
    """Change the header of a safetensors file in place; its data stay."""

    def make(content: bytes) -> bytes:
        header, data = parts(content)
        change(header)
        return packed(header, data)

    return content_of(make, name)


def tensors_of(change: Callable[[dict[str, Any]], object], name: str = MODEL) -> Callable[[Path], None]:
    """Change the tensors of a file, and write it as the library does."""

    def make(content: bytes) -> bytes:
        from safetensors.torch import load, save

        kept = load(content)
        change(kept)
        return save(kept, parts(content)[0].get("__metadata__"))

    return content_of(make, name)


def first(header: dict[str, Any]) -> dict[str, Any]:
    """The description of a file's first tensor."""
    return header[next(key for key in header if key != "__metadata__")]


def sparse(path: Path, size: int) -> None:
    """Make a file appear as large as this; it takes no room on the disk."""
    os.truncate(path, size)


def replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in a file's place; the file moves to the folder's parent."""

    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / "moved")
        make(folder / name)

    return spoil


def add(into: list[Case], cases: dict[str, tuple[Callable[[Path], object], str]], **about: Any) -> None:
    into += [Case(name, spoil, says, **about) for name, (spoil, says) in cases.items()]


def pad(letter: str, count: int) -> Callable[[str], str]:
    return lambda text: text.replace("{", "{" + letter * count, 1)


def many(count: int, value: str = "0") -> str:
    """So many keys of a JSON mapping, a comma after each."""
    return "".join(f'"k{i}":{value},' for i in range(count))


# -- config.json as a text -------------------------------------------------------------------------------------------

add(
    FOLDERS,
    {
        "config is empty": (text_of(lambda _: ""), "bad JSON"),
        "config begins with a BOM": (text_of(lambda text: "\ufeff" + text), "BOM"),
        "config in UTF-16": (text_of(lambda text: text.encode("utf-16")), "cannot read config.json"),
        "config in UTF-16 without a BOM": (text_of(lambda text: text.encode("utf-16-le")), "bad JSON"),
        "config in no UTF-8": (text_of(lambda text: text.encode() + b"\xc3\x28"), "cannot read config.json"),
        "config with NUL bytes": (text_of(lambda text: text + "\0" * 100), "bad JSON"),
        "config with a comment": (text_of(lambda text: "// hello\n" + text), "bad JSON"),
        "config is a web page": (text_of(lambda _: "<!doctype html>"), "bad JSON"),
        "config is two values": (text_of(lambda text: text + text), "bad JSON"),
        "config of 100 MB": (lambda f: sparse(f / CONFIG, 100 * 2**20), "more than"),
        "config of 1 TB": (lambda f: sparse(f / CONFIG, 2**40), "more than"),
        "lists 100,000 deep": (text_of(lambda _: "[" * 100_000), "bad JSON"),
        "mappings 100,000 deep": (text_of(lambda _: '{"a":' * 100_000), "bad JSON"),
        "mappings 500 deep": (text_of(lambda _: '{"a":' * 500 + "1" + "}" * 500), "nested deeper"),
        "a million values": (text_of(pad('"x":[' + "1," * 1_000_000 + '1],"k":0,', 1)), "values"),
        "empty mappings, 1.3 million": (text_of(lambda _: "[" + "{}," * 1_300_000 + "{}]"), "values"),
        "300,000 unknown keys": (text_of(pad(many(300_000), 1)), "more than 256 keys"),
        "a key twice": (text_of(pad('"schema":1,', 1)), "'schema' twice"),
        "a key twice among 100,000": (text_of(pad(many(100_000) + '"k9":0,', 1)), "'k9' twice"),
        "an inner key twice": (text_of(lambda t: t.replace('"n_heads"', '"n_heads": 2, "n_heads"')), "twice"),
        "NaN in config": (text_of(pad('"training":{"loss":NaN},', 1)), "NaN is not JSON"),
        "infinity in config": (text_of(pad('"training":{"loss":-Infinity},', 1)), "-Infinity is not JSON"),
        "a number beyond floats": (text_of(pad('"x":{"loss":1e999},', 1)), "no number that a computer holds"),
        "a number of 5,000 digits": (text_of(pad('"x":' + "9" * 5000 + ",", 1)), "bad JSON"),
        "half a surrogate pair": (text_of(pad('"x":"\\ud83d",', 1)), "surrogates"),
        "a key of a megabyte": (text_of(pad('"' + "k" * 2**20 + '":0,', 1)), "unknown key"),
    },
)


# -- what config.json says -------------------------------------------------------------------------------------------

add(
    FOLDERS,
    {
        "an unknown key": (edit(extra=1), "unknown key 'extra'"),
        "_target_ at the top": (edit(_target_="os.system"), "unknown key '_target_'"),
        "auto_map at the top": (edit(auto_map={"AutoModel": "evil.Model"}), "unknown key 'auto_map'"),
        "__class__ in an option": (edit(model={"__class__": "os.system"}), "__class__"),
        "_target_ in a value": (edit(model={"n_heads": {"_target_": "os.system"}}), "n_heads"),
        "a nested option": (edit(model={"n_heads": [[[2]]]}), "n_heads"),
        "another library": (edit(library="transformers"), "not of a model that icll-zoo saved"),
        "a look-alike library": (edit(library="icll-zо\u043e"), "not of a model that icll-zoo saved"),
        "a later schema": (edit(schema=2), "use a newer icll-zoo"),
        "a schema of true": (edit(schema=True), "'schema'"),
        "a schema of 1.0": (edit(schema=1.5), "'schema'"),
        "no schema": (edit(schema=None), "'schema'"),
        "a version of the future": (edit(version=99), "wants version 99"),
        "a version of true": (edit(version=True), "'version'"),
        "a version of zero": (edit(version=0), "'version'"),
        "a version of 400 digits": (edit(version=10**400), "wants version 1000"),
        "an unknown plugin": (edit(architecture="nobody:transformer"), "no plugin 'nobody' is installed"),
        "a look-alike plugin": (edit(architecture="baseIines:transformer"), "no plugin 'baseIines'"),
        "a look-alike plugin in Cyrillic": (edit(architecture="b\u0430selines:transformer"), "'architecture'"),
        "a look-alike name in Cyrillic": (edit(architecture="baselines:tr\u0430nsformer"), "'architecture'"),
        "a dataset's name": (edit(architecture="dfa:dfa"), "dfa:dfa"),
        "a metric's name": (edit(architecture="dfa:accuracy"), "dfa:accuracy"),
        "a dotted path": (edit(architecture="os:system"), "no plugin 'os'"),
        "a class's path": (edit(architecture="torch.nn:Linear"), "'architecture'"),
        "a module's path": (edit(architecture="torch.hub:load"), "no plugin 'torch.hub'"),
        "a bare name": (edit(architecture="transformer"), "'architecture'"),
        "a name with escapes": (edit(architecture=f"baselines:transformer{ESCAPE}"), "'architecture'"),
        "a name with a line": (edit(architecture="baselines:transformer\nerror: pip install evil"), "'architecture'"),
        "a look-alike distribution": (edit(distribution="icll-zo0"), "icll-zo0"),
        "a look-alike distribution in Cyrillic": (edit(distribution="icll-zo\u043e"), "'distribution'"),
        "a distribution with escapes": (edit(distribution=f"icll-zoo{ESCAPE}"), "'distribution'"),
        "a missing plugin that asks to be installed": (
            edit(
                architecture="evil:model",
                plugins={"evil": {"distribution": "evil", "version": "1 (pip install evil)"}},
            ),
            "which is not installed",
        ),
        "a plugin's version with bidi": (
            edit(plugins={"baselines": {"distribution": "icll-zoo", "version": BIDI}}), "plugins.baselines.version"
        ),
        "another distribution of the plugin": (
            edit(plugins={"baselines": {"distribution": "other", "version": "1"}}), "'other'"
        ),
        "a plugin's name in Cyrillic": (
            edit(plugins={"b\u0430selines": {"distribution": "a", "version": "1"}}), "plugins"
        ),
        "a thousand plugins": (
            edit(plugins={f"p{i}": {"distribution": "a", "version": "1"} for i in range(1000)}), "more than 256 keys"
        ),
        "200 plugins with 250 wrong keys": (
            edit(plugins={f"p{i}": {f"k{j}": 0 for j in range(250)} for i in range(200)}), "missing key"
        ),
        "a script": (edit(architecture="script:evil", script="../../evil.py"), "--load FILE"),
        "a script with bidi": (edit(architecture="script:evil", script=f"{BIDI}evil.py"), "'script'"),
        "options are a list": (edit(model=[1]), "'model'"),
        "options are null": (edit(model=None), "'model'"),
        "300,000 options": (text_of(lambda t: t.replace('"model": {', '"model": {' + many(300_000))), "256 options"),
        "300 options": (edit(model={f"k{i}": i for i in range(300)}), "more than 256 options"),
        "an option with a name of a kilobyte": (edit(model={"k" * 1024: 1}), "absurdly long"),
        "an option with escapes": (edit(model={f"{ESCAPE}{BIDI}\n": 1}), "unknown option"),
        "another count": (edit(parameters=1), "its config.json says otherwise"),
        "a negative count": (edit(parameters=-1), "'parameters'"),
        "a count that is a float": (edit(parameters=1.5), "'parameters'"),
        "no files": (edit(files=None), "'files'"),
        "a file outside": (edit(files={"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}), "files"),
        "another sha256": (edit(files={MODEL: {"sha256": "0" * 64, "bytes": 1}}), "and must have 1"),
        "a sha256 of 63 digits": (edit(files={MODEL: {"sha256": "0" * 63, "bytes": 1}}), "sha256"),
        "a sha256 in capitals": (edit(files={MODEL: {"sha256": "A" * 64, "bytes": 1}}), "sha256"),
        "a negative size": (edit(files={MODEL: {"sha256": "0" * 64, "bytes": -1}}), "bytes"),
        "a million tokens": (edit(data={"vocabulary": ["a"] * 300_000, "vocab_size": 300_000}), "lists a token twice"),
        "tokens that are numbers": (edit(data={"vocabulary": [1] * 300_000}), "not all texts"),
        "tokens that are lists": (edit(data={"vocabulary": [["a"]] * 5}), "not all texts"),
        "a vocabulary that is a text": (edit(data={"vocabulary": "abcde"}), "vocabulary"),
        "the same token twice": (edit(data={"vocabulary": ["a"] * 5}), "lists a token twice"),
        "too many tokens": (edit(data={"vocabulary": list("abcdef")}), "lists 6 tokens"),
        "a vocabulary of 2**24": (edit(data={"vocabulary": None, "vocab_size": 2**24}), "vocab_size"),
        "a vocabulary of 2**20": (edit(data={"vocabulary": None, "vocab_size": 2**20}), "than its weights file holds"),
        "a vocabulary of 2**63": (edit(data={"vocabulary": None, "vocab_size": 2**63}), "vocab_size"),
        "a vocabulary of none": (edit(data={"vocabulary": [], "vocab_size": 0}), "vocab_size"),
        "a vocabulary of minus five": (edit(data={"vocabulary": None, "vocab_size": -5}), "vocab_size"),
        "a vocabulary of true": (edit(data={"vocabulary": None, "vocab_size": True}), "vocab_size"),
        "padding out of range": (edit(data={"pad_id": 5}), "pad_id 5 in a vocabulary of 5"),
        "padding that is negative": (edit(data={"pad_id": -1}), "pad_id"),
        "a separator out of range": (edit(data={"separator_id": 2**62}), "separator_id"),
        "a dataset with escapes": (edit(data={"dataset": f"dfa{ESCAPE}"}), "data.dataset"),
    },
)  # fmt: skip


# -- sizes -----------------------------------------------------------------------------------------------------------

for key, value, says in [
    ("d_model", 2**30, "d_model is 1073741824"),
    ("d_model", 2**16, "than its model can need"),
    ("d_model", 2**12, "than its weights file holds"),
    ("d_model", 32, "and the model wants"),
    ("d_model", 0, "not at least 1"),
    ("d_model", -16, "not at least 1"),
    ("d_model", 16.0, "d_model"),
    ("d_model", True, "d_model"),
    ("d_model", "16", "d_model"),
    ("d_model", None, "d_model"),
    ("n_layers", 10**9, "n_layers is 1000000000"),
    ("n_layers", 1000, "than its weights file holds"),
    ("n_layers", -1, "not at least 1"),
    ("n_layers", 1.0, "n_layers"),
    ("max_length", 2**62, "max_length is"),
    ("max_length", 0, "not at least 1"),
    ("n_heads", 0, "n_heads"),
    ("n_heads", -2, "n_heads"),
    ("n_heads", 3, "n_heads"),
    ("n_heads", 2**40, "n_heads is"),
    ("n_heads", False, "n_heads"),
    ("mlp_ratio", 1e15, "than its model can need"),
    ("mlp_ratio", 1e300, "mlp_ratio is"),
    ("mlp_ratio", 1e6, "than its model can need"),
    ("mlp_ratio", 1e3, "and the model wants"),
    ("mlp_ratio", -1.0, "not negative"),
    ("mlp_ratio", 0.0, "which the model does not"),
    ("dropout", 2.0, "dropout"),
    ("attention_dropout", -0.5, "attention_dropout"),
    ("init_std", -1.0, "not negative"),
    ("norm", "batch", "norm"),
    ("norm", "none", "which the model does not"),
    ("positions", "none", "which the model does not"),
    ("tie", False, "lacks tensor 'head.weight'"),
    ("backend", "os.system", "backend"),
    ("layers", [], "layers"),
    ("layers", "lstm", "layers is not a list"),
    ("layers", [{"mixer": "nobody:lstm"}], "no plugin 'nobody' is installed"),
    ("layers", [{"mixer": "dfa:dfa"}], "dfa:dfa"),
    ("layers", [{"mixer": "baselines:ngram"}], "not a mixer"),
    ("layers", [{"mixer": "b\u0430selines:lstm"}], "selines"),
    ("layers", [{"mixer": f"{ESCAPE}"}], "unknown model"),
    ("layers", [{"mixer": "x" * 2**20}], "unknown model"),
    ("layers", [{"mixer": "baselines:lstm"}] * 1001, "more than 1000"),
    ("layers", [{"mixer": "baselines:lstm"}] * 100_000, "more than 1000"),
]:
    shown = repr(value) if len(repr(value)) < 30 else f"{repr(value)[:20]}, {len(repr(value))} characters"
    FOLDERS.append(Case(f"{key} {shown}".replace(ESCAPE, "ESC"), edit(model={key: value}), says))

for base, key, value, says in [
    ("s4d", "d_state", 10**9, "d_state is 1000000000"),
    ("s4d", "d_state", 2**24, "than its"),
    ("s4d", "d_state", 0, "d_state"),
    ("s4d", "d_state", -2, "d_state"),
    ("s4d", "dt_min", 0.0, "dt_min"),
    ("h3", "d_state", 2**24, "than its"),
    ("h3", "d_state", 0, "d_state"),
    ("mamba", "d_conv", 2**24, "than its"),
    ("mamba", "d_conv", 0, "d_conv"),
    ("mamba", "expand", 2**24, "than its"),
    ("mamba", "dt_rank", 2**24, "than its"),
    ("mamba-2", "n_groups", 2**24, "n_groups"),
    ("mamba-2", "d_state", 2**24, "than its"),
    ("hyena", "max_length", 2**25, "max_length is"),
    ("deltanet", "conv_size", 2**24, "than its"),
    ("deltanet", "expand_k", 1e9, "than its"),
    ("deltanet", "conv_size", -1, "conv_size"),
    ("gla", "gate_rank", 2**24, "than its"),
    ("gla", "gate_divisor", 0.0, "gate_divisor"),
    ("rwkv-6", "mix_rank", 2**24, "than its"),
    ("retnet", "value_factor", 2**24, "than its"),
    ("mesanet", "iterations", 10**9, "iterations is 1000000000"),
    ("mesanet", "tolerance", -1.0, "tolerance"),
    ("ngram", "order", 10**9, "order is 1000000000"),
    ("ngram", "order", 2**24, "more operations than its model can need"),
    ("ngram", "order", 0, "order 0"),
    ("ngram", "smoothing", "evil", "smoothing"),
    ("ngram-head", "order", 10**9, "order is 1000000000"),
    ("ngram-head", "order", 2**24, "does not answer"),
    ("ngram-head", "order", True, "order"),
    ("gla", "gate_rank", 0, "gate_rank"),
    ("mamba", "expand", 0, "expand"),
    ("mamba", "dt_rank", 0, "dt_rank"),
    ("mamba", "d_state", 0, "d_state"),
    ("mamba-2", "n_groups", 0, "n_groups"),
    ("mamba-2", "d_state", 0, "d_state"),
    ("mamba-2", "d_head", 0, "d_head"),
    ("deltanet", "conv_size", 0, "conv_size"),
    ("deltanet", "expand_k", 0.0, "expand_k"),
    ("retnet", "value_factor", 0, "value_factor"),
    ("rwkv-6", "decay_rank", 0, "decay_rank"),
    ("mesanet", "iterations", 0, "iterations"),
    ("mesanet", "min_penalty", 1e300, "min_penalty"),
]:
    FOLDERS.append(Case(f"{base} {key} {value}", edit(model={key: value}), says, base))


@case("unknown option 'd_model'", base="layers")
def a_backbone_option_in_a_layer(folder: Path) -> None:
    layers = config_of(folder)["model"]["layers"]
    edit(model={"layers": [{**layers[0], "d_model": 32}, *layers[1:]]})(folder)


@case("d_model is 1048576", base="layers")
def the_backbone_and_a_layer_say_different_things(folder: Path) -> None:
    layers = config_of(folder)["model"]["layers"]
    edit(model={"d_model": 2**20, "layers": layers})(folder)


@case("n_layers", base="layers")
def as_many_layers_as_are_not_listed(folder: Path) -> None:
    edit(model={"n_layers": 1000})(folder)


@case("than its model can need", base="layers")
def a_thousand_layers_of_65536(folder: Path) -> None:
    edit(model={"d_model": 2**16, "n_layers": 1000, "layers": [{"mixer": "baselines:lstm"}] * 1000})(folder)


@case("_target_", base="layers")
def a_target_in_a_layer(folder: Path) -> None:
    layers = config_of(folder)["model"]["layers"]
    edit(model={"layers": [{**layers[0], "_target_": "os.system"}, *layers[1:]]})(folder)


@case("order is 1000000000", base="layers")
def a_layer_of_a_huge_order(folder: Path) -> None:
    layers = config_of(folder)["model"]["layers"]
    edit(model={"layers": [layers[0], {**layers[1], "order": 10**9}]})(folder)


# -- the weights -----------------------------------------------------------------------------------------------------


def torch_save(_: bytes) -> bytes:
    import torch

    written = io.BytesIO()
    torch.save({"embedding.weight": torch.ones(5, 16)}, written)
    return written.getvalue()


class Evil:
    """What runs a command when somebody unpickles it."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def zipped(content: bytes = b"") -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("../../evil", content)
    return written.getvalue()


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 0x40]) + content[-4:]


def shift(by: int) -> Callable[[dict[str, Any]], None]:
    """Move where a file's first tensor lies."""

    def change(header: dict[str, Any]) -> None:
        first(header)["data_offsets"] = [n + by for n in first(header)["data_offsets"]]

    return change


def say(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Describe a file's first tensor otherwise."""
    return lambda header: first(header).update(changes)


def overlap(header: dict[str, Any]) -> None:
    header["norm.bias"]["data_offsets"] = header["norm.weight"]["data_offsets"]


def exchange(header: dict[str, Any]) -> None:
    """Two tensors of one shape with each other's names: the header is right, and the model another."""
    one, two = header["blocks.0.norm.weight"], header["blocks.0.norm.bias"]
    one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]


def rename(to: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[to] = header.pop("norm.weight")

    return change


def empty_tensors(count: int) -> dict[str, Any]:
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return {f"t{i}": one for i in range(count)}


def weights(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    return lambda kept: kept[name].view(-1)[:1].fill_(value)


add(
    FOLDERS,
    {
        "weights are empty": (content_of(lambda _: b""), "cut short"),
        "weights of seven bytes": (content_of(lambda c: c[:7]), "cut short"),
        "weights are cut": (content_of(lambda c: c[:-100], vouched=False), "cut, damaged"),
        "weights are cut, vouched for": (content_of(lambda c: c[:-100]), "it is cut or damaged"),
        "weights with a flipped bit": (content_of(flipped, vouched=False), "another sha256"),
        "weights and a byte more": (content_of(lambda c: c + b"\0"), "it is cut or damaged"),
        "weights and a zip archive": (content_of(lambda c: c + zipped(b"evil")), "it is cut or damaged"),
        "a header longer than the file": (content_of(lambda c: (2**40).to_bytes(8, "little") + c[8:]), "impossible"),
        "a header of 2**64 bytes": (content_of(lambda c: b"\xff" * 8 + c[8:]), "impossible"),
        "a header of 17 MB": (content_of(lambda c: packed("{" + " " * 17 * 2**20 + "}")), "impossible"),
        "a header of 15 MB of spaces": (content_of(lambda c: packed("{" + " " * 15 * 2**20 + "}")), "lacks tensor"),
        "a header that begins with a space": (
            content_of(lambda c: packed(" " + json.dumps(parts(c)[0]), parts(c)[1])), "does not begin with"
        ),
        "a header that begins with a line": (
            content_of(lambda c: packed("\n" + json.dumps(parts(c)[0]), parts(c)[1])), "does not begin with"
        ),
        "a header that is a list": (content_of(lambda c: packed("[]")), "does not begin with"),
        "a header that is no text": (content_of(lambda c: packed(b"{\xff\xfe}")), "not text"),
        "a header that is no JSON": (content_of(lambda c: packed("{'a': 1}")), "bad JSON"),
        "a header of two values": (content_of(lambda c: packed("{}{}")), "bad JSON"),
        "a header 100,000 deep": (content_of(lambda c: packed('{"a":' * 100_000)), "bad JSON"),
        "5 million mappings in a header": (content_of(lambda _: packed('{"a":[' + "{}," * 5 * 10**6 + "{}]}")), "val"),
        "a tensor twice": (
            content_of(lambda c: packed('{"norm.weight":0,' + json.dumps(parts(c)[0])[1:], parts(c)[1])), "twice"
        ),
        "150,000 empty tensors": (content_of(lambda c: packed(empty_tensors(150_000))), "values"),
        "60,000 empty tensors": (content_of(lambda c: packed(empty_tensors(60_000))), "more than 50000"),
        "40,000 empty tensors": (content_of(lambda c: packed(empty_tensors(40_000))), "lacks tensor"),
        "overlapping tensors": (header_of(overlap), "cannot be read"),
        "a hole before a tensor": (header_of(shift(4)), "cannot be read"),
        "a tensor before the file": (header_of(shift(-4)), "cannot be read"),
        "offsets the wrong way round": (
            header_of(lambda h: first(h)["data_offsets"].reverse()), "cannot be read"
        ),
        "offsets that are texts": (header_of(say(data_offsets=["0", "4"])), "cannot be read"),
        "offsets of true": (header_of(say(data_offsets=[False, True])), "cannot be read"),
        "offsets of 2**70": (header_of(say(data_offsets=[2**70, 2**71])), "cannot be read"),
        "no offsets": (header_of(lambda h: first(h).pop("data_offsets")), "in no known form"),
        "a tensor with a class": (header_of(say(__class__="os.system")), "in no known form"),
        "a tensor that is a number": (header_of(lambda h: h.update(x=1)), "in no known form"),
        "another type of the same size": (header_of(say(dtype="I32")), "as int32"),
        "half precision": (tensors_of(lambda k: k.update(x=k.pop("norm.weight").half())), "tensor"),
        "an unknown type": (header_of(say(dtype="F31")), "the unknown type 'F31'"),
        "an eight-bit float": (header_of(say(dtype="F8_E4M3")), "the unknown type"),
        "a type with escapes": (header_of(say(dtype=ESCAPE)), "the unknown type"),
        "a type that is a list": (header_of(say(dtype=["F32"])), "the unknown type"),
        "a negative size of a tensor": (header_of(say(shape=[-1])), "an impossible shape"),
        "a size that is a float": (header_of(say(shape=[80.0])), "an impossible shape"),
        "a size of true": (header_of(say(shape=[True])), "an impossible shape"),
        "a size of 2**60": (header_of(say(shape=[2**60])), "an impossible shape"),
        "sizes whose product overflows": (header_of(say(shape=[2**33, 2**33])), "it is cut or damaged"),
        "sizes whose product is zero": (header_of(say(shape=[0, 2**47], data_offsets=[0, 0])), "it is cut or damaged"),
        "a thousand dimensions": (header_of(say(shape=[1] * 1000)), "an impossible shape"),
        "a shape that is a text": (header_of(say(shape="16")), "an impossible shape"),
        "a transposed shape": (header_of(lambda h: h["embedding.weight"].update(shape=[16, 5])), "float32[16, 5]"),
        "metadata that are numbers": (header_of(lambda h: h.update(__metadata__={"a": 1})), "not a mapping of texts"),
        "metadata that are a list": (header_of(lambda h: h.update(__metadata__=[])), "not a mapping of texts"),
        "other ties": (
            header_of(lambda h: h["__metadata__"].update(icll_zoo='{"tied":{"norm.bias":"norm.weight"}}')), "ties other"
        ),
        "no ties": (header_of(lambda h: h.pop("__metadata__")), "ties other"),
        "ties 100,000 deep": (header_of(lambda h: h["__metadata__"].update(icll_zoo="[" * 100_000)), "bad JSON"),
        "ties that are a list": (header_of(lambda h: h["__metadata__"].update(icll_zoo="[]")), "ties other"),
        "a tensor too many": (tensors_of(lambda k: k.update(x=k["norm.weight"].clone())), "which the model does not"),
        "a tensor too few": (tensors_of(lambda k: k.pop("norm.weight")), "lacks tensor 'norm.weight'"),
        "a tensor of another name": (header_of(rename("norm.wieght")), "lacks tensor 'norm.weight'"),
        "a tensor called ../../x": (header_of(rename("../../x")), "lacks tensor 'norm.weight'"),
        "a tensor called by escapes": (header_of(rename(ESCAPE + BIDI + "\n")), "lacks tensor"),
        "a tensor called by a megabyte": (header_of(rename("n" * 2**20)), "lacks tensor"),
        "two tensors exchanged": (header_of(exchange), "does not answer as when it was saved"),
        "NaN weights": (tensors_of(weights("norm.weight", float("nan"))), "not finite, in 'norm.weight'"),
        "an infinite weight": (tensors_of(weights("embedding.weight", float("inf"))), "not finite"),
        "a weight of minus infinity": (tensors_of(weights("norm.bias", float("-inf"))), "not finite"),
        "a weight near infinity": (tensors_of(weights("norm.weight", 3e38)), "does not answer"),
        "another weight": (tensors_of(weights("norm.weight", 1.5)), "does not answer as when it was saved"),
        "weights that are a pickle": (content_of(lambda _: pickle.dumps(Evil())), "it looks like a pickle"),
        "weights of torch.save": (content_of(torch_save), "it looks like a zip archive"),
        "weights that are a zip archive": (content_of(lambda c: zipped(c)), "it looks like a zip archive"),
        "weights that are gzipped": (content_of(gzip.compress), "not a safetensors file"),
        "weights that are a web page": (content_of(lambda _: b"<!doctype html><html>"), "it looks like a web page"),
        "weights that are an LFS pointer": (
            content_of(lambda _: b"version https://git-lfs.github.com/spec/v1\n"), "it looks like an LFS pointer"
        ),
        "weights and fingerprint exchanged": (
            lambda f: [
                (f / MODEL).rename(f / "x"), (f / PRINT).rename(f / MODEL), (f / "x").rename(f / PRINT),
                vouch(f, MODEL), vouch(f, PRINT),
            ],
            "lacks tensor",
        ),
    },
)  # fmt: skip


@case("1099511627776")
def weights_of_1_TB(folder: Path) -> None:
    """Nothing but holes, said to be so in config.json: nobody should read it to the end."""
    sparse(folder / MODEL, 2**40)
    edit(files={MODEL: {"sha256": "0" * 64, "bytes": 2**40}})(folder)


@case("1099511627776")
def a_fingerprint_of_1_TB(folder: Path) -> None:
    sparse(folder / PRINT, 2**40)
    edit(files={PRINT: {"sha256": "0" * 64, "bytes": 2**40}})(folder)


@case("bytes of memory", code=3)
def a_model_of_3_TB(folder: Path) -> None:
    """All fits together, header, sizes and options, and no machine could hold it."""
    import torch

    from icll_zoo.rebuild import skeleton
    from icll_zoo.tensors import stored_tensors
    from icll_zoo.zoo import Vocabulary, default_zoo

    zoo = default_zoo()
    edit(model={"d_model": 2**16, "n_layers": 16})(folder)
    spec = zoo.resolve_model("transformer", config_of(folder)["model"])
    model = skeleton(zoo, spec, Vocabulary(5, TOKENS, 0, 4))
    stored, tied = stored_tensors(model)
    header: dict[str, Any] = {"__metadata__": {"icll_zoo": json.dumps({"tied": tied})}}
    end = 0
    for name, tensor in stored.items():
        assert tensor.dtype == torch.float32
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    content = packed(header)
    (folder / MODEL).write_bytes(content)
    sparse(folder / MODEL, len(content) + end)
    facts = {MODEL: {"sha256": "0" * 64, "bytes": len(content) + end}}
    edit(files=facts, parameters=sum(p.numel() for p in model.parameters()))(folder)


# -- the fingerprint -------------------------------------------------------------------------------------------------


def tokens_of(value: int) -> Callable[[dict[str, Any]], None]:
    return lambda kept: kept["tokens"].view(-1)[:1].fill_(value)


add(
    FOLDERS,
    {
        "a fingerprint of another shape": (
            tensors_of(lambda k: k.update(tokens=k["tokens"][:, :3].clone()), PRINT), "'tokens' as int64[2, 3]"
        ),
        "a fingerprint of other values": (tensors_of(weights("output", 9.0), PRINT), "does not answer"),
        "a fingerprint of NaN": (tensors_of(weights("output", float("nan")), PRINT), "impossible values"),
        "a fingerprint of infinities": (tensors_of(weights("output", float("inf")), PRINT), "impossible values"),
        "a fingerprint of other tokens": (tensors_of(tokens_of(5), PRINT), "impossible values"),
        "a fingerprint of negative tokens": (tensors_of(tokens_of(-1), PRINT), "impossible values"),
        "a fingerprint of a token of 2**62": (tensors_of(tokens_of(2**62), PRINT), "impossible values"),
        "a fingerprint of doubles": (
            tensors_of(lambda k: k.update(output=k["output"].double()), PRINT), "float64"
        ),
        "a fingerprint and more": (
            tensors_of(lambda k: k.update(extra=k["tokens"].clone()), PRINT), "which the model does not"
        ),
        "a fingerprint without output": (tensors_of(lambda k: k.pop("output"), PRINT), "lacks tensor 'output'"),
        "a fingerprint with a flipped bit": (content_of(flipped, PRINT, vouched=False), "another sha256"),
        "a fingerprint that is a pickle": (content_of(lambda _: pickle.dumps(Evil()), PRINT), "a pickle"),
        "a fingerprint of zeros": (
            tensors_of(lambda k: k["output"].zero_(), PRINT), "does not answer as when it was saved"
        ),
    },
)  # fmt: skip


# -- what is no file -------------------------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have 108 characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


for name in (CONFIG, MODEL, PRINT):
    add(
        FOLDERS,
        {
            f"no {name}": (replace(name, lambda path: None), f"no {name} at"),
            f"{name} is a pipe": (replace(name, lambda path: os.mkfifo(path)), "is not a regular file"),
            f"{name} is a folder": (replace(name, lambda path: path.mkdir()), "is not a regular file"),
            f"{name} is a link": (replace(name, lambda p: p.symlink_to(p.parent.parent / "moved")), "symbolic link"),
            f"{name} is a link to a device": (replace(name, lambda p: p.symlink_to("/dev/zero")), "symbolic link"),
            f"{name} is a link to nothing": (replace(name, lambda p: p.symlink_to("absent")), "symbolic link"),
            f"{name} is a link to itself": (replace(name, lambda p: p.symlink_to(p.name)), "symbolic link"),
        },
    )
FOLDERS.append(Case("weights are a socket", replace(MODEL, make_socket), "is not a regular file"))


@case("no folder")
def the_folder_is_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("{}")


@case("no folder")
def the_folder_is_a_link_to_itself(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


# -- what must do nothing --------------------------------------------------------------------------------------------

add(
    HARMLESS,
    {
        "a target where nobody reads": (edit(training={"_target_": "os.system", "args": ["touch pwned"]}), ""),
        "a class in the data's options": (edit(data={"options": {"__class__": "os.system"}}), ""),
        "escapes in the training": (edit(training={ESCAPE: BIDI + "\n"}), ""),
        "tokens with escapes": (edit(data={"vocabulary": ["_", "a", ESCAPE, BIDI + "\n", "\u009b31m"]}), ""),
        "a card that is a pipe": (replace("README.md", lambda path: os.mkfifo(path)), ""),
        "a card that is a link": (replace("README.md", lambda path: path.symlink_to("/dev/zero")), ""),
        "a script beside the weights": (lambda f: (f / "modeling.py").write_text("raise SystemExit('pwned')"), ""),
        "a conftest and a pth": (lambda f: (f / "evil.pth").write_text("import os; os.system('touch pwned')"), ""),
    },
)


# -- catalogues ------------------------------------------------------------------------------------------------------


def registry(top: Path) -> Path:
    return top / "registry.yaml"


def block(**changes: Any) -> Callable[[Path], None]:
    """Change keys of the catalogue's one block; DROP takes one out."""

    def spoil(top: Path) -> None:
        said = json.loads(registry(top).read_text())
        one = {**said["models"][NAME], **changes}
        said["models"][NAME] = {key: value for key, value in one.items() if value is not DROP}
        registry(top).write_text(json.dumps(said))

    return spoil


def called(name: str) -> Callable[[Path], None]:
    """Give the model of the catalogue another name."""

    def spoil(top: Path) -> None:
        said = json.loads(registry(top).read_text())
        registry(top).write_text(json.dumps({"models": {name: said["models"][NAME]}}))

    return spoil


def yaml_of(make: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    return text_of(make, "registry.yaml")


def listed(name: str, facts: Any = None) -> Callable[[Path], None]:
    """List one more file."""

    def spoil(top: Path) -> None:
        files = json.loads(registry(top).read_text())["models"][NAME]["files"]
        block(files={**files, name: facts or {"sha256": "0" * 64, "bytes": 1}})(top)

    return spoil


DROP = object()
HUB = {"path": DROP, "repo": "org/name", "revision": "a" * 40}
BOMB = "".join(f"{chr(97 + i)}: &{chr(97 + i)} [{', '.join([f'*{chr(96 + i)}'] * 9)}]\n" for i in range(1, 9))
METRIC = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "seeds": [0]}

add(
    CATALOGUES,
    {
        "catalogue is empty": (yaml_of(lambda _: ""), "must hold one key"),
        "catalogue is a list": (yaml_of(lambda _: "[]"), "must hold one key"),
        "catalogue with another key": (yaml_of(lambda t: t.replace('"models"', '"weights"')), "must hold one key"),
        "catalogue in UTF-16": (yaml_of(lambda t: t.encode("utf-16")), "cannot read catalogue"),
        "catalogue in no UTF-8": (yaml_of(lambda t: t.encode() + b"\xc3\x28"), "cannot read catalogue"),
        "catalogue with NUL bytes": (yaml_of(lambda t: t + "\0"), "bad YAML"),
        "catalogue with escapes": (yaml_of(lambda t: t + ESCAPE), "bad YAML"),
        "catalogue of 2 MB": (yaml_of(lambda t: t + " " * 2**21), "more than"),
        "catalogue of 1 TB": (lambda top: sparse(registry(top), 2**40), "more than"),
        "a bomb of anchors": (yaml_of(lambda _: "a: &a [x]\n" + BOMB), "an alias"),
        "an alias": (yaml_of(lambda _: "models: &m {}\nother: *m"), "an alias"),
        "an alias of itself": (yaml_of(lambda _: "models: &m [*m]"), "an alias"),
        "a Python object": (yaml_of(lambda _: "models: !!python/object/apply:os.system ['touch pwned']"), "a tag"),
        "a Python name": (yaml_of(lambda _: "!!python/name:os.system"), "a tag"),
        "a tag of its own": (yaml_of(lambda _: "models: !evil {}"), "a tag"),
        "a bad timestamp": (yaml_of(lambda _: "models: !!timestamp never"), "a tag"),
        "a bad boolean": (yaml_of(lambda _: "models: !!bool perhaps"), "a tag"),
        "an empty integer": (yaml_of(lambda _: "models: !!int ''"), "a tag"),
        "a set": (yaml_of(lambda _: "models: !!set {a, b}"), "a tag"),
        "a merge": (yaml_of(lambda t: t.replace('"models"', '"<<"')), "must hold one key"),
        "lists 100,000 deep in YAML": (yaml_of(lambda _: "[" * 100_000), "bad YAML"),
        "mappings 100,000 deep in YAML": (yaml_of(lambda _: "{a: " * 100_000), "bad YAML"),
        "blocks 1,000 deep": (yaml_of(lambda _: "".join(" " * i + "-\n" for i in range(1, 1000))), "nested deeper"),
        "half a million values": (yaml_of(lambda _: "models: [" + "1," * 500_000 + "]"), "values"),
        "300,000 empty mappings": (yaml_of(lambda _: "models: [" + "{}," * 300_000 + "]"), "values"),
        "40,000 unknown keys": (block(**{f"k{i}": 0 for i in range(40_000)}), "unknown key"),
        "40,000 models": (yaml_of(lambda _: "models: {" + "".join(f"a.b{i}: 0," for i in range(40_000)) + "}"), "a.b0"),
        "a name twice": (yaml_of(lambda t: t.replace(f'"{NAME}"', f'"{NAME}": 1, "{NAME}"')), "a key twice"),
        "a key of a block twice": (yaml_of(lambda t: t.replace('"paper"', '"paper": MIT, "paper"')), "a key twice"),
        "two documents": (yaml_of(lambda t: t + "\n---\n" + t), "bad YAML"),
        "a key that is a list": (yaml_of(lambda _: "? [a]\n: b"), "not a text"),
        "a number of 100,000 digits": (yaml_of(lambda _: "models: " + "9" * 100_000), "bad YAML"),
        "a float beyond floats": (block(metrics={"tvd": {**METRIC, "value": "INF"}}), "metrics.tvd.value"),
        "1e999 in YAML": (yaml_of(lambda _: "models: 1e999"), "no number that a computer holds"),
        "a metric of NaN": (yaml_of(lambda t: t.replace("0.5", ".nan")), "metrics"),
        "a metric without seeds": (block(metrics={"tvd": {**METRIC, "seeds": []}}), "seeds"),
        "20,000 wrong seeds": (block(metrics={"tvd": {**METRIC, "seeds": ["x"] * 20_000}}), "seeds"),
        "a metric with escapes": (block(metrics={ESCAPE: METRIC}), "metrics"),
        "a path that leaves": (block(path="../other"), "not a plain relative path"),
        "a path that leaves later": (block(path="cards/../../other"), "not a plain relative path"),
        "an absolute path": (block(path="/etc"), "not a plain relative path"),
        "a path with backslashes": (block(path="..\\..\\other"), "not a plain relative path"),
        "a path with a line": (block(path="cards/x\n"), "not a plain relative path"),
        "a path with NUL": (block(path="cards/\0"), "not a plain relative path"),
        "a path in Cyrillic": (block(path="c\u0430rds/x"), "not a plain relative path"),
        "a path that is empty": (block(path=""), "not a plain relative path"),
        "a path that is home": (block(path="~/x"), "not a plain relative path"),
        "a path that is a number": (block(path=7), "'path'"),
        "a path of a kilobyte": (block(path="x" * 1024), "'path'"),
        "a file that leaves": (listed("../config.json"), "not a plain relative path"),
        "a file by its full path": (listed("/etc/passwd"), "not a plain relative path"),
        "two files but for capitals": (listed("Config.JSON"), "capitals"),
        "no fingerprint listed": (block(files={CONFIG: {"sha256": "0" * 64, "bytes": 1}}), "does not list"),
        "a sha256 too short": (listed("a", {"sha256": "0" * 63, "bytes": 1}), "sha256"),
        "a size of true in the catalogue": (listed("a", {"sha256": "0" * 64, "bytes": True}), "bytes"),
        "repo and path": (block(repo="org/name", revision="a" * 40), "either repo or path"),
        "neither repo nor path": (block(path=DROP), "either repo or path"),
        "a repo without revision": (block(path=DROP, repo="org/name"), "repo and revision go together"),
        "a floating revision": (block(**{**HUB, "revision": "main"}), "'revision'"),
        "a short revision": (block(**{**HUB, "revision": "a" * 7}), "'revision'"),
        "a revision with a line": (block(**{**HUB, "revision": "a" * 40 + "\n"}), "'revision'"),
        "a revision that is a path": (block(**{**HUB, "revision": "../" + "a" * 37}), "'revision'"),
        "a repo that leaves": (block(**{**HUB, "repo": "../.."}), "'repo'"),
        "a repo that is an address": (block(**{**HUB, "repo": "https://evil.example/x"}), "'repo'"),
        "a repo in Cyrillic": (block(**{**HUB, "repo": "\u043erg/name"}), "'repo'"),
        "a name in capitals": (called("Transformer.tiny"), "illegal name"),
        "a name of a path": (called("../transformer.tiny"), "illegal name"),
        "a name with escapes in the catalogue": (called(f"transformer.{ESCAPE}"), "illegal name"),
        "a name with bidi": (called(f"transformer.{BIDI}tiny"), "illegal name"),
        "a name in Cyrillic": (called("tr\u0430nsformer.tiny"), "illegal name"),
        "a name of 300 letters": (called("a." + "b" * 300), "illegal name"),
        "a dotted path as architecture": (block(architecture="os.system"), "'architecture'"),
        "a Cyrillic architecture": (block(architecture="b\u0430selines:transformer"), "'architecture'"),
        "a version of zero in the catalogue": (block(version=0), "'version'"),
        "a specifier that is none": (block(plugins={"baselines": "any; import os"}), "not a version specifier"),
        "a plugin with escapes": (block(plugins={ESCAPE: ">=0"}), "plugins"),
        "a license with escapes": (block(license=f"MIT{ESCAPE}"), "'license'"),
        "a license that is a page": (block(license="<script>alert(1)</script>"), "'license'"),
        "a paper with escapes": (block(paper=f"arXiv{ESCAPE}{BIDI}\n"), "'paper'"),
        "a negative number of parameters": (block(parameters=-1), "'parameters'"),
        "a status that is none": (block(status="trusted"), "'status'"),
        "a target in a block": (block(_target_="os.system"), "unknown key '_target_'"),
        "a block that is a text": (yaml_of(lambda _: f"models: {{{NAME}: os.system}}"), NAME),
        "a catalogue that is a pipe": (replace("registry.yaml", lambda p: os.mkfifo(p)), "not a regular file"),
        "a catalogue that is a folder": (replace("registry.yaml", lambda p: p.mkdir()), "not a regular file"),
        "a catalogue that is a device": (replace("registry.yaml", lambda p: p.symlink_to("/dev/zero")), "regular"),
        "a catalogue that links to itself": (replace("registry.yaml", lambda p: p.symlink_to(p.name)), "no catalogue"),
    },
    base="catalogue",
)  # fmt: skip


def in_card(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    """Spoil the folder of the catalogue's model and not the catalogue."""
    return lambda top: spoil(top / "cards" / "tiny")


def link_out(top: Path) -> None:
    shutil.move(top / "cards" / "tiny", top.parent / "outside")
    (top / "cards" / "tiny").symlink_to(top.parent / "outside")


def forged(top: Path) -> None:
    """Other weights, which config.json vouches for: the catalogue knows config.json too."""
    in_card(tensors_of(weights("norm.weight", 1.5)))(top)


add(
    CATALOGUES,
    {
        "a folder that is a link to outside": (link_out, "points outside"),
        "a folder that is not there": (block(path="cards/absent"), "no folder"),
        "a folder that is a file": (block(path="registry.yaml"), "no folder"),
        "weights that are a link in the catalogue": (
            in_card(replace(MODEL, lambda p: p.symlink_to(p.parent.parent / "moved"))), "symbolic link"
        ),
        "weights that are a device in the catalogue": (
            in_card(replace(MODEL, lambda p: p.symlink_to("/dev/zero"))), "symbolic link"
        ),
        "weights that are a pipe in the catalogue": (
            in_card(replace(MODEL, lambda p: os.mkfifo(p))), "not a regular file"
        ),
        "weights of 1 TB in the catalogue": (in_card(lambda f: sparse(f / MODEL, 2**40)), "1099511627776"),
        "weights of another sha256": (in_card(content_of(flipped, vouched=False)), "another sha256"),
        "weights that were forged": (forged, "must have"),
        "a config that was changed": (in_card(edit(training={"a": 1})), "config.json"),
        "a listed file that is missing": (listed("README.md.txt"), "no README.md.txt"),
    },
    base="catalogue",
    by_name=True,
)  # fmt: skip


# -- bases -----------------------------------------------------------------------------------------------------------


def write_bases(into: Path) -> None:
    """A folder for each entry of BASES, and `catalogue`: a registry.yaml with one model beside it."""
    import torch

    from icll_zoo import save_model
    from icll_zoo.zoo import Vocabulary, default_zoo

    vocabulary = Vocabulary(len(TOKENS), TOKENS, pad_id=0, separator_id=4)
    for name, (architecture, options) in BASES.items():
        torch.manual_seed(0)
        model = default_zoo().create_model(architecture, vocabulary=vocabulary, **options)
        with torch.no_grad():
            for parameter in model.parameters():  # so that two tensors of one shape differ
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        save_model(model, into / name, data={"dataset": "dfa:dfa"})
    top = into / "catalogue"
    (top / "cards").mkdir(parents=True)
    folder = top / "cards" / "tiny"
    shutil.copytree(into / "transformer", folder)
    config = config_of(folder)
    one = {
        "architecture": config["architecture"],
        "version": config["version"],
        "plugins": {"baselines": ">=0"},
        "path": "cards/tiny",
        "files": {
            name: {
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                "bytes": (folder / name).stat().st_size,
            }
            for name in sorted(path.name for path in folder.iterdir())
        },
        "parameters": config["parameters"],
        "data": {"dataset": "dfa:dfa", "options": {}},
        "metrics": {"tvd": METRIC},
        "license": "Apache-2.0",
        "paper": "arXiv:2401.12973",
    }
    registry(top).write_text(json.dumps({"models": {NAME: one}}))  # which is YAML too


def write_case(case: Case, bases: Path, root: Path) -> Path:
    """Lay a case under `root`, with an empty cwd, HOME and TMPDIR beside it; the folder or the catalogue's."""
    for name in ("cwd", "home", "tmp"):
        (root / name).mkdir(parents=True)
    place = root / "case"
    shutil.copytree(bases / case.base, place)
    case.spoil(place)
    return place


def words_of(case: Case, place: Path) -> list[str]:
    """The command line that meets a case."""
    if case.base != "catalogue":
        return ["generate", f"local-dir:{place}", "--prompt", "a a", "--tokens", "4"]
    if case.by_name:
        return ["generate", NAME, "--prompt", "a a", "--tokens", "4"]
    return ["registry", "verify", "--file", str(registry(place))]


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that lies under a folder: kind and mode, and of a file its size, its last change, where a link points."""
    found: dict[str, tuple[Any, ...]] = {}
    for here, folders, names in os.walk(root):
        for path in [Path(here), *(Path(here) / name for name in (*folders, *names))]:
            facts = path.lstat()
            link = path.readlink() if path.is_symlink() else None
            # Of a folder the names in it tell: whether one may write there is tried by writing, and taking away again.
            own = () if stat.S_ISDIR(facts.st_mode) else (facts.st_size, facts.st_mtime_ns, link)
            found[str(path.relative_to(root))] = (facts.st_mode, *own)
    return found


# -- the worker ------------------------------------------------------------------------------------------------------

SPACE = 2 * 2**30  # bytes of address space beyond what torch takes: a backstop, far above what is allowed
SECONDS = 30  # and the same for time, should anything wait for ever


def resident() -> int:
    """The bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def meet(words: list[str], root: Path, catalogue: str | None) -> int:
    """Run the command line in this process, in the case's own places."""
    from icll_zoo import catalogue as catalogues
    from icll_zoo.cli import run

    os.environ |= {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "HF_HUB_OFFLINE": "1"}
    os.chdir(root / "cwd")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPACE, size + SPACE))
    signal.alarm(SECONDS)
    if catalogue is not None:
        catalogues.own_path = lambda: Path(catalogue)  # where our own catalogue lies
    return run(words)


def fork(job: dict[str, Any], log: Path) -> dict[str, Any]:
    """Meet one case in a child: its exit code, what it printed, seconds, bytes of memory, and what it left behind."""
    root = Path(job["root"])
    out, err, start = log / "out", log / "err", log / "start"
    before = snapshot(root)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        for path, number in [(Path(os.devnull), 0), (out, 1), (err, 2)]:
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        start.write_text(str(resident()))
        code = 70
        try:
            code = meet(job["words"], root, job["catalogue"])
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    after = snapshot(root)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": out.read_bytes().decode(errors="replace"),
        "err": err.read_bytes().decode(errors="replace"),
        "seconds": time.monotonic() - began,
        "cpu": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss * 1024 - int(start.read_text()),
        "changed": sorted(key for key in {*before, *after} if before.get(key) != after.get(key)),
    }


def work(told: Path) -> None:
    """Meet the jobs of a JSON file, and write beside it what came of them."""
    import warnings

    from icll_zoo.cli import run, warn

    warnings.showwarning = lambda message, *_, **__: warn(str(message))  # as the command's entry point does
    said = json.loads(told.read_text())
    for words in said["warm"]:  # what these import is then imported in every child
        run(words)
    told.with_name("results").write_text(json.dumps([fork(job, told.parent) for job in said["jobs"]]))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
