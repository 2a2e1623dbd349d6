"""Plain bytes <-> the payload of a record: raw, zstd, zstd with a dictionary, or byte planes and then zstd.

    raw      when nothing shrinks by at least 1/32: it reads without decompression
    zstd     one frame that announces the raw length; with a dictionary for small records that look alike
    planes   n values of w bytes are transposed to w planes of n bytes (the bytes after the last whole value follow as they
             are), then zstd: the exponents of floats stand together and shrink, their mantissas do not disturb them

Decoding is bounded before it starts: the frame must announce exactly the raw length that the record header announces, which is
itself under CHUNK_BYTES_MAX, so that a small payload cannot ask for much memory. Dictionaries have a bound of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import zstandard

from leptonstore import limits
from leptonstore.digest import Buffer, Digest, digest_of
from leptonstore.errors import FormatDamaged
from leptonstore.format.pack import CODEC_PLANES, CODEC_RAW, CODEC_ZSTD, PLANE_WIDTHS
from leptonstore.format.planes import from_planes, to_planes

_local = threading.local()


class Dictionary:
    """A zstd dictionary and what is prepared from it, once for each thread that uses it. Immutable; any thread."""

    __slots__ = ("_local", "data", "digest")

    def __init__(self, data: bytes, digest: Digest | None = None) -> None:
        """`data` as zstd's trainer makes it (any other bytes serve, too, as a prefix). Raises FormatDamaged over the bound."""
        if not 0 < len(data) <= limits.DICTIONARY_BYTES_MAX:
            raise FormatDamaged(f"a dictionary of {len(data)} bytes is not within 1 to {limits.DICTIONARY_BYTES_MAX}")
        self.data, self.digest = data, digest if digest is not None else digest_of(data)
        self._local = threading.local()

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        """The calling thread's. Frames do not name the dictionary: records do."""
        made: dict[int, zstandard.ZstdCompressor] = self._local.__dict__.setdefault("compressors", {})
        if level not in made:
            prepared = zstandard.ZstdCompressionDict(self.data)
            made[level] = zstandard.ZstdCompressor(
                level=level, dict_data=prepared, write_content_size=True, write_checksum=False, write_dict_id=False
            )
        return made[level]

    def decompressor(self) -> zstandard.ZstdDecompressor:
        """The calling thread's. Raises zstandard.ZstdError when it is no dictionary that zstd can use."""
        made: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if made is None:
            made = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(self.data))
            self._local.decompressor = made
        return made


class Encoded(NamedTuple):
    """The payload of a record to be, and what its header must say of it."""

    codec: int
    payload: Buffer
    raw: int
    plane_width: int = 0
    dictionary: Dictionary | None = None


def encode(
    data: Buffer, level: int = limits.ZSTD_LEVEL, plane_width: int = 0, dictionary: Dictionary | None = None
) -> Encoded:
    """The smallest of what is worth trying. Deterministic for one version of zstd; any thread; releases the GIL.

    plane_width: bytes of a value when `data` holds floats (2, 4 or 8); then byte planes are tried, and no dictionary.
    """
    size = len(data)
    if size <= limits.ZSTD_BYTES_MIN or _looks_random(data, plane_width):
        return Encoded(CODEC_RAW, data, size)
    codec = CODEC_ZSTD
    if plane_width in PLANE_WIDTHS and size > plane_width and _planes_are_better(data, plane_width, level):
        codec, dictionary = CODEC_PLANES, None
        payload = _compressor(level, size).compress(to_planes(data, plane_width))
    elif dictionary is not None:
        payload = dictionary.compressor(level).compress(data)
    else:
        payload = _compressor(level, size).compress(data)
    if len(payload) > size * limits.ZSTD_KEEP_RATIO:
        return Encoded(CODEC_RAW, data, size)
    return Encoded(codec, payload, size, plane_width if codec == CODEC_PLANES else 0, dictionary)


def encode_many(values: Sequence[Buffer], level: int, dictionary: Dictionary | None = None) -> list[Encoded]:
    """`encode` of many small values that are no floats, in one call: threads wait for the interpreter once, not for each."""
    wanted = [value for value in values if len(value) > limits.ZSTD_BYTES_MIN]
    if len(wanted) < 2:
        return [encode(value, level, 0, dictionary) for value in values]
    compressor = _compressor(level) if dictionary is None else dictionary.compressor(level)
    made = iter(compressor.multi_compress_to_buffer(wanted, threads=1))
    encoded = []
    for value in values:
        size = len(value)
        payload = next(made).tobytes() if size > limits.ZSTD_BYTES_MIN else b""
        if size > limits.ZSTD_BYTES_MIN and len(payload) <= size * limits.ZSTD_KEEP_RATIO:
            encoded.append(Encoded(CODEC_ZSTD, payload, size, 0, dictionary))
        else:
            encoded.append(Encoded(CODEC_RAW, value, size))
    return encoded


