"""Writing large files of an export: decoded in parallel into windows, written around the page cache, zeros as holes.

    window k:   decode its pieces (a pool) -> hash in order -> write (the pool)     three windows: k+1 is decoded meanwhile, k-1 written

Bypassing the page cache (O_DIRECT) saves a copy and, in a virtual machine, the price of fresh memory: where this was
measured, 512 MiB took 0.3 s and no CPU instead of 0.1 to 1.2 s of CPU. Filesystems that cannot (tmpfs, some network ones)
are written to as usual. O_DIRECT wants memory, offsets and lengths in whole blocks: the last block of a file is padded and
the file cut to its length after it.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from blake3 import blake3

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.errors import ChunkCorrupt
from leptonstore.store import Store
from leptonstore.tiers.direct import ALIGN, aligned_memory, set_direct, write_blocks

WINDOWS = 3


class DirectFile:
    """A new, empty file of known size that is written from its beginning to its end, by one thread at a time."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        self._direct = size >= limits.DIRECT_WRITE_BYTES_MIN and set_direct(fd, True)

    def write(self, memory: memoryview, length: int, offset: int) -> None:
        """The first `length` bytes of `memory` (from `aligned_memory`) at `offset`, a whole number of blocks.

        All of them at the file's end, where up to a block behind `length` is overwritten in `memory`; else whole blocks only,
        and the caller brings the rest again.
        """
        end = offset + length
        if end < self._size:
            length -= length % ALIGN
            self._write_blocks(memory[:length], offset)
            return
        padded = -(-length // ALIGN) * ALIGN if self._direct else length
        memory[length:padded] = bytes(padded - length)
        self._write_blocks(memory[:padded], offset)
        os.ftruncate(self._fd, self._size)  # without the padding, or up to the hole that it ends with

    def _write_blocks(self, data: memoryview, offset: int) -> None:
        for start, end in _filled_runs(data):
            self._direct = write_blocks(self._fd, data[start:end], offset + start, self._direct)


def _filled_runs(data: memoryview) -> Iterator[tuple[int, int]]:
    """What is not zeros, in steps of EXPORT_HOLE_BYTES: [start, end) of each run."""
    step, start = limits.EXPORT_HOLE_BYTES, -1
    values = np.frombuffer(data, np.uint8)
    for at in range(0, len(data), step):
        # Most blocks show at their first byte or two that they are no hole.
        filled = values[at] != 0 or bool(values[at : at + step].any())
        if filled and start < 0:
            start = at
        elif not filled and start >= 0:
            yield start, at
            start = -1
    if start >= 0:
        yield start, len(data)


class _Window:
    """Consecutive pieces of a file, decoded into one stretch of memory behind `carry` bytes of the window before."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.carry = self.length = 0
        self.jobs: list[Future[Any]] = []  # that decode into it, or the one that writes it

    def begin(self, store: Store, pieces: list[tuple[Digest, int]], carry: int, pool: ThreadPoolExecutor) -> None:
        """Decode `pieces` behind `carry` bytes, once what it held is written. Raises what that raised."""
        self.wait()
        at = carry
        self.carry, self.jobs = carry, []
        for digest, length in pieces:
            # The digest of the whole says as much as those of its pieces.
            self.jobs.append(pool.submit(store.read_into, digest, self.memory[at : at + length], check=False))
            at += length
        self.length = at

    def wait(self) -> None:
        """Until its jobs are done. Raises what one of them raised."""
        for job in self.jobs:
            job.result()

    def settle(self) -> None:
        """Until nobody writes to the memory, whatever became of it."""
        wait(self.jobs)


def _groups(pieces: tuple[tuple[Digest, int], ...]) -> list[list[tuple[Digest, int]]]:
    groups: list[list[tuple[Digest, int]]] = []
    room = 0
    for piece in pieces:
        if not groups or piece[1] > room:
            groups.append([])
            room = limits.EXPORT_WINDOW_BYTES
        groups[-1].append(piece)
        room -= piece[1]
    return groups


class LargeFiles:
    """Writes values that have pieces. Windows and threads are kept from one to the next. Any thread."""

    def __init__(self, store: Store, decoders: ThreadPoolExecutor) -> None:
        """`decoders`: a pool whose jobs wait for nothing; not one whose threads call `write`."""
        self._store, self._pool = store, decoders
        self._spare: queue.SimpleQueue[memoryview] = queue.SimpleQueue()

    def _memory(self, size: int) -> memoryview:
        with contextlib.suppress(queue.Empty):
            spare = self._spare.get_nowait()
            if len(spare) >= size:
                return spare
        return aligned_memory(size)

    def write(self, fd: int, digest: Digest, size: int, pieces: tuple[tuple[Digest, int], ...]) -> None:
        """Write the value `digest` of `size` bytes to a new file. Raises ChunkMissing, ChunkCorrupt or OSError."""
        longest = max((length for _, length in pieces), default=0)
        if not pieces or sum(length for _, length in pieces) != size or longest > limits.CHUNK_BYTES_MAX:
            raise ChunkCorrupt(digest.hex(), "-", "its pieces do not add up to it")
        room = max(limits.EXPORT_WINDOW_BYTES, longest) + 2 * ALIGN
        windows = [_Window(self._memory(room)) for _ in range(WINDOWS)]
        try:
            found = self._write(windows, DirectFile(fd, size), _groups(pieces))
        finally:
            for window in windows:
                window.settle()
                self._spare.put(window.memory)
        if found != digest:
            for piece, _ in pieces:
                self._store.get(piece)  # says which one, and where it is
            raise ChunkCorrupt(digest.hex(), "-", "its pieces do not add up to it")

    def _write(self, windows: list[_Window], file: DirectFile, groups: list[list[tuple[Digest, int]]]) -> Digest:
        hasher, offset = blake3(), 0
        windows[0].begin(self._store, groups[0], 0, self._pool)
        for number in range(len(groups)):
            before, window, following = (windows[(number + step) % WINDOWS] for step in (-1, 0, 1))
            last = number + 1 == len(groups)
            rest = 0 if last else window.length % ALIGN
            if not last:
                # Where it begins is known from the lengths, before what it begins with is decoded.
                following.begin(self._store, groups[number + 1], rest, self._pool)
            window.wait()
            hasher.update(window.memory[window.carry : window.length])
            following.memory[:rest] = window.memory[window.length - rest : window.length]
            before.settle()  # one write of a file at a time, in order
            window.jobs = [self._pool.submit(file.write, window.memory, window.length, offset)]
            offset += window.length - rest
        for window in windows:
            window.wait()
        return hasher.digest()
