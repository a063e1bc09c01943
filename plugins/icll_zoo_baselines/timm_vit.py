"""timm's Vision Transformer block (Dosovitskiy et al. 2020, arXiv:2010.11929), made causal, "timm-vit".

    x = x + attention(norm(x));  x = x + mlp(norm(x)),   as timm's VisionTransformer stacks it

Another library's block in a few lines. It brings its norms, residuals and MLP along, so by its registration the
backbone adds none of them: the block's output replaces the stream, and the last block is followed by the norm that
timm has there. timm's attention keeps no cache, so there is no `step`: generation reads everything again.
"""

from __future__ import annotations

from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from icll_zoo_baselines.transformer import head_size


class TimmVit(nn.Module):
    """One of timm's blocks, (batch, length, d_model) -> same, initialised as timm does; MLP of 4 d_model."""

    def __init__(self, d_model: int, n_layers: int, layer_index: int, n_heads: int = 4) -> None:
        super().__init__()
        head_size(d_model, n_heads)
        self.block = Block(d_model, n_heads, qkv_bias=True)
        self.norm = nn.LayerNorm(d_model, eps=1e-6) if layer_index == n_layers - 1 else nn.Identity()
        for module in self.block.modules():
            init_weights_vit_timm(module)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.block(x, is_causal=True))
