"""Philox against its published vectors, Python's integers and numpy's unsigned ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from uniform import assert_uniform

from icll_zoo_dfa.philox import CHUNK, in_range, philox, split_words

MASK = 0xFFFFFFFF
# Counter, key and result of "philox4x32 10" in the file kat_vectors of the authors' library Random123.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def with_python_integers(counter: list[int], key: tuple[int, int]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def with_numpy(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """counter: (4, n) uint32."""
    c = list(counter)
    k = np.array(key, dtype=np.uint32)
    for _ in range(10):
        p0 = c[0].astype(np.uint64) * np.uint64(0xD2511F53)
        p1 = c[2].astype(np.uint64) * np.uint64(0xCD9E8D57)
        high0, high1 = ((p >> np.uint64(32)).astype(np.uint32) for p in (p0, p1))
        c = [high1 ^ c[1] ^ k[0], p1.astype(np.uint32), high0 ^ c[3] ^ k[1], p0.astype(np.uint32)]
        k = k + np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint32)
    return np.stack(c)


def random_words(seed: int, *shape: int) -> Tensor:
    return torch.randint(1 << 32, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("counter", "key", "wanted"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], wanted: tuple[int, ...]) -> None:
    assert tuple(philox(counter, key).tolist()) == wanted
    assert tuple(with_python_integers(list(counter), key)) == wanted


def test_python_integers_and_numpy_give_the_same_bits() -> None:
    # More counters than are worked on at a time, and not a multiple of it.
    n, key = CHUNK + 1234, (0xDEADBEEF, 0x12345678)
    counter = random_words(0, 4, n)
    counter[:, :3] = torch.tensor([[0, 1, MASK]])
    found = philox(tuple(counter), key)
    assert found.shape == (n, 4)
    assert found.dtype == torch.int64
    assert torch.equal(found.T, torch.from_numpy(with_numpy(counter.numpy().astype(np.uint32), key).astype(np.int64)))
    for i in (*range(300), CHUNK - 1, CHUNK, n - 1):
        assert found[i].tolist() == with_python_integers(counter[:, i].tolist(), key)


def test_counters_broadcast_and_are_left_alone() -> None:
    a, b = random_words(1, 5, 1), random_words(2, 7)
    kept = a.clone(), b.clone()
    found = philox((a, 3, b, 9), (1, 2))
    assert found.shape == (5, 7, 4)
    assert found[4, 6].tolist() == with_python_integers([int(a[4, 0]), 3, int(b[6]), 9], (1, 2))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_a_seed_is_two_words() -> None:
    assert split_words(0) == (0, 0)
    assert split_words(0x123456789ABCDEF0) == (0x9ABCDEF0, 0x12345678)
    assert split_words(2**63 - 1) == (MASK, 0x7FFFFFFF)


@pytest.mark.parametrize("bound", [1, 2, 3, 18, 1000, 2**31])
def test_in_range_is_the_scaled_word(bound: int) -> None:
    words = torch.cat([torch.tensor([0, 1, MASK - 1, MASK]), random_words(3, 2000)])
    found = in_range(words, bound)
    assert found.tolist() == [w * bound // 2**32 for w in words.tolist()]
    assert found[0] == 0
    assert found[3] == bound - 1
    assert torch.equal(in_range(words, torch.full_like(words, bound)), found)


def test_in_range_covers_its_range_as_evenly_as_integers_can() -> None:
    # The least word of each value: neighbours are 2^32 / bound apart, to within one.
    bound = 7
    first = [-(-value * 2**32 // bound) for value in range(bound + 1)]
    assert in_range(torch.tensor(first[:-1]), bound).tolist() == list(range(bound))
    assert in_range(torch.tensor(first[1:]) - 1, bound).tolist() == list(range(bound))


def test_words_are_uniform_in_every_place() -> None:
    words = philox((torch.arange(20000), 0, 0, 0), (5, 0))
    for place in range(4):
        assert_uniform(in_range(words[:, place], 16).bincount(minlength=16))
        assert_uniform((words[:, place] & 15).bincount(minlength=16))
