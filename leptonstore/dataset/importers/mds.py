"""Import of MDS (mosaicml-streaming): a folder with index.json and its shards, raw or compressed with zstd, gz or bz2.

See leptonstore.dataset.mds_format for what becomes of each encoding. Whatever index.json says is bounded and compared
with the shards: names stay inside of the folder, lengths, numbers of samples and digests (those of hashlib) must fit.
Shards are read from beginning to end; memory holds the offsets of one shard and a batch.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import zstandard

from leptonstore import limits
from leptonstore.dataset.importers.reading import (
    lineage_of,
    read_up_to,
    reading,
    require_regular_file,
    root_of_place,
)
from leptonstore.dataset.importers.tables import identity_columns
from leptonstore.dataset.mds_format import (
    INDEX,
    PROBED,
    VERSION,
    BadValue,
    Encoding,
    decode_column,
    field_of,
    parse_encoding,
)
from leptonstore.dataset.places import Place, UrlPlace, confined
from leptonstore.dataset.plain import SCHEMA_KEY, decode_schema, fixed_row_bytes
from leptonstore.dataset.source import Referred, Source
from leptonstore.errors import SchemaError, SourceError
from leptonstore.store.references import Spot
from leptonstore.tiers.external import ExternalReader, open_external

_PROBE_ROWS = 100
_VERBATIM = ("bytes", "str", "jpeg", "png")  # encodings whose bytes are the value's
_SETTINGS_BYTES_MAX = limits.SOURCE_HEADER_BYTES_MAX
_UINT32_MAX = (1 << 32) - 1


@dataclass(frozen=True)
class _File:
    """A file that index.json names: its length and its digests by algorithm."""

    name: str
    bytes: int
    hashes: dict[str, str]


@dataclass(frozen=True)
class _Shard:
    """A shard: raw or, when that is not there, compressed."""

    raw: _File
    packed: _File | None
    compression: str
    samples: int
    names: tuple[str, ...]
    encodings: tuple[str, ...]


def open_source(path: Place, key: str | Sequence[str] | None = None, reference: bool = False) -> Source:
    """The columns of the shards, in the order of their names (or of the schema, where an export wrote one).

    key: the columns that identify a row (default: all). reference: bytes, texts and encoded images stay in the shards, which must not be
    compressed, and the store keeps where that is. Reads index.json, and the first samples where it does not say a
    shape. Raises SourceError (damaged, pickle, an encoding that is not known, shards of different columns, a name that
    climbs out; with file, sample and column) and SchemaError.
    """
    index = path / INDEX if path.is_dir() else path
    require_regular_file(index)
    root = index.parent
    shards, carried = parse_index(_read_index(index), index)
    for shard in shards[1:]:
        if (shard.names, shard.encodings) != (shards[0].names, shards[0].encodings):
            raise SourceError(
                f"{index}: {shard.raw.name} has other columns than {shards[0].raw.name}; import them as two data sets",
                str(index),
            )
    encodings = [_encoding(index, *pair) for pair in zip(shards[0].names, shards[0].encodings, strict=True)]
    schema = _schema_of(index, root, shards, encodings, carried)
    referred = None
    if reference:
        url = root_of_place(root)
        referred = Referred(url, lambda: _spotted(root, shards, encodings, schema, open_external(url)))
    return Source(
        schema,
        identity_columns(schema, key),
        lambda: (batch for batch, _ in _spotted(root, shards, encodings, schema)),
        sum(shard.samples for shard in shards),
        {"format": "mds", "files": [lineage_of(index)], "shards": len(shards)},
        referred=referred,
    )


# -- the index ---------------------------------------------------------------------------------------------------


def _read_index(index: Place) -> bytes:
    with reading(index), index.open("rb") as file:
        data = bytes(read_up_to(file, limits.SOURCE_INDEX_BYTES_MAX + 1))
    if len(data) > limits.SOURCE_INDEX_BYTES_MAX:
        raise SourceError(
            f"{index} has more than {limits.SOURCE_INDEX_BYTES_MAX} bytes; split the data set", str(index)
        )
    return data


def parse_index(data: bytes, index: Any) -> tuple[list[_Shard], object]:
    """(shards, the carried schema or None). Raises SourceError."""

    def refuse(why: str) -> SourceError:
        return SourceError(f"{index} {why}", str(index))

    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not JSON ({error}); copy it again") from None
    if not isinstance(value, dict) or value.get("version") != VERSION or not isinstance(value.get("shards"), list):
        raise refuse(f"is no index of MDS shards of version {VERSION}; check the path")
    shards = []
    for number, entry in enumerate(value["shards"]):
        try:
            shards.append(_parse_shard(entry))
        except (KeyError, TypeError, ValueError) as error:
            raise refuse(f"does not describe shard {number} as it should ({error}); write it again") from None
    if not shards:
        raise refuse("lists no shard")
    return shards, value.get(SCHEMA_KEY)


def _parse_shard(entry: Any) -> _Shard:
    if entry["format"] != "mds" or entry["version"] != VERSION:
        raise ValueError(f"format {str(entry['format'])[:20]!r}, version {str(entry['version'])[:20]}")
    names, encodings, samples = entry["column_names"], entry["column_encodings"], entry["samples"]
    if not isinstance(names, list) or not isinstance(encodings, list) or not 0 < len(names) <= limits.COLUMNS_MAX:
        raise ValueError("columns")
    if len(names) != len(encodings) or not all(isinstance(text, str) for text in [*names, *encodings]):
        raise ValueError("columns")
    if len(set(names)) < len(names) or not _is_count(samples):
        raise ValueError("a column twice, or the number of samples")
    compression = entry.get("compression") or ""
    if not isinstance(compression, str):
        raise ValueError("compression")
    packed = _parse_file(entry["zip_data"]) if entry.get("zip_data") else None
    raw = _parse_file(entry["raw_data"])
    return _Shard(raw, packed, compression.partition(":")[0], samples, tuple(names), tuple(encodings))


def _parse_file(value: Any) -> _File:
    name, size, hashes = value["basename"], value["bytes"], value.get("hashes") or {}
    if not isinstance(name, str) or not _is_count(size) or not isinstance(hashes, dict):
        raise ValueError("a file")
    known = {str(kind): str(digest) for kind, digest in hashes.items() if kind in hashlib.algorithms_guaranteed}
    return _File(name, size, {kind: digest for kind, digest in known.items() if not kind.startswith("shake")})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _UINT32_MAX


def _encoding(index: Place, name: str, text: str) -> Encoding:
    try:
        return parse_encoding(text)
    except BadValue as error:
        raise SourceError(f"{index}: column {name!r} is {error}", str(index)) from None


def _schema_of(
    index: Place, root: Place, shards: list[_Shard], encodings: list[Encoding], carried: object
) -> pa.Schema:
    names = shards[0].names
    if carried is not None:
        schema = decode_schema(carried, str(index))
        if sorted(schema.names) != sorted(names):
            raise SourceError(f"{index} carries the schema of other columns; write it again", str(index))
        return schema
    probe: list[list[bytes]] = [[] for _ in names]
    if any(encoding.name in PROBED and not encoding.shape for encoding in encodings):
        for row, (_, cells, _) in enumerate(_all_samples(root, shards, encodings)):
            if row == _PROBE_ROWS:
                break
            for values, cell in zip(probe, cells, strict=True):
                values.append(cell)
    fields = []
    for name, encoding, values in zip(names, encodings, probe, strict=True):
        try:
            fields.append(field_of(name, encoding, values))
        except (BadValue, IndexError) as error:
            raise SourceError(f"{index}: column {name!r} has {error}", str(index)) from None
    if "" in names:
        raise SchemaError(f"{index}: a column has no name")
    return pa.schema(fields)


# -- samples -----------------------------------------------------------------------------------------------------


class _Checked:
    """A file that is read once, from beginning to end: counted, hashed and bounded."""

    def __init__(self, stream: Any, where: str, size: int, hashes: dict[str, str]) -> None:
        self._stream, self._where, self._size, self._hashes = stream, where, size, hashes
        self._running = {kind: hashlib.new(kind, usedforsecurity=False) for kind in hashes}
        self._read = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes. Raises SourceError when there are more than the index says."""
        data: bytes = self._stream.read(size)
        self._read += len(data)
        if self._read > self._size:
            raise SourceError(
                f"{self._where} is longer than the {self._size} bytes of index.json; copy it again", self._where
            )
        for running in self._running.values():
            running.update(data)
        return data

    def finish(self) -> None:
        """At its end: length and digests are those of the index."""
        while self.read(1 << 20):
            pass
        if self._read != self._size:
            raise SourceError(
                f"{self._where} has {self._read} bytes, index.json says {self._size}; copy it again", self._where
            )
        for kind, running in self._running.items():
            if running.hexdigest() != self._hashes[kind].lower():
                raise SourceError(
                    f"{self._where} is damaged: its {kind} is not that of index.json; copy it again", self._where
                )


