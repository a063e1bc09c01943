"""A checkpoint is a stranger's: what cannot be represented is refused by name, and nothing large is built first."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from conftest import command, install
from safetensors.torch import load_file, save_file
from torch import nn

import icll_zoo_transformers
from icll_zoo import InputError, ZooError, create_model, load_model, save_model
from icll_zoo_transformers import from_transformers, to_transformers

V = 11
NATIVE: dict[str, dict[str, Any]] = {
    "transformer-rope": {"norm": "rmsnorm", "mlp": "swiglu", "n_heads": 2, "n_kv_heads": 1, "bias": False},
    "mamba": {},
    "mamba-2": {"norm_eps": 1e-5},
    "rwkv-4": {"embedding_norm": True},
}


def native(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, V, d_model=16, n_layers=2, **{**NATIVE[name], **options}).eval()


def checkpoint(folder: Path, name: str = "transformer-rope", **changes: Any) -> Path:
    """A small checkpoint, exported, with other keys in its config.json; transformers is not needed."""
    to_transformers(native(name), folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return folder


def refused(folder: Path) -> str:
    """The one line in which a folder is refused."""
    with pytest.raises(InputError) as caught:
        from_transformers(folder)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
    return " | ".join(caught.value.faults)


@pytest.mark.parametrize("name", NATIVE)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model = native(name)
    back = from_transformers(to_transformers(model, tmp_path / "out"))
    assert all(torch.equal(back.state_dict()[key], value) for key, value in model.state_dict().items())
    ignored = {"dropout", "dt_min", "dt_max", "init", "init_std", "max_length"}
    wanted = {key: value for key, value in model.zoo_spec.options.items() if value is not None and key not in ignored}
    assert {key: back.zoo_spec.options[key] for key in wanted} == wanted


ODD = [
    ("transformer-rope", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
    ("transformer-rope", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("transformer-rope", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    ("transformer-rope", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
    ("transformer-rope", "rope_parameters", {"full_attention": {"rope_theta": 1e4}}),
    ("transformer-rope", "rope_parameters", 3),
    ("transformer-rope", "rope_theta", -1),
    ("transformer-rope", "rope_theta", "10000"),
    ("transformer-rope", "sliding_window", 128),
    ("transformer-rope", "layer_types", ["sliding_attention", "full_attention"]),
    ("transformer-rope", "mlp_bias", True),
    ("transformer-rope", "attention_bias", "yes"),
    ("transformer-rope", "attention_dropout", 0.1),
    ("transformer-rope", "hidden_act", "gelu"),
    ("transformer-rope", "head_dim", 16),
    ("transformer-rope", "rms_norm_eps", 0),
    ("transformer-rope", "rms_norm_eps", True),
    ("transformer-rope", "num_key_value_heads", 3),
    ("transformer-rope", "quantization_config", {"quant_method": "gptq"}),
    ("transformer-rope", "auto_map", {"AutoModelForCausalLM": "evil.py--Model"}),
    ("transformer-rope", "is_encoder_decoder", True),
    ("transformer-rope", "vocab_size", 2**40),
    ("transformer-rope", "vocab_size", 11.0),
    ("transformer-rope", "tie_word_embeddings", 1),
    ("mamba", "hidden_act", "swish-ish"),
    ("mamba", "time_step_rank", "large"),
    ("mamba", "intermediate_size", 33),
    ("mamba", "expand", 0),
    ("mamba", "expand", 1.5),
    ("mamba", "use_bias", None.__class__.__name__),
    ("mamba-2", "time_step_limit", [1.0, 0.5]),
    ("mamba-2", "time_step_limit", [-1.0, 0.5]),
    ("mamba-2", "time_step_limit", "Infinity"),
    ("mamba-2", "layer_norm_epsilon", 1e-6),
    ("mamba-2", "num_heads", 3),
    ("mamba-2", "n_groups", 2**20),
    ("rwkv-4", "attention_hidden_size", 32),
    ("rwkv-4", "layer_norm_epsilon", 1e-6),
    ("rwkv-4", "no\nsuch\x1b[31m key" * 50, 1),
]


@pytest.mark.parametrize(("name", "key", "value"), ODD, ids=[f"{n}-{k[:20]!r}-{i}" for i, (n, k, _) in enumerate(ODD)])
def test_options_that_cannot_be_represented(name: str, key: str, value: Any, tmp_path: Path) -> None:
    line = refused(checkpoint(tmp_path / "odd", name, **{key: value}))
    assert ascii(key)[1:20].rstrip("'") in line


def test_all_faults_at_once(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "odd", hidden_act="gelu", sliding_window=3, mlp_bias=True)
    with pytest.raises(InputError, match="and 2 more") as caught:
        from_transformers(folder)
    assert [re.search("hidden_act|sliding_window|mlp_bias", line)[0] for line in caught.value.faults] == [
        "hidden_act", "mlp_bias", "sliding_window",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", None, 3, ["llama"]])
def test_other_models(kind: Any, tmp_path: Path) -> None:
    assert "model_type" in refused(checkpoint(tmp_path / "odd", model_type=kind))


def test_a_model_without_its_head(tmp_path: Path) -> None:
    assert "LlamaModel" in refused(checkpoint(tmp_path / "odd", architectures=["LlamaModel"]))


def damaged(folder: Path, **changes: torch.Tensor | None) -> Path:
    """A checkpoint with other tensors; None removes one."""
    stored = {**load_file(checkpoint(folder) / "model.safetensors"), **changes}
    save_file({k: v for k, v in stored.items() if v is not None}, folder / "model.safetensors")
    return folder


def test_tensors_are_all_accounted_for(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    assert f"lacks tensor '{name}'" in refused(damaged(tmp_path / "a", **{name: None}))
    assert "'model.layers.2.extra', which the model does not" in refused(
        damaged(tmp_path / "b", **{"model.layers.2.extra": torch.ones(1)})
    )
    assert "sizes [8, 15]" in refused(damaged(tmp_path / "c", **{name: torch.ones(8, 15)}))
    assert f"not finite in tensor '{name}'" in refused(
        damaged(tmp_path / "d", **{name: torch.full((8, 16), torch.nan)})
    )
    assert "as I64" in refused(damaged(tmp_path / "e", **{name: torch.ones(8, 16, dtype=torch.int64)}))
    both = damaged(tmp_path / "f", **{name: None, "extra": torch.ones(1)})
    with pytest.raises(InputError, match="and 1 more"):
        from_transformers(both)


LARGE = [
    {"num_hidden_layers": 1000, "hidden_size": 65536, "num_attention_heads": 2},
    {"num_hidden_layers": 10**9},
    {"hidden_size": 10**9},
    {"intermediate_size": 2**17},
    {"vocab_size": 2**24},
    {"max_position_embeddings": 2**40},
]


def test_large_sizes_cost_nothing(tmp_path: Path) -> None:
    """What the configuration asks for must be in the file before anything is built."""
    folders = [str(checkpoint(tmp_path / str(i), head_dim=None, **changes)) for i, changes in enumerate(LARGE)]
    code = (
        "import resource, sys, time; from icll_zoo import InputError, create_model\n"
        "import icll_zoo_transformers.convert as plugin; create_model('transformer-rope', 11)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)\n"
        "for folder in sys.argv[1:]:\n"
        "    start = time.monotonic()\n"
        "    try: plugin.from_transformers(folder)\n"
        "    except InputError as error: print(time.monotonic() - start < 2)"
    )
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * len(LARGE)), done.stderr


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "x")
    weights, config = folder / "model.safetensors", folder / "config.json"
    good, said = weights.read_bytes(), config.read_text()
    for bad in (b"", b"\x80\x02}q\x00.", good[:-1], good[:100], b"\xff" * 8 + good[8:], good + b"x"):
        weights.write_bytes(bad)
        assert "safetensors" in refused(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "pickle" in refused(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "neither" in refused(folder)
    weights.write_bytes(good)
    infinite = said.replace("{", '{"x": -Infinity,', 1)
    for text in ("", "[]", "{", '{"a": 1, "a": 2}', '{"a":' * 50 + "1" + "}" * 50, '{"model_type": NaN}', infinite):
        config.write_text(text)
        refused(folder)
    config.unlink()
    assert "config.json" in refused(folder)
    assert "no folder" in refused(tmp_path / "nowhere")
    save_model(native("mamba"), tmp_path / "ours")
    assert "is of a model of icll-zoo" in refused(tmp_path / "ours")


def test_a_long_string_without_end_costs_no_time(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "x")
    (folder / "config.json").write_text('{"' + '\\"' * 1_900_000)
    start = time.monotonic()
    assert "bad JSON" in refused(folder)
    assert time.monotonic() - start < 5


def test_links_stay_inside(tmp_path: Path) -> None:
    """A link to outside is refused; the cache of huggingface_hub, all links to blobs, is read."""
    secret = checkpoint(tmp_path / "secret")
    folder = tmp_path / "models--x" / "snapshots" / "main"
    blobs = tmp_path / "models--x" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (blobs / name).write_bytes((secret / name).read_bytes())
        (folder / name).symlink_to(Path("../../blobs") / name)
    assert from_transformers(folder) is not None
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret / name)
        assert f"{name} in" in refused(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(Path("../../blobs") / name)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "no model.safetensors" in refused(folder)


UNSAYABLE = [
    ("transformer-rope", {"norm": "layernorm"}, "norm='layernorm'"),
    ("transformer-rope", {"mlp": "gelu"}, "mlp='gelu'"),
    ("transformer-rope", {"mlp_ratio": 0.0}, "mlp_ratio=0"),
    ("transformer-rope", {"positions": "learned"}, "positions='learned'"),
    ("transformer-rope", {"residual": False}, "residual=False"),
    ("transformer-rope", {"embedding_norm": True}, "embedding_norm=True"),
    ("mamba", {"mlp": "swiglu"}, "mlp='swiglu'"),
    ("mamba-2", {"norm_eps": None}, "norm_eps=None"),
    ("mamba-2", {"n_groups": 2, "d_head": 8}, "norm_groups=1"),
    ("rwkv-4", {"embedding_norm": False}, "embedding_norm=False"),
    ("rwkv-4", {"amplify": True}, "amplify=True"),
    ("rwkv-4", {"norm_eps": 1e-6}, "norm_eps=1e-06"),
]


@pytest.mark.parametrize(("name", "options", "line"), UNSAYABLE, ids=[line for *_, line in UNSAYABLE])
def test_models_without_a_counterpart(name: str, options: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"ForCausalLM cannot represent the option {line}")):
        to_transformers(native(name, **options), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_exports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no counterpart of 'baselines:lstm'"):
        to_transformers(create_model("lstm", V, d_model=8, n_layers=1), tmp_path / "out")
    with pytest.raises(InputError, match="a Linear that no zoo created"):
        to_transformers(nn.Linear(2, 2), tmp_path / "out")
    with pytest.raises(InputError, match="a Linear is no model of transformers"):
        from_transformers(nn.Linear(2, 2))
    with pytest.raises(InputError, match="layers="):
        to_transformers(create_model("mamba", V, d_model=16, layers=["mamba", "mamba"]), tmp_path / "out")
    broken = native("mamba")
    with torch.no_grad():
        broken.norm.weight[0] = torch.nan
    with pytest.raises(InputError, match=r"'norm.weight' has values that are not finite"):
        to_transformers(broken, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="it is there"):
        to_transformers(native("mamba"), tmp_path / "full")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]


def verbs() -> click.Group:
    group = click.Group()
    icll_zoo_transformers.register_commands(cli=group)
    return group


def test_verbs(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "theirs", "rwkv-4")
    run = CliRunner().invoke
    done = run(verbs(), ["from-transformers", str(folder), str(tmp_path / "ours")], catch_exceptions=False)
    assert done.output == f"wrote {tmp_path / 'ours'}\n"
    source = f"local-dir:{tmp_path / 'ours'}"
    assert load_model(source).zoo_spec.architecture == "linear:rwkv-4"
    done = run(verbs(), ["to-transformers", source, str(tmp_path / "again")], catch_exceptions=False)
    assert done.output == f"wrote {tmp_path / 'again'}\n"
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def installed(tmp_path: Path) -> Path:
    """A folder that makes the plugin known, where its entry point is not installed yet."""
    site = tmp_path / "site"
    if not entry_points(group="icll_zoo", name="transformers"):
        install(site, "transformers", "", distribution="its-entry-point", point="icll_zoo_transformers")
    return site


def test_verbs_in_a_process(tmp_path: Path) -> None:
    """Found by its entry point; a fault is one line and exit code 2."""
    folder = checkpoint(tmp_path / "theirs", "mamba")
    path = installed(tmp_path)
    done = command("from-transformers", str(folder), "ours", cwd=tmp_path, path=path)
    assert (done.code, done.err) == (0, "")
    assert load_model(f"local-dir:{tmp_path / 'ours'}").zoo_spec.architecture == "ssm:mamba"
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    done = command("from-transformers", str(folder), "more", cwd=tmp_path, path=path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: checkpoint ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "more").exists()


def test_verification(tmp_path: Path) -> None:
    pytest.importorskip("transformers.modeling_utils")
    folder, ours = checkpoint(tmp_path / "theirs", "rwkv-4", rescale_every=1), tmp_path / "ours"
    line = r"off by \S+e-0\d of the largest logit"
    run = CliRunner().invoke
    done = run(verbs(), ["from-transformers", str(folder), str(ours), "--verify"], catch_exceptions=False)
    assert re.fullmatch(line, done.stdout.splitlines()[0])
    words = ["to-transformers", f"local-dir:{ours}", str(tmp_path / "again"), "--verify"]
    assert re.fullmatch(line, run(verbs(), words, catch_exceptions=False).stdout.splitlines()[0])
    model = from_transformers(folder)
    with torch.no_grad():
        model.norm.weight.mul_(1.01)
    with pytest.raises(ZooError, match=r"differ by 0\.0"):
        icll_zoo_transformers.verify(model, folder)


def test_without_transformers(tmp_path: Path) -> None:
    """In a process that cannot import it: everything but the comparison works, and that says what to install."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from icll_zoo import ZooError; import icll_zoo_transformers as plugin\n"
        "model = plugin.from_transformers(sys.argv[1]); plugin.to_transformers(model, sys.argv[2])\n"
        "try: plugin.verify(model, sys.argv[2])\n"
        "except ZooError as error: print(error.exit_code, error)"
    )
    folder = checkpoint(tmp_path / "theirs")
    words = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "2 transformers is not installed (pip install 'icll-zoo[transformers]')\n"


def test_registering_imports_nothing_heavy() -> None:
    code = (
        "import sys, click, icll_zoo_transformers as plugin; plugin.register_commands(cli=click.Group())\n"
        "print(sorted({'torch', 'transformers', 'safetensors', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
