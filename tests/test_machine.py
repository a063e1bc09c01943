"""Freed memory stays with a run on a CPU and goes back to the kernel behind it, each in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

MB = 1_000_000
PROGRAM = """
import json, torch
from icll_zoo.bench import status_bytes
from icll_zoo.machine import keeping_freed_memory

def rss_after_freeing():
    block = torch.ones(100_000_000, dtype=torch.uint8)
    del block
    return status_bytes("RssAnon")

said = {"plain": rss_after_freeing()}
with keeping_freed_memory() as kept:
    said["kept"], said["within"] = kept, rss_after_freeing()
said["behind"], said["later"] = status_bytes("RssAnon"), rss_after_freeing()
print(json.dumps(said))
"""


def said(**variables: str) -> dict[str, int]:
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")


@glibc_only
def test_freed_memory_is_kept_and_handed_back_at_the_end() -> None:
    found = said(GLIBC_TUNABLES="")
    assert found["kept"]
    assert found["within"] > found["plain"] + 90 * MB
    assert found["behind"] < found["plain"] + 10 * MB
    assert found["later"] < found["plain"] + 10 * MB


@glibc_only
def test_a_user_s_own_settings_of_malloc_are_left_alone() -> None:
    found = said(GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert not found["kept"]
    assert found["within"] < found["plain"] + 10 * MB
