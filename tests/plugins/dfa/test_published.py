"""The paper's values that are quoted beside what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from icll_zoo_dfa.dataset import DfaLanguages


@pytest.mark.parametrize(
    ("architecture", "languages", "names"),
    [
        ("transformer", 2500, ["Transformer, 2,500 languages", "Transformer, 40,000 languages", "2-gram", "3-gram"]),
        ("mamba", 10_000, ["Mamba, 10,000 languages", "Transformer, 10,000 languages"]),
        ("linear-transformer", 20_000, ["Transformer, 20,000 languages", "Transformer, 40,000 languages"]),
        ("gla", None, ["Transformer, 2,500 languages", "Transformer, 40,000 languages", "2-gram", "3-gram"]),
        ("gla", 777, ["Transformer, 40,000 languages", "2-gram", "3-gram"]),
    ],
)
def test_the_papers_values_beside_a_model(architecture: str, languages: int | None, names: list[str]) -> None:
    found = DfaLanguages(languages=languages).published("accuracy", architecture)
    assert list(found)[: len(names)] == names
    assert found["2-gram"] == {"value": 0.835, "within": 0.003, "source": "arXiv:2401.12973"}
    assert all(0 < said["value"] < 1 for said in found.values())
    if languages == 2500:
        assert found[names[0]]["value"] == 0.925


def test_a_doubtful_reading_says_so() -> None:
    assert DfaLanguages(languages=1000).published("tvd", "retnet")["Transformer, 1,000 languages"]["within"] == 0.01


def test_nothing_is_quoted_for_another_distribution_or_metric(tmp_path: Path) -> None:
    assert not DfaLanguages().published("kl", "transformer")
    assert not DfaLanguages(states_max=5).published("accuracy", "transformer")
    file = tmp_path / "given.jsonl"
    file.write_text('{"text": "ab|aba", "start": 0, "delta": {"0": {"a": 1}, "1": {"b": 0, "a": 1}}}\n')
    assert not DfaLanguages(file=str(file)).published("accuracy", "transformer")
