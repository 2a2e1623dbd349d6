"""Thrift's compact protocol, as much as Parquet's metadata needs (https://github.com/apache/thrift/blob/master/doc/specs).

    struct    fields, then 0    field: (id - id before) << 4 | type, or type and the id as zigzag when that is no 1..15
    i16..i64  zigzag varint     binary: varint length, bytes     list: length << 4 | type (length from 15 on: 0xf0 | type, varint)

Values are written by `Struct`; `parse` reads a struct into {id: value}, with every length checked against what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from leptonstore.digest import Buffer
from leptonstore.errors import FormatDamaged

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_DEPTH_MAX = 64


def varint(value: int, width: int = 0) -> bytes:
    """An unsigned varint; of `width` bytes when that is given (the last ones may add nothing)."""
    out = bytearray()
    while value > 0x7F or len(out) + 1 < width:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> bytes:
    """A signed number."""
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


class Struct:
    """A struct being written; fields come in ascending order of their ids."""

    def __init__(self) -> None:
        self._out, self._last = bytearray(), 0

    def _field(self, number: int, kind: int, data: bytes) -> Struct:
        delta = number - self._last
        self._out += bytes([delta << 4 | kind]) if 0 < delta < 16 else bytes([kind]) + zigzag(number)
        self._out += data
        self._last = number
        return self

    def i16(self, number: int, value: int) -> Struct:
        """Field `number`."""
        return self._field(number, I16, zigzag(value))

    def i32(self, number: int, value: int) -> Struct:
        """Field `number`."""
        return self._field(number, I32, zigzag(value))

    def i64(self, number: int, value: int) -> Struct:
        """Field `number`."""
        return self._field(number, I64, zigzag(value))

    def binary(self, number: int, value: bytes, length_width: int = 0) -> Struct:
        """Field `number`; `length_width`: bytes of its length's varint."""
        return self._field(number, BINARY, varint(len(value), length_width) + value)

    def struct(self, number: int, value: Struct) -> Struct:
        """Field `number`."""
        return self._field(number, STRUCT, value.done())

    def list(self, number: int, kind: int, values: Sequence[bytes]) -> Struct:
        """Field `number`: values of type `kind`, encoded."""
        head = bytes([len(values) << 4 | kind]) if len(values) < 15 else bytes([0xF0 | kind]) + varint(len(values))
        return self._field(number, LIST, head + b"".join(values))

    def raw(self, number: int, field: Field) -> Struct:
        """Field `number` with the bytes of one that was parsed."""
        return self._field(number, field.kind, field.raw)

    def done(self) -> bytes:
        """The bytes, with the end."""
        return bytes(self._out) + b"\0"


class Field(NamedTuple):
    """A field as it was read: type, value and the bytes of the value."""

    kind: int
    value: Any
    raw: bytes


class _Reader:
    def __init__(self, data: Buffer) -> None:
        self.data, self.at = memoryview(data), 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise FormatDamaged("thrift struct is truncated")
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise FormatDamaged("thrift number is too long")

    def zigzag(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise FormatDamaged("thrift struct is truncated")
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def value(self, kind: int, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            raise FormatDamaged("thrift structs are nested too deeply")
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind == BYTE:
            return self.byte()
        if kind in (I16, I32, I64):
            return self.zigzag()
        if kind == DOUBLE:
            return self.take(8)
        if kind == BINARY:
            return self.take(self.varint())
        if kind in (LIST, SET):
            return self.list(depth)
        if kind == STRUCT:
            return self.struct(depth + 1)
        raise FormatDamaged(f"thrift type {kind} is not known")

    def list(self, depth: int) -> list[Any]:
        head = self.byte()
        size = head >> 4 if head >> 4 < 15 else self.varint()
        if size > len(self.data) - self.at:
            raise FormatDamaged("thrift list is longer than what is there")
        kind = head & 15
        # In a list each truth value is a byte.
        return [self.byte() == TRUE if kind in (TRUE, FALSE) else self.value(kind, depth + 1) for _ in range(size)]

    def struct(self, depth: int) -> dict[int, Field]:
        fields: dict[int, Field] = {}
        number = 0
        while (head := self.byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            start = self.at
            value = self.value(head & 15, depth)
            fields[number] = Field(head & 15, value, bytes(self.data[start : self.at]))
        return fields


def parse(data: Buffer) -> dict[int, Field]:
    """The fields of the struct at the beginning of `data`. Raises FormatDamaged."""
    return _Reader(data).struct(0)
