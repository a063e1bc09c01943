"""Attention in blocks of queries against the l x l weights: values, gradients, dropout, what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icll_zoo.dropout import adopt, masks
from icll_zoo_baselines import attend_in_blocks as module
from icll_zoo_baselines.attend_in_blocks import QUERIES, attend_in_blocks
from icll_zoo_baselines.transformer import Attention, attend_reference

B, H, D = 3, 2, 8
LENGTHS = [0, 1, 2, QUERIES - 1, QUERIES, QUERIES + 1, 3 * QUERIES + 5]


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(length: int, scale: float = 1.0) -> list[Tensor]:
    return [(random(i, B, length, H, D) * scale).requires_grad_() for i in range(3)]


def with_gradients(attend: Any, given: list[Tensor]) -> list[Tensor]:
    out = attend(*given)
    return [out, *torch.autograd.grad((out * random(9, *out.shape).to(out)).sum(), given)]


def assert_same(found: list[Tensor], wanted: list[Tensor], atol: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("scores", [1, module.SCORES])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_whole_matrix(length: int, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """scores: few, so that sequences are worked on one by one, or as many as fit."""
    monkeypatch.setattr(module, "SCORES", scores)
    given = inputs(length)
    assert_same(with_gradients(attend_in_blocks, given), with_gradients(attend_reference, given), 1e-12)


def test_scores_of_any_size() -> None:
    given = inputs(QUERIES + 3, scale=60.0)  # scores of +- 10^4
    found = with_gradients(attend_in_blocks, given)
    assert all(tensor.isfinite().all() for tensor in found)
    assert_same(found, with_gradients(attend_reference, given), 1e-9)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
def test_lower_precision(dtype: torch.dtype, within: float) -> None:
    """Of the largest entry."""
    given = inputs(2 * QUERIES + 1)
    low = [x.detach().to(dtype).requires_grad_() for x in given]
    found = with_gradients(attend_in_blocks, low)
    assert all(tensor.dtype == dtype for tensor in found)
    for a, b in zip(found, with_gradients(attend_reference, given), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=within * b.abs().max().item())


def test_keys_of_another_precision_become_the_queries() -> None:
    q, k, v = (x.detach() for x in inputs(9))
    low = q.bfloat16()
    assert torch.equal(attend_in_blocks(low, k, v), attend_in_blocks(low, k.bfloat16(), v.bfloat16()))


def test_autocast_leaves_the_inputs_dtype_alone() -> None:
    given = [x.detach().float() for x in inputs(QUERIES + 1)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_in_blocks(*given)
    assert torch.equal(found, attend_in_blocks(*given))


@pytest.mark.parametrize("length", [0, 5, QUERIES, 2 * QUERIES + 9])
def test_drops_what_the_layer_drops_from_the_whole_matrix(length: int) -> None:
    """Both backends of a mixer under the same keys, twice in a pass: the second call drops something else."""
    x, found = random(0, B, length, H * D), []
    for backend in ("fast", "reference"):
        torch.manual_seed(0)
        made = Attention(H * D, 1, H, attention_dropout=0.3, backend=backend).double().train()
        with torch.no_grad():
            made.qkv.weight.mul_(20)
        with masks(adopt(made), 4, 7, torch.tensor([2, 11, 5])):
            outputs = [made(x), made(x)]
        found.append([*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), made.parameters())])
    assert not length or not torch.allclose(found[0][0], found[0][1])
    assert_same(found[0], found[1], 1e-10)


def test_a_step_in_training_drops_from_all_that_was_read() -> None:
    """A mixer's step has fewer queries than keys."""
    x, found = random(0, B, 9, H * D), []
    for backend in ("fast", "reference"):
        torch.manual_seed(0)
        made = Attention(H * D, 1, H, attention_dropout=0.3, backend=backend).double().train()
        with masks(adopt(made), 4, 7, torch.arange(B)):
            _, state = made.step(x[:, :5], made.init_state(B, "cpu", torch.float64))
            found.append(made.step(x[:, 5:], state)[0])
    assert_same([found[0]], [found[1]], 1e-12)


def test_without_a_run_the_dropped_weights_are_torch_s_to_choose() -> None:
    made = Attention(H * D, 1, H, attention_dropout=0.25).train()
    assert type(made.dropout) is nn.Dropout
    with torch.no_grad():  # every query takes the same of all, and values and output are all ones
        made.qkv.weight.zero_()
        made.qkv.bias.fill_(1)
        made.out_proj.weight.copy_(torch.eye(H * D))
    x = torch.zeros(64, 256, H * D)
    first, second = made(x), made(x)
    assert not torch.equal(first, second)
    assert first.mean().item() == pytest.approx(1, abs=0.003)
    last = first[:, -1, ::D].flatten()  # means of 256 values, each 4/3 with probability 3/4, else 0
    assert last.std().item() == pytest.approx((1 / 3 / 256) ** 0.5, rel=0.3)


def test_keeps_nothing_that_grows_with_the_square_of_the_length() -> None:
    def kept_bytes(length: int) -> int:
        made, held = Attention(H * D, 1, H).train(), {}

        def keep(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = made(torch.zeros(1, length, H * D))
        assert out.requires_grad
        return sum(held.values())

    few, many = kept_bytes(128), kept_bytes(1024)
    assert many < 8.5 * few


def test_under_vmap() -> None:
    """Alone, with one of the inputs shared, and with gradients: the stacked models of a sweep."""
    q, k, v = (random(i, 4, B, QUERIES + 2, H, D) for i in range(3))
    assert_same(
        [torch.vmap(attend_in_blocks, (0, 0, None))(q, k, v[0])],
        [torch.stack([attend_in_blocks(a, b, v[0]) for a, b in zip(q, k, strict=True)])],
        1e-12,
    )

    def loss(attend: Any) -> Any:
        return torch.func.grad(lambda q, k, v: attend(q, k, v).square().sum(), argnums=(0, 1, 2))

    found = torch.vmap(loss(attend_in_blocks))(q, k, v)
    wanted = [
        torch.stack(g) for g in zip(*(loss(attend_reference)(*one) for one in zip(q, k, v, strict=True)), strict=True)
    ]
    assert_same(list(found), wanted, 1e-11)


def test_a_second_derivative_is_refused() -> None:
    (x, *others) = inputs(4)
    (gradient,) = torch.autograd.grad(attend_in_blocks(x, *others).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
