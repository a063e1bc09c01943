"""The decayed delta rule in chunks against its recurrence: outputs, states and gradients, for any decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from delta_cases import D_K, D_V, DECAYS, B, H, inputs, log_decays, off, random, with_gradients
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from icll_zoo import InputError
from icll_zoo_linear import deltanet, gated_deltanet, kda, rwkv7
from icll_zoo_linear.delta import delta, delta_recurrent


def test_by_hand() -> None:
    """Two tokens, d_k = d_v = 1, from a state of 2: decays 1/2 and 1/4, betas 1/2 and 3/4."""
    q, k, v, decay = (
        torch.tensor(x, dtype=torch.float64).view(1, 2, 1, 1)
        for x in ([1.0, 3.0], [1.0, 2.0], [11.0, 13.0], [0.5, 0.25])
    )
    beta = torch.tensor([0.5, 0.75], dtype=torch.float64).view(1, 2, 1)
    state = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    first = 1 + 0.5 * (11 - 1)
    second = first / 4 + 0.75 * 2 * (13 - 2 * first / 4)
    for op in (delta, delta_recurrent):
        o, after = op(q, k, v, beta, decay.log(), state)
        assert o.flatten().tolist() == pytest.approx([first, 3 * second], rel=1e-14)
        assert after.item() == pytest.approx(second, rel=1e-14)


@torch.no_grad()
def test_the_recurrence_is_a_product_of_matrices() -> None:
    """S_t = (I - beta k^T k) diag(a) S_{t-1} + beta k^T v, head by head, as Kimi Linear's paper writes it."""
    q, k, v, beta, log_decay, start = inputs(9)
    o, after = delta_recurrent(q, k, v, beta, log_decay, start)
    for b in range(B):
        for h in range(H):
            state = start[b, h]
            for t in range(9):
                key = k[b, t, h][:, None]
                move = (torch.eye(D_K) - beta[b, t, h] * key @ key.T) @ torch.diag(log_decay[b, t, h].exp())
                state = move @ state + beta[b, t, h] * key @ v[b, t, h][None]
                assert off(o[b, t, h], q[b, t, h] @ state) <= 1e-12
            assert off(after[b, h], state) <= 1e-12


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("width", [D_K, 1])
@pytest.mark.parametrize("chunk_size", [16, 64, 256])
def test_chunks_equal_the_recurrence(decay: str, width: int, chunk_size: int) -> None:
    given = inputs(257, decay, width)
    found = with_gradients(delta, given, chunk_size=chunk_size)
    for a, b in zip(found, with_gradients(delta_recurrent, given), strict=True):
        assert off(a, b) <= 1e-11


@pytest.mark.parametrize("length", [1, 2, 4, 5, 63, 64, 65])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_any_length_in_any_chunks(length: int, chunk_size: int) -> None:
    given = inputs(length)
    found = with_gradients(delta, given, chunk_size=chunk_size)
    for a, b in zip(found, with_gradients(delta_recurrent, given), strict=True):
        assert off(a, b) <= 1e-11


def test_one_decay_a_head_is_the_same_in_every_channel() -> None:
    q, k, v, beta, log_decay, state = inputs(130, width=1)
    for a, b in zip(
        delta(q, k, v, beta, log_decay, state),
        delta(q, k, v, beta, log_decay.expand(-1, -1, -1, D_K).clone(), state),
        strict=True,
    ):
        assert off(a, b) <= 1e-12


@pytest.mark.parametrize("width", [D_K, 1])
def test_decays_that_rows_and_heads_share(width: int) -> None:
    q, k, v, beta, _, state = inputs(70)
    shared = log_decays("mixed", 1, 70, 1, width)
    for op in (delta, delta_recurrent):
        found = op(q, k, v, beta, shared, state)
        for a, b in zip(found, op(q, k, v, beta, shared.expand(B, 70, H, width).clone(), state), strict=True):
            assert off(a, b) <= 1e-12


def test_goes_on_from_its_state() -> None:
    *given, state = inputs(150)
    o, after = delta(*given, state)
    first, middle = delta(*(x[:, :67] for x in given), state)
    second, last = delta(*(x[:, 67:] for x in given), middle)
    assert off(torch.cat([first, second], 1), o) <= 1e-12
    assert off(last, after) <= 1e-12
    zeros = torch.zeros_like(state)
    assert torch.equal(delta(*given)[0], delta(*given, zeros)[0])


