"""One regular language of the user's own as a dataset: strings of it, drawn from its minimal automaton.

    a b <end> b a a c <end> <end> a b ...

In an accepting state a string ends with probability `stop`, or surely where no symbol leads on; otherwise the next
symbol is uniform over the edges that lead to an accepting state in the end. `<end>` is a token like the others: to
predict it is to know which strings are in the language. (The random languages of arXiv:2401.12973 accept everywhere,
and where their strings end says nothing.)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from icll_zoo import Batch, InputError, Rows, Split, logical_shift, splitmix64
from icll_zoo_dfa.acceptor import END, PAD, read_acceptor
from icll_zoo_dfa.regex import parse_regex

LONGEST = 1 << 14

Walked = tuple[Tensor, Tensor]
"""Token ids (b, length), and the state of the automaton after each."""


class RegularLanguage:
    """Strings of one language, each closed by `<end>`, as long as a sequence has room; the last one may be cut.

    regex: of the language, see `icll_zoo_dfa.regex`; alphabet: its symbols, by default those that it names.
    file: an automaton instead, JSON or Graphviz, see `icll_zoo_dfa.acceptor.read_acceptor`. stop: the probability that
    a string ends where it may. length: tokens of a sequence. sequences: of the training split; None for an endless
    stream. held_out: of the validation and of the test split each. seed: fixes the sequences.

    Sequence i is a function of (seed, split, i), in endless training also of the run's seed, drawn again until a hash
    of its tokens says that it belongs to the split (1/16 test, 1/16 validation): no sequence is in two splits.
    """

    pad_id = 0
    separator_id = None
    metrics = ("accuracy", "tvd", "cross-entropy")
    icll_zoo_check_options = {"regex": "(ab|ba*c)*d?", "length": 64}  # noqa: RUF012  the kit reads it from the class

    def __init__(
        self,
        regex: str | None = None,
        file: str | None = None,
        alphabet: str | None = None,
        stop: float = 0.2,
        length: int = 256,
        sequences: int | None = None,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        faults = [
            (not 0 < stop < 1, f"data.stop: {stop} is not in (0, 1)"),
            (length < 2, f"data.length: {length} is less than 2"),
            (length > LONGEST, f"data.length: {length} is more than {LONGEST} tokens"),
            (sequences is not None and sequences < 1, f"data.sequences: {sequences} is less than 1"),
            (held_out < 1, f"data.held_out: {held_out} is less than 1"),
            (not 0 <= seed < 2**63, f"data.seed: {seed} is not in [0, 2^63)"),
        ]
        if said := [f"wrong value in {line}" for wrong, line in faults if wrong]:
            raise InputError(said[0], faults=said)
        if (regex is None) == (file is None):
            raise InputError(
                "regular-language needs either data.regex or data.file", hint="such as data.regex='(ab|c)*'"
            )
        if file is not None:
            if alphabet is not None:
                raise InputError("data.file brings its own symbols", hint="give no data.alphabet beside it")
            self.acceptor = read_acceptor(Path(file)).minimal()
        else:
            self.acceptor = parse_regex(regex or "", alphabet)
        self.vocabulary = (PAD, *sorted({*self.acceptor.symbols, *(alphabet or "")}), END)
        self.max_length = length - 1
        # (states, v): the probability of each token, and the state that it leads to.
        self.probability, self.target = tables(self, stop)
        self._rows = Rows(
            self._walk, sequences, held_out, seed,
            scarce=f"the language has hardly any sequence of data.length={length} for the {{split}} split",
            hint="longer sequences, or a language with more strings",
        )  # fmt: skip
        self.size = self._rows.size

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`; `extra["state"]` (b, l) is the state of the minimal automaton after each token."""
        ids, state, _, group = self._rows.take(split, k, batch_size, seed)
        ids = ids.long()
        return Batch(
            tokens=ids[:, :-1],
            targets=ids[:, 1:],
            valid=torch.ones(len(ids), self.max_length, dtype=torch.bool),
            group=group,
            extra={"state": state[:, :-1].long()},
        )

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows the automaton and the probability of an end."""
        return self.probability.float().to(batch.tokens.device)[batch.extra["state"]]

    def _walk(self, key: Tensor) -> Walked:
        """One sequence for every key (b,), whatever its split."""
        place = torch.arange(self.max_length + 1)
        uniform = (logical_shift(splitmix64(key[:, None], place), 12).double() + 0.5) * 2.0**-52
        sums = self.probability.cumsum(1)
        state = torch.zeros_like(key)
        ids, states = [], []
        for t in range(self.max_length + 1):
            row = sums[state]
            token = (row[:, :-1] <= uniform[:, t, None] * row[:, -1:]).sum(1)
            state = self.target[state, token]
            ids.append(token)
            states.append(state)
        # A split is kept whole, and both are small numbers.
        return torch.stack(ids, 1).to(torch.int16), torch.stack(states, 1).to(torch.int16)


def tables(dataset: RegularLanguage, stop: float) -> tuple[Tensor, Tensor]:
    """(states, v) both: the probability of each token, float64, and the state that it leads to; an end to the start."""
    acceptor, size = dataset.acceptor, len(dataset.vocabulary)
    id_of = {symbol: i for i, symbol in enumerate(dataset.vocabulary)}
    probability = torch.zeros(len(acceptor.delta), size, dtype=torch.float64)
    target = torch.zeros(len(acceptor.delta), size, dtype=torch.int64)
    for state, edges in enumerate(acceptor.delta):
        ends = 0.0 if state not in acceptor.accepting else stop if edges else 1.0
        probability[state, id_of[END]] = ends
        for symbol, leads in edges.items():
            probability[state, id_of[symbol]] = (1 - ends) / len(edges)
            target[state, id_of[symbol]] = leads
    return probability, target
