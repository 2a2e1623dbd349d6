"""Contents of many small files, read by processes of their own (read_worker) and handed over joined."""

from __future__ import annotations

import queue
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from leptonstore import limits
from leptonstore.dataset.importers import read_worker
from leptonstore.errors import LeptonError

Lengths = np.ndarray[Any, np.dtype[np.int64]]


class SmallFiles:
    """A few reading processes. `read` from any thread; a context manager."""

    def __init__(self, processes: int) -> None:
        command = [sys.executable, "-I", "-S", read_worker.__file__, str(limits.TREE_INLINE_BYTES_MAX)]
        self._all: list[subprocess.Popen[bytes]] = []
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        try:
            for _ in range(processes):
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1 << 16)
                self._all.append(process)
                self._free.put(process)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def possible() -> bool:
        """Whether there is an interpreter to start (in a frozen program there is none)."""
        return bool(sys.executable) and Path(read_worker.__file__).is_file()

    def read(self, paths: list[bytes]) -> tuple[Lengths, bytes]:
        """(length of each, or what read_worker says instead; contents joined). Raises LeptonError when a reader died."""
        names = b"\0".join(paths) + b"\0"
        process = self._free.get()
        try:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(read_worker.HEAD.pack(len(paths), len(names)) + names)
                process.stdin.flush()
            except BrokenPipeError:
                raise LeptonError("a process that reads files was ended from outside: run the import again") from None
            lengths = np.frombuffer(_exactly(process, 8 * len(paths)), np.int64)
            return lengths, _exactly(process, int(lengths[lengths > 0].sum()))
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._all:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> SmallFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _exactly(process: subprocess.Popen[bytes], size: int) -> bytes:
    assert process.stdout is not None
    data = process.stdout.read(size)
    if len(data) != size:
        raise LeptonError("a process that reads files was ended from outside: run the import again")
    return data
