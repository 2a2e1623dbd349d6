"""`python -m bench.erase`: what it costs to erase ten rows for good.

texts     100,000 rows of a text of about 900 B and three scalars, in five versions: all small records, so all packs are rewritten
images    3,000 images of 50 KB in two versions: packs of images are rewritten only where an erased one was

Seconds in all; stored bytes that were written anew, as a share of the store; and what the search of the proof goes through per second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench import harness
from bench.dataset import IMAGE_BYTES, IMAGES, IMAGES_QUICK, ROWS, ROWS_QUICK, source, text_table
from bench.harness import Figure
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.erase import erase
from leptonstore.dataset.schema import image_field
from leptonstore.store import Store
from leptonstore.store.search import Needles, search


def texts(store: Store, rows: int) -> str:
    """Five versions; the condition for ten rows of all of them."""
    ds = write_dataset(store, "d", source(text_table(0, rows, 1), "id"))
    for number in range(4):
        ds = ds.append(text_table(rows + number * 100, 100, 2 + number))
    return f"id in ({', '.join(str(one) for one in range(5, rows, rows // 10))})"


def images(store: Store, count: int) -> str:
    """Two versions; the condition for ten rows of both."""
    rng = np.random.default_rng(3)
    schema = pa.schema([pa.field("id", pa.int64()), image_field("image", "jpeg")])
    data = pa.array([rng.bytes(IMAGE_BYTES) for _ in range(count)], pa.large_binary())
    batch = pa.RecordBatch.from_arrays([pa.array(np.arange(count)), data], schema=schema)
    ds = write_dataset(store, "d", Source(schema, ("id",), lambda: iter([batch])))
    ds.delete(rows=[0])
    return "id between 100 and 109"


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Both."""
    figures = []
    for name, fill, size, quick in (("texts", texts, ROWS, ROWS_QUICK), ("images", images, IMAGES, IMAGES_QUICK)):
        with (
            tempfile.TemporaryDirectory(prefix="lepton-bench-", dir=os.environ.get("LEPTON_BENCH_DIR")) as folder,
            Store.create(Path(folder) / "store", cache_dir=Path(folder) / "cache") as store,
        ):
            where = fill(store, quick if arguments.quick else size)
            stored = sum(one.bytes for one in store.state.packs.values())
            begin = time.perf_counter()
            report = erase(store, "d", where)
            seconds = time.perf_counter() - begin
            assert report.absent and len(Dataset.open(store, "d")) > 0
            needles = Needles(f"number {number} is in no record of the store".encode() for number in range(10))
            begin = time.perf_counter()
            searched = search(store, needles, lambda what, done, total: None)
            rate = searched.bytes / 1e6 / (time.perf_counter() - begin)
            figures += [
                Figure(f"{name}_erase_time", seconds, "s"),
                Figure(f"{name}_written_anew", 100 * report.purged.repacked_bytes / stored, "% of the store"),
                Figure(f"{name}_searched", rate, "MB/s"),
            ]
    return figures


def main() -> None:
    """See the module."""
    arguments = harness.parser("erase", __doc__ or "").parse_args()
    harness.main("erase", arguments, measure)


if __name__ == "__main__":
    main()
