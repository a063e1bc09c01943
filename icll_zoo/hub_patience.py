"""Talking to the Hub patiently: what may pass is tried again, nothing waits for ever, every failure is one line.

huggingface_hub repeats some requests and not others, sets no timeout for some, and sleeps for as long as a Retry-After
says. `patiently` puts one frame around all of that.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar
from urllib.parse import urlsplit

from icll_zoo.errors import EnvironmentFault, InputError, ZooError, printable

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0)  # seconds between the attempts
PATIENCE = 40.0  # seconds after which no new request is begun, and the longest wait that the Hub may ask for
TIMEOUTS = {"connect": 10.0, "read": 45.0, "write": 45.0, "pool": 10.0}  # huggingface_hub itself sets none for commits
REPEATED = (408, 409, 425, 429, 500, 502, 503, 504)

_deadline: ContextVar[float | None] = ContextVar("icll_zoo_hub_deadline", default=None)
# What huggingface_hub shows is one setting for all threads: the first to be quiet changes it, the last puts it back.
_lock, _inside, _before = threading.Lock(), 0, (logging.WARNING, False)


class GaveUp(Exception):
    """The Hub asks for a longer wait than patience lasts, or has answered nothing useful for that long."""

    def __init__(self, wait: float | None = None) -> None:
        self.wait = wait


def endpoint() -> str:
    """Where the Hub is; read when it is needed, so that a test or a notebook may set it."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def host() -> str:
    """The endpoint's host as messages show it: without a password that may be in the address."""
    split = urlsplit(endpoint())
    return f"{split.hostname}:{split.port}" if split.port else str(split.hostname)


def address(repo: str, revision: str = "main") -> str:
    """Where a person finds a repository."""
    found = f"{urlsplit(endpoint()).scheme}://{host()}/{repo}"
    return found if revision == "main" else f"{found}/tree/{revision}"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def utils() -> Any:
    """huggingface_hub.utils: `get_session`, and as `httpx` the HTTP library that this release of it uses."""
    return importlib.import_module("huggingface_hub.utils")


def patiently(repo: str, revision: str, call: Callable[[], T], patience: float | None = None) -> T:
    """What `call` gives; what may pass by itself is tried again, as long as `patience` lasts. Raises ZooErrors only.

    patience: in seconds, PATIENCE by default; a batch that nobody waits for may have more.
    """
    patience = PATIENCE if patience is None else patience
    deadline = min(time.monotonic() + patience, _deadline.get() or math.inf)
    before = _deadline.set(deadline)
    try:
        with quiet():
            for wait in (*WAITS, None):
                listen()
                try:
                    return call()
                except ZooError:
                    raise
                except Exception as error:
                    cause = cause_of(error)
                    pause = max(wait or 0.0, asked(cause))
                    if wait is None or not passing(cause) or time.monotonic() + pause > deadline:
                        raise explain(cause, repo, revision, patience) from error
                    time.sleep(pause)
    finally:
        _deadline.reset(before)
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let one line stand on stderr: no notes about retries, and no progress where nobody watches."""
    global _inside, _before
    from huggingface_hub.utils import logging as hub_logging

    with _lock:
        if _inside == 0:
            shown = not utils().are_progress_bars_disabled() and not sys.stderr.isatty()
            _before = hub_logging.get_verbosity(), shown
            hub_logging.set_verbosity(logging.ERROR)
            if shown:
                utils().disable_progress_bars()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                hub_logging.set_verbosity(_before[0])
                if _before[1]:
                    utils().enable_progress_bars()


def listen() -> None:
    """Let the client that huggingface_hub shares in this process ask `on_request` and `on_response`.

    They do nothing but in a thread that is inside `patiently`.
    """
    client = utils().get_session()
    hooks = client.event_hooks
    if on_request not in hooks["request"]:
        client.event_hooks = {
            "request": [*hooks["request"], on_request],
            "response": [*hooks["response"], on_response],
        }


def on_request(request: Any) -> None:
    """Give the request a timeout, and begin none after the deadline; a download that goes on has its own bounds."""
    if (deadline := _deadline.get()) is None:
        return
    given = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {name: min(given.get(name) or most, most) for name, most in TIMEOUTS.items()}
    if time.monotonic() > deadline and "range" not in request.headers:
        raise GaveUp


def on_response(response: Any) -> None:
    """Do not let huggingface_hub sleep for as long as a Retry-After says, if that is past the deadline."""
    if (deadline := _deadline.get()) is None or response.status_code not in (429, 503):
        return
    if time.monotonic() + (wait := retry_after(response)) > deadline:
        raise GaveUp(wait)


def retry_after(response: Any) -> float:
    """The seconds that an answer asks to wait; 0 if it does not say. RFC 9110, 10.2.3."""
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if text.isdigit() else 0.0


def cause_of(error: BaseException) -> BaseException:
    """The failure of HTTP, of the network or of the disk behind what huggingface_hub raises."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    seen: BaseException | None = error
    for _ in range(10):
        if isinstance(seen, HfHubHTTPError | utils().httpx.HTTPError | OfflineModeIsEnabled | GaveUp):
            return seen
        seen = (seen.__cause__ or seen.__context__) if seen is not None else None
    return error


