"""Plain bytes <-> the payload of a record: zstd, or raw when it does not shrink.

Decoding is bounded before it starts: the frame must announce exactly the raw length that the record header announces, which is
itself under CHUNK_BYTES_MAX, so that a small payload cannot ask for much memory.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import zstandard

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import FormatDamaged
from leptonstore.format.pack import CODEC_RAW, CODEC_ZSTD

_local = threading.local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """zstandard's objects must not be shared by threads; making one costs more than compressing a small chunk."""
    made: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in made:
        made[level] = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return made[level]


class Encoded(NamedTuple):
    """The payload of a record to be, and what its header must say of it."""

    codec: int
    payload: Buffer
    raw: int
    plane_width: int = 0


def encode(data: Buffer, level: int = limits.ZSTD_LEVEL) -> Encoded:
    """Deterministic for one version of zstd; any thread; releases the GIL."""
    if len(data) > 32:
        payload = _compressor(level).compress(data)
        if len(payload) <= len(data) * limits.ZSTD_KEEP_RATIO:
            return Encoded(CODEC_ZSTD, payload, len(data))
    return Encoded(CODEC_RAW, data, len(data))


def decode(codec: int, payload: Buffer, raw: int) -> bytes:
    """The plain bytes, exactly `raw` of them. Raises FormatDamaged; allocates at most `raw` bytes."""
    if raw > limits.CHUNK_BYTES_MAX:
        raise FormatDamaged(f"record says {raw} plain bytes, over the limit of {limits.CHUNK_BYTES_MAX}")
    if codec == CODEC_RAW:
        if len(payload) != raw:
            raise FormatDamaged(f"raw record has {len(payload)} bytes where its header says {raw}")
        return bytes(payload)
    if codec != CODEC_ZSTD:
        raise FormatDamaged(f"record has unknown codec {codec}")
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(payload) != raw:
            raise FormatDamaged(f"compressed record does not announce the {raw} bytes that its header says")
        data: bytes = decompressor.decompress(payload, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatDamaged(f"compressed record does not decompress ({error})") from None
    if len(data) != raw:
        raise FormatDamaged(f"compressed record has {len(data)} plain bytes where its header says {raw}")
    return data
