"""Export as WebDataset: shard-000000.tar, shard-000001.tar, ... See leptonstore.dataset.webdataset_format.

The key of a sample is the column __key__ where there is one, else the number of its row. Equal tables give equal archives:
times, owners and modes are fixed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.confined import checked_parts
from leptonstore.dataset.exporters.common import ExportReport, Progress, Rows, batches_from
from leptonstore.dataset.exporters.folder import image_suffix
from leptonstore.dataset.exporters.shards import Shards
from leptonstore.dataset.npy_format import encode_header
from leptonstore.dataset.places import Place
from leptonstore.dataset.plain import json_cells
from leptonstore.dataset.webdataset_format import (
    KEY,
    NOTHING,
    SCHEMA_MEMBER,
    column_words,
    encode_carried,
    ending_of,
    kind_of,
    split_member,
)
from leptonstore.errors import BadInput

_BLOCK = 512
_OWNER = b"0000644\0" + b"0000000\0" * 2
_TIME_AND_CHECK = b"00000000000\0" + b" " * 8
_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(_BLOCK - 156, b"\0")
_REST_SUM = sum(_REST)


def export_webdataset(ds: Rows, dest: Place, progress: Progress, overwrite: bool) -> ExportReport:
    """Shards of about limits.EXPORT_SHARD_BYTES. Raises BadInput for keys that are none, or that are twice in a row."""
    shards = Shards(ds, dest, "webdataset", {}, r"shard-\d{6,}\.tar", overwrite)
    progress(shards.end)
    samples = _samples(ds, shards.end)
    head = _member(SCHEMA_MEMBER, encode_carried(ds.schema))
    pending = next(samples, None)
    while pending is not None or not shards.done:
        written = 0
        parts = [head]
        size = len(head)
        end = shards.end
        # One shard in memory: it is written when its rows are known, and only as a whole.
        while pending is not None and (not written or size + len(pending[1]) <= limits.EXPORT_SHARD_BYTES):
            parts.append(pending[1])
            size += len(pending[1])
            written, end = written + 1, pending[0] + 1
            pending = next(samples, None)

        def write(file: IO[bytes], parts: list[bytes] = parts) -> None:
            for part in parts:
                file.write(part)
            file.write(bytes(2 * _BLOCK))

        shards.add(f"shard-{len(shards.done):06}.tar", end, write)
        progress(written)
    return shards.finish(len(ds), {})


def _member(name: str, data: bytes) -> bytes:
    encoded = name.encode()
    if len(encoded) > 100 or not encoded.isascii():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % _BLOCK)
    # What tarfile writes for such a name, in a fifth of the time. (A value has less than the 8 GiB that the octal size holds.)
    head = encoded.ljust(100, b"\0") + _OWNER + b"%011o\0" % len(data) + _TIME_AND_CHECK
    check = b"%06o\0 " % (sum(head) + _REST_SUM)
    return b"".join((head[:148], check, _REST, data, bytes(-len(data) % _BLOCK)))


def _samples(ds: Rows, first: int) -> Iterator[tuple[int, bytes]]:
    """(row, the files of its sample as they stand in the archive)."""
    words = column_words(ds.schema)
    digits = max(6, len(str(len(ds))))
    last = None
    for position, batch in batches_from(ds, first):
        cells = [encode_cells(batch.column(at), field) for at, field in enumerate(ds.schema) if field.name != KEY]
        named = [(word, field) for word, field in zip(words, ds.schema, strict=True) if field.name != KEY]
        keys = batch.column(KEY).to_pylist() if KEY in ds.schema.names else None
        for at in range(batch.num_rows):
            row = position + at
            key = f"{row:0{digits}}" if keys is None else _checked_key(keys[at], row)
            if key == last:
                raise BadInput(f"rows {row - 1} and {row} have the key {key!r}; give them different ones")
            last = key
            yield row, b"".join(_files(key, named, [column[at] for column in cells]))


def _files(key: str, named: list[tuple[str, pa.Field]], cells: list[bytes | None]) -> Iterator[bytes]:
    if all(cell is None for cell in cells):
        yield _member(f"{key}.{NOTHING}", b"")
    for (word, field), cell in zip(named, cells, strict=True):
        if cell is not None:
            last = ending_of(field) or image_suffix(cell)
            # a column that is called as its ending ("jpg", "cls") is that ending
            yield _member(f"{key}.{word}" if word == last else f"{key}.{word}.{last}", cell)


def _checked_key(key: str | None, row: int) -> str:
    if key is None or split_member(f"{key}.x") != (key, "x") or key.startswith("__"):
        raise BadInput(
            f"row {row} has the key {key!r}; a key is a relative path whose last part has no dot (export without {KEY} to "
            "number the rows)"
        )
    checked_parts(key)
    return key


def encode_cells(column: pa.Array, field: pa.Field) -> list[bytes | None]:
    """The content of the file of each value, None for null."""
    kind = kind_of(field)
    if kind in ("image", "bytes"):
        return list(column.to_pylist())
    if kind == "npy":
        return _npy_cells(column)
    if kind == "json":
        texts = json_cells(column)
        valid = column.is_valid().to_pylist()
        return [text.encode() if is_one else None for text, is_one in zip(texts, valid, strict=True)]
    return [None if value is None else str(value).encode() for value in column.to_pylist()]


def _npy_cells(column: pa.Array) -> list[bytes | None]:
    shape = tuple(column.type.shape)
    dtype = np.dtype(column.type.value_type.to_pandas_dtype())
    head = encode_header(dtype, shape)
    valid = column.storage.is_valid().to_pylist()
    out: list[bytes | None] = []
    values = iter(column.storage.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape))
    for is_one in valid:
        out.append(head + next(values).tobytes() if is_one else None)
    return out
