"""Where a long byte string is cut, so that an edit in the middle leaves most pieces as they were.

FastCDC 2020 (Xia et al., IEEE TPDS, doi 10.1109/TPDS.2020.2984632) through `pyfastcdc`, which releases the GIL. The sizes are
settings of the store, written in its config: two writers of one store always cut alike.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from pyfastcdc import FastCDC

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput

# pyfastcdc's own ranges
_AVG_RANGE, _MIN_RANGE, _MAX_RANGE = (256, 4 << 20), (64, 1 << 20), (1024, 16 << 20)


@dataclass(frozen=True)
class ChunkSizes:
    """Bytes. Values up to `cut_above` stay whole; the average piece of a longer one is min_size + avg_size."""

    cut_above: int = limits.CHUNK_CUT_ABOVE_BYTES
    min_size: int = limits.CHUNK_MIN_BYTES
    avg_size: int = limits.CHUNK_AVG_BYTES
    max_size: int = limits.CHUNK_MAX_BYTES

    def __post_init__(self) -> None:
        for name, value, (least, most) in (
            ("min_size", self.min_size, _MIN_RANGE),
            ("avg_size", self.avg_size, _AVG_RANGE),
            ("max_size", self.max_size, _MAX_RANGE),
            ("cut_above", self.cut_above, (_MAX_RANGE[0], limits.CHUNK_BYTES_MAX)),
        ):
            if not isinstance(value, int) or not least <= value <= most:
                raise BadInput(f"chunk {name} is {value!r} bytes; it must be from {least} to {most}")
        if not self.min_size < self.avg_size < self.max_size <= limits.CHUNK_BYTES_MAX:
            raise BadInput("chunk sizes must ascend: min < avg < max")


class Chunker:
    """Cuts buffers by `sizes`. One instance may be used from several threads: each has its own FastCDC."""

    def __init__(self, sizes: ChunkSizes, seed: int = 0) -> None:
        """`seed`: 63 bits that FastCDC's table is altered by (each entry XOR seed); 0 is the published table."""
        self.sizes, self.seed = sizes, seed
        self._local = threading.local()

    def cut(self, data: Buffer) -> Iterator[memoryview]:
        """The pieces of `data`, in order; one piece when it is not longer than `sizes.cut_above`."""
        view = memoryview(data).cast("B")
        if len(view) <= self.sizes.cut_above:
            yield view
        else:
            yield from self.cut_stream(view)

    def cut_stream(self, window: Buffer) -> Iterator[memoryview]:
        """The pieces of a window of a longer value that begins at a cut.

        All but the last are pieces of the value; the last one is, too, when the value ends with the window, and else has
        to be put before the next window: where a piece ends depends only on what follows the cut before it.
        """
        view = memoryview(window).cast("B")
        fastcdc = getattr(self._local, "fastcdc", None)
        if fastcdc is None:
            sizes = self.sizes
            fastcdc = FastCDC(sizes.avg_size, min_size=sizes.min_size, max_size=sizes.max_size, seed=self.seed)
            self._local.fastcdc = fastcdc
        for chunk in fastcdc.cut_buf(view):
            yield view[chunk.offset : chunk.offset + chunk.length]
