"""Import and export against transformers itself: logits, generation, layouts, and what real checkpoints look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_cases import CASES, VOCAB, build, in_float64, load64, off, quiet, tokens
from safetensors.torch import load_file, save_file

from icll_zoo import InputError, Vocabulary, create_model, generate, load_model, save_model
from icll_zoo_transformers import from_transformers, to_transformers, verify

pytest.importorskip("transformers.modeling_utils")
quiet()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case as transformers saves it."""
    folder = tmp_path_factory.mktemp("saved")
    for case in CASES:
        build(case).save_pretrained(folder / case)
    return {case: folder / case for case in CASES}


def rewrite(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other keys in its config.json; None removes one."""
    to.mkdir()
    (to / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (to / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return to


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_imported_logits_are_equal(case: str, saved: dict[str, Path]) -> None:
    model = from_transformers(saved[case])
    assert not model.training
    assert off(model(tokens()), build(case)(tokens()).logits) <= 1e-5
    with in_float64():
        wanted = load64(saved[case])(tokens()).logits
    assert off(model.double()(tokens()), wanted) <= 1e-10


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_exported_again_nothing_has_changed(case: str, saved: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = from_transformers(saved[case])
    folder = to_transformers(model, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    before, after = (load_file(f / "model.safetensors") for f in (saved[case], folder))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    # What the zoo says of nothing is of training and of tokens' meaning only.
    skipped = {"rescale_every", "chunk_size", "eos_token_id", "pad_token_id", "bos_token_id", "architectures"}
    said, wanted = theirs.config.to_dict(), build(case).config.to_dict()
    differing = {key for key in wanted if said.get(key) != wanted[key]} - skipped
    assert differing <= {"dtype", "_name_or_path", "initializer_range", "rope_theta", "time_step_rank"}, differing
    assert off(model(tokens()), theirs.eval()(tokens()).logits) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_generation_gives_the_tokens_of_their_cached_generation(case: str, saved: dict[str, Path]) -> None:
    model = from_transformers(saved[case]).double()
    # Token by token transformers forgets the bounds of the steps; without its cache it keeps them.
    cached = case != "mamba2-limit"
    with in_float64():
        theirs = load64(saved[case])
        # Row by row: with its cache, its RWKV mixes up the rows of a batch.
        for prompt in tokens(2, 7).split(1):
            wanted = theirs.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, use_cache=cached
            )
            assert torch.equal(generate(model, prompt, 24, greedy=True), wanted)


NATIVE = {
    "transformer-rope": {"norm": "rmsnorm", "mlp": "swiglu", "mlp_ratio": 8 / 3, "n_heads": 2},
    "transformer-rope-grouped": {"norm": "rmsnorm", "mlp": "swiglu", "n_heads": 6, "n_kv_heads": 3, "bias": False},
    "mamba": {"d_state": 7},
    "mamba-2": {"d_state": 9, "n_groups": 3, "norm_groups": 3, "d_head": 4, "norm_eps": 1e-5, "dt_low": 0.01},
    "rwkv-4": {"embedding_norm": True, "mlp_ratio": 3.5},
}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("case", NATIVE)
@torch.no_grad()
def test_a_model_of_the_zoo_is_exported(case: str, tie: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = case.removesuffix("-grouped")
    vocabulary = Vocabulary(VOCAB, None, 1, 2)
    model = create_model(name, vocabulary=vocabulary, d_model=36, n_layers=2, tie=tie, **NATIVE[case]).eval()
    folder = to_transformers(model, tmp_path / "out")
    assert verify(model, folder) <= 1e-5
    with in_float64():
        wanted = load64(folder)
        assert (wanted.config.pad_token_id, wanted.config.eos_token_id) == (1, 2)
        assert off(model.double()(tokens()), wanted(tokens()).logits) <= 1e-10
    back = from_transformers(folder)
    assert all(torch.equal(back.state_dict()[key].double(), value) for key, value in model.state_dict().items())
    assert (back.zoo_vocabulary.pad_id, back.zoo_vocabulary.separator_id) == (1, 2)
    assert back.zoo_spec.architecture == model.zoo_spec.architecture


@torch.no_grad()
def test_an_imported_model_is_one_of_the_zoo(saved: dict[str, Path], tmp_path: Path) -> None:
    for case in ("llama", "mamba", "mamba2-groups", "rwkv"):
        model = from_transformers(saved[case])
        save_model(model, tmp_path / case)
        again = load_model(f"local-dir:{tmp_path / case}")
        assert torch.equal(again(tokens()), model(tokens()))
        assert torch.equal(generate(again, tokens(1, 5), 9, greedy=True), generate(model, tokens(1, 5), 9, greedy=True))


@torch.no_grad()
def test_a_model_in_memory(saved: dict[str, Path]) -> None:
    for case in CASES:
        model, own = from_transformers(build(case)), from_transformers(saved[case])
        assert all(torch.equal(model.state_dict()[key], value) for key, value in own.state_dict().items())
    wide = from_transformers(build("llama").double())
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


def test_importing_leaves_the_generator_alone(saved: dict[str, Path]) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    from_transformers(saved["mamba"])
    assert torch.equal(torch.rand(3), wanted)


# What the published checkpoints state-spaces/mamba-130m-hf and Mamba-Codestral-7B say beside today's keys, and
# how releases 4 wrote the rest; sizes are small.
OLD_MAMBA = {
    "d_inner": 40, "d_model": 20, "n_layer": 2, "fused_add_norm": True, "rms_norm": True, "ssm_cfg": {},
    "pad_vocab_size_multiple": 8, "torch_dtype": "float32", "transformers_version": "4.39.0.dev0",
    "tie_word_embeddings": None, "use_mambapy": None, "use_associative_scan": None,
}  # fmt: skip


@torch.no_grad()
def test_configurations_as_published(saved: dict[str, Path], tmp_path: Path) -> None:
    mamba = rewrite(saved["mamba"], tmp_path / "mamba", **OLD_MAMBA)
    assert off(from_transformers(mamba)(tokens()), build("mamba")(tokens()).logits) <= 1e-5
    for index, changes in enumerate(
        ({"d_inner": 41}, {"n_layer": 3}, {"d_model": 21}, {"rms_norm": False}, {"ssm_cfg": {"layer": "Mamba2"}})
    ):
        folder = rewrite(saved["mamba"], tmp_path / f"odd{index}", **{**OLD_MAMBA, **changes})
        with pytest.raises(InputError, match=next(iter(changes))):
            from_transformers(folder)

    llama = rewrite(saved["llama-theta"], tmp_path / "llama", rope_parameters=None, rope_theta=500.0, head_dim=None)
    assert off(from_transformers(llama)(tokens()), build("llama-theta")(tokens()).logits) <= 1e-5
    # The default of releases 4, and the -1 of the first Llamas.
    first = rewrite(saved["llama-all-heads"], tmp_path / "first", rope_parameters=None, num_key_value_heads=None,
                    pad_token_id=-1, eos_token_id=[5, 6])  # fmt: skip
    model = from_transformers(first)
    assert off(model(tokens()), build("llama-all-heads")(tokens()).logits) <= 1e-5
    assert (model.zoo_vocabulary.pad_id, model.zoo_vocabulary.separator_id) == (0, 5)

    mamba2 = rewrite(saved["mamba2"], tmp_path / "mamba2", time_step_limit=[0.0, float("inf")])
    assert "Infinity" in (mamba2 / "config.json").read_text()
    assert off(from_transformers(mamba2)(tokens()), build("mamba2")(tokens()).logits) <= 1e-5


@torch.no_grad()
def test_rescaling_for_half_precision(tmp_path: Path) -> None:
    """Seven layers, halved after each second one: transformers changes its weights in place at the first call."""
    model = build("rwkv", num_hidden_layers=7, rescale_every=2)
    with in_float64():
        model.double()
        model.save_pretrained(tmp_path / "rwkv")
        wanted = model.train()(tokens()).logits  # no dropout, and no rescaling
        rescaled = model.eval()(tokens()).logits
    assert off(from_transformers(tmp_path / "rwkv")(tokens()), wanted) <= 1e-10
    assert off(from_transformers(model)(tokens()), wanted) <= 1e-10
    # Through the epsilon of the norms only.
    assert 1e-9 < off(rescaled, wanted) < 1e-3


@torch.no_grad()
def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        build("llama").to(dtype).save_pretrained(folder)
        own = from_transformers(folder)
        assert {p.dtype for p in own.parameters()} == {torch.float32}
        wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert off(own(tokens()), wanted(tokens()).logits) <= 1e-5


@torch.no_grad()
def test_shards(saved: dict[str, Path], tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(from_transformers(tmp_path / "sharded")(tokens()), from_transformers(saved["llama"])(tokens()))

    index = tmp_path / "sharded" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    last = said["weight_map"][sorted(said["weight_map"])[0]]
    for name in ("../up.safetensors", "/etc/passwd", "a/b.safetensors", "..safetensors", "x.bin", "x\n.safetensors"):
        changed = {key: name if file == last else file for key, file in said["weight_map"].items()}
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(InputError, match="names the file"):
            from_transformers(tmp_path / "sharded")
    index.write_text(json.dumps(said))
    shards[0].unlink()
    with pytest.raises(InputError, match=shards[0].name):
        from_transformers(tmp_path / "sharded")


@torch.no_grad()
def test_a_tied_head_may_be_there_twice(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = rewrite(saved["mamba"], tmp_path / "twice")
    stored = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in stored
    head = stored["backbone.embeddings.weight"].clone()
    save_file({**stored, "lm_head.weight": head}, folder / "model.safetensors")
    assert torch.equal(from_transformers(folder)(tokens()), from_transformers(saved["mamba"])(tokens()))
    head[0, 0] += 1
    save_file({**stored, "lm_head.weight": head}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"ties the head .* differ"):
        from_transformers(folder)
