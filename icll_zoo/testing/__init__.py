"""The conformance kit: what every model, dataset and metric must do, as plain functions `check_*(zoo, name)`.

    from icll_zoo.testing import parametrize

    @parametrize("cummean")
    def test_conformance(check):
        check()

The same by `pytest --icll-zoo-check cummean` and `icll-zoo check cummean`. A check raises CheckFailed, an
AssertionError that names the model, the check and the evidence, or NotApplicable with the reason.

A class may carry `icll_zoo_expected_failures = {"is_causal": "bidirectional by design"}` (an unexpected pass is a
failure), and `icll_zoo_check_options = {...}`, the options under which a small instance of it is checked.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from icll_zoo.testing import kit

if TYPE_CHECKING:
    from icll_zoo.testing.kit import CHECKS, CheckFailed, NotApplicable
    from icll_zoo.testing.pytest_plugin import parametrize
    from icll_zoo.testing.runner import Outcome, Report, run_checks

_HOMES = {
    "CHECKS": "kit",
    "CheckFailed": "kit",
    "NotApplicable": "kit",
    "Outcome": "runner",
    "Report": "runner",
    "parametrize": "pytest_plugin",
    "run_checks": "runner",
    **{f"check_{name}": module for checks in kit.CHECKS.values() for name, module in checks.items()},
}

# Beside these, every check of the kit is a public name: `check_is_causal` and so on.
__all__ = ["CHECKS", "CheckFailed", "NotApplicable", "Outcome", "Report", "parametrize", "run_checks"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'icll_zoo.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"icll_zoo.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)
