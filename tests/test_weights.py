"""Saving and loading models: what is stored comes back bit by bit, and what was tampered with does not come back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mixers import CumulativeSum, UniformAttention, zoo_of_tests
from safetensors.torch import load_file, save_file
from torch import nn

from icll_zoo import files
from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError
from icll_zoo.model_config import describe_model
from icll_zoo.plugins import Plugin
from icll_zoo.registry import entries_of
from icll_zoo.weights import describe, flops_per_token, load_model, save_model
from icll_zoo.zoo import Vocabulary, Zoo, default_zoo

TOKENS = ["_", "a", "b", "c", "|"]
VOCABULARY = Vocabulary(5, TOKENS, pad_id=0, separator_id=4)
SMALL = {"d_model": 16, "n_layers": 2}


def create(name: str = "transformer", zoo: Zoo | None = None, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    if name != "ngram-3":
        options = {**SMALL, **options}
    return (zoo or default_zoo()).create_model(name, vocabulary=VOCABULARY, **options).eval()


def source(folder: Path) -> str:
    return f"local-dir:{folder}"


def architecture(folder: Path) -> str:
    loaded: Any = load_model(source(folder))
    return loaded.zoo_spec.architecture


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- what is saved comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transformer", {"n_heads": 2}),
        ("transformer", {"n_heads": 2, "tie": False, "max_length": 32}),
        ("lstm", {}),
        ("ngram-head", {"order": 2}),
        ("transformer", {"n_layers": 2, "layers": ["lstm", {"mixer": "ngram-head", "order": 1, "mlp_ratio": 1}]}),
        ("ngram-3", {}),
    ],
)
def test_round_trip(tmp_path, name, options):
    model = create(name, **options)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert save_model(model, tmp_path / "saved") == tmp_path / "saved"
    loaded: Any = load_model(source(tmp_path / "saved"))
    assert torch.equal(before, torch.get_rng_state()), "saving and loading must not draw random numbers"
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    tokens = torch.randint(1, 5, (3, 20), generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(tokens), model(tokens))
    assert (loaded.zoo_spec, loaded.zoo_vocabulary) == (model.zoo_spec, VOCABULARY)
    assert not loaded.training


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    save_model(create(), tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert "embedding.weight" in stored
    assert "head.weight" not in stored
    loaded: Any = load_model(source(tmp_path / "saved"))
    assert loaded.head.weight is loaded.embedding.weight


def test_what_is_written(tmp_path):
    model = create("lstm")
    data = {"dataset": "dfa:dfa", "options": {"languages": 20}}
    save_model(model, tmp_path / "saved", data=data, training={"steps": 3}, metrics={"accuracy": 0.5})
    found = contents(tmp_path / "saved")
    assert set(found) == {"README.md", "config.json", "model.safetensors", "fingerprint.safetensors"}
    config = json.loads(found["config.json"])
    assert config["schema"] == 1
    assert (config["architecture"], config["version"], config["distribution"]) == ("baselines:lstm", 1, "icll-zoo")
    assert set(config["plugins"]["baselines"]) == {"distribution", "version"}
    assert config["model"] == model.zoo_spec.options
    assert config["data"] == {
        **data, "version": None, "vocabulary": TOKENS, "vocab_size": 5, "pad_id": 0, "separator_id": 4
    }  # fmt: skip
    assert (config["training"], config["metrics"]) == ({"steps": 3}, {"accuracy": 0.5})
    assert config["parameters"] == sum(p.numel() for p in model.parameters())
    assert config["files"] == {
        name: {
            "sha256": files.sha256_of(tmp_path / "saved" / name),
            "bytes": len(found[name]),
        }
        for name in ("model.safetensors", "fingerprint.safetensors")
    }


def test_the_fingerprint_is_what_the_model_answers_in_float32(tmp_path):
    model = create()
    save_model(model, tmp_path / "saved")
    kept = load_file(tmp_path / "saved" / "fingerprint.safetensors")
    assert kept["tokens"].shape == (2, 64)
    assert 0 not in kept["tokens"], "padding says nothing about a model"
    assert kept["output"].dtype == torch.float32
    torch.testing.assert_close(kept["output"], model(kept["tokens"]), rtol=1e-5, atol=1e-6)


def test_the_fingerprint_is_of_the_reference_path(tmp_path):
    zoo = zoo_of_tests()
    fast = create("sum", zoo, backend="fast")
    save_model(fast, tmp_path / "saved", zoo=zoo)
    loaded: Any = load_model(source(tmp_path / "saved"), zoo=zoo)
    assert loaded.blocks[0].mixer.backend == "fast"
    zoo.register("mixer", "sum", reference_off(zoo.entry("model", "sum").load()))
    with pytest.raises(IntegrityError, match="does not answer as when it was saved"):
        load_model(source(tmp_path / "saved"), zoo=zoo)


def reference_off(mixer: Any) -> Any:
    """The same mixer with a wrong reference path."""

    class Off(mixer):
        def forward(self, x):
            return super().forward(x) * (1.01 if self.backend == "reference" else 1)

    Off.__init__ = mixer.__init__
    return Off


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_model(create(), tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_short_model_has_a_short_fingerprint(tmp_path):
    save_model(create(max_length=8), tmp_path / "saved")
    load_model(source(tmp_path / "saved"))
    assert load_file(tmp_path / "saved" / "fingerprint.safetensors")["tokens"].shape == (2, 8)


# -- where it may be saved -------------------------------------------------------------------------------------------


def test_saving_again_replaces_the_model_and_leaves_no_litter(tmp_path):
    save_model(create(), tmp_path / "saved")
    save_model(create("lstm"), tmp_path / "saved")
    assert architecture(tmp_path / "saved") == "baselines:lstm"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    (tmp_path / "empty").mkdir()
    save_model(create(), tmp_path / "empty")
    load_model(source(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("thesis.txt", "precious"), ("config.json", '{"library": "transformers"}'), ("model.safetensors", "?")],
)
def test_other_peoples_files_are_not_replaced(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"it holds '{name}'"):
        save_model(create(), tmp_path)
    assert contents(tmp_path) == {name: text.encode()}


def test_a_file_beside_a_saved_model_is_not_lost(tmp_path):
    save_model(create(), tmp_path)
    (tmp_path / "plot.png").write_text("precious")
    with pytest.raises(InputError, match=r"it holds 'plot\.png'"):
        save_model(create(), tmp_path)


def test_what_cannot_be_saved(tmp_path):
    stranger = nn.Linear(2, 2)
    with pytest.raises(InputError, match="that no zoo created"):
        save_model(stranger, tmp_path / "saved")
    broken: Any = create()
    with torch.no_grad():
        broken.embedding.weight[1, 1] = float("nan")
    with pytest.raises(EnvironmentFault, match=r"not finite, in 'embedding\.weight'"):
        save_model(broken, tmp_path / "saved")
    with pytest.raises(InputError, match="not as its options build it"):
        save_model(create().half(), tmp_path / "saved")
    zoo = zoo_of_tests()
    zoo.register("architecture", "short", Short)
    with pytest.raises(InputError, match=r"tensor 'output' as float32\[2, 64, 2\], and the model wants .*5\]"):
        save_model(zoo.create_model("short", vocabulary=VOCABULARY), tmp_path / "saved", zoo=zoo)
    with pytest.raises(InputError, match="JSON"):
        save_model(create(), tmp_path / "saved", training={"loss": float("nan")})
    assert not list(tmp_path.iterdir())


class Short(nn.Module):
    """An architecture that answers for two tokens, however many there are."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, tokens):
        return torch.zeros(*tokens.shape, 2)


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import torch
from icll_zoo import create_model, load_model, save_model
torch.set_num_threads(1)
target = Path(sys.argv[1])
old = sys.argv[2] == "old"
options = {"d_model": 8, "n_layers": 1}
seen = set()
save_model(create_model("lstm", 5, **options), target)  # what is imported on the way is imported once, before the forks
shutil.rmtree(target)
for stop in range(1, 100):
    if old:
        save_model(create_model("lstm", 5, **options), target)
    child = os.fork()
    if child == 0:
        calls = 0
        def kill_at(real):
            def call(*words, **named):
                global calls
                calls += 1
                if calls == stop:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*words, **named)
            return call
        for name in ("fsync", "rename", "replace"):
            setattr(os, name, kill_at(getattr(os, name)))
        save_model(create_model("transformer", 5, n_heads=1, **options), target)
        os._exit(0)
    killed = os.waitpid(child, 0)[1] != 0
    found = load_model(f"local-dir:{target}").zoo_spec.architecture if target.exists() else None
    seen.add(found)
    if not killed:
        break
    if not old:
        assert found in (None, "baselines:transformer"), found
        shutil.rmtree(target, ignore_errors=True)
