"""Only legal continuations: which tokens may follow a text of a language, for `icll_zoo.generate(..., constraint=)`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icll_zoo import InputError
from icll_zoo_dfa.language import LETTERS, SEPARATOR, VOCABULARY, Language

State = dict[str, Tensor]
DEAD, START, FIRST = 0, 1, 2
"""Places of a walk: the text has left the language; a string begins, and is not yet long enough to end; the states."""


class LegalNext:
    """Strings of a language joined by separators, as the sequences of the dataset are: no string is empty.

    languages: one for all rows, or one a row. After a text that is not in its language nothing is legal.
    State: `place` (b,), where the walk stands, and `language` (b,).
    """

    def __init__(self, languages: Sequence[Language]) -> None:
        if not languages:
            raise InputError("a constraint needs at least one language")
        width = FIRST + max(len(language.delta) for language in languages)
        # (languages, places, v): where each token leads.
        self.leads = torch.full((len(languages), width, len(VOCABULARY)), DEAD)
        for index, language in enumerate(languages):
            place = {name: FIRST + i for i, name in enumerate(language.delta)}
            for name, edges in language.delta.items():
                for symbol, target in edges.items():
                    self.leads[index, place[name], 1 + LETTERS.index(symbol)] = place[target]
                self.leads[index, place[name], VOCABULARY.index(SEPARATOR)] = START
            self.leads[index, START] = self.leads[index, place[language.start]]
            self.leads[index, START, VOCABULARY.index(SEPARATOR)] = DEAD

    def init_state(self, batch_size: int) -> State:
        """Every row at the start of a string. Raises InputError unless there are as many rows as languages, or one."""
        count = len(self.leads)
        if count not in (1, batch_size):
            raise InputError(f"{count} languages for {batch_size} prompts", hint="give one language, or one a prompt")
        language = torch.zeros(batch_size, dtype=torch.int64) if count == 1 else torch.arange(batch_size)
        return {"place": torch.full((batch_size,), START), "language": language}

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """What may follow the next k tokens (b, k): (b, v) bool, and the state after them."""
        place, language = state["place"], state["language"]
        for token in tokens.unbind(1):
            place = self.leads[language, place, token]
        return self.leads[language, place] != DEAD, {"place": place, "language": language}
