from __future__ import annotations

import pytest

from icll_zoo.errors import AmbiguousName, InputError, UnknownName
from icll_zoo.registry import Registry, entries_of, natural


def registry(*named: tuple[str, str]) -> Registry:
    made = Registry()
    for plugin, name in named:
        made.add(entries_of("mixer", plugin, f"dist-{plugin}", name, "torch.nn:Identity"))
    return made


def test_a_bare_name_and_a_qualified_name_find_the_same_entry() -> None:
    found = registry(("a", "gla"))
    assert found.find("model", "gla") is found.find("model", "a:gla")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown model 'transfomer' \(did you mean 'transformer'\?\)"):
        registry(("a", "transformer"), ("a", "gla")).find("model", "transfomer")


def test_a_name_of_two_plugins_names_both_and_works_qualified() -> None:
    found = registry(("a", "gla"), ("b", "gla"))
    with pytest.raises(AmbiguousName, match="claimed by a and b"):
        found.find("model", "gla")
    assert found.find("model", "b:gla").plugin == "b"
    assert set(found.clashes()) == {"gla"}


def test_registering_again_replaces() -> None:
    found = registry(("a", "gla"), ("a", "gla"))
    assert len(found.all("model")) == 1


def test_wildcards_and_natural_order() -> None:
    found = registry(("a", "ngram-10"), ("a", "ngram-2"), ("a", "gla"))
    assert [e.name for e in found.all("model", "*gram*")] == ["ngram-2", "ngram-10"]
    assert [e.name for e in found.all("model", "a:g*")] == ["gla"]
    assert sorted(["b10", "b9", "a"], key=natural) == ["a", "b9", "b10"]


def test_presets_are_full_names() -> None:
    entries = entries_of("mixer", "p", "d", "gla", "torch.nn:Identity", presets={"small": {"d_model": 8}}, paper="x")
    assert [e.name for e in entries] == ["gla", "gla-small"]
    assert entries[1].preset_of == "gla"
    assert dict(entries[1].options) == {"d_model": 8}
    assert entries[1].paper == "x"


@pytest.mark.parametrize("name", ["", "A", "a b", "a:b", "a.b", "-a", "x" * 65, "a\n", 3, None])
def test_illegal_names_are_refused(name: object) -> None:
    with pytest.raises(InputError, match="illegal mixer name"):
        entries_of("mixer", "p", "d", name, "torch.nn:Identity")  # type: ignore[arg-type]


def test_only_a_mixer_with_layers_needs_no_class() -> None:
    entries = entries_of("mixer", "p", "d", "stack", None, backbone={"layers": ["a", "b"]})
    assert entries[0].target is None
    with pytest.raises(InputError, match="names no class"):
        entries_of("mixer", "p", "d", "stack", None)
    with pytest.raises(InputError, match="names no class"):
        entries_of("dataset", "p", "d", "stack", None)


def test_a_missing_target_says_which_plugin() -> None:
    entry = entries_of("mixer", "p", "dist", "m", "torch.nn:NoSuchThing")[0]
    with pytest.raises(InputError, match=r"cannot import 'torch.nn:NoSuchThing' of mixer 'm' in plugin 'p' \(dist\)"):
        entry.load()