@contextmanager
def _opened(root: Place, shard: _Shard) -> Iterator[tuple[Any, list[_Checked], Place]]:
    """The plain bytes of a shard, and what has to be finished at its end, outermost first."""
    place = confined(root, shard.raw.name)
    packed = shard.packed is not None and not place.is_file()
    if packed:
        assert shard.packed is not None
        place = confined(root, shard.packed.name)
    require_regular_file(place)
    with ExitStack() as held:
        file = held.enter_context(place.open("rb"))
        if not packed:
            plain = _Checked(file, str(place), shard.raw.bytes, shard.raw.hashes)
            yield plain, [plain], place
            return
        assert shard.packed is not None
        outer = _Checked(file, str(place), shard.packed.bytes, shard.packed.hashes)
        stream: Any
        if shard.compression == "zstd":
            stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                outer,  # type: ignore[arg-type]
                read_across_frames=True,
            )
        elif shard.compression == "gz":
            stream = gzip.GzipFile(fileobj=outer, mode="rb")  # type: ignore[call-overload]
        elif shard.compression == "bz2":
            stream = bz2.BZ2File(outer, "rb")  # type: ignore[call-overload]
        else:
            raise SourceError(
                f"{place} is compressed with {shard.compression[:20]!r}; zstd, gz and bz2 are read: decompress it",
                str(place),
            )
        plain = _Checked(stream, f"{place} (unpacked)", shard.raw.bytes, shard.raw.hashes)
        yield plain, [plain, outer], place


