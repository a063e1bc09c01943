"""MambaForCausalLM <-> "mamba" (Gu and Dao 2023, arXiv:2312.00752), as in the checkpoints state-spaces/mamba-*-hf.

The tensors have the same layout, in_proj's rows x before z and x_proj's dt before B before C, and other names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from icll_zoo_transformers.rules import Rule, same
from icll_zoo_transformers.settings import LAYERS, WIDTH, Settings, require

MODEL_TYPE = "mamba"
CLASS = "MambaForCausalLM"
NAME = "ssm:mamba"
TIED = ("backbone.embeddings.weight", "lm_head.weight")
TIE_DEFAULT = True
# Of the initialisation, of kernels, and of the residual stream in half precision; the rest is of the package mamba_ssm,
# from which the published checkpoints were converted.
NEUTRAL = (
    "time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor",
    "rescale_prenorm_residual", "use_mambapy", "use_associative_scan", "residual_in_fp32",
    "fused_add_norm", "pad_vocab_size_multiple",
)  # fmt: skip


def read(settings: Settings) -> dict[str, Any]:
    """The options of the zoo's model; faults stay in `settings`."""
    d_model = settings.count("hidden_size", WIDTH)
    n_layers = settings.count("num_hidden_layers", LAYERS)
    expand = settings.count("expand", 64, 2)
    settings.only("hidden_act", "silu")
    for name, value in (("intermediate_size", expand * d_model), ("d_inner", expand * d_model), ("d_model", d_model)):
        settings.only(name, value)
    settings.only("n_layer", n_layers)
    settings.only("rms_norm", True)
    settings.only("ssm_cfg", {})
    if settings.left.get("time_step_rank") == "auto":
        del settings.left["time_step_rank"]
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "expand": expand,
        "d_state": settings.count("state_size", WIDTH, 16),
        "d_conv": settings.count("conv_kernel", 1024, 4),
        "dt_rank": settings.count("time_step_rank", WIDTH, math.ceil(d_model / 16)),
        "bias": settings.flag("use_bias", False),
        "conv_bias": settings.flag("use_conv_bias", True),
        "norm": "rmsnorm",
        "norm_eps": settings.number("layer_norm_epsilon", 1e-5),
        "mlp": "none",
    }


def write(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json. InputError for what a Mamba of transformers is not."""
    require(options, CLASS, norm=("rmsnorm",), mlp=("none",), embedding_norm=(False,))
    return {
        "hidden_size": options["d_model"],
        "num_hidden_layers": options["n_layers"],
        "expand": options["expand"],
        "intermediate_size": options["expand"] * options["d_model"],
        "state_size": options["d_state"],
        "conv_kernel": options["d_conv"],
        "time_step_rank": dt_rank(options),
        "use_bias": options["bias"],
        "use_conv_bias": options["conv_bias"],
        "layer_norm_epsilon": 1e-6 if options["norm_eps"] is None else options["norm_eps"],
        "hidden_act": "silu",
    }


def rules(options: Mapping[str, Any], vocab_size: int) -> Iterator[Rule]:
    """Every tensor but the head."""
    d, n, rank = options["d_model"], options["d_state"], dt_rank(options)
    inner = options["expand"] * d
    yield same("embedding.weight", "backbone.embeddings.weight", vocab_size, d)
    yield same("norm.weight", "backbone.norm_f.weight", d)
    for i in range(options["n_layers"]):
        ours, theirs = f"blocks.{i}.mixer", f"backbone.layers.{i}.mixer"
        yield same(f"blocks.{i}.norm.weight", f"backbone.layers.{i}.norm.weight", d)
        yield same(f"{ours}.in_proj.weight", f"{theirs}.in_proj.weight", 2 * inner, d)
        yield same(f"{ours}.out_proj.weight", f"{theirs}.out_proj.weight", d, inner)
        if options["bias"]:
            yield same(f"{ours}.in_proj.bias", f"{theirs}.in_proj.bias", 2 * inner)
            yield same(f"{ours}.out_proj.bias", f"{theirs}.out_proj.bias", d)
        yield same(f"{ours}.short.weight", f"{theirs}.conv1d.weight", inner, 1, options["d_conv"])
        if options["conv_bias"]:
            yield same(f"{ours}.short.bias", f"{theirs}.conv1d.bias", inner)
        yield same(f"{ours}.x_proj.weight", f"{theirs}.x_proj.weight", rank + 2 * n, inner)
        yield same(f"{ours}.dt_proj.weight", f"{theirs}.dt_proj.weight", inner, rank)
        yield same(f"{ours}.dt_proj.bias", f"{theirs}.dt_proj.bias", inner)
        yield same(f"{ours}.a_log", f"{theirs}.A_log", inner, n)
        yield same(f"{ours}.d", f"{theirs}.D", inner)


def dt_rank(options: Mapping[str, Any]) -> int:
    return math.ceil(options["d_model"] / 16) if options["dt_rank"] is None else options["dt_rank"]
