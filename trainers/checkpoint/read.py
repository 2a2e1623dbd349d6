"""Reading boxes of tensors: cells that lie in one run of the target's memory go straight there, the others through a buffer.

boxes -> cells that they touch -> by batches, on a few threads: records -> decoded and checked into their place
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from leptonstore.dataset import StoredValue
from leptonstore.errors import ChunkCorrupt, ChunkMissing, FormatDamaged
from trainers.checkpoint.cells import Bits, Box, cell_count, cell_elements, run_of, shared
from trainers.checkpoint.layout import BITS, Described

if TYPE_CHECKING:
    from trainers.checkpoint.saved import Checkpoint

READ_THREADS = 8  # at most
THREADS_PER_CORE = 2  # one waits for the device while the other checks: 0.50 s for 510 MB, and 0.58 with one
BATCH_CELLS = 8  # cells that a thread reads at a time
BATCH_CELLS_FAR = 64  # where a request takes long: as many as the store keeps under way


class Target(NamedTuple):
    """A box of a tensor, and where it goes: unsigned integers, as wide as its elements and in the shape of the box."""

    path: str
    box: Box
    bits: Bits


class _Job(NamedTuple):
    """A cell, and what of it is wanted where."""

    target: Target
    tensor: Described
    number: int
    start: int
    stop: int
    value: StoredValue | bytes
    direct: memoryview | None

    @property
    def size(self) -> int:
        return (self.stop - self.start) * self.tensor.item_bytes


def read_targets(checkpoint: Checkpoint, targets: Sequence[Target]) -> None:
    """See Checkpoint.read."""
    jobs = [job for target in targets for job in _jobs(checkpoint, target)]
    size = BATCH_CELLS_FAR if checkpoint.store.far else BATCH_CELLS
    batches = [jobs[at : at + size] for at in range(0, len(jobs), size)]
    threads = min(READ_THREADS, THREADS_PER_CORE * len(os.sched_getaffinity(0)), len(batches))
    if threads < 2:
        for batch in batches:
            _read(checkpoint, batch)
        return
    with ThreadPoolExecutor(threads, "lepton-load") as pool:
        list(pool.map(lambda batch: _read(checkpoint, batch), batches))


def _jobs(checkpoint: Checkpoint, target: Target) -> Iterator[_Job]:
    tensor = checkpoint.described(target.path)
    if not target.box.elements:
        return
    whose = f"tensor {target.path!r} of {checkpoint.whose}"
    if checkpoint.opened.version == 1:
        each = max(1, tensor.elements)
    else:
        each = cell_elements(tensor.shape, tensor.item_bytes, checkpoint.opened.cell_bytes)
    run = run_of(tensor.shape, target.box)
    flat = target.bits.reshape(-1) if run is not None and target.bits.flags.c_contiguous else None
    first, last = (run[0] // each, -(-run[1] // each)) if run is not None else (0, cell_count(tensor.shape, each))
    for number in range(first, last):
        start, stop = number * each, min((number + 1) * each, tensor.elements)
        if run is None and not shared(tensor.shape, start, stop, target.box):
            continue
        value = checkpoint.cell(target.path, number)
        length = value.length if isinstance(value, StoredValue) else len(value)
        if length != (stop - start) * tensor.item_bytes:
            raise FormatDamaged(f"cell {number} of {whose} has {length} bytes where its layout says {tensor}")
        direct = None
        if flat is not None and run is not None and run[0] <= start and stop <= run[1]:
            direct = flat[start - run[0] : stop - run[0]].view(np.uint8).data
        yield _Job(target, tensor, number, start, stop, value, direct)


def _read(checkpoint: Checkpoint, batch: Sequence[_Job]) -> None:
    outs = [np.empty(job.size, np.uint8).data if job.direct is None else job.direct for job in batch]
    _fill(checkpoint, batch, outs)
    for job, out in zip(batch, outs, strict=True):
        if job.tensor.dtype == "bool" and bool((np.frombuffer(out, np.uint8) > 1).any()):
            raise FormatDamaged(f"{_place(checkpoint, job)} holds bytes that are no booleans")
        if job.direct is None:
            cell = np.frombuffer(out, BITS[job.tensor.item_bytes])
            for one in shared(job.tensor.shape, job.start, job.stop, job.target.box):
                job.target.bits[one.of_box] = one.in_cell(cell)


def _fill(checkpoint: Checkpoint, batch: Sequence[_Job], outs: Sequence[memoryview]) -> None:
    """The cells' bytes, checked."""
    store, asked = checkpoint.store, []
    for job, out in zip(batch, outs, strict=True):
        if isinstance(job.value, StoredValue):
            asked.append((job.value.digest, job, out))
        else:
            out[:] = job.value
    try:
        found = store.find_many([digest for digest, _, _ in asked]) if store.far else None
        if found is not None and found.lengths == [len(out) for _, _, out in asked]:
            found.read_into([out for _, _, out in asked])
            return
        for digest, _, out in asked:
            store.read_into(digest, out)
    except (ChunkCorrupt, ChunkMissing) as error:
        job = next((job for digest, job, _ in asked if digest.hex() == error.digest), batch[0])
        where = _place(checkpoint, job)
        raise (error.at(where) if isinstance(error, ChunkCorrupt) else ChunkMissing(error.digest, where)) from None


def _place(checkpoint: Checkpoint, job: _Job) -> str:
    return f"{checkpoint.whose}, tensor {job.target.path!r}, cell {job.number}"
