"""Decayed linear attention in chunks against its recurrence: outputs, states and gradients, for any decay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from icll_zoo import InputError
from icll_zoo_linear.decay import OPS, gla, gla_fla, gla_recurrent

B, H, D_K, D_V = 2, 3, 8, 5
DECAYS = ["none", "tiny", "strong", "mixed"]


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def log_decays(kind: str, *shape: int) -> Tensor:
    """From -1e-6 a step to -50, alone or mixed at random."""
    unit = torch.rand(*shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    low, high = {"none": (0.0, 0.0), "tiny": (1e-6, 1e-5), "strong": (20.0, 50.0), "mixed": (1e-6, 50.0)}[kind]
    return -low * (high / low) ** unit if low else torch.zeros(shape, dtype=torch.float64)


def inputs(length: int, decay: str = "mixed", width: int = D_K) -> list[Tensor]:
    """q, k, v, log_decay and a state, float64; a log_decay of `width` 1 is one a head."""
    return [
        random(1, B, length, H, D_K),
        random(2, B, length, H, D_K),
        random(3, B, length, H, D_V),
        log_decays(decay, B, length, H, width),
        random(4, B, H, D_K, D_V),
    ]


def off(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def with_gradients(op, given: list[Tensor], **options) -> list[Tensor]:
    """o, the state, and the gradients of a random sum of both."""
    given = [x.detach().clone().requires_grad_() for x in given]
    o, state = op(*given, **options)
    loss = (o * random(7, *o.shape).to(o.dtype)).sum() + (state * random(8, *state.shape).to(state.dtype)).sum()
    return [x.detach() for x in (o, state, *torch.autograd.grad(loss, given))]


def test_by_hand() -> None:
    """Two tokens, d_k = d_v = 1, from a state of 2: decays 1/2 and 1/4."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).view(1, 2, 1, 1) for x in ([1.0, 3.0], [5.0, 7.0], [11.0, 13.0]))
    log_decay = torch.tensor([0.5, 0.25], dtype=torch.float64).log().view(1, 2, 1, 1)
    state = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    first = 2 / 2 + 5 * 11
    second = first / 4 + 7 * 13
    for op in (gla, gla_recurrent):
        o, after = op(q, k, v, log_decay, state)
        assert o.flatten().tolist() == pytest.approx([first, 3 * second], rel=1e-15)
        assert after.item() == pytest.approx(second, rel=1e-15)


@torch.no_grad()
def test_the_recurrence_is_the_double_sum() -> None:
    q, k, v, log_decay, state = inputs(9)
    o, after = gla_recurrent(q, k, v, log_decay, state)
    for t in range(9):
        lost = log_decay[:, : t + 1].sum(1).exp()
        wanted = torch.einsum("bhk,bhk,bhkv->bhv", q[:, t], lost, state)
        for s in range(t + 1):
            lost = log_decay[:, s + 1 : t + 1].sum(1).exp()
            wanted += (q[:, t] * lost * k[:, s]).sum(-1, keepdim=True) * v[:, s]
        assert off(o[:, t], wanted) <= 1e-13
    assert off((q[:, -1, :, None] @ after)[:, :, 0], o[:, -1]) <= 1e-13


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("width", [D_K, 1])
@pytest.mark.parametrize("chunk_size", [16, 64, 256])
def test_chunks_equal_the_recurrence(decay: str, width: int, chunk_size: int) -> None:
    given = inputs(257, decay, width)
    wanted = with_gradients(gla_recurrent, given)
    found = with_gradients(gla, given, chunk_size=chunk_size)
    assert max(off(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-13


@pytest.mark.parametrize("width", [D_K, 1])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 63, 64, 65, 130])
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_any_length(width: int, length: int, chunk_size: int) -> None:
    given = inputs(length, "mixed", width)
    for start in (given, given[:4]):
        wanted, found = gla_recurrent(*start), gla(*start, chunk_size=chunk_size)
        assert found[0].shape == (B, length, H, D_V)
        assert max(off(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-12


@pytest.mark.parametrize("width", [D_K, 1])
def test_pieces_equal_the_whole(width: int) -> None:
    q, k, v, log_decay, state = inputs(150, "mixed", width)
    wanted, last = gla(q, k, v, log_decay, state)
    found = []
    for piece in zip(*(x.split([1, 66, 3, 80], 1) for x in (q, k, v, log_decay)), strict=True):
        before = state.clone()
        o, after = gla(*piece, state)
        assert torch.equal(state, before)
        found.append(o)
        state = after
    assert off(torch.cat(found, 1), wanted) <= 1e-12
    assert off(state, last) <= 1e-12


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 1, H, 1), (1, 70, 1, 1), (B, 1, H, 1), (1, 70, H, D_K), (1, 1, 1, D_K)]
)
def test_decays_are_broadcast(shape: tuple[int, ...]) -> None:
    q, k, v, _, state = inputs(70)
    log_decay = log_decays("mixed", *shape)
    wanted = gla_recurrent(q, k, v, log_decay.expand(B, 70, H, D_K), state)
    for op in (gla, gla_recurrent):
        assert max(off(a, b) for a, b in zip(op(q, k, v, log_decay, state), wanted, strict=True)) <= 1e-12


@pytest.mark.parametrize("width", [D_K, 1])
def test_float32_keeps_its_digits(width: int) -> None:
    """A small decay after a strong one: a difference of cumulative sums would have lost it."""
    given = inputs(257, "mixed", width)
    wanted = with_gradients(gla_recurrent, given)
    found = with_gradients(gla, [x.float() for x in given])
    assert found[0].dtype == found[1].dtype == torch.float32
    assert max(off(a, b) for a, b in zip(found, wanted, strict=True)) <= 2e-6


@pytest.mark.parametrize("width", [D_K, 1])
def test_bfloat16(width: int) -> None:
    given = [x.bfloat16() for x in inputs(130, "tiny", width)[:4]]
    wanted, _ = gla_recurrent(*(x.double() for x in given))
    found, state = gla(*given)
    assert (found.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert ((found - wanted).norm() / wanted.norm()).item() <= 0.01
    with torch.autocast("cpu", torch.bfloat16):
        _, state = gla(*(x.float() for x in given))
    # Autocast does not reach the sums of float32 inputs.
    assert torch.equal(state, gla(*(x.float() for x in given))[1])


def test_strong_decays_have_finite_gradients() -> None:
    given = [x.float() for x in inputs(130)]
    given[3] = torch.full_like(given[3], -1e4)
    for result in (*with_gradients(gla, given), *with_gradients(gla, [*given[:3], given[3][..., :1], given[4]])):
        assert result.isfinite().all()


@pytest.mark.parametrize("width", [D_K, 1])
def test_no_matrix_over_the_whole_length(width: int) -> None:
    """The largest tensor grows as the length does, forward and backward."""
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, Tensor) else 0)
            return out

    largest = []
    for length in (256, 512):
        sizes.clear()
        with Watch():
            with_gradients(gla, inputs(length, "tiny", width))
        largest.append(max(sizes))
    assert largest[1] == 2 * largest[0]


@pytest.mark.parametrize("chunk_size", [0, -4, 48])
def test_chunk_sizes_are_powers_of_two(chunk_size: int) -> None:
    with pytest.raises(InputError, match="not a power of 2"):
        gla(*inputs(70), chunk_size=chunk_size)


def test_backends() -> None:
    assert OPS["auto"] is OPS["fast"] is gla
    assert OPS["reference"] is gla_recurrent
    with pytest.raises(InputError, match="needs CUDA tensors, not cpu"):
        gla_fla(*inputs(70))
