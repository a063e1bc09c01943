from __future__ import annotations

from typing import Any, Literal

import pytest

from icll_zoo.errors import InputError
from icll_zoo.options import REQUIRED, json_able, oversized, resolve, signature


class Sample:
    def __init__(
        self,
        d_model,  # type: ignore[no-untyped-def]
        width: int = 3,
        scale: float = 1.0,
        kind: Literal["a", "b"] = "a",
        path: str | None = None,
        flag=False,  # type: ignore[no-untyped-def]
    ) -> None: ...


def test_the_signature_gives_types_and_defaults() -> None:
    options = signature(Sample)
    assert list(options) == ["d_model", "width", "scale", "kind", "path", "flag"]
    assert options["d_model"].default is REQUIRED
    assert options["flag"].annotation is bool
    assert options["width"].type_name == "int"
    assert options["path"].type_name == "str | None"


def test_given_values_are_checked_and_the_others_are_defaults() -> None:
    resolved = resolve(signature(Sample), {"d_model": 4, "scale": 2, "kind": "b"}, "x")
    assert resolved == {"d_model": 4, "width": 3, "scale": 2.0, "kind": "b", "path": None, "flag": False}
    assert isinstance(resolved["scale"], float)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"widht": 3}, "unknown option 'widht' in x (did you mean 'width'?)"),
        ({"width": "3"}, "wrong value in x.width: input should be a valid integer, not '3'"),
        ({"width": True}, "wrong value in x.width"),
        ({"width": 2.5}, "wrong value in x.width"),
        ({"scale": float("nan")}, "nan is not a finite number"),
        ({"kind": "c"}, "input should be 'a' or 'b', not 'c'"),
        ({"path": 3}, "input should be a valid string, not 3"),
        ({"flag": 1}, "wrong value in x.flag"),
    ],
)
def test_faults_name_the_option_and_the_value(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(signature(Sample), {"d_model": 1, **given}, "x")
    assert words in str(caught.value)


def test_all_faults_are_found_at_once() -> None:
    with pytest.raises(InputError) as caught:
        resolve(signature(Sample), {"widht": 3, "kind": 4}, "x")
    assert len(caught.value.faults) == 3
    assert "missing option x.d_model" in caught.value.faults[2]


def test_a_signature_that_swallows_names_is_refused() -> None:
    def swallows(a: int = 1, **rest: int) -> None: ...

    with pytest.raises(InputError, match=r"has \*\*rest"):
        signature(swallows)


@pytest.mark.parametrize("value", [{1, 2}, (1, 2), float("inf"), object(), {1: 2}])
def test_what_json_cannot_hold_is_no_configuration(value: object) -> None:
    with pytest.raises(InputError, match="JSON cannot hold"):
        json_able({"a": value}, "x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_heads": 2**24, "d_model": 2**16, "seed": 2**60, "ratio": 1e18, "on": True, "name": "x" * 99}, None),
        ({"n_heads": 2**24 + 1}, "n_heads is 16777217, more than 16777216"),
        ({"n_heads": -(2**25)}, "n_heads is -33554432, more than 16777216"),
        ({"d_model": 2**16 + 1}, "d_model is 65537, more than 65536"),
        ({"layers": [{"mixer": "a"}, {"mixer": "b", "order": 10**9}]}, "order is 1000000000, more than 16777216"),
        ({"sizes": [[1, [2**40]]]}, "sizes is 1099511627776, more than 16777216"),
        ({"data_seed": 2**64}, f"data_seed is {2**64}, more than {2**63}"),
        ({"ratio": float("nan")}, f"ratio is nan, more than {2**63}"),
    ],
)
def test_what_is_too_large(options, says):
    assert oversized(options) == says