print(stop, sorted(map(str, seen)), [path.name for path in target.parent.iterdir()])
"""


@pytest.mark.parametrize(
    ("before", "states"),
    [
        ("none", {"None", "baselines:transformer"}),
        ("old", {"None", "baselines:lstm", "baselines:transformer"}),
    ],
)
def test_a_save_that_is_killed_anywhere_leaves_a_whole_model_or_none(tmp_path, before, states):
    """Killed at every fsync and rename in turn; the next save cleans up what the killed one left."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "saved"), before], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stop, rest = done.stdout.split(" ", 1)
    assert int(stop) > 8, "so many calls there are at least"
    assert all(state in rest for state in states), rest
    assert rest.rstrip().endswith("['saved']")


def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    save_model(create("lstm"), tmp_path / "saved")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentFault, match=r"cannot write model .*No space left"):
            save_model(create(), tmp_path / "saved")
    assert architecture(tmp_path / "saved") == "baselines:lstm"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    save_model(create("lstm"), tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / ".saved.old")
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "saved", "model"):
        raise RuntimeError
    assert architecture(tmp_path / "saved") == "baselines:lstm"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


# -- what was tampered with ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(create(n_heads=2, n_layers=1), tmp_path_factory.mktemp("models") / "saved")


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; `model` and `data` are merged."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if key in ("model", "data") and isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file, and have config.json vouch for it: what somebody does who means harm."""
    (folder / name).write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    config["files"][name] = {"sha256": files.sha256_of(folder / name), "bytes": len(content)}
    (folder / "config.json").write_text(json.dumps(config))


