"""What Pillow does not say of an encoded image: that it is cut, or that its bytes are not those that were written.

Pure functions of bytes that may be anything; the header has been read before, and its limits held (images.decode_whole).
"""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from leptonstore.digest import Buffer
from leptonstore.errors import SourceError

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of a JPEG, but those that stand between compressed bytes
_HOLE_BYTES = 1024  # so many zeros at the end of compressed pixels are a download that stopped


def jpeg_whole(data: Buffer, name: str, mode: str) -> NDArray[np.uint8] | None:
    """Decoded by libjpeg-turbo; None: there is none."""
    try:
        import simplejpeg
    except ImportError:
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB")
    except ValueError as error:
        said = str(error).removeprefix("Corrupt JPEG data: ")
        kind = "truncated" if "remature end" in said else "damaged"
        raise SourceError(f"{name} is {kind}: {said[:1].lower()}{said[1:]}; replace or remove it", name) from error
    return pixels[..., 0] if mode == "L" else pixels


def scans_complete(data: memoryview) -> bool:
    """Whether the scans of a progressive JPEG give every coefficient of every component to its last bit (ITU-T T.81, annex G). One that
    was
    cut between two scans and given an end is a good file of a worse picture to libjpeg."""
    wanted: set[tuple[int, int]] = set()  # component, coefficient
    after = 2
    for found in _MARKER.finditer(data):
        at, marker = found.start(), data[found.start() + 1]
        if at < after:
            continue  # inside a segment
        body = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        if marker == 0xD9:
            break
        if marker == 0xC2:
            wanted = {(body[6 + 3 * part], number) for part in range(body[5]) for number in range(64)}
        if marker == 0xDA and body[3 + 2 * body[0]] & 15 == 0:
            first, last = body[1 + 2 * body[0]], body[2 + 2 * body[0]]
            wanted -= {(body[1 + 2 * part], number) for part in range(body[0]) for number in range(first, last + 1)}
        after = at + 4 + len(body)
    return not wanted


def incomplete(data: Buffer, format: str) -> str:
    """What is missing of a file whose header is good, as far as its structure says; empty: nothing."""
    view = memoryview(data)
    if format == "PNG":
        return _png_incomplete(view)
    if format == "WEBP":
        size = 8 + int.from_bytes(view[4:8], "little")
        if len(view) < size:
            return f"truncated: {size - len(view):,} bytes of {size:,} are missing"
        if size > 2 * _HOLE_BYTES and not any(view[size - _HOLE_BYTES : size]):
            return "truncated: it ends in zeros"
    if format == "BMP" and len(view) < (size := int.from_bytes(view[2:6], "little")):
        return f"truncated: {size - len(view):,} bytes of {size:,} are missing"
    if format == "GIF":
        return _gif_incomplete(view)
    return ""


def _gif_incomplete(view: memoryview) -> str:
    """Walks the blocks up to the trailer (GIF89a specification, appendix B)."""
    try:
        at = 13 + _palette_bytes(view[10])
        while view[at] != 0x3B:
            if view[at] == 0x2C:
                at += 11 + _palette_bytes(view[at + 9])  # descriptor, palette, size of codes
            elif view[at] == 0x21:
                at += 2  # an extension and its label
            else:
                return f"damaged: it has a block of unknown kind {view[at]}"
            while view[at]:
                at += 1 + view[at]
            at += 1
    except IndexError:
        return "truncated: its end is missing"
    return ""


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _png_incomplete(view: memoryview) -> str:
    """Walks the chunks: length, kind, that many bytes, CRC-32 of kind and bytes (PNG specification, 5.3)."""
    at = 8
    while at + 12 <= len(view):
        (length,) = struct.unpack_from(">I", view, at)
        kind, end = bytes(view[at + 4 : at + 8]), at + 12 + length
        if end > len(view):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return f"damaged: the checksum of its chunk {kind.decode('ascii', 'backslashreplace')} is wrong"
        if kind == b"IEND":
            return ""
        at = end
    return "truncated: its end is missing"
