"""Everything icll-zoo raises on purpose, and the exit code that the command line gives for it.

ZooError                    exit 1   a check, verification or comparison ran and failed
├── InputError              exit 2   what the user gave is wrong; nothing was done
│   ├── UnknownName         exit 2   no such model, dataset, metric or plugin; suggests the nearest
│   ├── AmbiguousName       exit 2   two plugins claim the name; names both
│   └── IntegrityError      exit 2   a file is not what its hash, header or fingerprint says
└── EnvironmentFault        exit 3   disk, network, lock, memory, or non-finite numbers in training

Interrupted                 exit 130 or 143, after saving (not a ZooError: nothing went wrong)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

LINE_LIMIT = 1000  # characters of a message; the command line shows 400 of them


class ZooError(Exception):
    """The base of every expected failure. `str(error)` is one printable line: what, where, why and what to do.

    `faults` holds every fault as a line of its own where several were found at once; the message is the first one
    and the number of the others.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", faults: Sequence[str] = ()) -> None:
        # What went wrong often quotes what somebody else wrote: a name, a key, a file's text.
        message, hint = printable(message, LINE_LIMIT), printable(hint, LINE_LIMIT)
        self.faults = [printable(fault, LINE_LIMIT) for fault in faults] or [message]
        if len(self.faults) > 1:
            message = f"{message} (and {len(self.faults) - 1} more)"
        super().__init__(f"{message} ({hint})" if hint else message)


class InputError(ZooError):
    """The user's input is wrong: an option, a file, a bound. Raised before anything is written."""

    exit_code = 2


class UnknownName(InputError):
    """Nothing is registered under this name."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, note: str = "") -> None:
        self.name = name
        hint = note or did_you_mean(name, known) or f"`icll-zoo list` shows every {kind}"
        super().__init__(f"unknown {kind} {name!r}", hint=hint)


class AmbiguousName(InputError):
    """Two plugins claim this name; the qualified names `plugin:name` still work."""

    def __init__(self, kind: str, name: str, owners: Sequence[str]) -> None:
        choices = " or ".join(repr(f"{owner}:{name.split(':')[-1]}") for owner in owners)
        super().__init__(f"{kind} {name!r} is claimed by {' and '.join(owners)}", hint=f"say which: {choices}")


class IntegrityError(InputError):
    """A file's bytes, header, hash or fingerprint are not what they must be. Nothing of it was used."""


class EnvironmentFault(ZooError):
    """The machine failed, not the user: disk full, lock held, memory, network, or non-finite numbers."""

    exit_code = 3


class Interrupted(BaseException):
    """A run was told to stop and has saved. `exit_code` is 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest known word, or an empty string if none is near."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not near:
        near = [w for w in words if word and (w.startswith(word) or word.startswith(w))][:1]
    return f"did you mean {near[0]!r}?" if near else ""


def printable(text: object, limit: int = 400) -> str:
    """`text` on one line without control characters, at most `limit` characters: safe to show on a terminal."""
    start = str(text)[: limit + 1]  # the text may be megabytes of somebody else's
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in start)
    return line if len(line) <= limit else line[: limit - 1] + "…"