def status_of(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def asked(error: BaseException) -> float:
    """The wait that the Hub asks for."""
    response = getattr(error, "response", None)
    return retry_after(response) if response is not None else 0.0


def passing(error: BaseException) -> bool:
    """Whether it may be over at the next attempt."""

    status = status_of(error)
    return (
        status in REPEATED
        if status is not None
        else isinstance(error, utils().httpx.TransportError) or cut_short(error)
    )


def cut_short(error: BaseException) -> bool:
    """huggingface_hub raises a plain OSError for a download of another size than was said."""
    return type(error) is OSError and error.errno is None


def explain(error: BaseException, repo: str, revision: str, patience: float) -> ZooError:
    """The one line, and by its class the exit code, for a failure. No address is in it: those may be signed."""
    from huggingface_hub import errors as known

    where, at = repr(repo), "" if revision == "main" else f" at {revision}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    said = printable(getattr(error, "server_message", None) or "", 160)
    status = status_of(error)
    if isinstance(error, GaveUp):
        wait = f"asks to wait {error.wait:.0f} s" if error.wait else f"has not answered for {patience:.0f} s"
        return EnvironmentFault(f"{host()} {wait} before {where}{at} can be had", hint="try again then")
    if isinstance(error, known.OfflineModeIsEnabled) or (
        offline() and isinstance(error, known.LocalEntryNotFoundError)
    ):
        return not_cached(repo, revision)
    if isinstance(error, known.LocalEntryNotFoundError | json.JSONDecodeError):
        return EnvironmentFault(
            f"{host()} does not answer for {where}{at} as the Hub does: {plain(error)}",
            hint="is there a proxy or a login page in between, or is HF_ENDPOINT wrong?",
        )
    if isinstance(error, known.GatedRepoError):
        return InputError(f"{where} is gated: ask for access at {address(repo)}", hint=login)
    if isinstance(error, known.RepositoryNotFoundError):
        return InputError(f"no repository {where} at {host()}, or it is private", hint=f"if it is, {login}")
    if isinstance(error, known.RevisionNotFoundError):
        return InputError(f"no revision {printable(repr(revision), 120)} in {where}", hint="see its branches and tags")
    if isinstance(error, known.RemoteEntryNotFoundError):
        return InputError(f"a file is missing in {where}{at}: {said}")
    if status == 401:
        return InputError(f"{host()} does not accept the token, or wants one, for {where}", hint=login)
    if status == 403:
        return InputError(
            f"the token may not do this with {where}: {said or 'forbidden'}", hint="log in as somebody who may"
        )
    if status == 429:
        wait = f", and asks to wait {asked(error):.0f} s" if asked(error) else ""
        return EnvironmentFault(f"{host()} refuses so many requests{wait}", hint="try again later")
    if status is not None and (status in REPEATED or status >= 500):
        return EnvironmentFault(
            f"{host()} answers {status} for {where}{at}, also when asked again", hint="try again later"
        )
    if status is not None:
        return InputError(f"{host()} refuses {where}{at} with status {status}: {said or 'it does not say why'}")
    if isinstance(error, utils().httpx.TransportError) or cut_short(error):
        return EnvironmentFault(
            f"the connection to {host()} failed for {where}{at}: {plain(error)}",
            hint="try again; with HF_HUB_OFFLINE=1 what is in the cache can be loaded",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return EnvironmentFault(f"cannot use the Hub's cache {error.filename!r}: {error.strerror}")
    if isinstance(error, ValueError):
        return InputError(f"the Hub's client refuses {where}{at}: {plain(error)}")
    return EnvironmentFault(f"{where}{at} failed at {host()}: {plain(error)}", hint="try again")


def plain(error: BaseException) -> str:
    """A failure's own first line without any address."""
    line = next(iter(str(error).strip().splitlines()), "")
    return printable(f"{type(error).__name__}: {re.sub(r'[a-z]+://[^ ]+', '...', line)}", 160)


def not_cached(repo: str, revision: str) -> InputError:
    return InputError(
        f"{repo!r} at {revision} is not in the cache, and HF_HUB_OFFLINE is set",
        hint=f"`hf download {repo}` while online, or unset it",
    )
