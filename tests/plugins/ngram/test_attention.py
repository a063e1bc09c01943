"""The n-gram attention against its definition, in loops, and against the T x T form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from icll_zoo import InputError
from icll_zoo_ngram.attention import ngram_attend, ngram_attend_reference, ngram_matches
from icll_zoo_ngram.plan import ngram_plan

LENGTHS = (1, 2, 7, 15, 16, 17, 33, 256, 300)


def ids(seed: int, b: int, length: int, vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (b, length), generator=torch.Generator().manual_seed(seed))


def vectors(seed: int, b: int, length: int, d: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(b, length, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_definition(h: Tensor, tokens: Tensor, order: int) -> Tensor:
    out = torch.zeros_like(h)
    for row, words in enumerate(tokens.tolist()):
        for t in range(order - 1, len(words)):
            context = words[t - order + 1 : t + 1]
            found = [j for j in range(order, t) if words[j - order : j] == context]
            if found:
                out[row, t] = h[row, found].mean(0)
    return out


def both(h: Tensor, tokens: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs and gradients: fast, reference."""
    weight = vectors(99, *h.shape).to(h.dtype)
    results = []
    for fast in (True, False):
        x = h.clone().requires_grad_()
        out = ngram_attend(x, ngram_plan(tokens, order)) if fast else ngram_attend_reference(x, tokens, order)
        results += [out.detach(), *torch.autograd.grad((out * weight).sum(), x)]
    return results[0], results[2], results[1], results[3]


@pytest.mark.parametrize("order", [1, 2, 3, 8])
@pytest.mark.parametrize("vocab_size", [1, 2, 4])
def test_reference_is_the_definition(order: int, vocab_size: int) -> None:
    for length in (1, 2, 7, 40):
        tokens, h = ids(length, 2, length, vocab_size), vectors(1, 2, length)
        torch.testing.assert_close(
            ngram_attend_reference(h, tokens, order), by_definition(h, tokens, order), rtol=0, atol=1e-13
        )


def test_a_position_never_attends_to_itself_or_to_one_without_a_full_context() -> None:
    # In "aaaa" the context of t = 3 ends also at 0, 1 and 2; what follows 2 is t itself.
    assert ngram_matches(torch.zeros(1, 4, dtype=torch.int64), 1)[0].nonzero().tolist() == [[2, 1], [3, 1], [3, 2]]
    assert ngram_matches(torch.zeros(1, 4, dtype=torch.int64), 2)[0].nonzero().tolist() == [[3, 2]]


