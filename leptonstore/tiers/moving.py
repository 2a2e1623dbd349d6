"""Copying a pack from one tier to another: in windows, hashed on the way, read back and compared before it counts."""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from leptonstore import limits
from leptonstore.errors import FormatDamaged
from leptonstore.tiers.roles import PackPruner, PackReader


def _windows(tier: PackReader, pack: str, size: int) -> Iterator[bytes]:
    for offset in range(0, size, limits.MOVE_WINDOW_BYTES):
        wanted = min(limits.MOVE_WINDOW_BYTES, size - offset)
        data = tier.read(pack, offset, wanted)
        if len(data) != wanted:
            raise FormatDamaged(f"pack {pack} in {tier.url} ends at {offset + len(data)} of {size} bytes")
        yield data


def digest_in(tier: PackReader, pack: str) -> bytes | None:
    """BLAKE3 of all bytes of a pack, None when the tier has none. Raises OSError, TierUnavailable or FormatDamaged."""
    size = tier.pack_bytes(pack)
    if size is None:
        return None
    hasher = blake3()
    for data in _windows(tier, pack, size):
        hasher.update(data)
    return hasher.digest()


def copy_pack(source: PackReader, target: PackPruner, pack: str) -> int:
    """Make `target` have the pack as `source` has it, durably; returns the bytes that were written (0: it had it already).

    Memory: one window. Raises FileNotFoundError (the source has none), StoreFull, OSError, TierUnavailable, or FormatDamaged
    when what was written reads back differently, also a copy that was there before; that one is left as it is.
    """
    size = source.pack_bytes(pack)
    if size is None:
        raise FileNotFoundError(f"pack {pack} is not in {source.url}")
    there = target.pack_bytes(pack)
    hasher = blake3()
    if there is not None:
        for data in _windows(source, pack, size):
            hasher.update(data)
        if digest_in(target, pack) != hasher.digest():
            raise FormatDamaged(f"{target.url} has another pack {pack} than {source.url}: run `lepton check` on both")
        return 0
    sink = target.create_pack(pack)
    try:
        for data in _windows(source, pack, size):
            hasher.update(data)
            sink.write(data)
        sink.seal()
    finally:
        sink.abort()
    if digest_in(target, pack) != hasher.digest():
        target.delete_pack(pack)
        raise FormatDamaged(f"pack {pack} did not read back from {target.url} as it was written: check that tier")
    return size
