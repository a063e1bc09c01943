"""new: the folder of a plugin that can be installed and passes the conformance kit, to be changed from there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from importlib import resources
from pathlib import Path
from string import Template

import click

from icll_zoo._version import __version__
from icll_zoo.cli import app, emit
from icll_zoo.cli.shared import as_json, open_zoo
from icll_zoo.errors import InputError
from icll_zoo.files import disk_faults
from icll_zoo.registry import checked_name
from icll_zoo.zoo import Zoo

KINDS = ("mixer", "architecture", "dataset", "metric")
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    "$module/__init__.py": "init.py",
    "$module/$kind.py": "$kind.py",
    "tests/test_conformance.py": "test_conformance.py",
    ".github/workflows/test.yml": "test.yml",
}
"""What is written, and the template (in icll_zoo/templates, `.txt` added) that it is written from."""

MODEL_USAGE = """
```sh
icll-zoo train $name dfa steps=200 output=run
```
"""
USAGE = {
    "mixer": MODEL_USAGE,
    "architecture": MODEL_USAGE,
    "dataset": """
```sh
icll-zoo train lstm $name steps=200 output=run
```
""",
    "metric": """
```sh
icll-zoo evaluate ngram-3 dfa --metrics $name
```
""",
}


@app.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="mixer", show_default=True)
@click.option("--output", metavar="DIR", default=".", show_default=True, help="Where to put the folder.")
@as_json
def new(name: str, kind: str, output: str, json: bool) -> None:
    """Write a new plugin, icll-zoo-NAME/, with a small working example that passes the conformance kit.

    NAME is what it registers: lower-case letters, digits, - and _.
    """
    check_name(open_zoo(), name)
    folder = Path(output) / f"icll-zoo-{name}"
    written = write_plugin(name, kind, folder)
    next_commands = f"cd {shlex.quote(str(folder))} && pip install -e '.[test]' && icll-zoo check {name}"
    if json:
        emit({"folder": str(folder), "files": written, "next": next_commands})
        return
    for file in written:
        print(folder / file)
    print(f"Next: {next_commands}")


def check_name(zoo: Zoo, name: str) -> None:
    """InputError unless a new plugin and what it registers can both have this name."""
    checked_name(name, "plugin")
    if not name[-1].isalnum():
        raise InputError(f"illegal plugin name {name!r}", hint="a distribution's name ends in a letter or a digit")
    for plugin in zoo.plugins:
        if plugin.name == name:
            raise InputError(f"{plugin.distribution} already has a plugin {name!r}", hint="choose another name")
    for space in ("model", "dataset", "metric"):
        for entry in zoo.list(space, name):
            raise InputError(
                f"plugin {entry.plugin!r} already registers the {entry.kind} {name!r}", hint="choose another name"
            )


def write_plugin(name: str, kind: str, folder: Path) -> list[str]:
    """Write the folder, whole or not at all, and return its files. InputError if it exists or has no parent."""
    values = {
        "name": name,
        "kind": kind,
        "distribution": f"icll-zoo-{name}",
        "module": f"icll_zoo_{name.replace('-', '_')}",
        "class_name": class_name(name, kind),
        "requirement": f"icll-zoo>={__version__},<{int(__version__.split('.')[0]) + 1}",
    }
    values["usage"] = Template(USAGE[kind]).substitute(values)
    if os.path.lexists(folder):
        raise InputError(f"{str(folder)!r} exists already", hint="choose another name or --output")
    if not folder.parent.is_dir():
        raise InputError(f"no folder {str(folder.parent)!r} to put it in", hint="make it first, or choose another")
    templates = resources.files("icll_zoo") / "templates"
    written = []
    with disk_faults("plugin folder", folder):
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        draft.mkdir()
        try:
            for target, source in FILES.items():
                path, template = (Template(text).substitute(values) for text in (target, source))
                text = (templates / f"{template}.txt").read_text(encoding="utf-8")
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                (draft / path).write_text(Template(text).substitute(values), encoding="utf-8")
                written.append(path)
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return written


def class_name(name: str, kind: str) -> str:
    """`my-first` of kind mixer as MyFirstMixer: never a word of Python, nor a name that the example imports."""
    joined, kind = "".join(part.capitalize() for part in re.split("[-_]", name)), kind.capitalize()
    if joined[0].isdigit():
        return kind + joined
    return joined if joined.endswith(kind) and joined != kind else joined + kind
