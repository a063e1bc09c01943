"""The n-gram learner the obvious way: at every position, count again everything read so far. Slow; the oracle of tests.

The learner that Akyurek et al. 2024 (arXiv:2401.12973) compare with, in plain Python. See `ngram.py` for what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

PAD = -1  # stands to the left of every string, as often as the longest context is long

Gram = tuple[int, ...]


def ngram_reference(
    tokens: Sequence[int], vocab_size: int, separator_id: int | None, order: int = 3, smoothing: str = "backoff"
) -> list[list[float]]:
    """What the learner predicts after each token of one sequence: rows of vocab_size probabilities."""
    rows = []
    for t in range(1, len(tokens) + 1):
        strings = split(tokens[:t], separator_id)
        counts = count(strings, order)
        alphabet = sorted({token for string in strings for token in string})
        context = ((PAD,) * (order - 1) + strings[-1])[len(strings[-1]) :]
        predicted = predict(context, counts, alphabet, smoothing)
        if smoothing == "katz" and predicted:
            total = sum(predicted.values())
            predicted = {symbol: p / total for symbol, p in predicted.items()}
        rows.append([predicted.get(token, 0.0) for token in range(vocab_size)])
    return rows


def split(tokens: Sequence[int], separator_id: int | None) -> list[Gram]:
    """The strings between separators; the last one is still open, and may be empty."""
    strings: list[Gram] = [()]
    for token in tokens:
        if token == separator_id:
            strings.append(())
        else:
            strings[-1] += (token,)
    return strings


def count(strings: Sequence[Gram], order: int) -> dict[int, Counter[Gram]]:
    """How often each gram of 1 to `order` symbols occurs in the padded strings."""
    padded = [(PAD,) * (order - 1) + string for string in strings]
    return {
        n: Counter(string[i : i + n] for string in padded for i in range(len(string) - n + 1))
        for n in range(1, order + 1)
    }


def predict(
    context: Gram, counts: dict[int, Counter[Gram]], alphabet: Sequence[int], smoothing: str
) -> dict[int, float]:
    """The probability of each symbol of the alphabet after a context of n - 1 symbols."""
    n = len(context) + 1
    extra = 1 if smoothing == "add-one" else 0
    if n == 1:
        total, kinds = counts[1].total(), len(counts[1])  # both count the pads too
    else:
        total, kinds = counts[n - 1][context], len(alphabet)
    seen = {
        symbol: (counts[n][(*context, symbol)] + extra) / (total + extra * kinds)
        for symbol in alphabet
        if (*context, symbol) in counts[n]
    }
    unseen = [symbol for symbol in alphabet if symbol not in seen]
    if smoothing == "none" or not unseen:
        return seen
    left = 1.0 - sum(seen.values())
    lower = predict(context[1:], counts, alphabet, smoothing)
    mass = sum(lower[symbol] for symbol in unseen)
    return seen | {symbol: left * lower[symbol] / mass for symbol in unseen}
