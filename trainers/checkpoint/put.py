"""Cells into the store: hashed, looked up, and only where they are new compressed (where that pays) and written.

Trained floats have random mantissas: byte planes and zstd save 13% of float32 and take longer than writing it. So a cell of floats is
stored as it is, unless a sample says that it shrinks well (zeros of a fresh optimizer, values of a narrower type in a wider one).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from leptonstore import codec
from leptonstore.codec import Encoded
from leptonstore.digest import Digest, digest_of
from leptonstore.format.pack import CODEC_RAW, PLANE_WIDTHS
from leptonstore.store import Store
from trainers.checkpoint.layout import FLOATS
from trainers.checkpoint.staging import OwnCell

SAMPLE_BYTES = 4 << 10  # from the middle of a cell: 40 us, a twentieth of what hashing and writing it take
# A cell of floats is compressed when its sample shrinks to this share. Random float32 in planes comes to 0.87, bfloat16 to 0.7.
SHRINKS_TO = 0.6
PUT_THREADS_MAX = 4  # 4 GB/s each: more than a device takes


def put_threads() -> int:
    """How many threads hash, of a save that has the machine for itself: the store's own append as many more (0.64 s for 510 MB with one on
    two cores, 0.75 to 0.85 s with two and more)."""
    return max(1, min(PUT_THREADS_MAX, len(os.sched_getaffinity(0)) // 2))


def put_cells(store: Store, cells: Sequence[OwnCell], threads: int) -> list[Digest]:
    """Put all of them, on `threads` threads; their digests in order. The bytes must not change until the store was flushed.

    Raises StoreFull.
    """
    if threads < 2 or len(cells) < 2:
        return [put_cell(store, cell) for cell in cells]
    with ThreadPoolExecutor(threads, "lepton-save") as pool:
        return list(pool.map(lambda cell: put_cell(store, cell), cells))


def put_cell(store: Store, cell: OwnCell) -> Digest:
    """Raises StoreFull, now or at a later call."""
    view = cell.data.data
    width = cell.tensor.item_bytes if cell.tensor.dtype in FLOATS else 0
    if len(view) > store.config.chunks.cut_above:  # a store with smaller chunks cuts it as it likes
        return store.put(view, plane_width=width)
    digest = digest_of(view)
    raw = Encoded(CODEC_RAW, view, len(view)) if width > 1 and not shrinks(view, width) else None
    store.put_checked(digest, view, plane_width=width if width in PLANE_WIDTHS else 0, encoded=raw)
    return digest


def shrinks(data: memoryview, width: int) -> bool:
    """Whether floats are worth compressing, judged by a sample."""
    start = max(0, (len(data) - SAMPLE_BYTES) // 2 // width * width)
    sample = data[start : start + SAMPLE_BYTES]
    made = codec.encode(sample, level=1, plane_width=width if width in PLANE_WIDTHS else 0)
    return len(made.payload) <= SHRINKS_TO * len(sample)
