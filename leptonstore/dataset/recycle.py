"""Arrow buffers whose memory is used again once nothing refers to them: for scans through more data than memory should hold.

Fresh memory costs as much as all other work on a value (tiers/direct.py): the system zeroes it, and where it has to be got from a
hypervisor, at 1 GB/s. A buffer of a `Recycler` is an ordinary buffer: whoever keeps an array, or any view of it, keeps its memory, and
only when the last one has gone is it given to the next that asks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.tiers.direct import Buffers

WORTH_BYTES_MIN = 1 << 20  # below, malloc has memory at hand


class _Slab(np.ndarray[Any, Any]):
    """Memory that goes back to its pool with its last reference: a memoryview of it keeps it alive, an Arrow buffer that."""

    memory: memoryview
    pool: Buffers

    def __del__(self) -> None:
        pool = getattr(self, "pool", None)  # slices have none, and keep the whole alive
        if pool is not None:
            pool.give(self.memory)


class Recycler:
    """Buffers of up to `slab_bytes` each; the memory of at most `spare_max` of them waits for its next use. Any thread."""

    def __init__(self, slab_bytes: int, spare_max: int) -> None:
        self._slab_bytes = slab_bytes
        self._pool = Buffers(slab_bytes, spare_max)

    def take(self, size: int) -> tuple[pa.Buffer, memoryview]:
        """A buffer of `size` bytes, and a view to fill it by; its content is anything. Longer ones are memory of their own."""
        if not WORTH_BYTES_MIN <= size <= self._slab_bytes:
            buffer = pa.allocate_buffer(size)
            return buffer, memoryview(buffer).cast("B")
        memory = self._pool.take()
        slab = np.frombuffer(memory, np.uint8).view(_Slab)
        slab.memory, slab.pool = memory, self._pool
        view = memoryview(slab)[:size]  # type: ignore[arg-type]
        return pa.py_buffer(view), view
