"""Small random models of transformers, of odd sizes, and transformers run entirely in float64."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCAB = 37
LLAMA = {
    "hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 128,
}  # fmt: skip
MAMBA = {"hidden_size": 20, "num_hidden_layers": 2, "state_size": 5, "conv_kernel": 3, "time_step_rank": 3}
MAMBA2 = {"hidden_size": 24, "num_hidden_layers": 2, "num_heads": 6, "head_dim": 8, "state_size": 5, "n_groups": 1}
RWKV = {"hidden_size": 20, "num_hidden_layers": 3, "intermediate_size": 30, "rescale_every": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA),
    "llama-tied": ("Llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama-bias": ("Llama", {**LLAMA, "attention_bias": True}),
    "llama-all-heads": ("Llama", {**LLAMA, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}),
    "llama-one-key": ("Llama", {**LLAMA, "num_key_value_heads": 1}),
    "llama-theta": ("Llama", {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "mamba": ("Mamba", MAMBA),
    "mamba-untied": ("Mamba", {**MAMBA, "tie_word_embeddings": False}),
    "mamba-biases": ("Mamba", {**MAMBA, "use_bias": True, "use_conv_bias": False, "expand": 3}),
    "mamba-auto": ("Mamba", {"hidden_size": 34, "num_hidden_layers": 1, "layer_norm_epsilon": 1e-3}),
    "mamba2": ("Mamba2", MAMBA2),
    "mamba2-groups": ("Mamba2", {**MAMBA2, "n_groups": 3}),
    "mamba2-biases": ("Mamba2", {**MAMBA2, "use_bias": True, "use_conv_bias": False}),
    "mamba2-tied": ("Mamba2", {**MAMBA2, "tie_word_embeddings": True, "chunk_size": 16}),
    "mamba2-limit": ("Mamba2", {**MAMBA2, "time_step_limit": (0.3, 0.9)}),
    "rwkv": ("Rwkv", RWKV),
    "rwkv-tied": ("Rwkv", {**RWKV, "tie_word_embeddings": True}),
}


def build(case: str, **changes: Any) -> Any:
    """A model of transformers with random weights, so large that every part of it matters."""
    import transformers

    name, options = CASES[case]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCAB, bos_token_id=None, eos_token_id=None, pad_token_id=None, **{**options, **changes}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1 or "time_mix" in key or "pre_ln" in key:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif parameter.std() < 0.1:
                nn.init.normal_(parameter, std=0.3)
    return model


def tokens(batch: int = 2, length: int = 45, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest value."""
    assert found.shape == wanted.shape
    return (found - wanted).abs().max().item() / wanted.abs().max().item()


class Torch64:
    """The module torch, in which float32 means float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def in_float64() -> Iterator[None]:
    """transformers rounds to float32 inside, whatever the model's type; here it does not."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("llama", "mamba", "mamba2", "rwkv"):
            module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
            patch.setattr(module, "torch", Torch64())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def load64(folder: Any) -> Any:
    """The model in a folder, in float64 throughout; call it within `in_float64`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float64).eval()


def quiet() -> None:
    """transformers shows bars and notes even where nobody watches."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