@contextmanager
def _unpacking(place: str) -> Iterator[None]:
    try:
        yield
    except (zstandard.ZstdError, zlib.error, gzip.BadGzipFile, EOFError, ValueError) as error:
        raise SourceError(
            f"{place} cannot be unpacked ({' '.join(str(error).split())}); copy it again", place
        ) from error
    except OSError as error:  # bz2 has no error of its own
        raise SourceError(
            f"cannot read {place}: {(error.strerror or str(error)).lower()}; copy it again", place
        ) from error


class _Sample(NamedTuple):
    """Where it is, for people; its values as bytes; where it begins in the shard, in an import by reference."""

    where: str
    cells: list[bytes]
    spot: Spot | None


def _all_samples(
    root: Place, shards: list[_Shard], encodings: list[Encoding], objects: ExternalReader | None = None
) -> Iterator[_Sample]:
    for shard in shards:
        with _unpacking(f"{root}/{shard.raw.name}"), _opened(root, shard) as (stream, checks, place):
            spot = None if objects is None else _spot_of(objects, root, place, len(checks) > 1)
            for sample, offset in read_samples(stream, str(place), shard.samples, encodings):
                yield sample if spot is None else sample._replace(spot=spot._replace(offset=offset))
            for check in checks:
                check.finish()


def _spot_of(objects: ExternalReader, root: Place, place: Place, packed: bool) -> Spot:
    """The beginning of a shard."""
    if packed:
        raise SourceError(
            f"{place} is compressed: its values do not stand in it as they are; import it without --reference",
            str(place),
        )
    if isinstance(place, UrlPlace):
        name = str(place).removeprefix(str(root).rstrip("/") + "/")
    else:
        name = os.path.relpath(os.path.realpath(place), os.path.realpath(str(root)))
    return Spot(name, 0, objects.stamp(name))


