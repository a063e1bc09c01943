"""What a plugin may say: the hooks of the pluggy project `icll_zoo`.

A plugin is a module named by an entry point of the group `icll_zoo`. It implements any of these functions, each
marked with `icll_zoo.hookimpl`. It should import nothing heavy: name classes as "module:Class", and they are
imported when somebody first asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import click

    from icll_zoo.training import LiveRun

PROJECT = "icll_zoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """What a plugin is handed to register one name with; it touches no global.

    name: lower-case letters, digits, `-` and `_`.
    target: "module:Class", or the class itself; None for a model that its backbone's `layers` describe alone.
    version: of the architecture; a larger number means that older weights no longer fit.
    presets: further full names `name-KEY`, each with options of its own.
    backbone: defaults of the backbone around a mixer, such as {"positions": "learned"}.
    license, paper: an SPDX identifier and where it is published, such as "arXiv:2401.12973".
    """

    def __call__(
        self,
        name: str,
        target: str | Callable[..., Any] | None = None,
        *,
        version: int = 1,
        presets: Mapping[str, Mapping[str, Any]] | None = None,
        backbone: Mapping[str, Any] | None = None,
        license: str | None = None,
        paper: str | None = None,
    ) -> None: ...


@hookspec
def register_mixers(register: Register) -> None:
    """Register sequence mixers, (batch, length, d_model) -> same; the backbone makes each a language model."""


@hookspec
def register_architectures(register: Register) -> None:
    """Register whole models, token ids (batch, length) -> (batch, length, vocab_size)."""


@hookspec
def register_datasets(register: Register) -> None:
    """Register datasets; see `icll_zoo.Dataset`."""


@hookspec
def register_metrics(register: Register) -> None:
    """Register metrics; see `icll_zoo.Metric`."""


@hookspec
def register_pretrained(register: Callable[[str], None]) -> None:
    """Register a catalogue of trained weights: `register(path)` of a file laid out as registry.yaml."""


@hookspec(firstresult=True)
def upgrade_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return an older config.json in today's form (another name, version or options), or None if it is not yours."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add verbs to the command line: `@cli.command()` of click."""


@hookspec
def on_train_start(run: LiveRun) -> None:
    """A run begins or goes on. `run.description`, `run.folder` and `run.step` say which and where."""


@hookspec
def on_log(run: LiveRun, step: int, values: dict[str, float]) -> None:
    """A line was added to metrics.jsonl: `values` by name, at optimizer step `step`."""


@hookspec
def on_train_end(run: LiveRun, error: BaseException | None) -> None:
    """A run ended, with the error that ended it or None."""
