"""What the task files name by `!function`. lm-eval imports this module when it reads one, given by its path."""

from __future__ import annotations

from typing import Any

from icll_zoo_lm_eval.known import make_known

# Work at import, for lm-eval up to 0.4.13 reads task files before it looks for the model, and has no other way to it.
make_known()


def perplexity(doc: dict[str, Any], results: list[float]) -> dict[str, tuple[float, int]]:
    """The log-probability and the number of scored tokens of one text: their ratio over all texts is what counts."""
    (total,) = results
    return {"token_perplexity": (total, doc["scored"])}
