"""Tar archives as a stream: names and contents, in order; nothing is ever extracted to disk.

    512-byte header: name 0:100 | size 124:136 (octal, or base 256) | check 148:156 | type 156 | magic 257:263 | prefix 345:500
    contents, padded to 512 | next header | ... | two blocks of zeros, and zeros to the end

Read are ustar, GNU (long names) and pax archives. Refused by name: paths that lead out (absolute, ".."), links, devices,
pipes, sparse files, names that are not UTF-8, extended headers over limits.TAR_HEADER_BYTES_MAX, and an archive that
ends without its mark or goes on after it: the last samples would be missing without a word.

Python's tarfile is not used to read: it keeps whole extended headers in memory whatever their size, and stops without a
word at a damaged header. The tests compare both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

from leptonstore import limits
from leptonstore.dataset.importers.reading import read_up_to
from leptonstore.dataset.places import is_below
from leptonstore.errors import SourceError

BLOCK = 512
_SKIP_BYTES = 1 << 20
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


class Member(NamedTuple):
    """A regular file in an archive: `name` is relative, with forward slashes and without "..".

    Its `data` is read when the iteration reaches it, and begins at byte `offset` of the archive (as it is when unpacked).
    """

    name: str
    data: bytes
    offset: int


class _Reader:
    """The stream, with the archive's name for errors."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self.stream, self.where, self.at = stream, where, 0  # bytes that were read

    def error(self, why: str) -> SourceError:
        return SourceError(f"{self.where} {why}", self.where)

    def block(self) -> bytes:
        data = bytes(read_up_to(self.stream, BLOCK))
        self.at += len(data)
        if len(data) < BLOCK:
            raise self.error("ends in the middle of an archive, without its end mark; it is truncated: copy it again")
        return data

    def contents(self, name: str, size: int) -> bytes:
        data = read_up_to(self.stream, size)
        if len(data) < size or len(read_up_to(self.stream, -size % BLOCK)) < -size % BLOCK:
            raise self.error(f"ends inside of {name!r}; it is truncated: copy it again")
        self.at += size + -size % BLOCK
        return bytes(data)


def read_tar(stream: IO[bytes], where: str) -> Iterator[Member]:
    """The files of an archive. Memory: the largest of them, at most limits.SOURCE_VALUE_BYTES_MAX. Raises SourceError."""
    reader = _Reader(stream, where)
    name: str | None = None
    size: int | None = None
    while True:
        header = reader.block()
        if not header.strip(b"\0"):
            _require_end(reader)
            return
        _check(reader, header)
        kind = header[156:157]
        length = _number(reader, header[124:136])
        if kind in (b"x", b"g", b"L", b"K"):
            if length > limits.TAR_HEADER_BYTES_MAX:
                raise reader.error(f"has an extended header of {length} bytes; write it with shorter names")
            data = reader.contents("an extended header", length)
            if kind == b"x":
                name, size = _parse_pax(reader, data, name, size)
            elif kind == b"L":
                name = _text(reader, data.split(b"\0")[0])
            continue
        path = name if name is not None else _name(reader, header)
        length = size if size is not None else length
        name = size = None
        if kind in _REFUSED:
            raise reader.error(f"holds {path!r}, {_REFUSED[kind]}; pack plain files only")
        if kind not in (b"0", b"\0", b"7", b"5"):
            raise reader.error(f"holds {path!r} of the unknown type {kind!r}; pack plain files only")
        if kind == b"5" or (kind == b"\0" and path.endswith("/")):
            _checked(reader, path.rstrip("/") or ".", may_be_root=True)
            continue
        _checked(reader, path)
        if length > limits.SOURCE_VALUE_BYTES_MAX:
            raise reader.error(
                f"holds {path!r} of {length} bytes; at most {limits.SOURCE_VALUE_BYTES_MAX} are accepted for one file"
            )
        offset = reader.at
        yield Member(path.removeprefix("./"), reader.contents(path, length), offset)


def _check(reader: _Reader, header: bytes) -> None:
    wanted = _number(reader, header[148:156])
    plain = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(plain)
    # Some old tars summed signed bytes.
    if wanted != unsigned and wanted != unsigned - 256 * sum(byte > 127 for byte in plain):
        raise reader.error("is no tar archive, or a header in it is damaged (its check does not fit); copy it again")


def _number(reader: _Reader, field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    try:
        if digits and not digits.isdigit():
            raise ValueError
        return int(digits or b"0", 8)
    except ValueError:
        raise reader.error(
            "is no tar archive, or a header in it is damaged (a number is none); copy it again"
        ) from None


def _text(reader: _Reader, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise reader.error(f"holds the name {data[:100]!r}, which is not UTF-8; rename it") from None


def _name(reader: _Reader, header: bytes) -> str:
    name = _text(reader, header[:100].split(b"\0")[0])
    prefix = _text(reader, header[345:500].split(b"\0")[0]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _parse_pax(reader: _Reader, data: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Records "LENGTH KEY=VALUE\\n": the path and the size that they give."""
    while data:
        digits, _, _ = data[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        if length <= len(digits) + 1 or length > len(data) or not record.endswith(b"\n"):
            raise reader.error("has a damaged extended header; copy it again")
        key, _, value = record[:-1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise reader.error(f"holds {name!r}, a sparse file; pack plain files only")
        if key == b"path":
            name = _text(reader, value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise reader.error("has a damaged extended header (a size is no number); copy it again")
            size = int(value)
        data = data[length:]
    return name, size


def _checked(reader: _Reader, path: str, may_be_root: bool = False) -> None:
    if may_be_root and path == ".":
        return
    if not is_below(path.removeprefix("./")):
        raise reader.error(
            f"holds the path {path!r}, which leads out of the archive (or is none); pack it again without it"
        )


def _require_end(reader: _Reader) -> None:
    """Zeros to the end: what follows the mark would be lost (two archives, one after the other)."""
    while data := reader.stream.read(_SKIP_BYTES):
        if data.strip(b"\0"):
            raise reader.error("goes on after its end mark (several archives in one file?); pack it again, or split it")
