"""What the ranks that save one checkpoint tell each other, over a gloo group of their own. Bytes and tensors; nothing is pickled.

The group is apart from the one that trains, so that a save can go on in the background while the other one adds up gradients. Every
method is a collective: all ranks call it, in the same order; one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from leptonstore.errors import BadInput, FormatDamaged

# Of what one rank tells the others at a time: 100 bytes a tensor, 32 a cell. 1 GiB is 3 * 10^7 cells, 32 TiB.
TOLD_BYTES_MAX = 1 << 30
MESSAGE_BYTES = 64 << 20  # of one message of tensor data: gloo counts in 32 bits, and pins what it sends
WAIT_S = 1_800  # for another rank: above the time that the slowest one takes to write its share


class Ranks:
    """Alone: nobody is asked. Otherwise a gloo group of all ranks, made here (a collective) and left by `close`.

    Another framework's processes are a subclass (trainers.jax.JaxRanks), which a Checkpointer takes as its world.
    """

    background = True  # whether another thread may use it while the training's own collectives go on

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._group: Any = None
        if size > 1:
            from torch import distributed

            if not distributed.is_initialized() or distributed.get_world_size() != size:
                raise BadInput(f"{size} ranks save a checkpoint, and they have not joined a process group")
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=WAIT_S))

    def gather(self, data: bytes) -> list[bytes]:
        """What each rank gave, by rank, on all of them."""
        if self.size == 1:
            return [data]
        counts = [int.from_bytes(one, "little") for one in self._all(len(data).to_bytes(8, "little"))]
        longest = max(counts)
        if longest > TOLD_BYTES_MAX:
            raise FormatDamaged(f"a rank tells {longest} bytes, over the limit of {TOLD_BYTES_MAX}")
        if not longest:
            return [b""] * self.size
        return [one[:count] for one, count in zip(self._all(data.ljust(longest, b"\0")), counts, strict=True)]

    def _all(self, mine: bytes) -> list[bytes]:
        """`gather` of as many bytes from every rank, not none; there are several."""
        import torch
        from torch import distributed

        own = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(parts, own, group=self._group)
        return [part.numpy().tobytes() for part in parts]

    def exchange(
        self,
        out: Sequence[np.ndarray[Any, np.dtype[np.uint8]] | None],
        into: Sequence[np.ndarray[Any, np.dtype[np.uint8]] | None],
    ) -> None:
        """Send out[r] to each rank r, and fill into[r] with what it sends, which is exactly as long. None: nothing."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        works = []
        for peer in range(self.size):
            for buffer, start in ((out[peer], distributed.isend), (into[peer], distributed.irecv)):
                for at in range(0, 0 if buffer is None else len(buffer), MESSAGE_BYTES):
                    assert buffer is not None
                    works.append(start(torch.from_numpy(buffer[at : at + MESSAGE_BYTES]), peer, group=self._group))
        for work in works:
            if work is not None:
                work.wait()

    def close(self) -> None:
        """Leave the group. May be called twice."""
        group, self._group = self._group, None
        if group is not None:
            from torch import distributed

            if distributed.is_initialized():
                distributed.destroy_process_group(group)
