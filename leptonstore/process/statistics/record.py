"""LSK1: a sketch as bytes, to be kept on a host. Named flat arrays, nothing else.

    0 magic "LSK1" | 4 arrays u16 | for each: name length u8, name (ASCII), type u8 (an index of _TYPES), values u32
    then the values of each, one after another       (all little-endian)

Whoever reads them checks what they mean: a sketch is never trusted, and one that does not parse is made again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore.errors import FormatDamaged
from leptonstore.limits import STATISTICS_SKETCH_BYTES_MAX

Arrays = dict[str, NDArray[Any]]
_MAGIC = b"LSK1"
_TYPES = tuple(np.dtype(code) for code in ("u1", "<u4", "<i8", "<u8", "<f8"))
_HEAD, _LENGTH, _ENTRY = struct.Struct("<4sH"), struct.Struct("<B"), struct.Struct("<BI")


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Flat arrays of the types that there are -> bytes."""
    head = [_HEAD.pack(_MAGIC, len(arrays))]
    for name, values in arrays.items():
        head.append(
            _LENGTH.pack(len(name)) + name.encode("ascii") + _ENTRY.pack(_TYPES.index(values.dtype), len(values))
        )
    return b"".join([*head, *(np.ascontiguousarray(values).tobytes() for values in arrays.values())])


def unpack(data: bytes) -> Arrays:
    """The arrays; they may be written to. Raises FormatDamaged."""
    if len(data) > STATISTICS_SKETCH_BYTES_MAX:
        raise FormatDamaged(f"sketch has {len(data):,} bytes")
    try:
        magic, count = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise FormatDamaged("sketch has the wrong magic")
        at, entries = _HEAD.size, []
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(data, at)
            name = data[at + 1 : at + 1 + length].decode("ascii")
            number, values = _ENTRY.unpack_from(data, at + 1 + length)
            at += 1 + length + _ENTRY.size
            entries.append((name, _TYPES[number], values))
        found: Arrays = {}
        for name, dtype, values in entries:
            found[name] = np.frombuffer(data, dtype, values, at).copy()
            at += values * dtype.itemsize
    except (struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise FormatDamaged(f"sketch does not parse ({error})") from None
    if at != len(data) or len(found) != count:
        raise FormatDamaged("sketch has bytes after its arrays, or two of one name")
    return found


def take(arrays: Arrays, name: str, dtype: str, length: int | None = None) -> NDArray[Any]:
    """One array, of that type and length. Raises FormatDamaged."""
    values = arrays.get(name)
    if values is None or values.dtype != np.dtype(dtype) or (length is not None and len(values) != length):
        raise FormatDamaged(f"sketch has no {name!r} of its type and length")
    return values


def within(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays of a part, under names of the whole."""
    return {f"{prefix}.{name}": values for name, values in arrays.items()}


def part_of(prefix: str, arrays: Arrays) -> Arrays | None:
    """Those of a part under their own names; None when there are none."""
    found = {
        name.removeprefix(f"{prefix}."): values for name, values in arrays.items() if name.startswith(f"{prefix}.")
    }
    return found or None
