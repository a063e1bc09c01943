"""The constructor's signature is the configuration: read it, check given values against it, fill in the defaults."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from icll_zoo.errors import InputError, did_you_mean, printable

REQUIRED: Any = inspect.Parameter.empty
LIMITS = {"n_layers": 1000, "d_model": 2**16, "max_length": 2**24}
"""The largest values that any model has. No other integer is above 2**24, but one whose name says that it is a seed."""


@dataclass(frozen=True)
class Option:
    """One option: its name, its type as written and resolved, and its default (`REQUIRED` if there is none)."""

    name: str
    annotation: Any
    default: Any

    @property
    def type_name(self) -> str:
        """How a person would write the type."""
        return (
            self.annotation.__name__
            if isinstance(self.annotation, type) and not getattr(self.annotation, "__args__", None)
            else str(self.annotation).replace("typing.", "").replace("NoneType", "None")
        )


def signature(target: Callable[..., Any]) -> dict[str, Option]:
    """The parameters of a constructor or function, by name.

    Raises InputError for `*args` and `**kwargs`, which would swallow a misspelt option.
    """
    where = f"{target.__module__}:{target.__qualname__}" if hasattr(target, "__qualname__") else repr(target)
    function: Any = vars_init(target) if isinstance(target, type) else target
    if function is object.__init__:
        return {}
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError) as error:
        raise InputError(f"cannot read the types in the signature of {where}: {error}") from error
    found: dict[str, Option] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(target, type) and not found and name == "self":
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InputError(f"the signature of {where} has {parameter}", hint="name every option, with a default")
        annotation = hints.get(name, Any)
        if annotation is Any and parameter.default not in (REQUIRED, None):
            annotation = type(parameter.default)
        found[name] = Option(name, annotation, parameter.default)
    return found


def vars_init(target: type) -> Any:
    """The constructor that `target` defines or inherits."""
    return target.__init__  # type: ignore[misc]


def check(option: Option, value: Any, where: str) -> tuple[Any, str | None]:
    """The value in the option's type and None, or the value and what is wrong with it as one line."""
    from pydantic import TypeAdapter, ValidationError

    if option.annotation is Any:
        return value, None
    try:
        checked = TypeAdapter(option.annotation).validate_python(value, strict=True)
    except ValidationError as error:
        reasons = []
        for detail in error.errors():
            reason = detail["msg"][0].lower() + detail["msg"][1:].removesuffix(".")
            if reason not in reasons:
                reasons.append(reason)
        return value, printable(f"wrong value in {where}.{option.name}: {' or '.join(reasons)}, not {value!r}", 300)
    if isinstance(checked, float) and not math.isfinite(checked):
        return value, f"wrong value in {where}.{option.name}: {checked} is not a finite number"
    return checked, None


def resolve(options: Mapping[str, Option], given: Mapping[str, Any], where: str, hint: str = "") -> dict[str, Any]:
    """Every option with its value: the given ones checked, the others at their default.

    Raises InputError with all the faults found: unknown names (with the nearest known one), wrong types, and
    options that have no default and were not given.
    """
    faults, hints, values = [], [], {}
    for name, value in given.items():
        if name not in options:
            faults.append(f"unknown option {name!r} in {where}")
            hints.append(did_you_mean(name, options))
            continue
        values[name], fault = check(options[name], value, where)
        if fault:
            faults.append(fault)
            hints.append("")
    for name, option in options.items():
        if name not in given:
            if option.default is REQUIRED:
                faults.append(f"missing option {where}.{name}: it has no default")
                hints.append("")
            values[name] = option.default
    if faults:
        raise InputError(faults[0], hint=hints[0] or hint, faults=faults)
    return {name: values[name] for name in options}


def oversized(options: Mapping[str, Any]) -> str | None:
    """What is too large in the values of some options, however they are nested, in a few words; None if nothing is.

    A constructor trusts its options: it loops as often, and asks for as much memory, as they say.
    """
    waiting: list[tuple[str, Any]] = list(options.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, list | tuple):
            waiting += [(name, item) for item in value]
        elif isinstance(value, int | float):
            wide = isinstance(value, float) or "seed" in str(name)
            limit = LIMITS.get(name, 2**63 if wide else 2**24)
            if not abs(value) <= limit:
                return f"{printable(name, 40)} is {printable(value, 40)}, more than {limit}"
    return None


def json_able(value: Any, where: str) -> None:
    """Raise InputError unless `value` survives JSON: what a configuration is written as."""
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise InputError(f"{where} is {value!r}, which JSON cannot hold")