@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("vocab_size", [1, 2, 6, 32_000])
def test_fast_is_the_reference_in_float64(order: int, vocab_size: int) -> None:
    for length in LENGTHS:
        fast, slow, fast_grad, slow_grad = both(vectors(2, 3, length), ids(order, 3, length, vocab_size), order)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
        torch.testing.assert_close(fast_grad, slow_grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("vocab_size", [1, 20])
def test_fast_is_the_reference_over_three_levels_of_blocks(vocab_size: int) -> None:
    length = 4 * 16**2 + 17
    fast, slow, fast_grad, slow_grad = both(vectors(3, 2, length), ids(3, 2, length, vocab_size), 1)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    torch.testing.assert_close(fast_grad, slow_grad, rtol=0, atol=1e-12)


def test_float32_keeps_six_digits() -> None:
    h, tokens = vectors(4, 2, 300), ids(4, 2, 300, 3)
    for order in (1, 3):
        fast, _, fast_grad, _ = both(h.float(), tokens, order)
        _, slow, _, slow_grad = both(h, tokens, order)
        torch.testing.assert_close(fast.double(), slow, rtol=0, atol=1e-6)
        # A gradient sums up to 300 terms of size 1, where the output averages them.
        torch.testing.assert_close(fast_grad.double(), slow_grad, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    h, tokens = vectors(5, 2, 300, dtype=dtype), ids(5, 2, 300, 1)
    fast, _, fast_grad, _ = both(h, tokens, 1)
    _, exact, _, _ = both(h.double(), tokens, 1)
    assert fast.dtype == fast_grad.dtype == dtype
    # Sums of 300 numbers in bfloat16 would be wrong in the second digit.
    torch.testing.assert_close(fast.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_leaves_the_sums_alone() -> None:
    h, plan = vectors(6, 1, 100).float(), ngram_plan(ids(6, 1, 100, 2), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ngram_attend(h, plan)
    assert torch.equal(out, ngram_attend(h, plan))


@pytest.mark.parametrize("order", [1, 2])
def test_first_and_second_derivatives(order: int) -> None:
    plan = ngram_plan(ids(7, 2, 40, 2), order)
    h = vectors(7, 2, 40, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ngram_attend(x, plan), h)
    assert torch.autograd.gradgradcheck(lambda x: ngram_attend(x, plan), h)


def test_the_future_changes_nothing() -> None:
    tokens, h = ids(8, 2, 200, 3), vectors(8, 2, 200)
    before = ngram_attend(h, ngram_plan(tokens, 2))
    tokens, h = tokens.clone(), h.clone()
    tokens[:, 120:], h[:, 120:] = ids(9, 2, 80, 3), vectors(9, 2, 80)
    after = ngram_attend(h, ngram_plan(tokens, 2))
    torch.testing.assert_close(after[:, :120], before[:, :120], rtol=0, atol=1e-13)
    assert not torch.allclose(after[:, 120:], before[:, 120:])


def test_rows_know_nothing_of_each_other() -> None:
    tokens, h = ids(10, 3, 100, 2), vectors(10, 3, 100)
    before = ngram_attend(h, ngram_plan(tokens, 1))
    tokens, h = tokens.clone(), h.clone()
    tokens[1], h[1] = 0, torch.nan
    after = ngram_attend(h, ngram_plan(tokens, 1))
    assert torch.equal(after[::2], before[::2])
    assert after[1].isnan().any()


def test_equal_inputs_give_equal_bits() -> None:
    h, tokens = vectors(11, 2, 300).float(), ids(11, 2, 300, 4)
    first, _, first_grad, _ = both(h, tokens, 2)
    second, _, second_grad, _ = both(h, tokens.clone(), 2)
    assert torch.equal(first, second)
    assert torch.equal(first_grad, second_grad)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    h, tokens = vectors(12, 5, 80), ids(12, 5, 80, 3)
    whole, _, whole_grad, _ = both(h, tokens, 1)
    monkeypatch.setattr("icll_zoo_ngram.attention.CHUNK_BYTES", 2 * 96 * 3 * 8)  # two rows at a time
    parts, _, parts_grad, _ = both(h, tokens, 1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts_grad, whole_grad, rtol=0, atol=1e-14)


def test_any_integers_are_ids_and_any_layout_is_a_batch() -> None:
    tokens = torch.tensor([[-7, 2**62, -(2**62), 5]]).repeat(1, 10)
    h = vectors(13, 3, 40, 1).transpose(0, 2)  # (1, 40, 3), not contiguous
    for order in (1, 5):
        torch.testing.assert_close(
            ngram_attend(h, ngram_plan(tokens, order)), by_definition(h, tokens, order), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int]) -> None:
    h = torch.zeros(*shape, 4, requires_grad=True)
    out = ngram_attend(h, ngram_plan(torch.zeros(shape, dtype=torch.int64), 2))
    assert out.shape == h.shape


def test_many_models_at_once() -> None:
    """vmap over vectors alone, and over vectors and ids: the stacked runs of a sweep."""
    h, tokens = vectors(14, 6, 70).view(3, 2, 70, 3), ids(14, 6, 70, 2).view(3, 2, 70)
    weight = vectors(15, 2, 70)

    def loss(h: Tensor, tokens: Tensor) -> Tensor:
        return (ngram_attend(h, ngram_plan(tokens, 2)) * weight).sum()

    gradient = torch.func.grad_and_value(loss)
    for dims, chosen in (((0, None), lambda i: tokens[0]), ((0, 0), lambda i: tokens[i])):
        grads, values = torch.func.vmap(gradient, in_dims=dims)(h, tokens[0] if dims[1] is None else tokens)
        for i in range(3):
            grad, value = gradient(h[i], chosen(i))
            torch.testing.assert_close(values[i], value, rtol=0, atol=1e-12)
            torch.testing.assert_close(grads[i], grad, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    def loss(h: Tensor, tokens: Tensor) -> Tensor:
        return ngram_attend(h, ngram_plan(tokens, 2)).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for length in (40, 70):
        h, tokens = vectors(16, 2, length).requires_grad_(), ids(16, 2, length, 2)
        ours, theirs = torch.autograd.grad(compiled(h, tokens), h), torch.autograd.grad(loss(h, tokens), h)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_says_what_it_cannot_read() -> None:
    with pytest.raises(InputError, match="order of an n-gram head is 0"):
        ngram_plan(torch.zeros(1, 4, dtype=torch.int64), 0)
    with pytest.raises(InputError, match="token ids"):
        ngram_plan(torch.zeros(1, 4), 1)
    with pytest.raises(InputError, match=r"a plan of token ids \(1, 4\) for vectors \(1, 5, 2\)"):
        ngram_attend(torch.zeros(1, 5, 2), ngram_plan(torch.zeros(1, 4, dtype=torch.int64), 1))
