"""Import and export: config.json read strictly, every tensor accounted for, by the rules of the model's family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icll_zoo import InputError, Vocabulary, ZooError, create_model
from icll_zoo_transformers import llama, mamba, mamba2, rwkv
from icll_zoo_transformers.checkpoint import Checkpoint, read_folder, write_folder
from icll_zoo_transformers.rules import Rule, same
from icll_zoo_transformers.settings import VOCABULARY, Settings, require, shown

FAMILIES: dict[str, Any] = {family.MODEL_TYPE: family for family in (llama, mamba, mamba2, rwkv)}
# What is the same in every family's model. Dropout is of training only, and transformers has none at this place.
AROUND = {"layers": None, "positions": "none", "residual": True}
HEAD = "head.weight"
NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
TOLERANCE = 1e-4  # of the largest logit, in float32: what a saved model's fingerprint is held to


def from_transformers(source: str | Path | nn.Module) -> nn.Module:
    """The zoo's model with the weights and options of a checkpoint of transformers, in evaluation mode.

    source: a folder with config.json and *.safetensors, or a model of transformers. Half precision becomes float32.
    The vocabulary has no texts: only the tokenizer knows them. Its pad and end of text become pad and separator.
    Raises InputError for a configuration that the zoo cannot represent, and for tensors missing, left over, of other
    sizes or not finite; each is named.
    """
    checkpoint = of_model(source) if isinstance(source, nn.Module) else read_folder(Path(source))
    family = family_of(checkpoint)
    settings = Settings(checkpoint.config, f"config.json of {checkpoint.where}", family.NEUTRAL)
    options = family.read(settings)
    vocab_size = settings.count("vocab_size", VOCABULARY)
    tie = settings.flag("tie_word_embeddings", family.TIE_DEFAULT)
    settings.done()
    rules = [*family.rules(options, vocab_size)]
    if not tie:
        rules.append(same(HEAD, family.TIED[1], vocab_size, options["d_model"]))
    check_tensors(checkpoint, rules, family.TIED if tie else None)

    wide = any(dtype == "F64" for dtype, _ in checkpoint.tensors.values())
    with torch.random.fork_rng(devices=[]):
        model = create_model(
            family.NAME,
            vocabulary=vocabulary_of(checkpoint.config, vocab_size),
            **{**AROUND, **options, "tie": tie, "dropout": 0.0},
        )
    model = model.to(torch.float64 if wide else torch.float32)
    own = model.state_dict()
    with torch.no_grad():
        for rule in rules:
            parts = [finite(checkpoint, name) for name in rule.theirs]
            own.pop(rule.ours).copy_(rule.join(parts))
    if tie:
        del own[HEAD]  # the embedding, under its other name
    if own:
        raise RuntimeError(f"no rule fills {sorted(own)}")
    return model.eval()


def to_transformers(model: nn.Module, folder: str | Path) -> Path:
    """Write config.json and model.safetensors, from which AutoModelForCausalLM.from_pretrained builds the same model.

    model: one that the zoo created, of an architecture that has a counterpart. folder: a new or empty one.
    Its evaluation is exported; dropout is not. Raises InputError, with every fault, for options without a counterpart.
    """
    made: Any = model
    spec, vocabulary = getattr(made, "zoo_spec", None), getattr(made, "zoo_vocabulary", None)
    if spec is None or vocabulary is None:
        raise InputError(f"a {type(model).__name__} that no zoo created cannot be exported")
    family = next((family for family in FAMILIES.values() if spec.architecture == family.NAME), None)
    if family is None:
        known = ", ".join(family.NAME for family in FAMILIES.values())
        raise InputError(f"transformers has no counterpart of {spec.architecture!r}", hint=f"only of {known}")
    options = spec.options
    require(options, family.CLASS, **{name: (value,) for name, value in AROUND.items()})
    said = family.write(options)
    if options["mlp"] != "none" and options["mlp_ratio"] == 0:
        raise InputError(f"{family.CLASS} cannot represent the option mlp_ratio=0: it has an MLP in every block")
    rules = [*family.rules(options, vocabulary.size)]
    if not options["tie"]:
        rules.append(same(HEAD, family.TIED[1], vocabulary.size, options["d_model"]))
    own = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for rule in rules:
        if not own[rule.ours].isfinite().all():
            raise InputError(f"the model's tensor {rule.ours!r} has values that are not finite")
        parts = rule.split(own[rule.ours])
        for (name, sizes), part in zip(rule.theirs.items(), parts, strict=True):
            # Views of one memory would be refused as tensors that share it.
            tensors[name] = part.reshape(sizes).clone(memory_format=torch.contiguous_format)
    config = {
        "architectures": [family.CLASS],
        "model_type": family.MODEL_TYPE,
        **said,
        "vocab_size": vocabulary.size,
        "tie_word_embeddings": options["tie"],
        "bos_token_id": None,
        "eos_token_id": vocabulary.separator_id,
        "pad_token_id": vocabulary.pad_id,
        "dtype": str(own["embedding.weight"].dtype).removeprefix("torch."),
    }
    return write_folder(Path(folder), config, tensors)


@torch.no_grad()
def verify(model: nn.Module, folder: str | Path, length: int = 64) -> float:
    """The largest difference of logits between a model and what transformers builds from a folder, over the largest.

    Needs transformers. Raises InputError without it, ZooError if the two are not the same model.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError("transformers is not installed", hint="pip install 'icll-zoo[transformers]'") from error
    made: Any = model
    size = made.zoo_vocabulary.size
    tokens = torch.randint(size, (2, length), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, dtype=next(model.parameters()).dtype
    )
    # RWKV-4's rescaling for half precision is not part of the function.
    if hasattr(theirs.config, "rescale_every"):
        theirs.config.rescale_every = 0
    wanted = theirs.eval()(tokens).logits
    off = (model(tokens) - wanted).abs().max().item() / wanted.abs().max().item()
    if not off <= TOLERANCE:  # so that NaN fails too
        raise ZooError(f"the model and what transformers builds from {str(folder)!r} differ by {off:.3g}")
    return off


