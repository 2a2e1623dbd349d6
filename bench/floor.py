"""What the work of an import costs with nothing around it: the time that no program with these parts can beat.

python -m bench.floor DIR       all files in memory; FastCDC, BLAKE3 and zstd of every new chunk on all cores; seconds as JSON

A process of its own: it holds the whole tree in memory, which would count as the peak of every program that is started from it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3

from bench.trees import files_of
from leptonstore import codec
from leptonstore.chunking import Chunker, ChunkSizes

_SHARED_BELOW, _PAGE = 4 << 10, 16 << 10  # smaller files share pages, as they do in a store


def load(tree: Path) -> list[bytes]:
    """Every file of 4 KiB and more, largest first, and the smaller ones joined to pages of 16 KiB."""
    large: list[bytes] = []
    page = bytearray()
    for path in files_of(tree):
        data = path.read_bytes()
        if len(data) >= _SHARED_BELOW:
            large.append(data)
            continue
        page += data
        if len(page) >= _PAGE:
            large.append(bytes(page))
            page.clear()
    return sorted([*large, bytes(page)], key=len, reverse=True)


def measure(tree: Path, level: int) -> dict[str, float]:
    """Seconds of cutting, and of digest and compression, with one thread for each core; bytes in and out."""
    values = load(tree)
    chunker = Chunker(ChunkSizes())
    seen: set[bytes] = set()

    def store(piece: memoryview) -> int:
        digest = blake3.blake3(piece).digest()
        if digest in seen:
            return 0
        seen.add(digest)
        return len(codec.encode(piece, level).payload)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start = time.perf_counter()
        pieces = [piece for cut in pool.map(lambda value: list(chunker.cut(value)), values) for piece in cut]
        cut_seconds = time.perf_counter() - start
        stored = sum(pool.map(store, pieces))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "cut_seconds": cut_seconds, "bytes": sum(map(len, values)), "stored_bytes": stored}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), 3)))
