"""What every state-space mixer must do: go on from a state, look back only, agree with its slow form, stay finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ssm_cases import TOLERANCE, off
from torch import Tensor

from icll_zoo import create_model

V = 11
NAMES = ("s4d", "h3", "hyena", "mamba", "mamba-paper", "mamba-2", "lru", "gilr")
CONSTANT = [name for name in NAMES if name != "hyena"]


def ids(seed: int, b: int, length: int) -> Tensor:
    return torch.randint(V, (b, length), generator=torch.Generator().manual_seed(seed))


def language_model(name: str, **options: Any) -> Any:
    """Small, in float64 and evaluation mode, with weights large enough for everything to matter."""
    torch.manual_seed(0)
    layers = {} if name.endswith("-paper") else {"n_layers": 2}
    model = create_model(name, V, **{"d_model": 16, **layers, **options}).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model.eval()


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
        assert off(torch.cat(found, 1), wanted) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_size_of_the_state(name: str) -> None:
    model = language_model(name).bfloat16()
    assert model.has_step
    assert model.state_grows == (name not in CONSTANT)
    shapes = []
    for length in (0, 1, 64, 257):
        state = model.init_state(2)
        if length:
            _, state = model.step(ids(1, 2, length), state)
        shapes.append({key: (tensor.shape, tensor.dtype) for key, tensor in state.items()})
        assert all(tensor.size(0) == 2 for tensor in state.values())
        # What adds up over a sequence does so in float32; what is only kept, in the model's type.
        assert all((t.dtype == torch.float32) == key.endswith((".h", ".s")) for key, t in state.items())
    assert all(shape == shapes[0] for shape in shapes) == (name in CONSTANT)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_causal(name: str) -> None:
    model, tokens = language_model(name), ids(1, 2, 100)
    changed = tokens.clone()
    changed[:, 70] = (changed[:, 70] + 1) % V
    before, after = model(tokens), model(changed)
    assert off(after[:, :70], before[:, :70]) <= 1e-12
    assert ((before - after)[:, 70:80].abs().amax(-1) > 1e-9).all()


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
            assert off(mine, wanted) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_autocast_and_half_precision(name: str) -> None:
    model, tokens = language_model(name).float(), ids(3, 2, 100)
    wanted = model(tokens).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens)
        loss = torch.nn.functional.cross_entropy(found.flatten(0, 1), tokens.flatten())
    loss.backward()
    assert ((found - wanted).norm() / wanted.norm()).item() <= 0.1
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    half = model.bfloat16()(tokens)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_what_must_not_decay_are_parameters(name: str) -> None:
    model = language_model(name)
    exempt, known = model.no_weight_decay(), {n for n, _ in model.named_parameters()}
    assert exempt <= known
    assert bool(exempt) == (name not in ("lru", "gilr"))


@pytest.mark.parametrize("name", NAMES)
def test_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, V, d_model=16)
        assert model(torch.zeros(2, 70, dtype=torch.int64)).shape == (2, 70, V)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hyena", "mamba", "lru"])
def test_loops_are_one_operation_to_the_compiler(name: str) -> None:
    """Compiled for 512 tokens without writing 512 steps out, and equal in outputs and gradients."""
    model, tokens = language_model(name).float(), ids(4, 2, 512)
    results = []
    for call in (model, torch.compile(model, fullgraph=True)):
        logits = call(tokens)
        results.append([logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))])
    largest = max(x.abs().max().item() for x in results[0][1:])
    for wanted, found in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * max(largest, wanted.abs().max().item())
