"""Export as MDS, which mosaicml-streaming reads: shard.00000.mds, ..., and index.json last. See leptonstore.dataset.mds_format.

A column whose values the library has no encoding for (times, decimals, lists, structs) is JSON. There is no null in MDS
but in JSON: a null in any other column is refused, with its row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import zstandard

from leptonstore import limits
from leptonstore.dataset.exporters.common import ExportReport, Progress, Rows, batches_from, require_no_nulls
from leptonstore.dataset.exporters.shards import Shards
from leptonstore.dataset.mds_format import INDEX, VERSION, Encoding, encode_column, encoding_of, parse_encoding
from leptonstore.dataset.places import Place
from leptonstore.dataset.plain import SCHEMA_KEY, encode_schema
from leptonstore.errors import BadInput

_HASH = "sha1"  # what the library's own examples use; it is checked on the way, not trusted


def export_mds(
    ds: Rows, dest: Place, progress: Progress, overwrite: bool, compression: str | None = None
) -> ExportReport:
    """Shards of about limits.EXPORT_SHARD_BYTES. compression: None or "zstd"."""
    if compression not in (None, "zstd"):
        raise BadInput(f"no compression {compression!r} for mds; there is zstd")
    shards = Shards(
        ds, dest, "mds", {"compression": compression}, r"shard\.\d{5,}\.mds(\.zstd)?|index\.json", overwrite
    )
    progress(shards.end)
    settings = _settings(ds, compression)
    config = json.dumps(settings, sort_keys=True).encode()
    samples = _samples(ds, settings, shards.end)
    pending = next(samples, None)
    while pending is not None or not shards.done:
        held: list[bytes] = []
        size = 8 + len(config)
        end = shards.end
        while pending is not None and (not held or size + len(pending[1]) + 4 <= limits.EXPORT_SHARD_BYTES):
            held.append(pending[1])
            size += len(pending[1]) + 4
            end = pending[0] + 1
            pending = next(samples, None)
        _write_shard(shards, held, config, end, settings, compression)
        progress(len(held))
    entries = [shard.more for shard in shards.done]
    index = {"version": VERSION, "shards": entries, SCHEMA_KEY: encode_schema(ds.schema)}
    return shards.finish(len(ds), {INDEX: json.dumps(index, sort_keys=True).encode()})


def _settings(ds: Rows, compression: str | None) -> dict[str, Any]:
    """What index.json and each shard say of all shards; columns in the order of their names, as the library writes them."""
    names = sorted(ds.schema.names)
    encodings = [encoding_of(ds.schema.field(name)) for name in names]
    return {
        "column_encodings": encodings,
        "column_names": names,
        "column_sizes": [parse_encoding(encoding).size for encoding in encodings],
        "compression": compression,
        "format": "mds",
        "hashes": [_HASH],
        "size_limit": limits.EXPORT_SHARD_BYTES,
        "version": VERSION,
    }


def _samples(ds: Rows, settings: dict[str, Any], first: int) -> Iterator[tuple[int, bytes]]:
    """(row, its sample as it stands in a shard)."""
    encodings: list[Encoding] = [parse_encoding(encoding) for encoding in settings["column_encodings"]]
    for position, batch in batches_from(ds, first):
        columns = []
        for name, encoding in zip(settings["column_names"], encodings, strict=True):
            array = batch.column(name)
            if encoding.name != "json":
                require_no_nulls(array, ds.schema.field(name), position, "mds")
            columns.append(encode_column(array, encoding))
        for at, cells in enumerate(zip(*columns, strict=True)):
            sizes = [
                len(cell).to_bytes(4, "little")
                for cell, encoding in zip(cells, encodings, strict=True)
                if encoding.size is None
            ]
            sample = b"".join((*sizes, *cells))
            if len(sample) > limits.SOURCE_VALUE_BYTES_MAX:
                raise BadInput(
                    f"row {position + at} has {len(sample)} bytes; a sample of mds has at most {limits.SOURCE_VALUE_BYTES_MAX}"
                )
            yield position + at, sample


def _write_shard(
    shards: Shards, samples: list[bytes], config: bytes, end: int, settings: dict[str, Any], compression: str | None
) -> None:
    offsets = np.cumsum([0, *map(len, samples)], dtype=np.int64) + 4 + 4 * (len(samples) + 1) + len(config)
    data = b"".join((len(samples).to_bytes(4, "little"), offsets.astype("<u4").tobytes(), config, *samples))
    name = f"shard.{len(shards.done):05}.mds"
    entry: dict[str, Any] = {**settings, "samples": len(samples), "raw_data": _file(name, data), "zip_data": None}
    if compression is not None:
        name, data = f"{name}.zstd", zstandard.ZstdCompressor(level=3).compress(data)
        entry["zip_data"] = _file(name, data)

    def write(file: IO[bytes]) -> None:
        file.write(data)

    shards.add(name, end, write, entry)


def _file(name: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.new(_HASH, data, usedforsecurity=False).hexdigest()
    return {"basename": name, "bytes": len(data), "hashes": {_HASH: digest}}
