"""One plan a batch for all layers, and never a stale one."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch

from icll_zoo_ngram import plan as module
from icll_zoo_ngram.attention import ngram_attend, ngram_attend_reference
from icll_zoo_ngram.plan import Plan, ngram_plan


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The orders of the plans that are computed, as they are."""
    orders: list[int] = []
    real = module._plan

    def counted(tokens: Any, below: Plan | None) -> Plan:
        found = real(tokens, below)
        orders.append(found.order)
        return found

    monkeypatch.setattr(module, "_plan", counted)
    return orders


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(3, (2, 50), generator=torch.Generator().manual_seed(seed))


def correct(words: torch.Tensor, order: int) -> bool:
    h = torch.randn(*words.shape, 2, dtype=torch.float64)
    return torch.allclose(ngram_attend(h, ngram_plan(words, order)), ngram_attend_reference(h, words, order))


def test_layers_share_a_plan_and_refine_it(made: list[int]) -> None:
    words = tokens()
    third = ngram_plan(words, 3)
    assert ngram_plan(words, 3) is third
    assert ngram_plan(words, 1).order == 1
    assert ngram_plan(words, 4).order == 4
    assert made == [1, 2, 3, 4]


def test_another_tensor_is_another_plan(made: list[int]) -> None:
    assert correct(tokens(0), 2)
    assert correct(tokens(1), 2)
    assert made == [1, 2, 1, 2]


def test_a_changed_tensor_is_another_plan() -> None:
    words = tokens()
    first = ngram_plan(words, 2)
    words[:, 10:] = tokens(1)[:, 10:]
    assert ngram_plan(words, 2) is not first
    assert correct(words, 2)


def test_memory_changed_behind_the_tensor_is_another_plan() -> None:
    words = tokens()
    first, version = ngram_plan(words, 2), words._version
    words.numpy()[:, 10:] = tokens(1)[:, 10:].numpy()
    assert words._version == version
    assert ngram_plan(words, 2) is not first
    assert correct(words, 2)


def test_inference_tensors_have_no_version_and_are_not_remembered() -> None:
    with torch.inference_mode():
        words = tokens().clone()
        assert correct(words, 2)
        words.zero_()
        assert correct(words, 2)


def test_a_plan_ends_with_its_tensor() -> None:
    words = tokens()
    kept = weakref.ref(ngram_plan(words, 2).value_of_rank)
    assert kept() is not None
    del words
    gc.collect()
    assert kept() is None


def test_only_the_last_tensor_is_remembered(made: list[int]) -> None:
    words = [tokens(seed) for seed in range(3)]
    kept = [weakref.ref(ngram_plan(w, 1).value_of_rank) for w in words]
    gc.collect()
    assert [ref() is None for ref in kept] == [True, True, False]


def test_threads_do_not_mix_their_plans() -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        words = tokens(seed)
        for i in range(20):
            words[0, i] = (words[0, i] + 1) % 3
            if not correct(words, 1 + i % 3):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_refining_is_a_plan_from_scratch() -> None:
    """An order that is refined from a cached one equals the same order asked for alone."""
    words = tokens()
    for order in (1, 2, 3):
        ngram_plan(words, order)
    refined, fresh = ngram_plan(words, 4), ngram_plan(words.clone(), 4)
    for ours, theirs in zip(refined[1:6], fresh[1:6], strict=True):
        assert torch.equal(ours, theirs)
