"""The bytes of the cells that this rank saves, and of what it sends: copied into memory that is used again, or where they stand.

    staged      a copy of everything: the tensors may change as soon as it is made
    in place    a cell that is one run of one tensor's memory is used where it is: the tensors must not change until the save is done

Memory: what this rank saves, sends and gets, once; kept for the next save. The first save pays for fresh pages, the others do not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from trainers.checkpoint.cells import Bits, run_of, shared
from trainers.checkpoint.layout import BITS, Described
from trainers.checkpoint.leaves import Leaf
from trainers.checkpoint.plan import Cell, Part, Plan
from trainers.checkpoint.ranks import Ranks

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
COPY_THREADS = 4  # at most: memory, not cores, bounds a copy


class Buffer:
    """Memory that grows to what is asked for. One user at a time."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._used = 0

    def begin(self, size: int) -> None:
        """From now on `take` gives out `size` bytes anew; what it gave before is used no more."""
        if len(self._memory) < size:
            self._memory = np.empty(0, np.uint8)  # before the new one is there: two of them may not fit
            self._memory = np.empty(size, np.uint8)
        self._used = 0

    def take(self, size: int) -> Bytes:
        """The next `size` bytes; begins at a multiple of 64."""
        start = self._used
        self._used += _rounded(size)
        return self._memory[start : start + size]


def _rounded(size: int) -> int:
    return -(-size // 64) * 64


class OwnCell(NamedTuple):
    """A cell that this rank saves, and its bytes (whole only after `Staged.exchange`)."""

    cell: Cell
    tensor: Described
    data: Bytes


class _Copy(NamedTuple):
    """One part of a cell, between the memory of its box and the cell's bytes (or a message)."""

    cell: Cell
    tensor: Described
    part: Part
    bits: Bits | None  # of the box, when this rank has it
    to: Bits  # the cell's elements; of a message: the elements, packed
    packed: bool

    def run(self) -> None:
        """From the box."""
        assert self.bits is not None
        at = 0
        for one in shared(self.tensor.shape, self.cell.start, self.cell.stop, self.part.box):
            from_box = self.bits[one.of_box]
            if self.packed:
                self.to[at : at + one.elements].reshape(from_box.shape)[...] = from_box
                at += one.elements
            else:
                one.in_cell(self.to)[...] = from_box

    def unpack(self, message: Bits) -> None:
        """From a message, whose elements are packed."""
        at = 0
        for one in shared(self.tensor.shape, self.cell.start, self.cell.stop, self.part.box):
            target = one.in_cell(self.to)
            target[...] = message[at : at + one.elements].reshape(target.shape)
            at += one.elements


class Staged:
    """What `stage` made. `exchange` completes it, once; the bytes are valid until the buffer begins anew."""

    def __init__(
        self, own: list[OwnCell], out: list[Bytes | None], into: list[Bytes | None], waiting: list[list[_Copy]]
    ) -> None:
        self.own = own
        self._out, self._into, self._waiting = out, into, waiting

    def exchange(self, ranks: Ranks) -> None:
        """Send and get what other ranks save and hold. A collective."""
        ranks.exchange(self._out, self._into)
        for message, copies in zip(self._into, self._waiting, strict=True):
            at = 0
            for copy in copies:
                assert message is not None
                size = _packed_bytes(copy)
                copy.unpack(message[at : at + size].view(BITS[copy.tensor.item_bytes]))
                at += _rounded(size)


def stage(plan: Plan, leaves: dict[str, Leaf], rank: int, size: int, buffer: Buffer, in_place: bool) -> Staged:
    """The cells of `plan` that `rank` saves, and what it has for others. in_place: see above."""
    held = {
        (path, memory.box): memory.read() for path, leaf in leaves.items() for memory in leaf.memory
    }  # of a device: copied to the host here
    mine: list[tuple[Cell, Described, Bytes | None]] = []
    needed = 0
    sends: list[list[tuple[Cell, Described, Part]]] = [[] for _ in range(size)]
    gets: list[list[tuple[int, Cell, Described, Part]]] = [[] for _ in range(size)]
    out_bytes, into_bytes = [0] * size, [0] * size
    for cell in plan.cells:
        tensor = plan.tensors[cell.path]
        if cell.owner == rank:
            view = _in_place(cell, tensor, held, rank) if in_place else None
            needed += 0 if view is not None else _rounded((cell.stop - cell.start) * tensor.item_bytes)
            for part in cell.parts:
                if part.rank != rank:
                    gets[part.rank].append((len(mine), cell, tensor, part))
                    into_bytes[part.rank] += _rounded(_part_bytes(cell, tensor, part))
            mine.append((cell, tensor, view))
        else:
            for part in cell.parts:
                if part.rank == rank:
                    sends[cell.owner].append((cell, tensor, part))
                    out_bytes[cell.owner] += _rounded(_part_bytes(cell, tensor, part))
    buffer.begin(needed + sum(out_bytes) + sum(into_bytes))
    own: list[OwnCell] = []
    copies: list[_Copy] = []
    for cell, tensor, view in mine:
        if view is None:
            view = buffer.take((cell.stop - cell.start) * tensor.item_bytes)
            bits = view.view(BITS[tensor.item_bytes])
            copies += [
                _Copy(cell, tensor, part, held[cell.path, part.box], bits, False)
                for part in cell.parts
                if part.rank == rank
            ]
        own.append(OwnCell(cell, tensor, view))
    out = [buffer.take(count) if count else None for count in out_bytes]
    into = [buffer.take(count) if count else None for count in into_bytes]
    for message, parts in zip(out, sends, strict=True):
        at = 0
        for cell, tensor, part in parts:
            assert message is not None
            count = _part_bytes(cell, tensor, part)
            packed = message[at : at + count].view(BITS[tensor.item_bytes])
            copies.append(_Copy(cell, tensor, part, held[cell.path, part.box], packed, True))
            at += _rounded(count)
    waiting = [
        [
            _Copy(cell, tensor, part, None, own[index].data.view(BITS[tensor.item_bytes]), False)
            for index, cell, tensor, part in parts
        ]
        for parts in gets
    ]
    _run(copies)
    return Staged(own, out, into, waiting)


def _in_place(cell: Cell, tensor: Described, held: dict[tuple[str, Any], Bits], rank: int) -> Bytes | None:
    """The cell's bytes where they stand, None when they are in pieces."""
    if len(cell.parts) != 1 or cell.parts[0].rank != rank:
        return None
    box = cell.parts[0].box
    run, bits = run_of(tensor.shape, box), held[cell.path, box]
    if run is None or not bits.flags.c_contiguous:
        return None
    return bits.reshape(-1)[cell.start - run[0] : cell.stop - run[0]].view(np.uint8)


def _part_bytes(cell: Cell, tensor: Described, part: Part) -> int:
    return tensor.item_bytes * sum(one.elements for one in shared(tensor.shape, cell.start, cell.stop, part.box))


def _packed_bytes(copy: _Copy) -> int:
    return _part_bytes(copy.cell, copy.tensor, copy.part)


def _run(copies: Sequence[_Copy]) -> None:
    """All of them, on several cores: numpy lets others run while it copies."""
    threads = min(COPY_THREADS, len(os.sched_getaffinity(0)), len(copies))
    if threads < 2:
        for copy in copies:
            copy.run()
        return

    def share(number: int) -> None:
        for copy in copies[number::threads]:
            copy.run()

    with ThreadPoolExecutor(threads, "lepton-stage") as pool:
        list(pool.map(share, range(threads)))
