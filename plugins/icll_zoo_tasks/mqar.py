"""Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927), as a language to be continued.

    k1 v1 k2 v2 ... kP vP   then slots of two tokens:  k v  (a query and its answer)  or  _ _

The keys of a sequence are different, and so are its values. Only the answers are in the loss: after a key that has a
value, the model must say which. The distance of the queries follows the paper's power law.

What differs from the paper's code: the answer follows its query, so that every target is the next token (there a
filler stands in its place, and a label that is no token of the input); slots without a query hold a blank (there
random tokens, which may look like queries); queries come in a random order (there the earlier pairs tend to be asked
earlier); and of the vocabulary the pad and the blank are neither keys nor values. With answers in sight, who ignores
the keys and guesses among the values that were no answers yet is right H(P) / P of the time, with H(P) the sum of 1/i
up to P: 0.21 for 16 pairs, 0.52 for 4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from icll_zoo import IGNORED, Batch, InputError, Rows, Split
from icll_zoo_tasks.words import choices, weighted_choices, words

PAD_ID, BLANK_ID, FIRST_KEY = 0, 1, 2
BLANK, KEY, VALUE, QUERY, ANSWER = range(5)
"""What a token is for."""


class MultiQueryRecall:
    """Key-value pairs, then queries for their values.

    pairs: of a key and its value, in a sequence. vocab_size: a pad, a blank, and equally many keys and values.
    queries: None asks for every pair once; more than that ask round by round, each round for every pair once.
    length: tokens of a sequence, even; None leaves no slot empty. power: a query stands in slot i with probability
    proportional to i^(power - 1), slots being taken one after the other; 1 is uniform, the paper has 0.01.
    held_out: sequences of the validation and of the test split each; the training split is endless.
    seed: fixes the sequences.

    Sequence i is a function of (seed, split, i), in training also of the run's seed. It is drawn again until a hash
    of its tokens says that it belongs to the split: 1/16 of all sequences test, 1/16 validate, the rest train. So none
    is in two splits. Raises InputError for sizes that do not fit together.
    """

    pad_id = PAD_ID
    separator_id = None
    metrics = ("token-accuracy", "cross-entropy")

    def __init__(
        self,
        pairs: int = 16,
        vocab_size: int = 64,
        queries: int | None = None,
        length: int | None = None,
        power: float = 0.01,
        held_out: int = 500,
        seed: int = 0,
    ) -> None:
        self.pairs, self.queries = pairs, pairs if queries is None else queries
        self.n_keys = (vocab_size - FIRST_KEY) // 2
        shortest = 2 * (pairs + self.queries)
        self.length = shortest if length is None else length
        faults = [
            (pairs < 1, f"data.pairs: {pairs} is less than 1"),
            (self.queries < 1, f"data.queries: {queries} is less than 1"),
            (held_out < 1, f"data.held_out: {held_out} is less than 1"),
            (vocab_size % 2 == 1, f"data.vocab_size: {vocab_size} is odd, and there are as many keys as values"),
            (self.n_keys < pairs, f"data.vocab_size: {vocab_size} has {self.n_keys} keys, and data.pairs={pairs}"),
            (self.length < shortest, f"data.length: {length} is less than the {shortest} tokens of pairs and queries"),
            (self.length % 2 == 1, f"data.length: {length} is odd"),
            (power <= 0, f"data.power: {power} is not above 0"),
            (not 0 <= seed < 2**63, f"data.seed: {seed} is not in [0, 2^63)"),
        ]
        if said := [f"wrong value in {line}" for wrong, line in faults if wrong]:
            raise InputError(said[0], faults=said)
        self.power = power
        self._rows = Rows(self._draw, None, held_out, seed, hint="more pairs")
        self.size = self._rows.size
        self.max_length = self.length - 1
        numbers = range(self.n_keys)
        self.vocabulary = (".", "_", *(f"k{i}" for i in numbers), *(f"v{i}" for i in numbers))

    def batch(self, split: Split, k: int, batch_size: int, seed: int | None) -> Batch:
        """See `icll_zoo.Dataset`; `extra["next"]` says what the token after each position is for."""
        ids, kind, _, group = self._rows.take(split, k, batch_size, seed)
        kind = kind[:, 1:]
        tokens, following = ids[:, :-1], ids[:, 1:]
        return Batch(
            tokens=tokens,
            targets=following.masked_fill(kind != ANSWER, IGNORED),
            valid=torch.ones_like(tokens, dtype=torch.bool),
            group=group,
            extra={"next": kind},
        )

    def oracle(self, batch: Batch) -> Tensor:
        """(b, l, v) float32: what follows, for one who knows the layout (where the slots with queries are).

        An answer and a blank are certain. A new key or value is uniform over those that have not come yet, and the
        key of a query over those of the sequence that were asked least.
        """
        kind = batch.extra["next"][..., None]
        size = len(self.vocabulary)
        came = F.one_hot(batch.tokens, size).cumsum(1)
        ids = torch.arange(size, device=kind.device)
        is_key = (ids >= FIRST_KEY) & (ids < FIRST_KEY + self.n_keys)
        is_value = ids >= FIRST_KEY + self.n_keys
        times = came.masked_fill(~is_key | (came == 0), torch.iinfo(came.dtype).max)
        may = (kind == BLANK) & (ids == BLANK_ID)
        may |= (kind == KEY) & is_key & (came == 0)
        may |= (kind == VALUE) & is_value & (came == 0)
        may |= (kind == QUERY) & (came > 0) & (times == times.amin(-1, keepdim=True))
        may |= (kind == ANSWER) & (ids == batch.targets[..., None])
        return may / may.sum(-1, keepdim=True)

    def _draw(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """One sequence for every key (b,): token ids (b, length), and what each token is for."""
        b, pairs, queries = len(key), self.pairs, self.queries
        slots = (self.length - 2 * pairs) // 2
        rounds = -(-queries // pairs)
        parts = words(key, 2 * self.n_keys + rounds * pairs + slots).split(
            [self.n_keys, self.n_keys, *[pairs] * rounds, slots], 1
        )
        keys = FIRST_KEY + choices(parts[0], pairs)
        values = FIRST_KEY + self.n_keys + choices(parts[1], pairs)
        asked = torch.cat([choices(part, pairs) for part in parts[2:-1]], 1)[:, :queries]
        weight = torch.arange(1, slots + 1, dtype=torch.float64) ** (self.power - 1)
        place = 2 * pairs + 2 * weighted_choices(parts[-1], weight, queries).sort(dim=1).values

        ids = torch.full((b, self.length), BLANK_ID)
        kind = torch.full((b, self.length), BLANK)
        ids[:, 0 : 2 * pairs : 2], kind[:, 0 : 2 * pairs : 2] = keys, KEY
        ids[:, 1 : 2 * pairs : 2], kind[:, 1 : 2 * pairs : 2] = values, VALUE
        ids.scatter_(1, place, keys.gather(1, asked)).scatter_(1, place + 1, values.gather(1, asked))
        kind.scatter_(1, place, QUERY).scatter_(1, place + 1, ANSWER)
        return ids, kind
