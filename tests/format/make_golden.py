"""Makes the golden store of the current format: python tests/format/make_golden.py

Writes tests/format/golden/<major>.<minor>[-encrypted]/store and expected.json beside it. Run it once for each format version, just
before that version is released; after that its files never change: they prove that old stores stay readable. (Store and pack
ids, salts and times are random, so another run gives other files with the same rows.) test_reader.py fills its stores with
the same content.
"""

from __future__ import annotations

import decimal
import json
import os
import random
import shutil
import socket
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from reader import StoreReader
from reader_packs import Record

from leptonstore.chunking import ChunkSizes
from leptonstore.dataset import Source, write_dataset
from leptonstore.digest import digest_of
from leptonstore.format import framed
from leptonstore.store import Store
from leptonstore.store.config import StoreConfig
from leptonstore.store.keys import Passphrase, ScryptCost

GOLDEN = Path(__file__).parent / "golden"
# Small, so that values of some 10 KB become chunk lists.
SIZES = ChunkSizes(cut_above=24 << 10, min_size=1 << 10, avg_size=4 << 10, max_size=16 << 10)
PASSPHRASE = "golden, and no secret"
BYTES_MAX = 250_000


def typed_table(rows: int = 40) -> pa.Table:
    """A column of every type that a store keeps, with and without nulls."""
    rng = random.Random(1)

    def some(make: Any) -> list[Any]:
        return [None if rng.random() < 0.2 else make(row) for row in range(rows)]

    columns: dict[str, pa.Array] = {"key": pa.array(range(rows), pa.int64())}
    for bits in (8, 16, 32, 64):
        half = 1 << (bits - 1)
        columns[f"int{bits}"] = pa.array(some(lambda _, h=half: rng.randrange(-h, h)), f"int{bits}")
        columns[f"uint{bits}"] = pa.array(some(lambda _, h=half: rng.randrange(2 * h)), f"uint{bits}")
    columns["float16"] = pa.array([None, *np.arange(rows - 1, dtype=np.float16)], pa.float16())
    columns["float32"] = pa.array(some(lambda row: row / 8), pa.float32())
    columns["float64"] = pa.array([float("nan"), -0.0, float("inf"), *map(float, range(rows - 3))])
    columns["bool"] = pa.array(some(lambda row: row % 3 == 0))
    columns["string"] = pa.array(some(lambda row: "é" * (row % 5)))
    columns["large_string"] = pa.array(some(lambda row: "日本" * (row % 3)), pa.large_string())
    columns["binary"] = pa.array(some(lambda row: rng.randbytes(row)))
    columns["large_binary"] = pa.array(some(lambda row: rng.randbytes(row)), pa.large_binary())
    columns["fixed_binary"] = pa.array(some(lambda row: rng.randbytes(5)), pa.binary(5))
    columns["date32"] = pa.array(some(lambda row: row - 5), pa.date32())
    columns["date64"] = pa.array(some(lambda row: row * 86_400_000), pa.date64())
    columns["time32"] = pa.array(some(lambda row: row), pa.time32("ms"))
    columns["time64"] = pa.array(some(lambda row: row), pa.time64("ns"))
    columns["timestamp"] = pa.array(some(lambda row: row - 7), pa.timestamp("us", "Europe/Paris"))
    columns["duration"] = pa.array(some(lambda row: row), pa.duration("s"))
    columns["decimal128"] = pa.array(some(lambda row: decimal.Decimal(row - 20) / 4), pa.decimal128(9, 2))
    columns["list"] = pa.array(some(lambda row: [None, *range(row % 4)]), pa.list_(pa.int16()))
    columns["large_list"] = pa.array(some(lambda row: ["x"] * (row % 3)), pa.large_list(pa.string()))
    columns["pair"] = pa.array(some(lambda row: [row, None]), pa.list_(pa.float32(), 2))
    columns["struct"] = pa.array(
        some(lambda row: {"a": row, "b": [str(row)], "c": None}),
        pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string())), ("c", pa.bool_())]),
    )
    tensor = pa.fixed_shape_tensor(pa.uint8(), [2, 3])
    cells = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 6) % 251, pa.uint8()), 6)
    columns["tensor"] = pa.ExtensionArray.from_storage(tensor, cells)
    return pa.table(columns)


def long_table(rows: int = 6_000) -> pa.Table:
    """More rows than one row group has, so that the tree has an internal node; floats that are kept as byte planes."""
    walk = np.cumsum(np.random.default_rng(2).integers(-3, 4, size=rows) / 8).astype(np.float32)
    return pa.table(
        {"key": np.arange(rows, dtype=np.int32), "walk": walk, "name": [f"row {row % 97}" for row in range(rows)]}
    )


