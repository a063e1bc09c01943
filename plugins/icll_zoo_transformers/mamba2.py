"""Mamba2ForCausalLM <-> "mamba-2" (Dao and Gu 2024, arXiv:2405.21060).

The tensors have the same layout, in_proj's rows z, x, B, C, dt, and other names. The norm before out_proj takes each of
n_groups groups of channels by itself, as in the authors' package and in transformers from release 5 on; earlier
releases normed all channels together, and agree only where n_groups is 1.
transformers bounds the steps by time_step_limit only where it reads several tokens at once; the zoo always does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from icll_zoo_transformers.rules import Rule, same
from icll_zoo_transformers.settings import LAYERS, WIDTH, Settings, require, shown

MODEL_TYPE = "mamba2"
CLASS = "Mamba2ForCausalLM"
NAME = "ssm:mamba-2"
TIED = ("backbone.embeddings.weight", "lm_head.weight")
TIE_DEFAULT = False
# Of the initialisation, of the order of operations, and of the residual stream in half precision.
NEUTRAL = (
    "time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "rescale_prenorm_residual",
    "residual_in_fp32", "chunk_size", "fused_add_norm", "pad_vocab_size_multiple",
)  # fmt: skip
# How JSON files of transformers write that there is no upper bound.
INFINITE = ("Infinity", {"__float__": "Infinity"}, float("inf"))


def read(settings: Settings) -> dict[str, Any]:
    """The options of the zoo's model; faults stay in `settings`."""
    d_model = settings.count("hidden_size", WIDTH)
    expand = settings.count("expand", 64, 2)
    d_head = settings.count("head_dim", expand * d_model)
    n_heads = settings.count("num_heads", expand * d_model)
    if n_heads * d_head != expand * d_model:
        settings.faults.append(
            f"{settings.where} has num_heads {n_heads} x head_dim {d_head}, not expand {expand} x hidden_size {d_model}"
        )
    n_groups = settings.count("n_groups", n_heads)
    settings.only("intermediate_size", expand * d_model)
    settings.only("hidden_act", "silu")
    settings.only("rms_norm", True)
    # The mixer's own norm has this one, and transformers knows one for both.
    settings.only("layer_norm_epsilon", 1e-5)
    low, high = limit(settings)
    return {
        "d_model": d_model,
        "n_layers": settings.count("num_hidden_layers", LAYERS),
        "expand": expand,
        "d_head": d_head,
        "n_groups": n_groups,
        "norm_groups": n_groups,
        "d_state": settings.count("state_size", WIDTH, 128),
        "d_conv": settings.count("conv_kernel", 1024, 4),
        "dt_low": low,
        "dt_high": high,
        "bias": settings.flag("use_bias", False),
        "conv_bias": settings.flag("use_conv_bias", True),
        "norm": "rmsnorm",
        "norm_eps": 1e-5,
        "mlp": "none",
    }


def limit(settings: Settings) -> tuple[float, float | None]:
    """The bounds of the steps, None for no upper one."""
    value = settings.left.pop("time_step_limit", (0.0, "Infinity"))
    if isinstance(value, list | tuple) and len(value) == 2:
        low, high = value[0], None if value[1] in INFINITE else value[1]
        numbers = [x for x in (low, high) if x is not None]
        if all(isinstance(x, int | float) and 0 <= x < 1e30 for x in numbers) and numbers == sorted(set(numbers)):
            return float(low), None if high is None else float(high)
    settings.faults.append(f"{settings.where} sets 'time_step_limit' to {shown(value)}, not to two growing numbers")
    return 0.0, None


def write(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json. InputError for what a Mamba-2 of transformers is not."""
    require(
        options,
        CLASS,
        norm=("rmsnorm",),
        norm_eps=(1e-5,),
        mlp=("none",),
        embedding_norm=(False,),
        norm_groups=(options["n_groups"],),
    )
    inner, d_head, _ = sizes(options)
    bounds = {"time_step_limit": [options["dt_low"], {"__float__": "Infinity"}]}
    if options["dt_high"] is not None:
        bounds = {"time_step_limit": [options["dt_low"], options["dt_high"]]}
    return {
        "hidden_size": options["d_model"],
        "num_hidden_layers": options["n_layers"],
        "expand": options["expand"],
        "head_dim": d_head,
        "num_heads": inner // d_head,
        "n_groups": options["n_groups"],
        "state_size": options["d_state"],
        "conv_kernel": options["d_conv"],
        "use_bias": options["bias"],
        "use_conv_bias": options["conv_bias"],
        "layer_norm_epsilon": 1e-5,
        "hidden_act": "silu",
        # Without a bound the key stays away: releases before 5 read no other form of infinity than a bare word.
        **(bounds if (options["dt_low"], options["dt_high"]) != (0.0, None) else {}),
    }


def rules(options: Mapping[str, Any], vocab_size: int) -> Iterator[Rule]:
    """Every tensor but the head."""
    d = options["d_model"]
    inner, d_head, mixed = sizes(options)
    heads = inner // d_head
    yield same("embedding.weight", "backbone.embeddings.weight", vocab_size, d)
    yield same("norm.weight", "backbone.norm_f.weight", d)
    for i in range(options["n_layers"]):
        ours, theirs = f"blocks.{i}.mixer", f"backbone.layers.{i}.mixer"
        yield same(f"blocks.{i}.norm.weight", f"backbone.layers.{i}.norm.weight", d)
        yield same(f"{ours}.in_proj.weight", f"{theirs}.in_proj.weight", inner + mixed + heads, d)
        yield same(f"{ours}.out_proj.weight", f"{theirs}.out_proj.weight", d, inner)
        if options["bias"]:
            yield same(f"{ours}.in_proj.bias", f"{theirs}.in_proj.bias", inner + mixed + heads)
            yield same(f"{ours}.out_proj.bias", f"{theirs}.out_proj.bias", d)
        yield same(f"{ours}.short.weight", f"{theirs}.conv1d.weight", mixed, 1, options["d_conv"])
        if options["conv_bias"]:
            yield same(f"{ours}.short.bias", f"{theirs}.conv1d.bias", mixed)
        yield same(f"{ours}.dt_bias", f"{theirs}.dt_bias", heads)
        yield same(f"{ours}.a_log", f"{theirs}.A_log", heads)
        yield same(f"{ours}.d", f"{theirs}.D", heads)
        yield same(f"{ours}.norm.weight", f"{theirs}.norm.weight", inner)


def sizes(options: Mapping[str, Any]) -> tuple[int, int, int]:
    """The expanded channels, those of a head, and those of x, B and C together."""
    inner = options["expand"] * options["d_model"]
    d_head = min(64, inner) if options["d_head"] is None else options["d_head"]
    return inner, d_head, inner + 2 * options["n_groups"] * options["d_state"]