def family_of(checkpoint: Checkpoint) -> Any:
    """The module of the configuration's model_type. InputError for another, or for a model without its head."""
    kind, known = checkpoint.config.get("model_type"), ", ".join(FAMILIES)
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{checkpoint.where} has model_type {shown(kind)}", hint=f"only {known} have a counterpart")
    family = FAMILIES[kind]
    classes = checkpoint.config.get("architectures")
    if classes is not None and classes != [family.CLASS]:
        raise InputError(f"{checkpoint.where} is of {shown(classes)}, not of {family.CLASS}")
    return family


def check_tensors(checkpoint: Checkpoint, rules: list[Rule], tied: tuple[str, str] | None) -> None:
    """Raise InputError, with every fault, unless the checkpoint has exactly the tensors that the rules read.

    tied: the names of the embedding and of the head that repeats it, which may be there a second time.
    """
    where, found = checkpoint.where, checkpoint.tensors
    wanted = {name: sizes for rule in rules for name, sizes in rule.theirs.items()}
    if tied is not None and tied[1] in found:
        wanted[tied[1]] = wanted[tied[0]]
    faults = [f"{where} lacks tensor {name!r}" for name in wanted if name not in found]
    faults += [f"{where} has tensor {shown(name)}, which the model does not" for name in found if name not in wanted]
    faults += [
        f"{where} has tensor {name!r} of sizes {list(found[name][1])}, and config.json says {list(sizes)}"
        for name, sizes in wanted.items()
        if name in found and found[name][1] != sizes
    ]
    if faults:
        raise InputError(faults[0], faults=faults)
    if tied is not None and tied[1] in found and not torch.equal(*(checkpoint.get(name) for name in tied)):
        raise InputError(f"{where} ties the head to the embedding, and its tensors {tied[0]!r} and {tied[1]!r} differ")


def finite(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor of the checkpoint; InputError if a value is NaN or infinite."""
    tensor = checkpoint.get(name)
    if not tensor.isfinite().all():
        raise InputError(f"{checkpoint.where} has values that are not finite in tensor {name!r}")
    return tensor


def vocabulary_of(config: Mapping[str, Any], size: int) -> Vocabulary:
    """The number of tokens, and the ids of pad and end of text where they are ids; of several ends the first."""

    def token(name: str) -> int | None:
        value = config.get(name)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        return value if type(value) is int and 0 <= value < size else None

    return Vocabulary(size, None, token("pad_token_id") or 0, token("eos_token_id"))


def of_model(model: nn.Module) -> Checkpoint:
    """A model of transformers as the checkpoint that it would save."""
    made: Any = model
    name = type(model).__name__
    config = getattr(made, "config", None)
    if not callable(getattr(config, "to_diff_dict", None)):
        raise InputError(f"a {name} is no model of transformers")
    said = {**config.to_diff_dict(), "architectures": [name]}
    state = dict(model.state_dict())
    family = FAMILIES.get(said.get("model_type", ""))
    if family is not None and said.get("tie_word_embeddings", family.TIE_DEFAULT):
        state.pop(family.TIED[1], None)
    if getattr(getattr(made, "rwkv", None), "layers_are_rescaled", False) and said["rescale_every"] > 0:
        state = {key: rwkv.brought_back(said, key, tensor) for key, tensor in state.items()}
    for key, tensor in state.items():
        if tensor.dtype not in NAMES:
            raise InputError(f"the {name} has tensor {key!r} as {tensor.dtype}")
    tensors = {key: (NAMES[tensor.dtype], tuple(tensor.shape)) for key, tensor in state.items()}
    return Checkpoint(f"the {name}", said, tensors, lambda key: state[key].detach().cpu())
