"""LRF1: where the bytes of a chunk stand in an object outside of the store. All integers are little-endian.

    0 "LRF1" | 4 root u32 | 8 offset u64 | 16 length u64 | 24 object bytes u64 (all ones: not known) | 32 path length u16
    34 version length u16 | 36 path, UTF-8 | version, UTF-8

`root` is a number in the store's setting `references`, which says below which URL the object lies; `path` is relative to it, with "/"
between names, none of which is empty, "." or "..". `version` is what the object's keeper called this state of it ("etag ...", "mtime_ns
..."), for messages and for a check that reads no data: what decides is the digest of the bytes, which stands in the record's header.
"""

from __future__ import annotations

import functools
import re
import struct
from typing import NamedTuple

from leptonstore import limits
from leptonstore.errors import FormatDamaged

_HEAD = struct.Struct("<4sIQQQHH")
_UNKNOWN = (1 << 64) - 1
_NAME = r"(?!\.\.?(?:/|\Z))[^/\\\x00-\x1f\x7f]+"  # neither empty nor "." nor ".."; no backslash, no control characters
_PATH = re.compile(f"{_NAME}(?:/{_NAME})*")


class Reference(NamedTuple):
    """`length` bytes from `offset` on of the object `path` below a root. object_bytes: None where the keeper did not say."""

    root: int
    path: str
    offset: int
    length: int
    object_bytes: int | None = None
    version: str = ""


def is_path(path: str) -> bool:
    """Whether it is relative, and leads nowhere but downwards."""
    return _PATH.fullmatch(path) is not None


def encode_reference(reference: Reference) -> bytes:
    """At most REFERENCE_BYTES_MAX bytes; the fields are in bounds (`check_reference`)."""
    path, version = reference.path.encode(), reference.version.encode()
    size = _UNKNOWN if reference.object_bytes is None else reference.object_bytes
    head = _HEAD.pack(b"LRF1", reference.root, reference.offset, reference.length, size, len(path), len(version))
    return head + path + version


@functools.lru_cache(
    maxsize=1024
)  # whoever decodes a record parses it, and whoever reads what it leads to does so again
def parse_reference(data: bytes) -> Reference:
    """Bytes -> reference. Raises FormatDamaged."""
    if not _HEAD.size <= len(data) <= limits.REFERENCE_BYTES_MAX:
        raise FormatDamaged(f"a reference of {len(data)} bytes")
    magic, root, offset, length, size, path_bytes, version_bytes = _HEAD.unpack_from(data)
    if magic != b"LRF1" or len(data) != _HEAD.size + path_bytes + version_bytes:
        raise FormatDamaged("a reference has the wrong magic or length")
    try:
        path = data[_HEAD.size : _HEAD.size + path_bytes].decode()
        version = data[_HEAD.size + path_bytes :].decode()
    except UnicodeDecodeError:
        raise FormatDamaged("a reference's path or version is not UTF-8") from None
    found = Reference(root, path, offset, length, None if size == _UNKNOWN else size, version)
    why = check_reference(found)
    if why:
        raise FormatDamaged(why)
    return found


def check_reference(reference: Reference) -> str:
    """What is wrong with it, "" when nothing is."""
    size = reference.object_bytes
    if not is_path(reference.path):
        return f"a reference's path {reference.path!r} is not one below its root"
    if not 0 < reference.length <= limits.CHUNK_BYTES_MAX:
        return f"a reference to {reference.length} bytes (1 to {limits.CHUNK_BYTES_MAX} are accepted)"
    if not 0 <= reference.offset <= limits.OBJECT_BYTES_MAX:
        return f"a reference to offset {reference.offset}"
    if size is not None and not reference.offset + reference.length <= size <= limits.OBJECT_BYTES_MAX:
        return f"a reference to bytes outside of its object, which has {size}"
    if not reference.version.isprintable() or len(reference.version.encode()) > limits.REFERENCE_VERSION_BYTES_MAX:
        return "a reference's version is not one line of text"
    if _HEAD.size + len(reference.path.encode()) + len(reference.version.encode()) > limits.REFERENCE_BYTES_MAX:
        return f"a reference takes more than {limits.REFERENCE_BYTES_MAX} bytes"
    return ""
