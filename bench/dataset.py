"""`python -m bench.dataset`: what versions of a dataset cost.

edits    100,000 rows of a text of about 900 B (words of a vocabulary by Zipf's law) and three scalars: stored bytes that an edit adds, as a
         share of what the first version takes. Then 3,000 images of 50 KB of which a random 95 % is kept, and a column of labels that is added
         to 1,000,000 rows (bytes beside those of the column alone as zstd makes them, and seconds).

Contract: 3,000 rows inserted in 30 places <= 6.7 %, 4,000 deleted in 40 places <= 9.7 %, 3,000 inserted as one block <= 4 %, 300 single rows
changed <= 25 %; keeping 95 % of images < 1 %; the column <= 1.2x of it alone, in < 2 s.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import zstandard

from bench import harness
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
    """Stored bytes that these edits add, in percent of `whole`. What one measurement stored must not help another: in a store of its own."""
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


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", dir=os.environ.get("LEPTON_BENCH_DIR")) as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        import sys
        from leptonstore import limits

        if len(sys.argv) > 1:
            limits.PAGE_PART_BYTES = int(sys.argv[1]) * 1024
        if len(sys.argv) > 2:
            limits.ROW_GROUP_ROWS_MIN, limits.ROW_GROUP_ROWS_AVG, limits.ROW_GROUP_ROWS_MAX = map(
                int, sys.argv[2].split(",")
            )
        for f in text_edits(Path(folder), ROWS):
            print(f.name, round(f.value, 3), f.unit, f.bound)


if __name__ == "__main__":
    main()
