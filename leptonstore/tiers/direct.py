"""Writing large files around the page cache (O_DIRECT), and the memory that this needs.

Fresh memory is what a page cache is made of, and in a virtual machine it has to be got from the host: where this was measured,
it cost up to 2 ns a byte of CPU, as much as hashing and compressing together. O_DIRECT wants memory, offsets and lengths in
whole blocks. Filesystems that cannot (tmpfs, some network ones) are written to as usual.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future

from leptonstore import limits
from leptonstore.digest import Buffer

ALIGN = 4096  # a multiple of every logical block size in use
REFUSED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


def aligned_memory(size: int) -> memoryview:
    """At least `size` bytes that begin at a page."""
    return memoryview(mmap.mmap(-1, -(-size // ALIGN) * ALIGN))


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """All of `data` at `offset`."""
    while len(data):
        written = os.pwritev(fd, [data], offset)
        data, offset = data[written:], offset + written


def set_direct(fd: int, on: bool) -> bool:
    """Whether writes to `fd` bypass the page cache from now on: False where the filesystem refuses, or with on=False."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return False
    return on


def write_blocks(fd: int, data: memoryview, offset: int, direct: bool) -> bool:
    """Write whole blocks; a device that refuses them with O_DIRECT is written to without. Returns whether it is still used."""
    try:
        write_all(fd, data, offset)
    except OSError as error:
        if not direct or error.errno not in REFUSED:
            raise
        set_direct(fd, False)
        write_all(fd, data, offset)
        return False
    return direct


class ThreadMemory:
    """Aligned memory of each thread's own, used again by its next call. Any thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def take(self, size: int) -> memoryview:
        """The calling thread's, until it asks again: `size` bytes, rounded up to whole blocks; its content is anything."""
        size = -(-size // ALIGN) * ALIGN
        memory: memoryview | None = getattr(self._local, "memory", None)
        if memory is None or len(memory) < size:
            memory = self._local.memory = aligned_memory(size)
        return memory[:size]


class Buffers:
    """Aligned memory of one size, used again and again: fresh memory is what this module avoids. Any thread."""

    def __init__(self, size: int, spare_max: int) -> None:
        self._size, self._spare_max = size, spare_max
        self._spare: list[memoryview] = []  # append and pop are atomic

    def take(self) -> memoryview:
        """Memory of `size` bytes; its content is anything."""
        try:
            return self._spare.pop()
        except IndexError:
            return aligned_memory(self._size)

    def give(self, memory: memoryview) -> None:
        """It is used no more."""
        if len(self._spare) < self._spare_max:
            self._spare.append(memory)

    @property
    def spare(self) -> int:
        """How many wait for their next use."""
        return len(self._spare)

    def forget(self) -> None:
        """Let go of what is spare: nobody needs it for a while, or this is a forked child, which shares it with its parent."""
        self._spare = []


# Of all directories of a process: a daemon has a store open for each writer and each job, and 16 MiB of spare memory for each add up.
append_buffers = Buffers(limits.APPEND_BUFFER_BYTES, limits.APPEND_BUFFERS_SPARE_MAX)
os.register_at_fork(after_in_child=append_buffers.forget)


class Appender:
    """Collects what is appended to a new file, and writes a buffer at a time in another thread. Any thread.

    A file that fits one buffer is written by `finish`, as usual. Memory: two buffers.
    """

    def __init__(self, fd: int, reading_fd: int, buffers: Buffers, executor: Callable[[], Executor]) -> None:
        """fd: an empty file, to be closed by the caller after `finish` or `settle`. reading_fd: the same one without O_DIRECT.

        `executor` is asked for when the first buffer is full.
        """
        self._fd, self._reading_fd, self._buffers, self._executor = fd, reading_fd, buffers, executor
        self._lock = threading.RLock()
        self._memory: memoryview | None = None
        self._start = 0  # offset in the file of the buffer that is being filled
        self._filled = 0
        self._direct = False
        self._writing: tuple[Future[None], memoryview] | None = None

    @property
    def length(self) -> int:
        """Bytes that were appended."""
        return self._start + self._filled

    def append(self, *parts: Buffer) -> None:
        """Keep all of `parts`, which may change afterwards. Raises OSError, also of an earlier write."""
        with self._lock:
            for part in parts:
                view = memoryview(part).cast("B")
                while len(view):
                    if self._memory is None:
                        self._memory = self._buffers.take()
                    count = min(len(self._memory) - self._filled, len(view))
                    self._memory[self._filled : self._filled + count] = view[:count]
                    self._filled += count
                    view = view[count:]
                    if self._filled == len(self._memory):
                        self._hand_over(self._memory)

    def _hand_over(self, memory: memoryview) -> None:
        self._wait()
        self._prepare(self._start, self._start + len(memory))
        self._writing = self._executor().submit(self._write, memory, self._start), memory
        self._memory, self._start, self._filled = None, self._start + len(memory), 0

    # Where the bytes go: these four are what somebody overrides whose pack is no file.

    def _prepare(self, start: int, end: int) -> None:
        """The caller's thread, before a full buffer is written from `start` to `end`."""
        if start == 0:
            self._direct = set_direct(self._fd, True)

    def _write(self, memory: memoryview, offset: int) -> None:
        """In the other thread. Nobody else uses the descriptor meanwhile."""
        self._direct = write_blocks(self._fd, memory, offset, self._direct)

    def _write_last(self, memory: memoryview, filled: int, offset: int) -> None:
        """The caller's thread: `filled` bytes of `memory`, the last ones."""
        blocks = filled - filled % ALIGN if self._direct else 0
        write_blocks(self._fd, memory[:blocks], offset, self._direct)
        if self._direct:
            set_direct(self._fd, False)
        write_all(self._fd, memory[blocks:filled], offset + blocks)

    def _read_back(self, offset: int, length: int) -> bytes:
        """What was written there."""
        return os.pread(self._reading_fd, length, offset)

    def _wait(self) -> None:
        """Under the lock: until nothing is being written. Raises what went wrong."""
        if self._writing is not None:
            (job, memory), self._writing = self._writing, None
            error = job.exception()
            self._buffers.give(memory)
            if error is not None:
                raise error

    def read(self, offset: int, length: int) -> bytes:
        """What was appended there, before `finish` or after. Raises OSError."""
        with self._lock:
            end, data = offset + length, b""
            if offset < self._start:
                self._wait()
                data = self._read_back(offset, min(end, self._start) - offset)
            if end > self._start and self._memory is not None:
                data += self._memory[max(offset, self._start) - self._start : end - self._start]
            return data

    def finish(self) -> int:
        """Write what is left; returns the length of the file, which is not synced. Nothing can be appended after it."""
        with self._lock:
            self._wait()
            if self._memory is not None:
                self._write_last(self._memory, self._filled, self._start)
                self._start, self._filled = self.length, 0
                self._buffers.give(self._memory)
                self._memory = None
            return self._start

    def settle(self) -> None:
        """Until nobody uses the descriptor, whatever became of it. What is in memory is dropped."""
        with self._lock:
            if self._writing is not None:
                job, memory = self._writing
                job.exception()
                self._writing = None
                self._buffers.give(memory)
            if self._memory is not None:
                self._buffers.give(self._memory)
                self._memory = None
