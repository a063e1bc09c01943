"""First-party names under the kit, as a plugin's author would write it; `icll-zoo check --all` does all of them."""

from __future__ import annotations

from icll_zoo.testing import parametrize


@parametrize("transformer", "lstm", "ngram-head", "ngram-3", "dfa", "accuracy", "cross-entropy")
def test_conformance(check):
    check()
