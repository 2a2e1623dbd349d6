"""The IDX file format (MNIST's), plain or gzip-compressed: header checks and a stream of blocks in bounded memory.

    offset   bytes   meaning
    0        2       zero
    2        1       value type: 0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64
    3        1       number of dimensions d
    4        4 * d   sizes, big-endian uint32; the first is the number of rows
    4 + 4d   rest    values, row-major, big-endian

Definition: http://yann.lecun.com/exdb/mnist/ (section "The IDX file format"). Whether a file is compressed is read
from its first bytes, not from its name: browsers unpack downloads and keep ".gz". Nothing that a header announces is
believed before it is bounded: a row has a largest size, a plain file must have exactly the length announced, and of a
compressed one no more than the announced length and one byte is ever unpacked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leptonstore import limits
from leptonstore.dataset.importers.reading import open_unpacked, read_up_to, require_regular_file, unpacking
from leptonstore.dataset.places import Place, PlaceStatus
from leptonstore.errors import SourceError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class IdxFile:
    """One IDX file whose header was checked.

    dtype: of the values as stored (big-endian). shape: all sizes, rows first. stored_bytes: of the file itself.
    """

    path: Place
    dtype: np.dtype
    shape: tuple[int, ...]
    gzipped: bool
    stored_bytes: int

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.row_shape)

    @property
    def header_bytes(self) -> int:
        return 4 + 4 * len(self.shape)

    def describe(self) -> str:
        """Its contents for a message, such as "60000 x 28 x 28 of uint8"."""
        return f"{' x '.join(map(str, self.shape))} of {self.dtype.name}"

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """Arrays of up to `rows` rows in file order, native byte order, shape (n, *row_shape).

        The last block is given out only after the end of the file was checked. Raises SourceError when the file is
        shorter or longer than its header says, when its gzip stream is damaged, or when it changed since it was opened.
        """
        if read_header(self.path) != self:
            raise SourceError(f"{self.path} changed while it was read; run the import again", str(self.path))
        with unpacking(self.path), open_unpacked(self.path) as stream:
            stream.read(self.header_bytes)
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start)
                data = read_up_to(stream, count * self.row_bytes)
                if len(data) < count * self.row_bytes:
                    raise self._wrong_length("shorter", f"it ends in row {start + len(data) // self.row_bytes}")
                if start + count == self.rows and stream.read(1):
                    raise self._wrong_length("longer", "bytes follow the last row")
                block = np.frombuffer(data, self.dtype).reshape(count, *self.row_shape)
                yield block.astype(self.dtype.newbyteorder("="), copy=False)

    def _wrong_length(self, how: str, detail: str) -> SourceError:
        return SourceError(
            f"{self.path} is {how} than its header says ({self.describe()}): {detail}; download or write it again",
            str(self.path),
        )


def read_header(path: Place) -> IdxFile:
    """Check the header of an IDX file, and of a plain one the length too.

    Raises SourceError: unreadable, not IDX, an unknown value type, no or too many dimensions, no rows, rows without
    values or larger than `limits.IMAGE_FILE_BYTES_MAX`, or a length that is not the one announced.
    """
    require_regular_file(path)
    with unpacking(path):
        status = path.stat()
        with open_unpacked(path) as stream:
            head = stream.read(4)
            dimensions = head[3] if len(head) == 4 else 0
            sizes = stream.read(4 * min(dimensions, limits.IDX_DIMENSIONS_MAX))
        with path.open("rb") as raw:
            gzipped = raw.read(2) == _GZIP_MAGIC
    file = _parse_header(path, head, sizes, gzipped, status)
    if not gzipped:
        expected = file.header_bytes + file.rows * file.row_bytes
        if file.stored_bytes != expected:
            how = "shorter" if file.stored_bytes < expected else "longer"
            raise file._wrong_length(how, f"{file.stored_bytes} bytes instead of {expected}")
    return file


def _parse_header(
    path: Place, head: bytes, sizes: bytes, gzipped: bool, status: os.stat_result | PlaceStatus
) -> IdxFile:
    def refuse(why: str) -> SourceError:
        return SourceError(f"{path} {why}", str(path))

    if len(head) < 4 or head[:2] != b"\0\0":
        raise refuse(f"is not an IDX file: it starts with {head.hex(' ') or 'nothing'}, not 00 00; name its format")
    if head[2] not in _TYPES:
        known = ", ".join(f"0x{code:02x}" for code in _TYPES)
        raise refuse(f"is not an IDX file that can be read: value type 0x{head[2]:02x} is none of {known}")
    if not 1 <= head[3] <= limits.IDX_DIMENSIONS_MAX:
        raise refuse(f"announces {head[3]} dimensions, not 1 to {limits.IDX_DIMENSIONS_MAX}; write it again")
    if len(sizes) < 4 * head[3]:
        raise refuse(f"ends inside its header of {head[3]} sizes; download or write it again")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    file = IdxFile(path, np.dtype(_TYPES[head[2]]), shape, gzipped, status.st_size)
    if 0 in shape:
        raise refuse(f"holds no values ({file.describe()}); give a file with rows in it")
    if file.row_bytes > limits.IMAGE_FILE_BYTES_MAX:
        raise refuse(f"announces rows of {file.row_bytes} bytes; at most {limits.IMAGE_FILE_BYTES_MAX} are accepted")
    return file