def decode(codec: int, payload: Buffer, raw: int, plane_width: int = 0, dictionary: Dictionary | None = None) -> bytes:
    """The plain bytes, exactly `raw` of them. Raises FormatDamaged; allocates at most twice `raw` bytes."""
    if raw > limits.CHUNK_BYTES_MAX:
        raise FormatDamaged(f"record says {raw} plain bytes, over the limit of {limits.CHUNK_BYTES_MAX}")
    if (codec == CODEC_PLANES) != (plane_width in PLANE_WIDTHS) or (plane_width and codec != CODEC_PLANES):
        raise FormatDamaged(f"record of codec {codec} has plane width {plane_width}")
    if dictionary is not None and codec != CODEC_ZSTD:
        raise FormatDamaged(f"record of codec {codec} names a dictionary")
    if codec == CODEC_RAW:
        if len(payload) != raw:
            raise FormatDamaged(f"raw record has {len(payload)} bytes where its header says {raw}")
        return bytes(payload)
    if codec not in (CODEC_ZSTD, CODEC_PLANES):
        raise FormatDamaged(f"record has unknown codec {codec}")
    try:
        if zstandard.frame_content_size(payload) != raw:
            raise FormatDamaged(f"compressed record does not announce the {raw} bytes that its header says")
        decompressor = _decompressor() if dictionary is None else dictionary.decompressor()
        data: bytes = decompressor.decompress(payload, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatDamaged(f"compressed record does not decompress ({error})") from None
    if len(data) != raw:
        raise FormatDamaged(f"compressed record has {len(data)} plain bytes where its header says {raw}")
    return from_planes(data, plane_width) if plane_width else data


def decode_into(
    codec: int, payload: Buffer, out: memoryview, plane_width: int = 0, dictionary: Dictionary | None = None
) -> None:
    """`decode` into memory that the caller has, exactly as long as the plain bytes. Raises FormatDamaged."""
    if codec == CODEC_RAW and len(payload) == len(out) and not plane_width and dictionary is None:
        out[:] = payload
        return
    if codec != CODEC_ZSTD or dictionary is not None:
        out[:] = decode(codec, payload, len(out), plane_width, dictionary)
        return
    try:
        if zstandard.frame_content_size(payload) != len(out):
            raise FormatDamaged(f"compressed record does not announce the {len(out)} bytes that its header says")
        with _decompressor().stream_reader(payload) as stream:
            done = stream.readinto(out)
            if done != len(out) or stream.read(1):
                raise FormatDamaged(f"compressed record has not {len(out)} plain bytes, as its header says")
    except zstandard.ZstdError as error:
        raise FormatDamaged(f"compressed record does not decompress ({error})") from None


def _compressor(level: int, size: int = 0) -> zstandard.ZstdCompressor:
    """One for each thread: zstandard's objects must not be shared. Making one costs more than compressing a small chunk.

    Level 3, the default, is zstd's own for records below ZSTD_LARGE_BYTES. Above, it is the "fast" strategy with a larger
    table and window: on the files of a Python environment a fifth less time for a thirtieth more bytes.
    """
    large = level == 3 and size >= limits.ZSTD_LARGE_BYTES
    made: dict[tuple[int, bool], zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if (level, large) not in made:
        if large:
            parameters = zstandard.ZstdCompressionParameters(
                strategy=zstandard.STRATEGY_FAST, window_log=21, hash_log=16, min_match=5, write_content_size=1
            )
            made[level, large] = zstandard.ZstdCompressor(compression_params=parameters)
        else:
            made[level, large] = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return made[level, large]


def _decompressor() -> zstandard.ZstdDecompressor:
    made: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if made is None:
        made = _local.decompressor = zstandard.ZstdDecompressor()
    return made


def _looks_random(data: Buffer, plane_width: int) -> bool:
    """Whether large data (JPEG, archives) will not shrink, judged by a few windows at the fastest level.

    The first window is left out: files begin with tables that shrink whatever follows. One window that shrinks by a tenth is
    enough for compressing all of it, so that half an archive and half a text are not taken for an archive.
    """
    size, window = len(data), limits.PROBE_WINDOW_BYTES
    if size < limits.PROBE_ABOVE_BYTES or plane_width:
        return False
    view = memoryview(data)
    step = (size - 2 * window) // (limits.PROBE_WINDOWS - 1)
    total = 0
    for index in range(limits.PROBE_WINDOWS):
        start = window + index * step
        length = len(_compressor(1).compress(view[start : start + window]))
        if length <= window * limits.PROBE_WINDOW_RATIO:
            return False
        total += length
    return total > limits.PROBE_WINDOWS * window * limits.ZSTD_KEEP_RATIO


def _planes_are_better(data: Buffer, width: int, level: int) -> bool:
    """Tried on the middle of it: a page's head and tail are no floats."""
    view = memoryview(data)
    sample = limits.PLANES_SAMPLE_BYTES
    if len(view) > sample:
        start = (len(view) - sample) // 2 // width * width
        view = view[start : start + sample]
    plain = len(_compressor(level).compress(view))
    return len(_compressor(level).compress(to_planes(view, width))) < plain
