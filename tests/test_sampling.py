"""From an output to a token: which distribution it is drawn from, and with what randomness."""

from __future__ import annotations

import pytest
import torch

from icll_zoo.errors import InputError
from icll_zoo.hashing import mix64
from icll_zoo.sampling import Sampling, distribution, row_seeds, uniforms

CLOSE = {"rtol": 1e-5, "atol": 1e-7, "check_dtype": False}
P = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])


def output(kind):
    """What stands for P: a shift of the logits and a missing mass change nothing."""
    return P.log() + 5 if kind == "logits" else P * 0.7


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_distribution(kind):
    out = output(kind)
    torch.testing.assert_close(distribution(out, kind), P, **CLOSE)
    squared = P.square() / P.square().sum(-1, keepdim=True)
    torch.testing.assert_close(distribution(out, kind, temperature=0.5), squared, **CLOSE)
    kept = torch.tensor([[0, 0, 3 / 7, 4 / 7], [0.5, 0.5, 0, 0]])  # of equals, the lowest ids are kept
    torch.testing.assert_close(distribution(out, kind, top_k=2), kept, **CLOSE)
    without = torch.tensor([[1 / 6, 2 / 6, 3 / 6, 0], [1 / 3, 1 / 3, 1 / 3, 0]])
    torch.testing.assert_close(distribution(out, kind, exclude=[3], top_k=9), without, **CLOSE)
    assert distribution(out, kind).dtype == torch.float64


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        ({"top_p": 0.01}, [0, 0, 0, 1], [1, 0, 0, 0]),  # the largest is always kept
        ({"top_p": 0.6}, [0, 0, 3 / 7, 4 / 7], [1 / 3, 1 / 3, 1 / 3, 0]),
        ({"top_p": 0.89}, [0, 2 / 9, 3 / 9, 4 / 9], [0.25] * 4),
        ({"top_p": 1.0}, P[0], P[1]),
        ({"top_p": 0.49, "exclude": [3]}, [0, 0, 1, 0], [0.5, 0.5, 0, 0]),  # 0.3 is half of what is left
        ({"top_p": 0.6, "top_k": 3}, [0, 0, 3 / 7, 4 / 7], [0.5, 0.5, 0, 0]),  # the nucleus is of what top_k leaves
        ({"top_p": 0.5, "temperature": 0.5}, [0, 0, 0, 1], None),  # 16/30 alone passes a half
    ],
)
def test_nucleus(kind, settings, first, second):
    p = distribution(output(kind), kind, **settings)
    torch.testing.assert_close(p[0], torch.as_tensor(first), **CLOSE)
    if second is not None:
        torch.testing.assert_close(p[1], torch.as_tensor(second), **CLOSE)
    assert torch.allclose(p.sum(-1), torch.ones(2, dtype=torch.float64))


def test_allowed_is_a_mask_of_each_row():
    allowed = torch.tensor([[True, True, False, False], [False, False, False, True]])
    p = distribution(P.log(), "logits", allowed=allowed)
    torch.testing.assert_close(p, torch.tensor([[1 / 3, 2 / 3, 0, 0], [0, 0, 0, 1.0]]), **CLOSE)
    # What a model gives nothing is drawn evenly from what may come.
    p = distribution(torch.zeros(2, 4), "probabilities", allowed=allowed)
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0]]), **CLOSE)
    with pytest.raises(InputError, match="every token is excluded"):
        distribution(P, "probabilities", exclude=[3], allowed=allowed)


def test_top_p_draws_as_often_as_the_nucleus_says():
    n = 20_000
    u = uniforms(row_seeds(0, n), 0)
    drawn = Sampling(top_p=0.6).choose(P[:1].expand(n, -1), "probabilities", u)[:, 0]
    shares = drawn.bincount(minlength=4) / n
    # Four standard deviations of a share of 20,000 draws are at most 0.0141.
    torch.testing.assert_close(shares, torch.tensor([0, 0, 3 / 7, 4 / 7]), rtol=0, atol=0.0141)
    assert shares[0] == shares[1] == 0


def test_the_ends_of_u_draw_the_first_and_the_last_possible_token():
    u = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    p = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]], dtype=torch.float64)
    assert Sampling().choose(p, "probabilities", u).item() == 2
    assert Sampling().choose(p.flip(1), "probabilities", torch.zeros(1, dtype=torch.float64)).item() == 1


# -- randomness --------------------------------------------------------------------------------------------------------


def test_mix_is_the_finaliser_of_splitmix64():
    """Against whole numbers of Python, and the generator's published first words for the seed 1234567."""
    mask = (1 << 64) - 1

    def finalise(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    words = [(1234567 + i * golden) & mask for i in range(1, 6)]
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [finalise(word) for word in words] == known
    signed = torch.tensor([word - (1 << 64) if word >> 63 else word for word in words])
    assert [value & mask for value in mix64(signed).tolist()] == known


def test_row_seeds():
    seeds = row_seeds(7, 1000)
    assert seeds[0] == 7
    assert torch.equal(row_seeds(7, 10), seeds[:10])
    assert len(seeds.unique()) == 1000
    assert (seeds >= 0).all()
    assert not torch.isin(row_seeds(8, 1000), seeds).any()
    assert row_seeds([5, 4], 2).tolist() == [5, 4]
    assert row_seeds(2**63 - 1, 2)[0] == 2**63 - 1
    for wrong in (-1, 2**63, [1]):
        with pytest.raises(InputError):
            row_seeds(wrong, 2)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(lambda: torch.cat([uniforms(torch.tensor([3]), i) for i in range(20_000)]), id="along a row"),
        pytest.param(lambda: uniforms(row_seeds(3, 20_000), 5), id="over rows"),
        pytest.param(lambda: uniforms(torch.arange(20_000), 0), id="over seeds in turn"),
    ],
)
def test_uniforms_are_uniform_and_uncorrelated(numbers):
    u = numbers()
    n = len(u)
    assert u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    # The Kolmogorov-Smirnov statistic times sqrt(n) is below 1.95 with probability 0.999.
    rank = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (u.sort().values - rank).abs().max() * n**0.5 < 1.95
    centred = (u - 0.5) * 12**0.5
    for lag in (1, 2, 7):
        # A mean of n products of independent numbers of variance 1: four standard deviations.
        assert abs((centred[lag:] * centred[:-lag]).mean()) < 4 / n**0.5
