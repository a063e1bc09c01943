"""Baum-Welch the plain way: one fit at a time, matrices over all pairs of edges, logarithms. The oracle of tests.

The learner that Akyurek et al. 2024 (arXiv:2401.12973) compare with; see `baum_welch.py` for what it is. Edges are
numbered as there, (i, j) at j n + i, and everything else follows the textbook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icll_zoo_baselines.baum_welch import EPS, Hmm, reachable


def dense(model: Hmm, fit: int) -> tuple[Tensor, Tensor, Tensor]:
    """One of the models as matrices: A (s, s), B (s, v) and pi (s,) over s = n^2 edges."""
    n = model.start.size(1)
    a = model.floor[fit].reshape(-1, 1).repeat(1, n * n)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                a[j * n + i, k * n + j] = model.transition[fit, j, i, k]
    return a, model.emission[fit].reshape(n * n, -1), model.start[fit].flatten()


def fitted(
    strings: Sequence[Sequence[int]], model: tuple[Tensor, Tensor, Tensor], iterations: int, pad_id: int
) -> tuple[tuple[Tensor, Tensor, Tensor], float]:
    """A, B and pi after rounds of expectation maximisation on non-empty strings, and the strings' log-likelihood."""
    a, b, pi = model
    s, v = b.shape
    n = round(s**0.5)
    length = torch.tensor([len(string) for string in strings])
    steps = int(length.amax())
    symbol = torch.tensor([[*string, *[0] * (steps - len(string))] for string in strings])
    possible, edge = reachable(n, torch.device("cpu"))
    closed = torch.stack([~possible[min(t, len(possible) - 1)].flatten() for t in range(steps)])
    may_follow = torch.zeros(s, s, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            may_follow[j * n + i, j::n] = False
            may_follow[j * n + i, [k * n + j for k in range(n)]] = bool(edge[j, i])
    count = len(strings)
    for round_number in range(iterations + 1):
        log_a, log_b = a.log(), b.log()
        seen = log_b.T[symbol].masked_fill(closed, -torch.inf)  # (strings, steps, s)
        alpha = [pi.log() + seen[:, 0]]
        for t in range(1, steps):
            alpha.append(torch.logsumexp(alpha[-1][:, :, None] + log_a, 1) + seen[:, t])
        likelihood = torch.stack([torch.logsumexp(alpha[int(end) - 1][i], 0) for i, end in enumerate(length)])
        if round_number == iterations:
            break
        beta = [torch.zeros(count, s, dtype=a.dtype)]
        moves, left = torch.zeros(s, s, dtype=a.dtype), torch.zeros(s, dtype=a.dtype)
        for t in range(steps - 2, -1, -1):
            goes_on = (length > t + 1)[:, None]
            follow = seen[:, t + 1] + beta[0]
            before = torch.where(goes_on, torch.logsumexp(log_a + follow[:, None], 2), 0.0)
            both = alpha[t][:, :, None] + log_a + follow[:, None] - likelihood[:, None, None]
            moves += torch.where(goes_on[..., None], both.exp(), 0.0).sum(0)
            left += torch.where(goes_on, (alpha[t] + before - likelihood[:, None]).exp(), 0.0).sum(0)
            beta.insert(0, before)
        gamma = torch.stack([(x + y - likelihood[:, None]).exp() for x, y in zip(alpha, beta, strict=True)], 1)
        gamma = torch.where((torch.arange(steps) < length[:, None])[..., None], gamma, 0.0)
        emissions = torch.zeros(v, s, dtype=a.dtype).index_add(0, symbol.flatten(), gamma.flatten(0, 1)).T
        a = torch.where(may_follow, moves / (left[:, None] + EPS), EPS) + EPS
        b = emissions + EPS
        b[:, pad_id] = EPS
        pi = torch.full_like(pi, EPS)
        begins = torch.arange(1, n) * n
        pi[begins] += gamma[:, 0].sum(0)[begins] / count
        a, b, pi = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True), pi / pi.sum()
    return (a, b, pi), float(likelihood.sum())


def predicted(string: Sequence[int], model: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The chances of what follows an open string, (v,); an empty one has just begun."""
    a, b, pi = model
    possible, _ = reachable(round(len(pi) ** 0.5), torch.device("cpu"))
    belief = pi
    for t, symbol in enumerate(string):
        belief = belief * possible[min(t, len(possible) - 1)].flatten() * b[:, symbol]
        belief = belief / belief.sum() @ a
    belief = belief * possible[min(len(string), len(possible) - 1)].flatten()
    return belief @ b / belief.sum()
