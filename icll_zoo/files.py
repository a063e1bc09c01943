"""Reading files that nobody vouches for, and writing files that a crash cannot leave half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from icll_zoo.errors import EnvironmentFault, InputError, IntegrityError, printable

TEXT_LIMIT = 4 * 2**20  # bytes of a configuration file
DEPTH_LIMIT = 32  # nesting of one
ITEM_LIMIT = 2**19  # values in one; each costs some hundred bytes once it is parsed, whatever it takes in the file
YAML_LIMIT = 2**20  # bytes of a YAML file
YAML_ITEM_LIMIT = 100_000  # values in one: YAML is slower to read
_YAML_WORDS = {"true": True, "false": False} | dict.fromkeys(("", "~", "null", "Null", "NULL"))
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def regular_file(path: Path, what: str, limit: int | None = None) -> int:
    """The size of a regular file in bytes; InputError if there is none, or if it is larger than `limit`."""
    try:
        info = path.stat()
    except OSError as error:
        raise InputError(f"no {what} at {str(path)!r}: {error.strerror}") from error
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{what} {str(path)!r} is not a regular file")
    if limit is not None and info.st_size > limit:
        raise InputError(f"{what} {str(path)!r} has {info.st_size} bytes, more than {limit}")
    return info.st_size


def read_text(path: Path, what: str, limit: int = TEXT_LIMIT) -> str:
    """A text file in UTF-8, at most `limit` bytes."""
    regular_file(path, what, limit)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {what} {str(path)!r}: {error}") from error


def parse_json(text: str, where: str) -> Any:
    """Strict JSON: no duplicate keys, no NaN or Infinity, no absurd nesting, numbers or number of values.

    Raises IntegrityError.
    """
    # Before anything is made of it: a value is followed by a comma, or is the last of a list, a mapping or the text.
    if text.count(",") + text.count("[") + text.count("{") > ITEM_LIMIT:
        raise IntegrityError(f"bad JSON in {where}: more than {ITEM_LIMIT} values")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {printable(repr(twice), 80)} twice")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    def finite(number: str) -> float:
        if math.isinf(value := float(number)):
            raise ValueError(f"{printable(number, 40)} is no number that a computer holds")
        return value

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse, parse_float=finite)
        if "\\ud" in text.lower():  # half of a surrogate pair is a text that nothing can write down again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"bad JSON in {where}: {printable(error, 200)}") from error
    if depth(value) > DEPTH_LIMIT:
        raise IntegrityError(f"bad JSON in {where}: nested deeper than {DEPTH_LIMIT}")
    return value


def read_json(path: Path, what: str) -> Any:
    """A strict JSON file; see `parse_json`."""
    return parse_json(read_text(path, what), f"{what} {str(path)!r}")


def read_yaml(path: Path, what: str) -> Any:
    """A strict YAML file: what JSON could say, and no aliases, tags, duplicate keys or second document in 1 MB.

    Keys are texts. Numbers, true, false and null are what JSON means by them: 1e-3 is a number, 12:30 and no are texts.
    Raises InputError.
    """
    import yaml

    text = read_text(path, what, YAML_LIMIT)
    try:
        # Events, and not PyYAML's constructors: these run in C, nest without recursion, and know no types to call.
        value = _yaml_value(yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise InputError(f"bad YAML in {what} {str(path)!r}: {reason}") from error
    return value


def _yaml_value(events: Iterable[Any]) -> Any:
    """The value of a stream of YAML's events. Raises ValueError for what `read_yaml` does not allow."""
    import yaml

    kinds: Any = yaml.events

    documents: list[Any] = []
    # The collections that are open: each takes its next value at the end of a list, or under the key that waits.
    stack: list[list[Any] | dict[str, Any]] = [documents]
    keys: list[str | None] = [None]
    for count, event in enumerate(events):
        if count > YAML_ITEM_LIMIT:
            raise ValueError(f"more than {YAML_ITEM_LIMIT} values")
        line = f"at line {event.start_mark.line + 1}"
        if isinstance(event, kinds.AliasEvent):
            raise ValueError(f"an alias {line}, which is not allowed here")
        if isinstance(event, kinds.CollectionEndEvent):
            stack.pop(), keys.pop()
            continue
        if not isinstance(event, kinds.NodeEvent):
            if isinstance(event, kinds.DocumentStartEvent) and documents:
                raise ValueError(f"a second document {line}")
            continue
        if event.tag is not None:
            raise ValueError(f"a tag {line}, which is not allowed here")
        into = stack[-1]
        if isinstance(into, dict) and keys[-1] is None:
            if not isinstance(event, kinds.ScalarEvent):
                raise ValueError(f"a key {line} that is not a text")
            if event.value in into:
                raise ValueError(f"a key twice in the mapping {line}")
            keys[-1] = event.value
            continue
        value: Any
        scalar = isinstance(event, kinds.ScalarEvent)
        if scalar:
            value = _yaml_scalar(event.value) if event.implicit[0] else event.value
        else:
            value = [] if isinstance(event, kinds.SequenceStartEvent) else {}
        if isinstance(into, list):
            into.append(value)
        else:
            into[str(keys[-1])] = value
            keys[-1] = None
        if not scalar:
            stack.append(value)
            keys.append(None)
            if len(stack) - 1 > DEPTH_LIMIT:
                raise ValueError(f"nested deeper than {DEPTH_LIMIT}")
    return documents[0] if documents else None


