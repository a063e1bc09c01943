"""Models of other libraries as names of the zoo, so that `icll-zoo bench` checks and times them beside ours.

    icll-zoo bench transformer-rope transformers-llama --load benchmarks/peers.py model.d_model=128 train.threads=1

transformers-llama, -mamba, -mamba-2, -rwkv-4: whole models of transformers, of about as many parameters as ours of the
same name. fla-gla, fla-retnet, fla-deltanet: layers of flash-linear-attention, whose kernels and even whose import need
a GPU: they are registered only where there is one.
"""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import torch
from torch import Tensor, nn

from icll_zoo import register_architecture, register_mixer


class OfTransformers(nn.Module):
    """A causal language model of transformers, token ids (b, l) -> logits (b, l, vocab_size)."""

    icll_zoo_expected_failures: ClassVar = {"works_in_float64": "transformers computes norms or scans in float32"}

    def __init__(self, kind: str, vocab_size: int, d_model: int, n_layers: int, **sizes: int) -> None:
        super().__init__()
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            vocab_size=vocab_size, hidden_size=d_model, num_hidden_layers=n_layers, use_cache=False,
            bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=True, **sizes,
        )  # fmt: skip
        self.model = getattr(transformers, f"{kind}ForCausalLM")(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits


@register_architecture("transformers-llama", license="Apache-2.0", paper="arXiv:2302.13971")
class Llama(OfTransformers):
    def __init__(self, vocab_size: int, d_model: int = 128, n_layers: int = 4, n_heads: int = 4) -> None:
        heads = {"num_attention_heads": n_heads, "num_key_value_heads": n_heads}
        # SwiGLU has three matrices where our GELU has two.
        super().__init__("Llama", vocab_size, d_model, n_layers, intermediate_size=d_model * 8 // 3, **heads)


@register_architecture("transformers-mamba", license="Apache-2.0", paper="arXiv:2312.00752")
class Mamba(OfTransformers):
    def __init__(self, vocab_size: int, d_model: int = 128, n_layers: int = 4) -> None:
        super().__init__("Mamba", vocab_size, d_model, n_layers)


@register_architecture("transformers-mamba-2", license="Apache-2.0", paper="arXiv:2405.21060")
class Mamba2(OfTransformers):
    def __init__(self, vocab_size: int, d_model: int = 128, n_layers: int = 4) -> None:
        super().__init__("Mamba2", vocab_size, d_model, n_layers, num_heads=d_model * 2 // 64, head_dim=64, n_groups=1)


@register_architecture("transformers-rwkv-4", license="Apache-2.0", paper="arXiv:2305.13048")
class Rwkv4(OfTransformers):
    def __init__(self, vocab_size: int, d_model: int = 128, n_layers: int = 4) -> None:
        super().__init__("Rwkv", vocab_size, d_model, n_layers, intermediate_size=4 * d_model, rescale_every=0)


class OfFla(nn.Module):
    """A layer of flash-linear-attention, (b, l, d_model) -> same."""

    def __init__(self, kind: str, d_model: int, n_heads: int) -> None:
        super().__init__()
        import fla.layers

        self.layer = getattr(fla.layers, kind)(hidden_size=d_model, num_heads=n_heads, mode="chunk")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class FlaGLA(OfFla):
    def __init__(self, d_model: int, n_heads: int = 4) -> None:
        super().__init__("GatedLinearAttention", d_model, n_heads)


class FlaRetNet(OfFla):
    def __init__(self, d_model: int, n_heads: int = 4) -> None:
        super().__init__("MultiScaleRetention", d_model, n_heads)


class FlaDeltaNet(OfFla):
    def __init__(self, d_model: int, n_heads: int = 4) -> None:
        super().__init__("DeltaNet", d_model, n_heads)


if torch.cuda.is_available() and importlib.util.find_spec("fla") is not None:
    register_mixer("fla-gla", license="MIT", paper="arXiv:2312.06635")(FlaGLA)
    register_mixer("fla-retnet", license="MIT", paper="arXiv:2307.08621")(FlaRetNet)
    register_mixer("fla-deltanet", license="MIT", paper="arXiv:2406.06484")(FlaDeltaNet)