def retensor(folder: Path, name: str = "model.safetensors", about: str | None = "{}", **changes: Any) -> None:
    """Change tensors of a file (None takes one out), vouched for."""
    path = folder / name
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kept = {**load_file(path), **{key.replace("__", "."): value for key, value in changes.items()}}
    metadata = header.get("__metadata__") if about == "{}" else {"icll_zoo": about} if about else None
    save_file({key: value for key, value in kept.items() if value is not None}, path, metadata)
    rewrite(folder, name, path.read_bytes())


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    return bytes(content)


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def overlapping(path: Path) -> bytes:
    """The same file, two of its tensors said to lie in one place."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    said = json.loads(content[8:end])
    said["norm.bias"]["data_offsets"] = said["norm.weight"]["data_offsets"]
    return header(**said) + content[end:]


MODEL, CONFIG, PRINT = "model.safetensors", "config.json", "fingerprint.safetensors"
EVIL = "nobody:nothing\n\x1b[31m"
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

# what is done to the folder, and what the error must say
TAMPERED: dict[str, tuple[Any, str]] = {
    "truncated": (lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:-100]), "cut, damaged"),
    "one flipped byte": (lambda f: (f / MODEL).write_bytes(flipped(f / MODEL)), "another sha256"),
    "one flipped byte in the fingerprint": (lambda f: (f / PRINT).write_bytes(flipped(f / PRINT)), "another sha256"),
    "no weights": (lambda f: (f / MODEL).unlink(), "no model.safetensors at"),
    "no fingerprint": (lambda f: (f / PRINT).unlink(), "no fingerprint.safetensors at"),
    "no config": (lambda f: (f / CONFIG).unlink(), "no config.json at"),
    "weights are a link": (lambda f: relink(f / MODEL), "is a symbolic link"),
    "config is a link": (lambda f: relink(f / CONFIG), "is a symbolic link"),
    "weights are a pipe": (lambda f: pipe(f / MODEL), "is not a regular file"),
    "config is a pipe": (lambda f: pipe(f / CONFIG), "is not a regular file"),
    "config is a folder": (lambda f: ((f / CONFIG).unlink(), (f / CONFIG).mkdir()), "is not a regular file"),
    "config is bytes": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe"), "cannot read config.json"),
    "config is text": (lambda f: (f / CONFIG).write_text("{"), "bad JSON"),
    "config is a list": (lambda f: (f / CONFIG).write_text("[]"), "config.json"),
    "config is somebody else's": (lambda f: edit(f, library="transformers"), "not of a model that icll-zoo saved"),
    "config is huge": (lambda f: (f / CONFIG).write_text(" " * 2**23), "more than"),
    "a later schema": (lambda f: edit(f, schema=2), "use a newer icll-zoo"),
    "an unknown key": (lambda f: edit(f, extra=1), "unknown key 'extra'"),
    "a missing key": (lambda f: edit(f, files={}), "does not list model.safetensors"),
    "an unknown architecture": (lambda f: edit(f, architecture=EVIL), "wrong value for 'architecture'"),
    "an unknown plugin": (lambda f: edit(f, architecture="nobody:nothing"), "no plugin 'nobody' is installed"),
    "a plugin that is not here": (
        lambda f: edit(f, architecture="else:where", plugins={"else": {"distribution": "Else", "version": "1"}}),
        "needs 'else:where' of plugin 'else', distribution 'Else' '1', which is not installed",
    ),
    "another distribution": (lambda f: edit(f, distribution="other"), "from distribution 'other'"),
    "another version": (lambda f: edit(f, version=99), "version 99"),
    "a misspelt option": (lambda f: edit(f, model={"n_haeds": 2}), "n_haeds"),
    "options are a list": (lambda f: edit(f, model=[]), "wrong value for 'model'"),
    "layers are a number": (lambda f: edit(f, model={"layers": 5}), "layers is not a list"),
    "a layer is a number": (lambda f: edit(f, model={"layers": [5]}), "layers is not a list"),
    "a layer of no mixer": (lambda f: edit(f, model={"layers": [{"mixer": "a:b"}]}), "no plugin 'a' is installed"),
    "a huge d_model": (lambda f: edit(f, model={"d_model": 10**9}), "d_model is 1000000000"),
    "a large d_model": (lambda f: edit(f, model={"d_model": 2**16}), "more memory than its model can need"),
    "a rather large d_model": (lambda f: edit(f, model={"d_model": 2**12}), "than its weights file holds"),
    "many layers": (lambda f: edit(f, model={"n_layers": 10**6}), "n_layers is 1000000"),
    "a wider model": (lambda f: edit(f, model={"d_model": 32}), "as float32[16], and the model wants float32[32]"),
    "heads that do not fit": (lambda f: edit(f, model={"n_heads": 3}), "n_heads"),
    "a list of many tokens": (lambda f: edit(f, data={"vocabulary": ["a"] * 6}), "lists 6 tokens"),
    "the same token twice": (lambda f: edit(f, data={"vocabulary": ["a"] * 5}), "lists a token twice"),
    "padding that is no token": (lambda f: edit(f, data={"pad_id": 5}), "pad_id 5 in a vocabulary of 5"),
    "another count": (lambda f: edit(f, parameters=1), "its config.json says otherwise"),
    "header garbage": (lambda f: rewrite(f, MODEL, b"\xff" * 300), "its header's length is impossible"),
    "a header that is not JSON": (lambda f: rewrite(f, MODEL, b"\2" + b"\0" * 7 + b"{a"), "bad JSON in the header"),
    "a pickle": (lambda f: rewrite(f, MODEL, b"\x80\x04\x95" + b"x" * 200), "it looks like a pickle"),
    "torch.save": (lambda f: rewrite(f, MODEL, b"PK\3\4" + b"x" * 200), "it looks like a zip archive"),
    "an empty file": (lambda f: rewrite(f, MODEL, b""), "not a safetensors file, or cut short"),
    "a header without its data": (lambda f: rewrite(f, MODEL, header(a=ONE)), "it is cut or damaged"),
    "a tensor of negative size": (
        lambda f: rewrite(f, MODEL, header(a={**ONE, "shape": [-1]})), "gives tensor 'a' an impossible shape"
    ),
    "a tensor of no type": (
        lambda f: rewrite(f, MODEL, header(a={**ONE, "dtype": "F31"})), "the unknown type 'F31'"
    ),
    "overlapping tensors": (lambda f: rewrite(f, MODEL, overlapping(f / MODEL)), "cannot be read"),
    "an extra tensor": (lambda f: retensor(f, extra=torch.ones(1)), "has tensor 'extra', which the model does not"),
    "a missing tensor": (lambda f: retensor(f, norm__weight=None), "lacks tensor 'norm.weight'"),
    "another type": (lambda f: retensor(f, norm__weight=torch.ones(16).half()), "'norm.weight' as float16[16]"),
    "NaN": (lambda f: retensor(f, norm__weight=torch.full((16,), float("nan"))), "not finite, in 'norm.weight'"),
    "other weights": (lambda f: retensor(f, norm__weight=torch.full((16,), 1.1)), "does not answer as when"),
    "no ties": (lambda f: retensor(f, about=None), "ties other tensors"),
    "bad ties": (lambda f: retensor(f, about="[[["), "bad JSON in the header"),
    "a fingerprint of other tokens": (
        lambda f: retensor(f, PRINT, tokens=torch.full((2, 64), 9)), "a fingerprint with impossible values"
    ),
    "a fingerprint of another shape": (
        lambda f: retensor(f, PRINT, tokens=torch.ones(2, 3, dtype=torch.int64)), "'tokens' as int64[2, 3]"
    ),
    "a fingerprint of infinities": (
        lambda f: retensor(f, PRINT, output=torch.full((2, 64, 5), float("inf"))), "impossible values"
    ),
}  # fmt: skip


def relink(path: Path) -> None:
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_tampered_with_is_refused_in_one_line(copied, name):
    spoil, says = TAMPERED[name]
    spoil(copied)
    with pytest.raises(InputError) as caught:
        load_model(source(copied))
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.exit_code == 2


def test_the_helpers_above_alone_do_no_harm(copied):
    edit(copied)
    retensor(copied)
    retensor(copied, PRINT)
    load_model(source(copied))


def test_a_small_difference_is_allowed_and_a_larger_one_is_not(copied):
    kept = load_file(copied / PRINT)["output"]
    for share, fine in [(0.9e-4, True), (1.2e-4, False)]:
        retensor(copied, PRINT, output=kept + share * kept.abs().max() * (1 if fine else -1))
        if fine:
            load_model(source(copied))
        else:
            with pytest.raises(IntegrityError, match="does not answer"):
                load_model(source(copied))
    load_model(source(copied), verify=False)


def test_options_that_make_a_plugin_raise_are_the_configs_fault(tmp_path):
    zoo = zoo_of_tests()
    zoo.register("mixer", "picky", Picky)
    save_model(create("picky", zoo), tmp_path / "saved", zoo=zoo)
    edit(tmp_path / "saved", model={"at": 64})
    with pytest.raises(IntegrityError, match=r"cannot answer with the options .*: IndexError"):
        load_model(source(tmp_path / "saved"), zoo=zoo)


class Picky(nn.Module):
    """Raises what it likes for an option that it does not like."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at = at

    def forward(self, x):
        return x + x[0, self.at, 0]


