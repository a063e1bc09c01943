"""Languages of hidden Markov models: every sequence from a random HMM of its own (in-context learning of HMM mixtures:
Xie et al. 2021, arXiv:2111.02080; the forward algorithm: Rabiner 1989, doi:10.1109/5.18626).

    s_1 uniform,  s_{t+1} ~ A(s_t, .),  x_t ~ B(s_t, .)        rows of A and B: Dirichlet, independent

The oracle knows A and B, but no state:
    f_t(s) = p(s_t = s | x_1 ... x_t) ∝ B(s, x_t) sum_r f_{t-1}(r) A(r, s)
    p(x_{t+1} | x_1 ... x_t) = sum_{r,s} f_t(r) A(r, s) B(s, x_{t+1})

What differs from Xie et al.: a new HMM for every sequence (there a few, and each document is from one of them), without
their delimiters and memory states.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import Batch, Rows, Split, stream_key
from icll_zoo_tasks.draws import categorical, dirichlet, integers
from icll_zoo_tasks.rows import MOST_SYMBOLS, as_batch, refuse, symbol_names
from icll_zoo_tasks.words import words

FIRST_SYMBOL = 1
TRANSITION, EMISSION, WALK = 1, 2, 3
MOST_STATES = 128


class HiddenMarkov:
    """An HMM of `states` states and `symbols` symbols a sequence.

    alpha_transition, alpha_emission: of the Dirichlet priors of the rows of A and B; the smaller, the fewer probable
    entries has a row. length: tokens of a sequence. sequences: of the training split; None for an endless stream.
    held_out: of the validation and of the test split each. seed: fixes the sequences.
    """

    pad_id = 0
    separator_id = None
    metrics = ("cross-entropy", "tvd", "token-accuracy")

    def __init__(
        self,
        states: int = 4,
        symbols: int = 8,
        alpha_transition: float = 0.3,
        alpha_emission: float = 0.3,
        length: int = 128,
        sequences: int | None = None,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        faults = [
            (not 1 <= states <= MOST_STATES, f"data.states: {states} is not in 1 ... {MOST_STATES}"),
            (symbols < 2, f"data.symbols: {symbols} is less than 2"),
            (symbols > MOST_SYMBOLS, f"data.symbols: {symbols} is more than {MOST_SYMBOLS}"),
            *(
                (not 1e-3 <= alpha <= 1e3, f"data.{name}: {alpha} is not in [0.001, 1000]")
                for name, alpha in (("alpha_transition", alpha_transition), ("alpha_emission", alpha_emission))
            ),
            (length < 2, f"data.length: {length} is less than 2"),
        ]
        refuse(faults, sequences, held_out, seed, length)
        self.states, self.symbols = states, symbols
        self.alpha_transition, self.alpha_emission = alpha_transition, alpha_emission
        self.vocabulary = (".", *symbol_names(symbols))
        self.max_length = length - 1
        self._rows = Rows(self._draw, sequences, held_out, seed)
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`; `extra["key"]` (b,) int64 is what a sequence's HMM is a function of."""
        ids, key, group = self._rows.take(split, k, batch_size, seed)
        return as_batch(ids, True, group, key=key)

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows the HMM: the forward algorithm."""
        transition, emission = self.models(batch.extra["key"])
        p = forward(batch.tokens - FIRST_SYMBOL, transition, emission)
        return F.pad(p, (FIRST_SYMBOL, 0)).float()

    def models(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """A (b, states, states) and B (b, states, symbols) of each key (b,), float64."""
        state = torch.arange(self.states, device=key.device)
        return (
            dirichlet(stream_key(key[:, None], TRANSITION, state), self.alpha_transition, self.states),
            dirichlet(stream_key(key[:, None], EMISSION, state), self.alpha_emission, self.symbols),
        )

    def _draw(self, key: Tensor) -> Tensor:
        transition, emission = self.models(key)
        random = words(stream_key(key, WALK), 2 * (self.max_length + 1))
        rows = torch.arange(len(key))
        x = torch.zeros(len(key), self.max_length + 1, dtype=torch.int64)
        state = integers(random[:, 0], self.states)
        for t in range(x.size(1)):
            if t:
                state = categorical(random[:, 2 * t], transition[rows, state])
            x[:, t] = categorical(random[:, 2 * t + 1], emission[rows, state])
        return x + FIRST_SYMBOL


def forward(x: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
    """p(x_{t+1} | x_1 ... x_t) for symbols x (b, l) from 0 on; A (b, s, s), B (b, s, v): (b, l, v) float64.

    The first state is uniform.
    """
    b, states, _ = emission.shape
    belief = torch.full((b, states, 1), 1 / states, dtype=torch.float64, device=x.device)
    found = []
    for token in x.unbind(1):
        belief = belief * emission.gather(2, token[:, None, None].expand(b, states, 1))
        belief = belief / belief.sum(1, keepdim=True)
        belief = (belief * transition).sum(1)[..., None]
        found.append((belief * emission).sum(1))
    return torch.stack(found, 1)
