"""The one hash of the project: BLAKE3-256 of plain bytes.

A digest is `bytes` of length 32 inside the code and 64 hex digits wherever people or JSON see it. Logical names
(values, pages, tree nodes, commits) are always digests of plain bytes, so that equal content has one name in every
store. BLAKE3: https://github.com/BLAKE3-team/BLAKE3-specs (2020).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from blake3 import blake3

Digest: TypeAlias = bytes
Buffer: TypeAlias = bytes | bytearray | memoryview

DIGEST_BYTES = 32


def digest_of(data: Buffer) -> Digest:
    """BLAKE3-256 of `data`. Releases the GIL for large input; safe from any thread."""
    return blake3(data).digest()


def digest_of_parts(parts: Iterable[Buffer]) -> Digest:
    """BLAKE3-256 of the concatenation of `parts`, without building it."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def parse_hex(text: str) -> Digest:
    """64 hex digits -> digest. Raises ValueError on anything else."""
    if len(text) != 2 * DIGEST_BYTES:
        raise ValueError(f"a digest has {2 * DIGEST_BYTES} hex digits, not {len(text)}")
    return bytes.fromhex(text)
