"""What a step frees is there for the next one: counted in page faults, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from trainers.allocator import SET_BY_USER

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told anything")

# "Steps" that allocate the same 72 MiB in blocks of 24 MiB, write them and free them: page faults of the later ones, by thousands, then
# the resident MiB after the context.
PROGRAM = """
import contextlib, os, resource
from trainers.allocator import freed_memory_kept

def step():
    blocks = [b"x" * (24 << 20) for _ in range(3)]

def faults():
    step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 1000

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

begin = resident()
with freed_memory_kept():
    inside, held = faults(), resident() - begin
print(inside, held, resident() - begin, faults())
"""


def run(**environment: str) -> list[int]:
    clean = {name: value for name, value in os.environ.items() if name not in SET_BY_USER}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_within_the_context_steps_find_their_memory_again_and_after_it_is_given_back() -> None:
    inside, held, after, outside = run()
    assert inside == 0 and held >= 70
    assert after < 10, "freed memory was not given back"
    assert outside >= 5 * 72 * 256 // 1000 * 0.5, "this machine faults at no pages: the test shows nothing"


@pytest.mark.parametrize("name", SET_BY_USER[:2])
def test_what_the_user_has_set_stays(name: str) -> None:
    inside, *_ = run(**{name: str(4 << 20)})
    assert inside > 0
