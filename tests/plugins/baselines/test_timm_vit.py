"""timm's block as a mixer: it is timm's function, it looks back only, and timm is imported only for it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from icll_zoo import InputError, create_model, generate
from icll_zoo_baselines.timm_vit import TimmVit

D, V = 16, 11


def ids(seed: int, b: int, length: int) -> Tensor:
    return torch.randint(V, (b, length), generator=torch.Generator().manual_seed(seed))


def language_model(**options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("timm-vit", V, **{"d_model": D, "n_layers": 2, "max_length": 64} | options).double().eval()


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_is_a_stack_of_timms_blocks() -> None:
    """Blocks one after the other and a norm after the last, as in timm's VisionTransformer."""
    model, tokens = language_model(), ids(1, 2, 15)
    stack = nn.ModuleList(Block(D, 4, qkv_bias=True) for _ in range(2)).double().eval()
    for mine, theirs in zip(model.blocks, stack, strict=True):
        theirs.load_state_dict(mine.mixer.block.state_dict())
    x = model.embedding(tokens) + model.positions.weight[:15]
    for block in stack:
        x = block(x, is_causal=True)
    x = F.layer_norm(x, (D,), eps=1e-6)
    assert_same(model(tokens), x @ model.embedding.weight.T)


def test_attention_by_its_equations() -> None:
    torch.manual_seed(0)
    mixer, x = TimmVit(D, n_layers=2, layer_index=0).double().eval(), torch.randn(2, 9, D).double()
    own = mixer.block
    q, k, v = own.attn.qkv(own.norm1(x)).unflatten(-1, (3, 4, 4)).unbind(2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2
    weights = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf")).softmax(-1)
    y = x + own.attn.proj(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    assert_same(mixer(x), y + own.mlp(own.norm2(y)))


def test_the_backbone_adds_nothing() -> None:
    model = language_model()
    options = model.options
    assert (options.norm, options.mlp, options.residual, options.positions) == ("none", "none", False, "learned")
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"embedding", "positions", "blocks"}
    assert [isinstance(block.mixer.norm, nn.LayerNorm) for block in model.blocks] == [False, True]


def test_initialised_as_timm_does() -> None:
    torch.manual_seed(0)
    block = TimmVit(128, n_layers=1, layer_index=0).block
    for linear in (m for m in block.modules() if isinstance(m, nn.Linear)):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert (linear.bias == 0).all()


def test_causal() -> None:
    model, tokens = language_model(), ids(1, 2, 20)
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % V
    before, after = model(tokens), model(changed)
    assert_same(before[:, :12], after[:, :12])
    assert ((before - after)[:, 12:].abs().amax(-1) > 1e-8).all()


def test_generates_without_a_state() -> None:
    model, prompt = language_model(), ids(3, 2, 5)
    assert not model.has_step
    found = generate(model, prompt, 4, greedy=True)
    for length in range(5, 9):
        assert torch.equal(found[:, length], model(found[:, :length])[:, -1].argmax(-1))


def test_timm_is_imported_for_its_own_class_only() -> None:
    code = """
import sys
from icll_zoo.zoo import Zoo
zoo = Zoo.discover()
zoo.entry("model", "transformer").load()
assert not [name for name in sys.modules if name.split(".")[0] == "timm"]
zoo.entry("model", "timm-vit").load()
assert "timm" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_faults_of_options() -> None:
    with pytest.raises(InputError, match="n_heads 5 does not divide d_model 16"):
        language_model(n_heads=5)