def test_a_value_is_replaced() -> None:
    """With one key, beta = 1 and no decay, the state answers with the last value; with beta = 2 it jumps past it."""
    q = k = F.normalize(random(1, 1, 1, 1, D_K), dim=-1).expand(B, 200, H, D_K)
    v, none = random(2, B, 200, H, D_V), torch.zeros(1, 200, 1, 1, dtype=torch.float64)
    o, _ = delta(q, k, v, torch.ones(B, 200, H, dtype=torch.float64), none)
    assert off(o, v) <= 1e-12
    o, _ = delta(q, k, v, torch.full((B, 200, H), 2.0, dtype=torch.float64), none)
    assert off(o[:, 1:], 2 * v[:, 1:] - o[:, :-1]) <= 1e-11


class Exponents(TorchFunctionMode):
    """Notes the largest argument of every exp."""

    largest = -torch.inf

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.exp, torch.exp):
            self.largest = max(self.largest, args[0].max().item())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("width", [D_K, 1])
def test_no_exponent_is_positive(width: int) -> None:
    given = inputs(257, "mixed", width)
    with Exponents() as seen:
        delta(*given)
    assert -1e-3 <= seen.largest <= 0


@pytest.mark.parametrize("width", [D_K, 1])
def test_float32_and_the_strongest_decays(width: int) -> None:
    given = inputs(512, "mixed", width)
    given[4][:, ::7] = -1e4  # forgets everything, at once
    wanted = with_gradients(delta_recurrent, given)
    for a, b in zip(with_gradients(delta, [x.float() for x in given]), wanted, strict=True):
        assert a.dtype == torch.float32
        assert off(a, b) <= 1e-5


@pytest.mark.parametrize("op", [delta, delta_recurrent])
def test_bfloat16_in_float32_inside(op: Any) -> None:
    given = [x.bfloat16() for x in inputs(130, "tiny")]
    wanted, state = op(*(x.float() for x in given))
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16)):
        with context:
            o, after = op(*given)
        assert o.dtype == torch.bfloat16
        assert after.dtype == torch.float32
        assert off(o, wanted) <= 4e-3  # rounded once, at the end
        assert torch.equal(after, state)


@pytest.mark.parametrize("width", [D_K, 1])
def test_memory_grows_with_the_length_alone(width: int) -> None:
    def kept(length: int) -> int:
        """The bytes that the backward pass keeps."""
        seen: dict[int, int] = {}

        def note(x: Tensor) -> Tensor:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        given = [x.requires_grad_() for x in inputs(length, width=width)]
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            result = delta(*given)
        del result
        return sum(seen.values())

    assert kept(2048) <= 2.1 * kept(1024)


def test_errors() -> None:
    given = inputs(10)
    with pytest.raises(InputError, match="chunk_size 0"):
        delta(*given, chunk_size=0)
    q, k, v, beta, log_decay, _ = given
    for call in (
        lambda: deltanet.delta_rule_fla(q, k, v, beta),
        lambda: gated_deltanet.gated_delta_rule_fla(q, k, v, beta, log_decay[..., 0]),
        lambda: kda.kda_fla(q, k, v, beta, log_decay),
        lambda: rwkv7.rwkv7_fla(q, log_decay, k, v, k, k),
    ):
        with pytest.raises(InputError, match="needs CUDA tensors, not cpu"):
            call()


def test_the_named_rules() -> None:
    """DeltaNet's has no decay, Gated DeltaNet's one a head with or without its last dimension, Kimi's one a channel."""
    q, k, v, beta, log_decay, state = inputs(70)
    none, per_head = torch.zeros_like(log_decay), log_decay[..., :1]
    pairs = [
        (deltanet.delta_rule(q, k, v, beta, state), none),
        (deltanet.delta_rule_recurrent(q, k, v, beta, state), none),
        (gated_deltanet.gated_delta_rule(q, k, v, beta, per_head, state), per_head),
        (gated_deltanet.gated_delta_rule(q, k, v, beta, per_head[..., 0], state, chunk_size=16), per_head),
        (gated_deltanet.gated_delta_rule_recurrent(q, k, v, beta, per_head[..., 0], state), per_head),
        (kda.kda(q, k, v, beta, log_decay, state), log_decay),
        (kda.kda_recurrent(q, k, v, beta, log_decay, state), log_decay),
    ]
    for found, decay in pairs:
        for a, b in zip(found, delta_recurrent(q, k, v, beta, decay, state), strict=True):
            assert off(a, b) <= 1e-11
