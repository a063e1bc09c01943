"""Random numbers out of words: ranges, distributions against their known moments, and edges."""

from __future__ import annotations

import math

import pytest
import torch

from icll_zoo import stream_key
from icll_zoo_tasks.draws import CHUNK, categorical, dirichlet, integers, log_gamma, log_gamma_piece, uniform

N = 40_000
KEYS = stream_key(3, torch.arange(N))


def test_uniform_numbers_are_inside_their_interval():
    edges = uniform(torch.tensor([0, -1, 1 << 62, -(1 << 63)]))
    assert edges.tolist() == [2.0**-53, 1 - 2.0**-53, 0.25 + 2.0**-53, 0.5 + 2.0**-53]
    u = uniform(KEYS)
    assert u.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * N))


def test_integers_are_uniform_and_below_their_bound():
    assert integers(torch.tensor([0, -1]), 7).tolist() == [0, 6]
    count = integers(KEYS, 5).bincount(minlength=5)
    assert len(count) == 5
    assert (count / N - 0.2).abs().max() < 5 * math.sqrt(0.16 / N)


def test_categorical_takes_places_in_proportion_and_never_one_of_weight_zero():
    weight = torch.tensor([[0.0, 2.0, 0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    share = categorical(KEYS, weight.expand(N, -1)).bincount(minlength=6) / N
    assert share[[0, 2, 5]].tolist() == [0, 0, 0]
    assert (share - weight[0] / 4).abs().max() < 5 * 0.5 / math.sqrt(N)
    # The extreme words, too.
    assert categorical(torch.tensor([0, -1]), weight.expand(2, -1)).tolist() == [1, 4]


@pytest.mark.parametrize("shape", [0.02, 0.3, 1.0, 2.5, 400.0])
def test_gamma_variates_have_their_moments(shape):
    drawn = log_gamma(KEYS, torch.tensor(shape, dtype=torch.float64)).exp()
    deviation = math.sqrt(shape)
    fourth = (3 + 6 / shape) * shape**2
    assert drawn.mean().item() == pytest.approx(shape, abs=5 * deviation / math.sqrt(N))
    assert drawn.var().item() == pytest.approx(shape, abs=5 * math.sqrt((fourth - shape**2) / N))


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.0, 3.0])
def test_gamma_variates_have_their_distribution(shape):
    """Kolmogorov and Smirnov's statistic against the incomplete gamma function; 1.95 / sqrt(n) is p = 0.001."""
    drawn = log_gamma(KEYS, torch.tensor(shape, dtype=torch.float64)).exp().sort().values
    expected = torch.special.gammainc(torch.tensor(shape, dtype=torch.float64), drawn)
    assert (expected - (torch.arange(N) + 0.5) / N).abs().max() < 1.95 / math.sqrt(N)


def test_a_gamma_variate_is_the_same_alone():
    shape = torch.linspace(0.01, 5, N, dtype=torch.float64)
    drawn = log_gamma(KEYS, shape)
    for i in (0, 77, CHUNK - 1, CHUNK, N - 1):
        assert torch.equal(drawn[i : i + 1], log_gamma_piece(KEYS[i : i + 1], shape[i : i + 1]))
    assert log_gamma(KEYS[:2], torch.zeros((), dtype=torch.float64)).tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("alpha", [0.05, 0.999999999, 1.0, 7.0])
def test_dirichlet_points_have_their_moments(alpha):
    p = dirichlet(KEYS, alpha, 4)
    torch.testing.assert_close(p.sum(1), torch.ones(N, dtype=torch.float64))
    variance = (1 / 4) * (3 / 4) / (4 * alpha + 1)
    assert (p.mean(0) - 0.25).abs().max() < 5 * math.sqrt(variance / N)
    torch.testing.assert_close(p.var(0), torch.full((4,), variance, dtype=torch.float64), rtol=0.05, atol=0)


def test_dirichlet_with_parameters_of_their_own():
    shape = torch.tensor([0.5, 0.0, 1.5], dtype=torch.float64)
    p = dirichlet(KEYS, shape, 3)
    assert (p[:, 1] == 0).all()
    assert p[:, 0].mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 3 / N))


def test_neighbouring_keys_are_independent():
    p = dirichlet(torch.arange(N), 1.0, 2)[:, 0]
    assert torch.corrcoef(torch.stack([p[1:], p[:-1]]))[0, 1].abs() < 5 / math.sqrt(N)
