"""`python -m bench.dataset`: what versions of a dataset cost.

edits    100,000 rows of a text of about 900 B (words of a vocabulary by Zipf's law) and three scalars: stored bytes that an edit adds,
         as a share of what the first version takes. Then 3,000 images of 50 KB (random bytes) of which a random 95 % is kept, and a column
         of labels that is added to 1,000,000 rows (bytes beside those of its pages alone in a store, and seconds).

history  opening a version of 1,000,000 rows, and comparing and merging versions of them (bench/dataset_history.py).
read     single rows, filters, whole tables, Parquet that is nowhere stored (bench/dataset_read.py).
remotes  what a push to an S3 store sends (bench/dataset_remotes.py).

Contract of edits: 3,000 rows inserted in 30 places <= 6.7 %, 4,000 deleted in 40 places <= 9.7 %, 3,000 inserted as one block <= 4 %, 300
single rows changed <= 25 %; keeping 95 % of the images < 1 %; the column <= 1.2x of it alone, in < 2 s. Others: their modules.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from bench import dataset_history, dataset_read, dataset_remotes, harness
from bench.harness import Figure
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import class_label_field, image_field
from leptonstore.dataset.splice import Splice, splice
from leptonstore.format.page import encode_page
from leptonstore.store import Store

ROWS, ROWS_QUICK = 100_000, 20_000
TEXT_BYTES = 900
IMAGES, IMAGES_QUICK, IMAGE_BYTES = 3_000, 300, 50_000
LABELLED, LABELLED_QUICK = 1_000_000, 100_000


def vocabulary(count: int, rng: np.random.Generator) -> list[str]:
    """Pronounceable words of two to four syllables."""
    syllables = [c + v + e for c in "bcdfglmnprstv" for v in "aeiou" for e in ("", "n", "r", "s", "l")]
    return ["".join(rng.choice(syllables, 1 + rng.integers(1, 4))) for _ in range(count)]


def text_table(first: int, rows: int, seed: int) -> pa.Table:
    """Rows from number `first` on; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    words = vocabulary(20_000, np.random.default_rng(0))
    chosen = np.minimum(rng.zipf(1.2, rows * TEXT_BYTES // 6), len(words)) - 1
    at, texts = 0, []
    for count in rng.integers(TEXT_BYTES // 14, TEXT_BYTES // 5, rows).tolist():
        at = at if at + count < len(chosen) else 0
        texts.append(" ".join(words[one] for one in chosen[at : at + count]))
        at += count
    return pa.table(
        {
            "id": pa.array(np.arange(first, first + rows, dtype=np.int64)),
            "text": texts,
            "score": rng.normal(size=rows).astype(np.float32),
            "label": rng.integers(0, 10, rows).astype(np.uint8),
        }
    )


def source(table: pa.Table, *identity: str) -> Source:
    """A table in memory."""
    return Source(table.schema, identity, lambda: iter(table.to_batches(max_chunksize=10_000)), table.num_rows)


def added_share(base: Dataset, whole: int, splices: Sequence[Splice]) -> float:
    """Stored bytes that these edits add, in percent of `whole`. What is stored for another edit is of other rows, and does not help."""
    before = base.store.new_bytes
    splice(base, splices)
    base.store.flush()
    return 100 * (base.store.new_bytes - before) / whole


def in_places(table: pa.Table, rows: int, places: int, seed: int) -> list[Splice]:
    """The rows of `table` in equal blocks at random places."""
    at = np.sort(np.random.default_rng(seed).choice(rows, places, replace=False)).tolist()
    size = table.num_rows // places
    return [Splice(row, 0, table.slice(number * size, size)) for number, row in enumerate(at)]


def text_edits(place: Path, rows: int) -> list[Figure]:
    """The edits of a table of texts."""
    rng = np.random.default_rng(7)
    with Store.create(place / "texts") as store:
        table = text_table(0, rows, 1)
        base = write_dataset(store, "texts", source(table, "id"))
        whole = store.new_bytes
        share = rows // 100
        new = text_table(rows, 3 * share, 2)
        kept = np.sort(rng.choice(rows // 100, 40, replace=False)).tolist()
        changed = np.sort(rng.choice(rows, 3 * share // 10, replace=False)).tolist()
        other = text_table(2 * rows, len(changed), 3).set_column(0, "id", pa.array(changed, pa.int64()))
        measured = {
            "insert_30_places": (in_places(new, rows, 30, 4), "<= 6.7"),
            "delete_40_places": ([Splice(one * 100, share // 10) for one in kept], "<= 9.7"),
            "insert_block": ([Splice(rows // 2, 0, text_table(4 * rows, 3 * share, 5))], "<= 4"),
            "change_300_rows": ([Splice(row, 1, other.slice(n, 1)) for n, row in enumerate(changed)], "<= 25"),
        }
        figures = [Figure("texts_stored", whole / table.nbytes, "of the bytes")]
        for name, (splices, bound) in measured.items():
            begin = time.perf_counter()
            figures.append(Figure(name, added_share(base, whole, splices), "%", bound if rows == ROWS else ""))
            figures.append(Figure(f"{name}_time", time.perf_counter() - begin, "s"))
        return figures


def images_kept(place: Path, images: int) -> list[Figure]:
    """A random 95 % of a dataset of images is kept."""
    rng = np.random.default_rng(11)
    fields = [
        image_field("image", "jpeg"),
        class_label_field("label", list("abcdefghij")),
        pa.field("path", pa.string()),
    ]

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, images, 100):
            count = min(100, images - first)
            data = pa.array([rng.bytes(IMAGE_BYTES) for _ in range(count)], pa.large_binary())
            label = pa.array(rng.integers(0, 10, count).astype(np.uint8))
            path = pa.array([f"train/{first + row:06d}.jpg" for row in range(count)])
            yield pa.RecordBatch.from_arrays([data, label, path], schema=pa.schema(fields))

    with Store.create(place / "images") as store:
        base = write_dataset(store, "images", Source(pa.schema(fields), ("path",), batches))
        whole = store.new_bytes
        gone = np.flatnonzero(rng.random(images) >= 0.95).tolist()
        base.delete(rows=gone)
        return [Figure("keep_95_percent", 100 * (store.new_bytes - whole) / whole, "%", "< 1")]


def column_added(place: Path, rows: int) -> list[Figure]:
    """A column of labels is added to a table of small columns; a commit, and durable, when the clock stops."""
    rng = np.random.default_rng(12)
    table = pa.table(
        {
            "id": pa.array(np.arange(rows, dtype=np.int64)),
            "score": rng.normal(size=rows).astype(np.float32),
            "path": [f"train/{row:07d}.jpg" for row in range(rows)],
        }
    )
    label = pa.array(rng.integers(0, 10, rows).astype(np.uint8))
    with Store.create(place / "labels") as store:
        base = write_dataset(store, "labels", source(table, "id"))
        alone = _column_alone(place, label, np.diff(base.leaves.starts).tolist())
        plain = len(zstandard.ZstdCompressor(level=3).compress(encode_page(label)))
        seconds, added = [], []
        for number in range(3):
            before, begin = store.new_bytes, time.perf_counter()
            made = base.add_column(f"label{number}", pc.add(label, pa.scalar(number, pa.uint8())))
            seconds.append(time.perf_counter() - begin)
            added.append(store.new_bytes - before)
            base = made.drop_columns([f"label{number}"])
        return [
            Figure("add_column", harness.median(added), "B", "<= 1.2", "pages alone", float(alone)),
            Figure("add_column_zstd", harness.median(added), "B", "", "one zstd frame", float(plain)),
            Figure("add_column_time", harness.median(seconds), "s", "< 2" if rows == LABELLED else ""),
        ]


def _column_alone(place: Path, label: pa.Array, sizes: list[int]) -> int:
    """Stored bytes of the column's pages, and nothing else, in a store of their own."""
    with Store.create(place / "alone") as store:
        start = 0
        for size in sizes:
            store.put(encode_page(label.slice(start, size)))
            start += size
        store.flush()
        return store.new_bytes


def measure_edits(quick: bool) -> list[Figure]:
    """All of the above, each in a store of its own."""
    figures = []
    for run, size, size_quick in (
        (text_edits, ROWS, ROWS_QUICK),
        (images_kept, IMAGES, IMAGES_QUICK),
        (column_added, LABELLED, LABELLED_QUICK),
    ):
        with _place() as place:
            figures += run(place, size_quick if quick else size)
    return figures


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A folder for stores and their indexes, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", dir=os.environ.get("LEPTON_BENCH_DIR")) as folder:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


MEASURES = {
    "edits": measure_edits,
    "history": dataset_history.measure,
    "read": dataset_read.measure,
    "remotes": dataset_remotes.measure,
}


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The chosen ones."""
    return [figure for name in arguments.only or MEASURES for figure in MEASURES[name](arguments.quick)]


def main() -> None:
    """See the module."""
    parser = harness.parser("dataset", __doc__ or "")
    parser.add_argument("--only", choices=list(MEASURES), action="append", help="only this part (may be repeated)")
    arguments = parser.parse_args()
    harness.main("dataset", arguments, measure)


if __name__ == "__main__":
    main()