def test_nothing_is_allocated_for_sizes_that_the_file_does_not_have(copied):
    """An architecture that makes as many modules as it is told to, and one that cannot be built without memory."""
    zoo = zoo_of_tests()
    zoo.register("mixer", "deep", Deep)
    model = zoo.create_model("deep", vocabulary=VOCABULARY, d_model=8, n_layers=1)
    save_model(model, copied.parent / "deep", zoo=zoo)
    load_model(source(copied.parent / "deep"), zoo=zoo)
    edit(copied.parent / "deep", model={"depth": 10**7})
    with pytest.raises(IntegrityError, match="more modules than its weights file can fill"):
        load_model(source(copied.parent / "deep"), zoo=zoo)
    edit(copied.parent / "deep", model={"depth": 1, "width": 10**5})
    with pytest.raises(IntegrityError, match="more parameters than its weights file holds"):
        load_model(source(copied.parent / "deep"), zoo=zoo)


class Deep(nn.Module):
    """Reads a value while it is built, as timm's drop path rates do: so it cannot be built on the meta device."""

    def __init__(self, d_model: int, depth: int = 1, width: int = 1) -> None:
        super().__init__()
        self.rate = torch.linspace(0, 1, 3)[1].item()
        self.proj = nn.Linear(d_model, width)
        self.layers = nn.ModuleList(nn.Identity() for _ in range(depth))

    def forward(self, x):
        return x + self.rate * self.proj(x).mean(-1, keepdim=True)