def read_samples(stream: Any, where: str, samples: int, encodings: list[Encoding]) -> Iterator[tuple[_Sample, int]]:
    """The samples of one shard, each with the offset at which it begins. Raises SourceError."""

    def refuse(why: str) -> SourceError:
        return SourceError(f"{where} {why}; copy it again", where)

    head = bytes(read_up_to(stream, 4))
    count = int.from_bytes(head, "little")
    if len(head) < 4 or count != samples:
        raise refuse(f"says that it has {count} samples, index.json says {samples}")
    if 4 * (count + 1) > limits.SOURCE_INDEX_BYTES_MAX:
        raise refuse(f"has {count} samples, more than fit {limits.SOURCE_INDEX_BYTES_MAX} bytes of offsets")
    data = read_up_to(stream, 4 * (count + 1))
    if len(data) < 4 * (count + 1):
        raise refuse("ends inside of its offsets")
    offsets = np.frombuffer(data, "<u4").astype(np.int64)
    start = 4 + len(data)
    lengths = np.diff(offsets)
    if offsets[0] < start or offsets[0] - start > _SETTINGS_BYTES_MAX or (lengths < 0).any():
        raise refuse("has offsets that cannot be")
    if count and lengths.max() > limits.SOURCE_VALUE_BYTES_MAX:
        row = int(lengths.argmax())
        raise refuse(
            f"has a sample {row} of {lengths[row]} bytes; at most {limits.SOURCE_VALUE_BYTES_MAX} are accepted"
        )
    read_up_to(stream, int(offsets[0]) - start)
    sizes = [encoding.size for encoding in encodings]
    for row, length in enumerate(lengths.tolist()):
        sample = bytes(read_up_to(stream, length))
        if len(sample) < length:
            raise refuse(f"ends inside of sample {row}")
        place = f"{where}: sample {row}"
        yield _Sample(place, _split(sample, sizes, place), None), int(offsets[row])


def _split(sample: bytes, sizes: list[int | None], where: str) -> list[bytes]:
    at = 4 * sizes.count(None)
    heads = iter(range(0, at, 4))
    cells = []
    for fixed in sizes:
        size = fixed
        if size is None:
            head = next(heads)
            size = int.from_bytes(sample[head : head + 4], "little")
        cells.append(sample[at : at + size])
        at += size
    if at != len(sample):
        raise SourceError(f"{where} has {len(sample)} bytes, its values {at}; copy it again", where)
    return cells


def _spotted(
    root: Place,
    shards: list[_Shard],
    encodings: list[Encoding],
    schema: pa.Schema,
    objects: ExternalReader | None = None,
) -> Iterator[tuple[pa.RecordBatch, dict[str, list[Spot | None]]]]:
    """Batches, and where the values of columns stand that are in the shards as they are."""
    names = shards[0].names
    verbatim = {name: at for at, name in enumerate(names) if encodings[at].name in _VERBATIM}

    def made(rows: list[_Sample]) -> tuple[pa.RecordBatch, dict[str, list[Spot | None]]]:
        spots = {name: [_spot_of_cell(row, at, encodings) for row in rows] for name, at in verbatim.items()}
        return _to_arrow(rows, names, encodings, schema), spots

    rows: list[_Sample] = []
    size, fixed = 0, fixed_row_bytes(schema)
    for row in _all_samples(root, shards, encodings, objects):
        length = max(sum(map(len, row.cells)), fixed)
        if rows and (len(rows) >= limits.IMPORT_BATCH_ROWS_MAX or size + length > limits.IMPORT_BATCH_BYTES_MAX):
            yield made(rows)
            rows, size = [], 0
        rows.append(row)
        size += length
    if rows:
        yield made(rows)


def _spot_of_cell(row: _Sample, at: int, encodings: list[Encoding]) -> Spot | None:
    if row.spot is None:
        return None
    heads = 4 * sum(encoding.size is None for encoding in encodings)
    return row.spot._replace(offset=row.spot.offset + heads + sum(map(len, row.cells[:at])))


def _to_arrow(
    rows: list[_Sample], names: tuple[str, ...], encodings: list[Encoding], schema: pa.Schema
) -> pa.RecordBatch:
    columns = []
    for field in schema:
        at = names.index(field.name)
        cells = [row.cells[at] for row in rows]
        try:
            columns.append(_column(field, encodings[at], cells))
        except (ValueError, pa.ArrowException, OverflowError, TypeError) as error:
            raise _at_sample(rows, field, encodings[at], at, error) from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(field: pa.Field, encoding: Encoding, cells: list[bytes]) -> pa.Array:
    array = decode_column(field, encoding, cells)
    array.validate(full=True)
    if array.type != field.type:
        raise BadValue(f"{array.type} where the schema has {field.type}")
    if array.null_count and not field.nullable:
        raise BadValue("null")
    return array


def _at_sample(rows: list[_Sample], field: pa.Field, encoding: Encoding, at: int, error: Exception) -> SourceError:
    where = rows[0].where
    for place, cells, _ in rows:
        try:
            _column(field, encoding, [cells[at]])
        except (ValueError, pa.ArrowException, OverflowError, TypeError) as found:
            where, error = place, found
            break
    why = " ".join(str(error).split())
    return SourceError(f"{where}, column {field.name!r} ({encoding.name}): {why}; correct it", where)
