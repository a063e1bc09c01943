"""The LSTM against its equations and torch's own stack, its initialisation, and the published variant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icll_zoo import create_model
from icll_zoo_baselines.lstm import Lstm

D, V = 16, 11


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(seed: int, b: int, length: int) -> Tensor:
    return torch.randint(V, (b, length), generator=torch.Generator().manual_seed(seed))


def language_model(name: str = "lstm", **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, V, **{"d_model": D, "n_layers": 2} | options).double().eval()


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_equals_the_equations() -> None:
    layer = Lstm(D).double()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(i, *parameter.shape) * 0.5)
    x = random(9, 3, 10, D)
    own, h, c = layer.lstm, torch.zeros(3, D, dtype=torch.float64), torch.zeros(3, D, dtype=torch.float64)
    wanted = []
    for t in range(10):
        gates = x[:, t] @ own.weight_ih_l0.T + own.bias_ih_l0 + h @ own.weight_hh_l0.T + own.bias_hh_l0
        i, f, g, o = gates.split(D, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        wanted.append(h)
    assert_same(layer(x), torch.stack(wanted, 1))


def test_layers_are_stacked_as_torch_stacks_them() -> None:
    """The paper's reference feeds the embeddings to every layer and keeps the last; ours are a stack."""
    bare = {"norm": "none", "mlp": "none", "residual": False, "dropout": 0.0}
    model = language_model(n_layers=3, **bare)
    stack = nn.LSTM(D, D, num_layers=3, batch_first=True).double()
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(stack, f"{kind}_l{index}").copy_(getattr(block.mixer.lstm, f"{kind}_l0"))
    tokens = ids(1, 2, 15)
    wanted = stack(model.embedding(tokens))[0] @ model.embedding.weight.T
    assert_same(model(tokens), wanted)


def test_initialisation() -> None:
    torch.manual_seed(0)
    lstm = Lstm(64).lstm
    gram = lstm.weight_hh_l0.T @ lstm.weight_hh_l0
    torch.testing.assert_close(gram, torch.eye(64), rtol=0, atol=1e-5)
    bound = math.sqrt(6 / (64 + 4 * 64))  # Glorot's uniform bound for a matrix of 4 * 64 by 64
    assert lstm.weight_ih_l0.abs().max() <= bound
    assert lstm.weight_ih_l0.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    forget = torch.zeros(4, 64)
    forget[1] = 1
    assert torch.equal(lstm.bias_ih_l0.detach().view(4, 64), forget)
    assert (lstm.bias_hh_l0 == 0).all()


def test_as_published() -> None:
    torch.manual_seed(0)
    model = create_model("lstm-paper", 400, d_model=64)
    options = model.options
    assert (options.n_layers, options.norm, options.mlp, options.residual) == (1, "none", "none", False)
    assert (options.dropout, options.positions, options.tie) == (0.0, "none", True)
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.02)
    assert model.head.weight is model.embedding.weight
    # Embeddings, one layer and the tied head: nothing else.
    assert sum(p.numel() for p in model.parameters()) == 400 * 64 + 8 * 64 * 64 + 8 * 64
    tokens = torch.randint(400, (2, 20), generator=torch.Generator().manual_seed(1))
    wanted = model.blocks[0].mixer.lstm(model.embedding(tokens))[0] @ model.embedding.weight.T
    torch.testing.assert_close(model.train()(tokens), wanted)