class Greedy(nn.Module):
    """Works as long, or asks for as much, as an option says that no weight shows."""

    def __init__(self, d_model: int, rounds: int = 1, slots: int = 1, later: int = 1, reads: bool = False) -> None:
        super().__init__()
        self.proj = nn.Linear(d_model, d_model)
        self.later = later
        if reads:  # which cannot be done on the meta device
            torch.ones(1).item()
        table = torch.zeros(slots, 1).repeat(1, slots)
        for _ in range(rounds):
            table = table[:1, :1] + 1

    def forward(self, x):
        for _ in range(self.later % 2**23):
            x = x + 0.0
        return self.proj(x + x.new_zeros(self.later, self.later, 1).sum())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 2**24}, "more operations than its model can need"),
        ({"rounds": 2**24, "reads": True}, "more operations than its model can need"),
        ({"slots": 2**20}, "more memory than its model can need"),
        ({"slots": 2**20, "reads": True}, "more memory than its model can need"),
        ({"later": 2**23 - 1}, "more operations than its model can need"),
        ({"later": 2**23}, "more memory than its model can need"),
        ({"rounds": 2**25}, "rounds is 33554432, more than 16777216"),
    ],
)
def test_options_cannot_make_loading_work_without_end(tmp_path, changes, says):
    """The sizes asked for here are of terabytes: allocating them would fail in another way."""
    zoo = zoo_of_tests()
    zoo.register("mixer", "greedy", Greedy)
    save_model(create("greedy", zoo, n_layers=1), tmp_path / "saved", zoo=zoo)
    load_model(source(tmp_path / "saved"), zoo=zoo)
    edit(tmp_path / "saved", model=changes)
    with pytest.raises(IntegrityError, match=says) as caught:
        load_model(source(tmp_path / "saved"), zoo=zoo)
    assert "saved" in str(caught.value), "and which model it is"


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    zoo = zoo_of_tests()
    zoo.register("mixer", "greedy", Greedy)
    with pytest.raises(IntegrityError, match="more operations"):
        save_model(create("greedy", zoo, n_layers=1, later=250_000), tmp_path / "saved", zoo=zoo)
    with pytest.raises(InputError, match="rounds is 16777217, more than 16777216"):
        create("greedy", zoo, n_layers=1, rounds=2**24 + 1)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_that_config_json_cannot_hold(tmp_path):
    """Each token takes a line of its own there, of some ten characters more."""
    letters = [chr(code) for code in range(ord("0"), ord("z") + 1) if chr(code) != "\\"]
    tokens = [a + b + c for a in letters for b in letters for c in letters][:345_000]
    model = zoo_of_tests().create_model("counter", vocabulary=Vocabulary(len(tokens), tokens))
    with pytest.raises(InputError, match=r"description has \d+ bytes, too many for config\.json"):
        describe_model(zoo_of_tests(), model, data=None, training=None, metrics=None, parameters=0)


