"""What the parts of the independent reader share."""

from __future__ import annotations

from blake3 import blake3

MIB = 1 << 20


class Bad(Exception):
    """The store is not as the document says."""


def need(condition: object, what: str) -> None:
    """Raise Bad unless `condition`."""
    if not condition:
        raise Bad(what)


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3-256."""
    return blake3(data).digest()