def _yaml_scalar(text: str) -> Any:
    """What an unquoted text means in JSON's sense."""
    if text in _YAML_WORDS:
        return _YAML_WORDS[text]
    if not re.fullmatch(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", text):
        return text
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    if math.isinf(value := float(text)):
        raise ValueError(f"{printable(text, 40)} is no number that a computer holds")
    return value


def depth(value: Any) -> int:
    """How deep mappings and lists are nested; 0 for a scalar. Iterative: depth is what an attacker chooses."""
    level, deepest = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        deepest += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return deepest


def canonical_json(value: Any) -> str:
    """The one way to write a description: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def pretty_json(value: Any) -> str:
    """JSON for people to read, ending in a newline."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def memory() -> float:
    """The bytes of memory of this machine; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return math.inf


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_faults(what: str, path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing into one line and exit code 3."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space and run the same command again" if full else "check the path and its permissions"
        raise EnvironmentFault(f"cannot write {what} {str(path)!r}: {error.strerror or error}", hint=hint) from error


def fsync_directory(folder: Path) -> None:
    """Make the names in a folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make a file's bytes survive a power loss."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: a temporary name beside it, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


@contextmanager
def whole_folder(target: Path, what: str) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `target` once it is filled: a kill leaves the old or the new.

    An old folder that is not empty is renamed away first. A kill just then leaves no folder of this name; the next
    call puts the old one back before it begins.
    Raises EnvironmentFault where the system refuses to write.
    """
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))

    def tidy() -> None:
        if old.exists() and not target.exists():
            old.rename(target)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)

    with disk_faults(what, target):
        tidy()
        partial.mkdir(parents=True)
        try:
            yield partial
            fsync_directory(partial)
            if target.is_dir() and any(target.iterdir()):
                target.rename(old)
            partial.rename(target)
            fsync_directory(target.parent)
        finally:
            tidy()


def save_tensors(path: Path, tensors: dict[str, Any], about: dict[str, Any] | None = None) -> None:
    """Write tensors as safetensors, readable as the umask says (the library itself leaves mode 0600).

    `about` goes under the single metadata key `icll_zoo`: with two keys the bytes would differ from save to save.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {"icll_zoo": canonical_json(about)} if about is not None else None
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path), metadata)
    except SafetensorError as error:
        # The library tells of the operating system's refusals in words only.
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(0o666 & ~_UMASK)
    fsync_file(path)
