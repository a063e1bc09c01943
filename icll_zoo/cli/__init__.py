"""The command line `icll-zoo`: one module per group of verbs, and here what they share.

Whatever goes wrong ends in one line on stderr and an exit code (see `icll_zoo.errors`); ICLL_ZOO_DEBUG=1 shows the
traceback. With `--json` the same faults, all of them, are an object on stdout.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from icll_zoo._version import __version__
from icll_zoo.errors import Interrupted, ZooError, did_you_mean, printable


class Verbs(click.Group):
    """The built-in verbs, and those of plugins, which are loaded only for a verb that is not built in."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        verb = self.commands.get(name)
        if verb is None:
            added = plugin_verbs()
            verb = added.get(name)
            if verb is None:
                hint = did_you_mean(name, [*self.commands, *added]) or "`icll-zoo --help` lists them"
                raise click.UsageError(f"unknown verb {name!r} ({hint})")
        return name, verb, args[1:]


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(version)s")
def app() -> None:
    """A model zoo for in-context language learning."""


def plugin_verbs() -> dict[str, click.Command]:
    """The verbs that plugins add through `register_commands`, by name; a plugin that raises adds none."""
    from icll_zoo import plugins
    from icll_zoo.cli.shared import open_zoo

    found: dict[str, click.Command] = {}
    for plugin, call in plugins.each(open_zoo().plugins, "register_commands"):
        staged = click.Group()
        try:
            call(cli=staged)
        except Exception as error:  # noqa: BLE001  a plugin may raise anything
            warn(f"plugin {plugin.name!r} failed to add its verbs: {error}")
            continue
        found |= staged.commands
    return found


def warn(line: str) -> None:
    """One warning line on stderr."""
    print(f"warning: {printable(line)}", file=sys.stderr)


def emit(value: Any) -> None:
    """One JSON object on stdout, in plain JSON: a number that is not finite is null, and nothing steers a terminal."""
    text = json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def finite(value: Any) -> Any:
    """`value` with every number that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def fail(message: str, code: int, faults: Sequence[str], as_json: bool) -> int:
    """Print one `error:` line, and with --json all faults; return the exit code."""
    if as_json:
        emit({"error": message, "faults": list(faults), "exit_code": code})
    print(printable(f"error: {message}"), file=sys.stderr)
    return code


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; never raises for an expected failure."""
    from icll_zoo.cli import (  # noqa: F401  they add their verbs to `app`
        bench,
        browse,
        card,
        check,
        evaluate,
        new,
        publish,
        quickstart,
        registry,
        runs,
        sweep,
        train,
    )

    debug = os.environ.get("ICLL_ZOO_DEBUG") == "1"
    as_json = "--json" in arguments
    try:
        code = app.main(args=list(arguments), prog_name="icll-zoo", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except Interrupted as stop:
        print(f"stopped: {printable(stop)}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away (`icll-zoo list | head`); stdout must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.exceptions.NoArgsIsHelpError as request:
        print(request.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        if debug:
            raise
        return fail(error.format_message().rstrip("."), 2, [error.format_message()], as_json)
    except click.Abort:
        return 130
    except ZooError as error:
        if debug:
            raise
        return fail(str(error), error.exit_code, error.faults, as_json)
    except MemoryError:
        if debug:
            raise
        return fail("out of memory (a smaller model.d_model or train.batch_size needs less)", 3, [], as_json)
    except OSError as error:
        if debug:
            raise
        return fail(f"{error.strerror or error} in {error.filename!r}", 3, [], as_json)
    except Exception as error:
        if debug:
            raise
        return fail(f"internal: {type(error).__name__}: {error} (a bug; ICLL_ZOO_DEBUG=1 shows where)", 1, [], as_json)


def main() -> NoReturn:
    """The entry point of the `icll-zoo` command."""
    import warnings

    def show(message: Warning | str, *_where: Any, **_more: Any) -> None:
        warn(str(message))

    warnings.showwarning = show
    sys.exit(run(sys.argv[1:]))
