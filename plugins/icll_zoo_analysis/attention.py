"""Where a head should look if it counts n-grams, and how much of its attention goes there.

    the successors of order n at t:  { j : n <= j < t  and  x[j-n..j-1] = x[t-n+1..t] }
    a head's score at t:             sum over these j of |a_tj|  /  sum over all j of |a_tj|

The successors are what followed the earlier occurrences of the last n tokens: the targets of the n-gram heads of
Akyurek et al. 2024 (arXiv:2401.12973). That paper shows attention maps; the share of attention on these targets is
measured here. For a softmax the bars do nothing; mixers whose weights have signs are judged by their magnitudes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contexts(tokens: Tensor, order: int) -> Tensor:
    """A number for the last `order` tokens at each position, (b, l) int64: equal exactly if the tokens are.

    -1 at the first order - 1 positions, which have not so many tokens.
    """
    code = torch.zeros_like(tokens)
    for back in range(order):
        earlier = torch.nn.functional.pad(tokens, (back, 0))[:, : tokens.size(1)]
        # Numbered anew after each token: a product of many vocabularies does not fit 64 bits.
        code = torch.unique(code * (int(tokens.max()) + 1) + earlier, return_inverse=True)[1]
    code[:, : order - 1] = -1
    return code


def successors(tokens: Tensor, order: int, asked: Tensor | None = None) -> Tensor:
    """(b, l, l) bool: whether j is a successor of order n at t; order >= 1, tokens (b, l).

    asked: (b, l) positions; position t looks for the context of position asked[t] instead of its own.
    """
    length = tokens.size(1)
    code = contexts(tokens, order)
    query = code if asked is None else code.gather(1, asked)
    # Position j follows the context that ends at j - 1.
    before = torch.nn.functional.pad(code, (1, 0), value=-1)[:, :length]
    earlier = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(-1)
    return (query[:, :, None] == before[:, None]) & (before >= 0)[:, None] & earlier


def permuted(valid: Tensor, generator: torch.Generator) -> Tensor:
    """Positions (b, l) of which each row's valid ones are shuffled among themselves: whose context a control asks."""
    asked = torch.arange(valid.size(1)).repeat(valid.size(0), 1)
    for row, mask in zip(asked, valid.cpu(), strict=True):
        places = mask.nonzero()[:, 0]
        row[places] = places[torch.randperm(len(places), generator=generator)]
    return asked.to(valid.device)


def previous(tokens: Tensor) -> Tensor:
    """(b, l, l) bool: the position before, the target of a previous-token head."""
    length = tokens.size(1)
    return (
        torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(-1).triu(-1).expand(len(tokens), -1, -1)
    )


def share(weights: Tensor, targets: Tensor) -> Tensor:
    """How much of its attention each head of each position spends on the targets, (b, h, l), in [0, 1].

    weights (b, h, l, l), targets (b, l, l). A position that attends to nothing has 0.
    """
    size = weights.abs()
    return torch.einsum("bhij,bij->bhi", size, targets.to(size.dtype)) / size.sum(-1).clamp(min=1e-30)


def uniform_share(targets: Tensor) -> Tensor:
    """The share of attention that is equal over all positions up to one's own, (b, l)."""
    return targets.sum(-1) / torch.arange(1, targets.size(1) + 1, device=targets.device)
