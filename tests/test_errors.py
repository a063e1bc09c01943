from __future__ import annotations

import inspect

import icll_zoo.errors as errors


def test_the_drawn_tree_names_every_exception_with_its_exit_code() -> None:
    tree = errors.__doc__ or ""
    for name, thing in vars(errors).items():
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            line = next(line for line in tree.splitlines() if name in line.split())
            code = getattr(thing, "exit_code", None)
            assert f"exit {code}" in line or name == "Interrupted"


def test_several_faults_show_the_first_and_count_the_others() -> None:
    error = errors.InputError("one", hint="do", faults=["one", "two", "three"])
    assert str(error) == "one (and 2 more) (do)"
    assert error.faults == ["one", "two", "three"]


def test_printable_is_one_safe_line() -> None:
    shown = errors.printable("a\nb\x1b[31m" + "c" * 1000)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert len(shown) == 400


def test_a_message_is_one_printable_line_whatever_it_quotes() -> None:
    error = errors.InputError("a\nb\x1b[31m" + "c" * 10**7, hint="d\u202e", faults=["e\r", "f"])
    assert str(error).isprintable()
    assert str(error).startswith("a\\nb\\x1b[31mccc")
    assert str(error).endswith("(and 1 more) (d\\u202e)")
    assert len(str(error)) < 2100
    assert error.faults == ["e\\r", "f"]
