"""The presets of size are of the size that their names say, counted on models without memory."""

from __future__ import annotations

import pytest
import torch

from icll_zoo.zoo import default_zoo

SIZED = [e.name for e in default_zoo().list("model") if e.preset_of and e.name.endswith(("-340m", "-base", "-small"))]


def test_every_trained_architecture_of_the_paper_and_after_has_sizes() -> None:
    assert len(SIZED) >= 3 * 20


@pytest.mark.parametrize("name", SIZED)
def test_size(name: str) -> None:
    low, high, vocab_size = {
        "340m": (0.95 * 340e6, 1.05 * 340e6, 32_000),
        "base": (19e6, 31e6, 20),
        "small": (1e6, 3e6, 20),
    }[name.rpartition("-")[2]]
    with torch.device("meta"):
        model = default_zoo().create_model(name, vocab_size)
    assert low <= sum(parameter.numel() for parameter in model.parameters()) <= high


def test_the_language_models_that_are_compared_are_of_one_size() -> None:
    """With and without n-gram heads, within 5 % of each other, and never more parameters with them."""
    zoo = default_zoo()
    sizes = {}
    for mixer in ("transformer-rope", "retnet", "gla", "mamba", "deltanet", "gated-deltanet"):
        for name in (f"{mixer}-340m", f"{mixer}-ngram-340m"):
            with torch.device("meta"):
                model = zoo.create_model(name, 32_000)
            sizes[name] = sum(parameter.numel() for parameter in model.parameters())
            orders = [block.mixer.order for block in model.blocks if hasattr(block.mixer, "order")]
            assert orders == ([1, 2, 3] if "ngram" in name else [])
        assert sizes[f"{mixer}-ngram-340m"] <= sizes[f"{mixer}-340m"]
    assert max(sizes.values()) <= 1.05 * min(sizes.values())