# -- sources, scripts, measures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("models/mine", "say 'local-dir:models/mine' or 'hf-hub:models/mine'"),
        (".", "say 'local-dir:.' or 'hf-hub:.'"),
        ("a/\x1b", r"say 'local-dir:a/\x1b'"),
        ("", "could be a folder or a repository"),
        ("local-dir:", "no folder ''"),
        ("local-dir:absent\x1b", r"no folder 'absent\x1b'"),
        ("local-dir:a\0b", r"no folder 'a\x00b'"),
        ("hf-hub:org", "'org' is not a repository"),
        ("transformer", "it is an architecture, and untrained"),
        ("transformer.nowhere", "unknown weights 'transformer.nowhere'"),
    ],
)
def test_sources_that_are_none(where, says):
    with pytest.raises(InputError) as caught:
        load_model(where)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


SCRIPT = """
import torch
from torch import nn
import icll_zoo as zoo

@zoo.register_mixer("cummean")
class CumulativeMean(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.proj = nn.Linear(d_model, d_model)
    def forward(self, x):
        return self.proj(x.cumsum(1) / torch.arange(1, x.size(1) + 1, device=x.device)[:, None])
"""


def test_a_model_of_a_script_loads_only_with_that_script(tmp_path, monkeypatch):
    import icll_zoo.zoo

    zoo, without = Zoo(default_zoo().plugins), Zoo(default_zoo().plugins)
    monkeypatch.setattr(icll_zoo.zoo, "default_zoo", lambda: zoo)  # where the decorator registers
    (tmp_path / "mine.py").write_text(SCRIPT)
    zoo.load_script(tmp_path / "mine.py")
    save_model(create("cummean", zoo), tmp_path / "saved", zoo=zoo)
    load_model(source(tmp_path / "saved"), zoo=zoo)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["architecture"], config["script"]) == ("script:cummean", "mine.py")
    with pytest.raises(InputError, match=r"'script:cummean'.*'mine\.py'.*--load FILE"):
        load_model(source(tmp_path / "saved"), zoo=without)


