"""The diagonal state-space model: chunks against single complex steps, and against the convolution of S4D's paper."""

from __future__ import annotations

import pytest
import torch
from ssm_cases import TOLERANCE, assert_same_op, normal, off, uniform
from torch import Tensor

from icll_zoo_ssm.diagonal import diagonal_ssm, diagonal_ssm_reference, powers, toeplitz

DECAYS = {"tiny": 1e-7, "usual": 0.1, "strong": 50.0}


def inputs(length: int, decay: float) -> tuple[Tensor, ...]:
    log_a = torch.stack([-decay * uniform(1, 3, 5), 40 * normal(2, 3, 5)], -1)
    return normal(0, 2, length, 3), log_a, normal(3, 3, 5, 2), normal(4, 2, 3, 5, 2)


@pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257])
def test_chunks_equal_steps(length: int, decay: float) -> None:
    assert_same_op(diagonal_ssm, diagonal_ssm_reference, *inputs(length, decay))


@pytest.mark.parametrize("chunk_size", [1, 3, 64, 257, 500])
def test_any_chunk_size(chunk_size: int) -> None:
    assert_same_op(lambda *x: diagonal_ssm(*x, chunk_size), diagonal_ssm_reference, *inputs(257, 0.1))


def test_equals_a_convolution_by_fft() -> None:
    """K_l = Re sum_n c_n a_n^l, y = K * u (Gu et al. 2022, section 3)."""
    u, log_a, c, _ = inputs(257, 0.1)
    a = torch.exp(torch.complex(log_a[..., 0], log_a[..., 1]))
    kernel = (torch.complex(c[..., 0], c[..., 1])[..., None] * a[..., None] ** torch.arange(257)).sum(1).real
    wanted = torch.fft.irfft(torch.fft.rfft(u, 1024, 1) * torch.fft.rfft(kernel.T, 1024, 0), 1024, 1)[:, :257]
    assert off(diagonal_ssm(u, log_a, c)[0], wanted) <= TOLERANCE


def test_by_hand() -> None:
    # a = i / 2 and c = 2 - i: s is u_1, u_2 + i u_1 / 2, u_3 + i u_2 / 2 - u_1 / 4; Re (2 - i)(x + iy) = 2x + y.
    u = torch.tensor([[[1.0], [2.0], [4.0]]], dtype=torch.float64)
    log_a = torch.tensor([[[0.5, torch.pi / 2]]], dtype=torch.float64)
    log_a[..., 0] = log_a[..., 0].log()
    y, state = diagonal_ssm(u, log_a, torch.tensor([[[2.0, -1.0]]], dtype=torch.float64))
    assert off(y.flatten(), torch.tensor([2.0, 4.5, 8.5], dtype=torch.float64)) <= 1e-15
    assert off(state.flatten(), torch.tensor([3.75, 1.0], dtype=torch.float64)) <= 1e-15


def test_the_past_does_not_depend_on_the_future_at_all() -> None:
    """Not even in rounding, as it does in a convolution by FFT."""
    u, log_a, c, _ = (x.float() for x in inputs(200, 0.1))
    changed = u.clone()
    changed[:, 130:] = 1e30
    assert torch.equal(diagonal_ssm(u, log_a, c)[0][:, :130], diagonal_ssm(changed, log_a, c)[0][:, :130])


def test_powers_of_a_fast_rotation_keep_their_digits() -> None:
    log_a = torch.tensor([[[-0.001, 128.0]]])
    exact = torch.exp(64 * torch.tensor(-0.001 + 128.0j, dtype=torch.complex128))
    assert abs(torch.view_as_complex(powers(log_a, 65))[0, 0, 64].to(torch.complex128) - exact) <= 2e-5


def test_toeplitz() -> None:
    kernel = torch.tensor([[1.0, 2.0, 3.0]])
    assert toeplitz(kernel, 0, 3, 3).tolist() == [[[1, 2, 3], [0, 1, 2], [0, 0, 1]]]
    assert toeplitz(kernel, 3, 5, 2).tolist() == [[[0, 0], [3, 0], [2, 3], [1, 2], [0, 1]]]


def test_bfloat16_input_runs_in_float32() -> None:
    u, log_a, c, state = (x.float() for x in inputs(100, 0.1))
    y, after = diagonal_ssm(u.bfloat16(), log_a, c, state)
    wanted, exact = diagonal_ssm(u.bfloat16().float(), log_a, c, state)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, wanted.bfloat16())
    assert torch.equal(after, exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(diagonal_ssm(u, log_a, c, state)[0], diagonal_ssm(u, log_a, c, state)[0].float())
