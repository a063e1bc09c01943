"""The linear recurrence: chunks against single steps, real and complex, forwards and in its gradient."""

from __future__ import annotations

import pytest
import torch
from ssm_cases import assert_same_op, normal, off, uniform
from torch import Tensor

from icll_zoo_ssm.scan import LinearScan, linear_scan, linear_scan_reference

DECAYS = {"none": 0.0, "tiny": 1e-6, "usual": 0.3, "strong": 50.0}
LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 257)


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_steps(length: int, decay: float) -> None:
    a = (-decay * uniform(0, 2, length, 3)).exp()
    assert_same_op(
        lambda a, b, s: linear_scan(a, b, s, 32), linear_scan_reference, a, normal(1, 2, length, 3), normal(2, 2, 3)
    )


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 64, 257, 1000, None])
def test_any_chunk_size(chunk_size: int | None) -> None:
    inputs = (uniform(0, 2, 257, 3), normal(1, 2, 257, 3), normal(2, 2, 3))
    assert_same_op(lambda a, b, s: linear_scan(a, b, s, chunk_size), linear_scan_reference, *inputs)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 1), (2, 1, 3), (1, 65, 1), (2, 65, 1)])
def test_a_that_is_shared(shape: tuple[int, ...]) -> None:
    inputs = (uniform(0, *shape), normal(1, 2, 65, 3), normal(2, 2, 3))
    assert_same_op(lambda a, b, s: linear_scan(a, b, s, 16), linear_scan_reference, *inputs)


@pytest.mark.parametrize("shape", [(2, 65, 3), (1, 1, 3)])
def test_complex_as_pairs(shape: tuple[int, ...]) -> None:
    size, angle = uniform(0, *shape), 7 * normal(1, *shape)
    a = torch.stack([size * angle.cos(), size * angle.sin()], -1)
    inputs = (a, normal(2, 2, 65, 3, 2), normal(3, 2, 3, 2))
    assert_same_op(
        lambda a, b, s: linear_scan(a, b, s, 16, pairs=True),
        lambda a, b, s: linear_scan_reference(a, b, s, pairs=True),
        *inputs,
    )
    plain = linear_scan(*(torch.view_as_complex(x) for x in inputs))
    assert plain.is_complex()
    assert off(torch.view_as_real(plain), linear_scan_reference(*inputs, pairs=True)) <= 1e-12


def test_by_hand() -> None:
    a = torch.tensor([[[0.5], [0.25], [0.0], [1.0]]])
    b = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    # From 8: 4 + 1, 1.25 + 2, 0 + 3, 3 + 4.
    wanted = torch.tensor([[[5.0], [3.25], [3.0], [7.0]]])
    for chunk_size in (1, 2, 3, 4):
        assert torch.equal(linear_scan(a, b, torch.tensor([[8.0]]), chunk_size), wanted)
    assert torch.equal(linear_scan(a, b)[:, :1], torch.tensor([[[1.0]]]))


def test_going_on_from_the_last_state() -> None:
    a, b = uniform(0, 2, 100, 3), normal(1, 2, 100, 3)
    first = linear_scan(a[:, :41], b[:, :41])
    second = linear_scan(a[:, 41:], b[:, 41:], first[:, -1])
    assert off(torch.cat([first, second], 1), linear_scan(a, b)) <= 1e-14


def test_wide_rows_take_one_pass_and_agree() -> None:
    a, b = uniform(0, 2, 40, 3000), normal(1, 2, 40, 3000)
    assert off(linear_scan(a, b), linear_scan_reference(a, b)) <= 1e-14


def test_the_gradient_by_differences_twice() -> None:
    def scan(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return linear_scan(a, b, s, 3)

    inputs = tuple(x.requires_grad_() for x in (uniform(0, 1, 8, 2), normal(1, 1, 8, 2), normal(2, 1, 2)))
    assert torch.autograd.gradcheck(scan, inputs)
    assert torch.autograd.gradgradcheck(scan, inputs)


def test_reverse_is_the_recurrence_of_the_reversed_sequence() -> None:
    a, b, s = uniform(0, 2, 50, 3), normal(1, 2, 50, 3), normal(2, 2, 3)
    found = LinearScan.apply(a, b, s, 16, True, False)
    assert off(found.flip(1), linear_scan_reference(a.flip(1), b.flip(1), s)) <= 1e-14


def test_the_graph_keeps_no_more_than_inputs_and_outputs() -> None:
    kept: list[int] = []
    a, b = torch.rand(2, 512, 4, requires_grad=True), torch.randn(2, 512, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        linear_scan(a, b)
    assert sum(kept) <= 2 * b.numel() + b[:, 0].numel()


def test_under_vmap() -> None:
    a, b = uniform(0, 4, 2, 70, 3), normal(1, 4, 2, 70, 3)
    found = torch.vmap(lambda a, b: linear_scan(a, b))(a, b)
    assert off(found, torch.stack([linear_scan(*one) for one in zip(a, b, strict=True)])) <= 1e-14
