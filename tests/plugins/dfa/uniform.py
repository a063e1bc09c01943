"""Is what was drawn uniform? A chi-square test whose draws are fixed, so that it passes always or never."""

from __future__ import annotations

from math import sqrt

from torch import Tensor


def chi_square(counts: Tensor) -> float:
    """Pearson's statistic of counts against equal expectations; its mean is the number of counts less one."""
    expected = counts.sum().double() / counts.numel()
    assert expected >= 20, "too few draws to tell"
    return float(((counts.double() - expected) ** 2 / expected).sum())


def assert_uniform(counts: Tensor) -> None:
    """Within about four standard deviations: true draws fail once in some ten thousand times."""
    freedom = counts.numel() - 1
    assert chi_square(counts) < freedom + 4 * sqrt(2 * freedom) + 4, counts.tolist()
