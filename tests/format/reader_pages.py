"""The part of the independent reader that decodes pages (docs/FORMAT.md, "Pages"); see reader.py for the rest.

Values come out as Python objects: dates, times and decimals as the integers that stand in the page.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

from reader_common import need

_FIXED = {
    "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
    "float16": "e", "float32": "f", "float64": "d", "date32": "i", "date64": "q",
    "time32": "i", "time64": "q", "duration": "q", "timestamp": "q",
}  # fmt: skip


def _bits(data: bytes, rows: int) -> list[bool]:
    need(len(data) == (rows + 7) // 8, "page: bits")
    return [bool(data[row >> 3] >> (row & 7) & 1) for row in range(rows)]


class PageReader:
    """The buffers of a page, handed out in order."""

    def __init__(self, data: bytes) -> None:
        magic, self.flags, self.rows, count, zero = struct.unpack_from("<4sIQII", data)
        need(magic == b"LPG1" and self.flags in (0, 1) and zero == 0, "page: head")
        lengths = struct.unpack_from(f"<{count}Q", data, 24)
        at = self._padded(data, 24 + 8 * count)
        self.buffers = []
        for length in lengths:
            need(at + length <= len(data), "page: a buffer outside it")
            self.buffers.append(data[at : at + length])
            at = self._padded(data, at + length)
        need(at == len(data), "page: bytes after its end")

    @staticmethod
    def _padded(data: bytes, at: int) -> int:
        end = -(-at // 64) * 64
        need(data[at:end] == bytes(end - at), "page: padding is not zero")
        return end

    def values(self, kind: Any) -> tuple[list[Any], list[bool]]:
        """All values of a page of that type, and which of them are references (then bytes of 40)."""
        references = [False] * self.rows
        if self.flags & 1:
            references = _bits(self.buffers.pop(0), self.rows)
            kind = {"string": "binary", "large_string": "large_binary"}.get(kind, kind)
        values = self._column(kind, self.rows)
        need(not self.buffers, "page: more buffers than its type has")
        return values, references

    def _column(self, kind: Any, rows: int) -> list[Any]:
        if kind[0] == "tensor":
            size = 1
            for dimension in kind[2]:
                size *= dimension
            kind = ["fixed_size_list", {"type": kind[1]}, size]
        validity = self.buffers.pop(0)
        need(validity == b"" or not all(_bits(validity, rows)), "page: validity bits where nothing is null")
        valid = _bits(validity, rows) if validity else [True] * rows
        values = self._plain(kind, rows)
        return [value if is_valid else None for value, is_valid in zip(values, valid, strict=True)]

    def _plain(self, kind: Any, rows: int) -> list[Any]:
        name = kind if isinstance(kind, str) else kind[0]
        if name == "bool":
            return list(_bits(self.buffers.pop(0), rows))
        if name in _FIXED:
            return list(struct.unpack(f"<{rows}{_FIXED[name]}", self.buffers.pop(0)))
        if name in ("fixed_size_binary", "decimal128"):
            data, width = self.buffers.pop(0), 16 if name == "decimal128" else kind[1]
            need(len(data) == rows * width, "page: values")
            cells = [data[at : at + width] for at in range(0, len(data), width)]
            return cells if name == "fixed_size_binary" else [int.from_bytes(c, "little", signed=True) for c in cells]
        if name in ("string", "binary", "large_string", "large_binary"):
            offsets = self._offsets(rows, name.startswith("large"))
            data = self.buffers.pop(0)
            need(len(data) == offsets[-1], "page: bytes of a variable-width column")
            cells = [data[a:b] for a, b in pairwise(offsets)]
            return [cell.decode("utf-8") for cell in cells] if name.endswith("string") else cells
        if name in ("list", "large_list"):
            offsets = self._offsets(rows, name.startswith("large"))
            items = self._column(kind[1]["type"], offsets[-1])
            return [items[a:b] for a, b in pairwise(offsets)]
        if name == "fixed_size_list":
            items, size = self._column(kind[1]["type"], rows * kind[2]), kind[2]
            return [items[at : at + size] for at in range(0, rows * size, size)]
        need(name == "struct", f"type {kind!r} is not in the document")
        columns = {child["name"]: self._column(child["type"], rows) for child in kind[1]}
        return [{key: column[row] for key, column in columns.items()} for row in range(rows)]

    def _offsets(self, rows: int, large: bool) -> tuple[int, ...]:
        offsets = struct.unpack(f"<{rows + 1}{'q' if large else 'i'}", self.buffers.pop(0))
        need(offsets[0] == 0 and list(offsets) == sorted(offsets), "page: offsets")
        return offsets


def check_bounds(data: bytes, kind: Any, values: list[Any]) -> None:
    """Least and greatest value that is neither null nor NaN."""
    name = kind if isinstance(kind, str) else kind[0]
    form = "<QQ" if name.startswith("uint") else "<dd" if name.startswith("float") else "<qq"
    plain = [value for value in values if value is not None and value == value]
    need(struct.unpack(form, data) == (min(plain), max(plain)), "part: bounds")