def keyed_table(rows: int = 4_000) -> pa.Table:
    """Rows in no order of their key, enough for an internal node with keys."""
    numbers = np.arange(rows)[::-1]
    return pa.table({"name": [f"row {row % 7}" for row in numbers], "key": pa.array(numbers.astype(np.int16))})


def large_table() -> pa.Table:
    """Values that are references to chunks of their own (over 16 KiB), and to chunk lists (over 24 KiB)."""
    rng = random.Random(3)
    texts = [" ".join(str(rng.randrange(100, 150)) for _ in range(count)) for count in (3, 4_500, 0, 8_000)]
    return pa.table({"text": [*texts, None], "data": pa.array([None, *(t.encode() for t in texts)], pa.large_binary())})


def small_values(count: int = 250) -> list[bytes]:
    """Records of about 500 bytes that draw from one pool: kept in groups, with a dictionary."""
    rng = random.Random(4)
    pool = [rng.randbytes(20).hex() for _ in range(120)]
    return [json.dumps({"id": number, "tags": rng.sample(pool, 12)}).encode() for number in range(count)]


def source(table: pa.Table, *identity: str) -> Source:
    """A table in memory."""
    return Source(table.schema, identity, lambda: iter(table.to_batches(max_chunksize=1_000)), table.num_rows)


def fill(store: Store) -> None:
    """Everything that the format has, in a few versions."""
    for value in small_values():
        store.put(value)
    store.put(random.Random(5).randbytes(4_200))  # does not shrink
    store.flush()
    write_dataset(store, "typed", source(typed_table(20), "key"), "first")
    write_dataset(store, "typed", source(typed_table(), "key"), "more rows")
    write_dataset(store, "long", source(long_table(), "key"))
    write_dataset(store, "large", source(large_table(), "text"))
    write_dataset(store, "keyed", replace(source(keyed_table(), "name", "key"), keyed=True))
    write_dataset(store, "empty", source(long_table().slice(0, 0), "key"))


def create(path: Path) -> Store:
    """A new store with small chunks."""
    return Store.create(path, StoreConfig(chunks=SIZES))


def create_sealed(path: Path) -> Store:
    """The same, encrypted; guesses of the passphrase are cheap."""
    cost = ScryptCost(n=1 << 10)
    return Store.create(path, StoreConfig(chunks=SIZES), unlock=Passphrase(PASSPHRASE.encode()), cost=cost)


def plain_values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """What the pages hold, as Python objects: storage of tensors, integers for times and decimals."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    kind = array.type
    if isinstance(kind, pa.ExtensionType):
        return plain_values(array.storage)
    if pa.types.is_temporal(kind):
        array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    values = array.to_pylist()
    if pa.types.is_decimal(kind):
        return [None if value is None else int(value.scaleb(kind.scale)) for value in values]
    if pa.types.is_float16(kind):
        return [None if value is None else float(value) for value in values]
    return values


def sum_of(columns: dict[str, list[Any]]) -> str:
    """One digest of all values; `repr` tells -0.0 from 0.0 and says nan for every NaN."""
    return digest_of(repr(columns).encode()).hex()


def kinds_of(found: StoreReader) -> dict[str, int]:
    """How many records of each sort a StoreReader found."""

    def sort_of(record: Record) -> str:
        sort = f"kind {record.kind} codec {record.codec}"
        return sort + " in a group" * record.grouped + " with a dictionary" * (record.ordinal != 0xFFFFFFFF)

    return dict(sorted(Counter(sort_of(record) for _, record in found.records()).items()))


def _make(place: Path, store: Store, secret: bytes | None = None) -> None:
    """Fill a new store, and write down beside it what a reader must find."""
    with store:
        fill(store)
    for name in ("tmp", "reserve"):  # room, not data
        path = place / "store" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    found = StoreReader(place / "store", secret)
    expected = {
        "passphrase": None if secret is None else secret.decode(),
        "refs": found.refs,
        "rows": {name: sum_of(found.rows(commit)) for name, commit in found.refs.items()},
        "records": kinds_of(found),
    }
    (place / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Replace the golden stores of the current format version: one in the clear, one encrypted."""
    os.environ["LOGNAME"] = "golden"
    socket.gethostname = lambda: "golden"  # the log names the host; the golden one is nobody's
    version = f"{framed.MAJOR}.{framed.MINOR}"
    clear, sealed = GOLDEN / version, GOLDEN / f"{version}-encrypted"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for place in (clear, sealed):
            shutil.rmtree(place, ignore_errors=True)
        _make(clear, create(clear / "store"))
        _make(sealed, create_sealed(sealed / "store"), PASSPHRASE.encode())
    size = sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file())
    print(json.dumps({"version": version, "bytes": size}))
    sys.exit(0 if size <= BYTES_MAX else f"{size} bytes are too many to commit")


if __name__ == "__main__":
    main()
