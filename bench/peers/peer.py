"""What the peers of bench.loader share: data, epochs, memory, the answer. Needs numpy alone: it runs in every peer's environment.

NAME.py mnist DATA.npz FOLDER        arrays `images` (n, 28, 28) uint8 and `labels` (n,) int64; the peer writes its own format
                                     into FOLDER, then reads shuffled epochs of batches of 256
NAME.py tokens FILE FOLDER           uint16 numbers; the first TOKEN_WINDOWS windows of TOKEN_LENGTH become samples in the peer's
                                     format, read in shuffled epochs of batches of 64
NAME.py write DATA.npz FOLDER        `values` (n, bytes) uint8 and `labels`, in the peer's format: what the bench puts into a bucket
NAME.py remote URL FOLDER ENDPOINT   one shuffled epoch of batches of 64 out of the bucket, cold, FOLDER is the local cache
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

BATCH, WORKERS = 256, 2
REMOTE_BATCH = 64
TOKEN_LENGTH, TOKEN_WINDOWS = 2_049, 40_000


def arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of DATA.npz, in memory."""
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def timed(batches: Iterable[Any], rows_of: Callable[[Any], int]) -> tuple[int, float]:
    """(rows, seconds) of one pass."""
    began, rows = time.perf_counter(), 0
    for batch in batches:
        rows += rows_of(batch)
    return rows, time.perf_counter() - began


def best(
    make: Callable[[], Iterable[Any]], rows_of: Callable[[Any], int], rows: int, epochs: int = 3
) -> dict[str, Any]:
    """Samples per second of the first epoch and of the quickest one after it."""
    seconds = []
    for _ in range(epochs):
        seen, took = timed(make(), rows_of)
        assert seen == rows, f"{seen} rows of {rows}"
        seconds.append(took)
    return {"first_per_s": rows / seconds[0], "samples_per_s": rows / min(seconds[1:])}


def answer(result: dict[str, Any]) -> None:
    """Print it, with the peak of the memory of this process and of its largest worker."""
    # Of this process by its status: Linux hands ru_maxrss on to what a process executes.
    own = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith("VmHWM"))
    kib = int(own.split()[1]) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Some of these libraries keep threads that never end.
    print(json.dumps({**result, "peak_mib": kib / 1024}), flush=True)
    os._exit(0)
