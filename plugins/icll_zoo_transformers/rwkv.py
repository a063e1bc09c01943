"""RwkvForCausalLM <-> "rwkv-4" with a norm on the embeddings (Peng et al. 2023, arXiv:2305.13048).

The three mu of the time mixing are rows of one tensor here. At inference transformers halves the residual stream after
every `rescale_every` layers, so that half precision does not overflow. The last norm undoes that up to its epsilon:
there its logits differ from those with rescale_every = 0, and from the zoo's, by about 1e-5 of the largest. Its saved
weights are not rescaled, and those of a model in memory are brought back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icll_zoo_transformers.rules import Rule, same
from icll_zoo_transformers.settings import LAYERS, LENGTH, WIDTH, Settings, require

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPE = "rwkv"
CLASS = "RwkvForCausalLM"
NAME = "linear:rwkv-4"
TIED = ("rwkv.embeddings.weight", "head.weight")
TIE_DEFAULT = False
NEUTRAL = ("rescale_every",)
MIXED = ("key", "value", "receptance")


def read(settings: Settings) -> dict[str, Any]:
    """The options of the zoo's model; faults stay in `settings`."""
    d_model = settings.count("hidden_size", WIDTH)
    settings.only("attention_hidden_size", d_model)
    # transformers' last norm has this one whatever the configuration says.
    settings.only("layer_norm_epsilon", 1e-5)
    return {
        "d_model": d_model,
        "n_layers": settings.count("num_hidden_layers", LAYERS),
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "embedding_norm": True,
        "mlp": "rwkv",
        "mlp_ratio": settings.count("intermediate_size", 64 * WIDTH, 4 * d_model) / d_model,
        "max_length": settings.count("context_length", LENGTH, 1024),
    }


def write(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json. InputError for what an RWKV-4 of transformers is not."""
    require(
        options,
        CLASS,
        norm=("layernorm",),
        norm_eps=(None, 1e-5),
        embedding_norm=(True,),
        mlp=("rwkv",),
        amplify=(False,),
    )
    return {
        "hidden_size": options["d_model"],
        "attention_hidden_size": options["d_model"],
        "num_hidden_layers": options["n_layers"],
        "intermediate_size": mlp_width(options),
        "context_length": options["max_length"],
        "layer_norm_epsilon": 1e-5,
        "rescale_every": 0,
    }


def rules(options: Mapping[str, Any], vocab_size: int) -> Iterator[Rule]:
    """Every tensor but the head."""
    d, width = options["d_model"], mlp_width(options)
    yield same("embedding.weight", "rwkv.embeddings.weight", vocab_size, d)
    norms = {"embedding_norm": "blocks.0.pre_ln", "norm": "ln_out"}
    for i in range(options["n_layers"]):
        norms |= {f"blocks.{i}.norm": f"blocks.{i}.ln1", f"blocks.{i}.mlp_norm": f"blocks.{i}.ln2"}
        ours, theirs = f"blocks.{i}.mixer", f"rwkv.blocks.{i}.attention"
        yield mixes(f"{ours}.mix", theirs, d)
        for name in ("time_decay", "time_first"):
            yield same(f"{ours}.{name}", f"{theirs}.{name}", d)
        for name in MIXED:
            yield same(f"{ours}.{name[0]}_proj.weight", f"{theirs}.{name}.weight", d, d)
        yield same(f"{ours}.out_proj.weight", f"{theirs}.output.weight", d, d)
        ours, theirs = f"blocks.{i}.mlp", f"rwkv.blocks.{i}.feed_forward"
        yield row(f"{ours}.mix_up", f"{theirs}.time_mix_key", d)
        yield row(f"{ours}.mix_gate", f"{theirs}.time_mix_receptance", d)
        yield same(f"{ours}.up.weight", f"{theirs}.key.weight", width, d)
        yield same(f"{ours}.gate.weight", f"{theirs}.receptance.weight", d, d)
        yield same(f"{ours}.down.weight", f"{theirs}.value.weight", d, width)
    for our_norm, their_norm in norms.items():
        for kind in ("weight", "bias"):
            yield same(f"{our_norm}.{kind}", f"rwkv.{their_norm}.{kind}", d)


def row(ours: str, theirs: str, d: int) -> Rule:
    """A vector that transformers keeps as (1, 1, d)."""
    return Rule(ours, {theirs: (1, 1, d)}, lambda parts: parts[0].flatten(), lambda x: [x.view(1, 1, d)])


def mixes(ours: str, theirs: str, d: int) -> Rule:
    """The mu of keys, values and receptances."""

    def join(parts: Sequence[Tensor]) -> Tensor:
        import torch

        return torch.cat(list(parts)).flatten(1)

    return Rule(
        ours, {f"{theirs}.time_mix_{name}": (1, 1, d) for name in MIXED}, join, lambda x: list(x.view(3, 1, 1, d))
    )


def mlp_width(options: Mapping[str, Any]) -> int:
    """The MLP's width as the backbone rounds it."""
    return max(1, round(options["mlp_ratio"] * options["d_model"]))


def brought_back(config: Mapping[str, Any], name: str, tensor: Tensor) -> Tensor:
    """A tensor of a model in memory that rescaled its weights for inference, as it is saved."""
    _, _, rest = name.partition("rwkv.blocks.")
    index, _, part = rest.partition(".")
    if part in ("attention.output.weight", "feed_forward.value.weight"):
        return tensor * 2 ** (int(index) // config["rescale_every"])
    return tensor
