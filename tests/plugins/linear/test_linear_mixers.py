"""What every mixer whose state is a sum must do: go on from a constant state, look back only, agree with itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError, create_model

V = 11
NAMES = {
    "linear-transformer": {},
    "retnet": {},
    "retnet-paper": {},
    "gla": {},
    "gla-paper": {},
    "hgrn-2": {},
    "rwkv-6": {"mix_rank": 4, "decay_rank": 4},
    "rwkv-4": {},
    "rwkv-4-paper": {},
}


def ids(seed: int, b: int, length: int) -> Tensor:
    return torch.randint(V, (b, length), generator=torch.Generator().manual_seed(seed))


def language_model(name: str, **options: Any) -> Any:
    """Two layers in float64, with weights large enough for everything to matter."""
    torch.manual_seed(0)
    model = create_model(name, V, **{"d_model": 16, "n_layers": 2, "max_length": 300} | NAMES[name] | options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model.eval()


def off(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_step_equals_forward(name: str) -> None:
    model, tokens = language_model(name), ids(2, 2, 257)
    wanted = model(tokens)
    for size in (1, 3, 8, 64, 257):
        state, found = model.init_state(2), []
        for piece in tokens.split(size, 1):
            before = {key: tensor.clone() for key, tensor in state.items()}
            logits, after = model.step(piece, state)
            assert state.keys() == before.keys() == after.keys()
            assert all(torch.equal(state[key], before[key]) for key in state)
            found.append(logits)
            state = after
        assert off(torch.cat(found, 1), wanted) <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_constant_and_float32_at_least(name: str) -> None:
    model = language_model(name).bfloat16()
    assert model.has_step
    assert not model.state_grows
    shapes = []
    for length in (0, 1, 64, 257):
        state = model.init_state(2)
        if length:
            _, state = model.step(ids(1, 2, length), state)
        shapes.append({key: (tensor.shape, tensor.dtype) for key, tensor in state.items()})
        assert all(tensor.size(0) == 2 for tensor in state.values())
        assert all(t.dtype == torch.float32 for key, t in state.items() if key.endswith((".kv", ".sums")))
    assert all(shape == shapes[0] for shape in shapes)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_causal(name: str) -> None:
    model, tokens = language_model(name), ids(1, 2, 100)
    changed = tokens.clone()
    changed[:, 70] = (changed[:, 70] + 1) % V
    before, after = model(tokens), model(changed)
    assert off(after[:, :70], before[:, :70]) <= 1e-12
    # Of every later token something is told the change, if only by the smallest of gates.
    assert ((before - after)[:, 70:72].abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("name", NAMES)
def test_backends_agree(name: str) -> None:
    tokens = ids(3, 2, 131)
    results = []
    for backend in ("reference", "fast", "auto"):
        model = language_model(name, backend=backend)
        logits = model(tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        results.append([logits, *torch.autograd.grad(loss, list(model.parameters()))])
    for found in results[1:]:
        for mine, wanted in zip(found, results[0], strict=True):
            assert off(mine, wanted) <= 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    model, tokens = language_model(name).float(), ids(3, 2, 100)
    wanted = model(tokens).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens)
        loss = torch.nn.functional.cross_entropy(found.flatten(0, 1), tokens.flatten())
    loss.backward()
    assert ((found - wanted).norm() / wanted.norm()).item() <= 0.1
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["gla", "linear-transformer", "retnet", "hgrn-2", "rwkv-6"])
def test_a_kernel_that_is_not_there_is_an_error(name: str) -> None:
    model = language_model(name, backend="fla")
    with pytest.raises(InputError, match="backend 'fla' needs CUDA tensors, not cpu"):
        model(ids(1, 1, 8))
    with pytest.raises(InputError, match="backend"):
        create_model(name, V, backend="triton")


@pytest.mark.parametrize("name", ["linear-transformer", "retnet", "gla", "hgrn-2", "rwkv-6", "rwkv-4"])
def test_sizes(name: str) -> None:
    def parameters(preset: str, vocab_size: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in create_model(f"{name}-{preset}", vocab_size).parameters())

    assert 1e6 <= parameters("small", 20) <= 3e6
    assert parameters("base", 20) == pytest.approx(25e6, rel=0.1)
    assert parameters("340m", 32_000) == pytest.approx(340e6, rel=0.05)
