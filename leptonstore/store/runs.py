"""A set of fixed-width keys that may be larger than memory: sorted runs in a temporary file, merged once.

Keys are collected in memory up to SPILL_BYTES, sorted, made unique and written out as a run; `finish` merges the runs, block by
block, into one sorted array that is mapped from its file. The files have no name: nothing is left behind, however the process ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from leptonstore import limits

Keys: TypeAlias = "np.ndarray[Any, np.dtype[np.bytes_]]"
_BLOCK_KEYS_MIN = 256


def sort_unique(keys: Keys) -> Keys:
    """Sorted, each once. Keys of 16 bytes are compared as two integers, which is several times faster than as bytes."""
    if keys.dtype.itemsize != 16:
        return np.unique(keys)
    words = np.ascontiguousarray(keys).view(">u8").astype(np.uint64).reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))
    words = words[order]
    first = np.ones(len(keys), np.bool_)
    first[1:] = (words[1:] != words[:-1]).any(axis=1)
    return keys[order[first]]


def iter_keys(keys: Keys) -> Iterator[bytes]:
    """Each key with all of its bytes: numpy would drop zeros at the end."""
    width = keys.dtype.itemsize
    for start in range(0, len(keys), 4096):
        data = keys[start : start + 4096].tobytes()
        yield from (data[at : at + width] for at in range(0, len(data), width))


class SortedRuns:
    """Collects keys of `width` bytes. One thread. Memory: SPILL_BYTES and what sorting that much takes."""

    def __init__(self, width: int, folder: Path | None = None) -> None:
        self._width, self._folder = width, folder
        self._dtype = np.dtype(f"S{width}")
        self._buffer = bytearray()
        self._runs: list[Keys] = []

    def add(self, key: bytes) -> None:
        """Add one key of exactly `width` bytes."""
        self._buffer += key
        if len(self._buffer) >= limits.SPILL_BYTES:
            self._spill()

    def add_all(self, keys: Iterable[bytes]) -> None:
        """Add several keys."""
        for key in keys:
            self.add(key)

    def add_block(self, keys: Keys) -> None:
        """Add many keys, in any order. They are copied."""
        step = max(1, limits.SPILL_BYTES // self._width)
        for start in range(0, len(keys), step):
            self.add(keys[start : start + step].tobytes())

    def add_sorted(self, keys: Keys) -> None:
        """Add keys that are sorted already, each once. They are not copied."""
        if len(keys):
            self._runs.append(keys)

    def _take(self) -> Keys:
        keys = sort_unique(np.frombuffer(bytes(self._buffer), self._dtype))
        self._buffer.clear()
        return keys

    def _spill(self) -> None:
        self._runs.append(_mapped([self._take()], self._dtype, self._folder))

    def finish(self) -> Keys:
        """All keys, sorted, each once: in memory when they were few, else mapped from a file. Call it once."""
        if self._buffer:
            self._runs.append(self._take())
        runs, self._runs = self._runs, []
        if len(runs) <= 1:
            return runs[0] if runs else np.empty(0, self._dtype)
        merged = _merge(runs, max(_BLOCK_KEYS_MIN, limits.SPILL_BYTES // (self._width * len(runs))))
        if sum(len(run) for run in runs) * self._width <= limits.SPILL_BYTES:
            return np.concatenate(list(merged))
        return _mapped(merged, self._dtype, self._folder)


def _mapped(parts: Iterable[Keys], dtype: np.dtype[Any], folder: Path | None) -> Keys:
    """`parts` one after the other, in a file without a name, mapped for reading."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        count = 0
        for part in parts:
            file.write(part.tobytes())
            count += len(part)
        file.flush()
        return np.memmap(file, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)


def _merge(runs: list[Keys], block: int) -> Iterator[Keys]:
    """Sorted parts of the union: in each step, all keys up to the smallest last key of the blocks at hand."""
    at = [0] * len(runs)
    while True:
        live = [number for number, run in enumerate(runs) if at[number] < len(run)]
        if not live:
            return
        blocks = {number: np.asarray(runs[number][at[number] : at[number] + block]) for number in live}
        bound = min(part[-1] for part in blocks.values())
        pieces = []
        for number, part in blocks.items():
            count = int(np.searchsorted(part, bound, side="right"))
            at[number] += count
            pieces.append(part[:count])
        yield sort_unique(np.concatenate(pieces))


def positions(
    keys: Keys, wanted: Keys
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """For each of `wanted`: its position in the sorted `keys`, and whether it is there at all."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, np.asarray(keys[at] == wanted)


def scratch_array(count: int, dtype: Any, folder: Path | None) -> np.ndarray[Any, np.dtype[Any]]:
    """Zeros: in memory when they are few, else in a file without a name."""
    dtype = np.dtype(dtype)
    if count * dtype.itemsize <= limits.SPILL_BYTES:
        return np.zeros(count, dtype)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(count * dtype.itemsize)
        return np.memmap(file, dtype, "r+", shape=(count,))