def zoo_of_plugins(**owners: type[nn.Module]) -> Zoo:
    """Plugins that are all called `twin`, one a distribution, each with a mixer `mix`."""
    return Zoo(
        [Plugin("twin", who, "1", "m", entries=entries_of("mixer", "twin", who, "mix", m)) for who, m in owners.items()]
    )


@pytest.mark.parametrize("options", [{}, {"layers": ["One/twin:mix"]}])
def test_the_distribution_tells_two_plugins_of_one_name_apart(tmp_path, options):
    alone, both = zoo_of_plugins(One=CumulativeSum), zoo_of_plugins(One=CumulativeSum, Two=UniformAttention)
    for saver, name in [(alone, "One/twin:mix"), (both, "One/twin:mix")]:
        sizes = {} if options else {"n_layers": 1}
        model = saver.create_model(name, vocabulary=VOCABULARY, d_model=8, **sizes, **options)
        save_model(model, tmp_path / "saved", zoo=saver)
        for loader in (alone, both):
            loaded: Any = load_model(source(tmp_path / "saved"), zoo=loader)
            assert isinstance(loaded.blocks[0].mixer, CumulativeSum)
        with pytest.raises(InputError, match="One"):
            load_model(source(tmp_path / "saved"), zoo=zoo_of_plugins(Two=CumulativeSum))


def test_a_plugin_may_bring_an_old_config_up_to_date(copied, monkeypatch):
    import icll_zoo.model_config

    class Plugin:
        name, distribution = "moved", "Moved"

    def rename(config):
        return {**config, "architecture": config["architecture"].replace("old:", "baselines:")}

    def raises(config):
        raise KeyError("old")

    edit(copied, architecture="old:transformer")
    with pytest.raises(InputError, match="no plugin 'old'"):
        load_model(source(copied))
    hooks = [(Plugin, raises), (Plugin, rename)]
    monkeypatch.setattr(icll_zoo.model_config.plugins, "each", lambda *_: hooks)
    with pytest.warns(UserWarning, match="plugin 'moved' .* failed in upgrade_config: KeyError"):
        assert architecture(copied) == "baselines:transformer"


@pytest.mark.parametrize(
    ("name", "state_bytes", "grows"),
    [
        ("sum", {64: 128, 512: 128}, False),
        ("uniform", {64: 2 * 64 * (16 * 4 + 8), 512: 2 * 512 * (16 * 4 + 8)}, True),
        ("stateless", None, None),
    ],
)
def test_describe(name, state_bytes, grows):
    model = create(name, zoo_of_tests())
    described = describe(model)
    assert described == {
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": state_bytes,
        "state_grows": grows,
        "flops_per_token": described["flops_per_token"],
    }
    # Twice: a d x d projection and an MLP of width 4 d; once: the head. 2 operations a weight.
    linear = 2 * (2 * (16 * 16 + 2 * 4 * 16 * 16) + 5 * 16)
    attention = 2 * (2 * 512 * 16) if name == "uniform" else 0  # the mean over earlier positions is a product
    assert described["flops_per_token"] == pytest.approx(linear + attention)


def test_flops_of_fused_kernels_are_counted():
    zoo = default_zoo()
    d, length = 128, 512
    linear = 4 * 2 * 12 * d * d + 2 * 20 * d
    assert flops_per_token(zoo.create_model("transformer"), length) == linear + 4 * 2 * 2 * length * d
    assert flops_per_token(zoo.create_model("lstm"), length) == 4 * 2 * (8 + 8) * d * d + 2 * 20 * d


def test_a_model_too_short_to_measure_at_512():
    described = describe(create("uniform", zoo_of_tests(), positions="learned", max_length=100))
    assert described["state_bytes"] == {64: 2 * 64 * (16 * 4 + 8) + 8, 512: None}
    assert described["state_grows"] is True
