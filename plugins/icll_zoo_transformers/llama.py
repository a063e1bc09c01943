"""LlamaForCausalLM <-> "transformer-rope" with RMSNorm and SwiGLU (Touvron et al. 2023, arXiv:2302.13971).

Two layouts differ. transformers has W_q, W_k, W_v, here they are the rows of one matrix in this order. And its rotary
positions turn dimensions i and i + d_head / 2 of a head by the i-th angle, here 2i and 2i + 1: the rows of W_q and W_k
(and their biases) are permuted within each head, which changes no product of a query and a key.
transformers makes the angles in float32 and the zoo in float64, so that in float32 the two drift apart with the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icll_zoo_transformers.rules import Rule, Sizes, same
from icll_zoo_transformers.settings import LAYERS, LENGTH, WIDTH, Settings, require

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPE = "llama"
CLASS = "LlamaForCausalLM"
NAME = "baselines:transformer-rope"
TIED = ("model.embed_tokens.weight", "lm_head.weight")
TIE_DEFAULT = False
# Slices of one product, for training on several devices at once.
NEUTRAL = ("pretraining_tp",)


def read(settings: Settings) -> dict[str, Any]:
    """The options of the zoo's model; faults stay in `settings`."""
    d_model = settings.count("hidden_size", WIDTH)
    n_heads = settings.count("num_attention_heads", d_model)
    settings.only("head_dim", d_model // n_heads)
    settings.only("hidden_act", "silu")
    settings.only("mlp_bias", False)
    settings.only("attention_dropout", 0.0, 0)
    theta = settings.number("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        rope = Settings(settings.mapping(name), f"{name} of {settings.where}")
        for kind in ("rope_type", "type"):
            rope.only(kind, "default")
        rope.only("partial_rotary_factor", 1.0)
        theta = rope.number("rope_theta", theta)
        settings.faults += rope.faults + [f"{rope.where} sets {key!r}, which has no meaning here" for key in rope.left]
    return {
        "d_model": d_model,
        "n_layers": settings.count("num_hidden_layers", LAYERS),
        "n_heads": n_heads,
        "n_kv_heads": settings.count("num_key_value_heads", n_heads, n_heads),
        "bias": settings.flag("attention_bias", False),
        "theta": theta,
        "norm": "rmsnorm",
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "mlp": "swiglu",
        "mlp_ratio": settings.count("intermediate_size", 2 * WIDTH) / d_model,
        "max_length": settings.count("max_position_embeddings", LENGTH, 2048),
    }


def write(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json. InputError for what a Llama is not."""
    require(options, CLASS, norm=("rmsnorm",), mlp=("swiglu",), embedding_norm=(False,))
    return {
        "hidden_size": options["d_model"],
        "num_hidden_layers": options["n_layers"],
        "num_attention_heads": options["n_heads"],
        "num_key_value_heads": kv_heads(options),
        "head_dim": options["d_model"] // options["n_heads"],
        "intermediate_size": mlp_width(options),
        "hidden_act": "silu",
        "attention_bias": options["bias"],
        "mlp_bias": False,
        "rms_norm_eps": 1e-6 if options["norm_eps"] is None else options["norm_eps"],
        "rope_theta": options["theta"],  # read by releases before 5
        "rope_parameters": {"rope_type": "default", "rope_theta": options["theta"]},
        "max_position_embeddings": options["max_length"],
    }


def rules(options: Mapping[str, Any], vocab_size: int) -> Iterator[Rule]:
    """Every tensor but the head."""
    d, width = options["d_model"], mlp_width(options)
    yield same("embedding.weight", "model.embed_tokens.weight", vocab_size, d)
    yield same("norm.weight", "model.norm.weight", d)
    for i in range(options["n_layers"]):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield same(f"{ours}.norm.weight", f"{theirs}.input_layernorm.weight", d)
        yield same(f"{ours}.mlp_norm.weight", f"{theirs}.post_attention_layernorm.weight", d)
        yield projections(options, f"{ours}.mixer.qkv.weight", f"{theirs}.self_attn", "weight", (d,))
        yield same(f"{ours}.mixer.out_proj.weight", f"{theirs}.self_attn.o_proj.weight", d, d)
        if options["bias"]:
            yield projections(options, f"{ours}.mixer.qkv.bias", f"{theirs}.self_attn", "bias", ())
            yield same(f"{ours}.mixer.out_proj.bias", f"{theirs}.self_attn.o_proj.bias", d)
        yield same(f"{ours}.mlp.gate.weight", f"{theirs}.mlp.gate_proj.weight", width, d)
        yield same(f"{ours}.mlp.up.weight", f"{theirs}.mlp.up_proj.weight", width, d)
        yield same(f"{ours}.mlp.down.weight", f"{theirs}.mlp.down_proj.weight", d, width)


def projections(options: Mapping[str, Any], ours: str, theirs: str, kind: str, inner: Sizes) -> Rule:
    """W_q, W_k and W_v, or their biases, of `inner` further dimensions."""
    n_heads, n_kv = options["n_heads"], kv_heads(options)
    d_head = options["d_model"] // n_heads
    rows = [n_heads * d_head, n_kv * d_head, n_kv * d_head]

    def join(parts: Sequence[Tensor]) -> Tensor:
        import torch

        q, k, v = parts
        return torch.cat([interleaved(q, n_heads), interleaved(k, n_kv), v])

    def split(tensor: Tensor) -> Sequence[Tensor]:
        q, k, v = tensor.split(rows)
        return [halved(q, n_heads), halved(k, n_kv), v]

    names = [f"{theirs}.{x}_proj.{kind}" for x in "qkv"]
    return Rule(ours, {name: (n, *inner) for name, n in zip(names, rows, strict=True)}, join, split)


def interleaved(rows: Tensor, n_heads: int) -> Tensor:
    """Row i + j d_head / 2 of each head becomes its row 2i + j, j in {0, 1}."""
    return rows.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def halved(rows: Tensor, n_heads: int) -> Tensor:
    """The inverse of `interleaved`."""
    return rows.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def kv_heads(options: Mapping[str, Any]) -> int:
    return options["n_heads"] if options["n_kv_heads"] is None else options["n_kv_heads"]


def mlp_width(options: Mapping[str, Any]) -> int:
    """The MLP's width as the backbone rounds it."""
    return max(1, round(options["mlp_ratio"] * options["d_model"]))
