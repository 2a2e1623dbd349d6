"""The chain of a receipt: pinned for good, and moved by everything that it says it binds."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from blake3 import blake3

from loaders.chain import EMPTY, key_of, next_head

COMMIT = "ab" * 32


def test_golden_vectors() -> None:
    key = key_of(3, COMMIT)
    first = next_head(EMPTY, key, 0, np.arange(5))
    second = next_head(first, key, 5, np.array([2**40, 7]))
    assert [key.hex(), first.hex(), second.hex()] == [
        "04a98984ea0c642b39fa971aa3fd507008ea5e010c02492683c72512594647ef",
        "e26339b3fa9614594a8a30b62fe738a1bae854cf16e41e7b45c2acfedbf4f4ca",
        "4a58235fbe76e60dda6181d42e52f2397dc455e9fab6c120f717a311daefa880",
    ]


def test_the_docstring_is_enough_to_compute_a_head() -> None:
    key = blake3(struct.pack("<Q", 9) + COMMIT.encode(), derive_key_context="lepton.receipt.v1").digest()
    told = bytes(range(32)) + struct.pack("<q3q", 640, 1, 2, 3)
    assert next_head(bytes(range(32)), key_of(9, COMMIT), 640, np.array([1, 2, 3])) == blake3(told, key=key).digest()


@pytest.mark.parametrize(
    ("head", "epoch", "fingerprint", "start", "rows"),
    [
        (b"\1" * 32, 0, COMMIT, 4, [1, 2]),
        (EMPTY, 1, COMMIT, 4, [1, 2]),
        (EMPTY, 0, "cd" * 32, 4, [1, 2]),
        (EMPTY, 0, COMMIT, 5, [1, 2]),
        (EMPTY, 0, COMMIT, 4, [2, 1]),
        (EMPTY, 0, COMMIT, 4, [1, 2, 0]),
    ],
)
def test_everything_that_is_bound_moves_the_head(
    head: bytes, epoch: int, fingerprint: str, start: int, rows: list[int]
) -> None:
    usual = next_head(EMPTY, key_of(0, COMMIT), 4, np.array([1, 2]))
    assert next_head(head, key_of(epoch, fingerprint), start, np.array(rows)) != usual


def test_one_batch_is_not_two() -> None:
    key, rows = key_of(0, COMMIT), np.arange(8)
    halves = next_head(next_head(EMPTY, key, 0, rows[:4]), key, 4, rows[4:])
    assert halves != next_head(EMPTY, key, 0, rows)
