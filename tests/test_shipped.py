"""The trained models that come with the source: all that is said of them is measured again."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ROOT

from icll_zoo import catalogue
from icll_zoo.weights import load_model
from icll_zoo.zoo import default_zoo

SHIPPED = catalogue.read(ROOT / "registry.yaml")
LIMIT = 40_000_000  # bytes of all of them together


def test_every_folder_of_cards_is_catalogued_and_the_other_way_round() -> None:
    folders = {str(path.relative_to(ROOT)) for path in (ROOT / "cards").iterdir()}
    assert folders == {entry.path for entry in SHIPPED.values() if entry.path is not None}
    assert sum(path.stat().st_size for path in (ROOT / "cards").rglob("*")) < LIMIT


def test_the_quickstart_s_model_is_there_and_in_the_wheel() -> None:
    assert "ngram-head-stack.quickstart" in SHIPPED
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "cards/ngram-head-stack.quickstart" in wheel["force-include"]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_loads_by_its_name(name: str) -> None:
    model = load_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SHIPPED[name].parameters


def test_what_is_said_of_them_is_so(icll_zoo_command: Callable[..., Any]) -> None:
    done = icll_zoo_command("registry", "verify")
    assert done.code == 0, done.out + done.err


def test_the_readme_quotes_the_cards() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- models table -->")[1].split("\n\n")[0]
    rows = {cells[1].strip(" `"): cells for cells in (line.split("|") for line in table.strip().splitlines()[2:])}
    assert set(rows) == set(SHIPPED)
    for name, cells in rows.items():
        entry = SHIPPED[name]
        assert cells[2].strip() == f"{entry.parameters:,}"
        for cell, metric in ((cells[3], "accuracy"), (cells[4], "tvd")):
            found = entry.metrics[metric]
            assert cell.strip() == f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        assert cells[5].strip() == f"{entry.training['seconds'] / 60:.0f} min"


def test_the_zoo_lists_them() -> None:
    assert set(SHIPPED) <= set(catalogue.collect(default_zoo()))
