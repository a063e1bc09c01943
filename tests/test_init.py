from __future__ import annotations

import subprocess
import sys

import icll_zoo


def test_every_public_name_loads_and_the_list_is_complete() -> None:
    assert [*sorted(icll_zoo._HOME), "__version__"] == sorted(icll_zoo.__all__, key=lambda n: (n == "__version__", n))
    for name in icll_zoo.__all__:
        assert getattr(icll_zoo, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(icll_zoo, "no_such_name")


def test_importing_and_listing_import_nothing_heavy() -> None:
    code = (
        "import sys, icll_zoo; from icll_zoo.cli import run; code = run(['list', '--json']);"
        "heavy = {'torch', 'timm', 'numpy', 'transformers', 'pydantic'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
