"""Cells: pieces of a tensor on a grid that depends on the tensor alone, whoever holds which part of it.

    tensor [rows, …]  ->  C order  ->  cells of `cell_elements` elements each, the last one shorter

A cell is a whole number of rows of the *global* tensor. So equal content has equal cells on every number of ranks and in every
sharding, and a tensor of which a part changed shares the others. Where one row is longer than a cell, rows are cut: "row" is then the
longest run of trailing dimensions that fits a cell.

A box is a part of a tensor that somebody holds: offsets and sizes in each dimension. What a cell and a box share is a few rectangles,
since a run of elements in C order is at most 2 x dimensions - 1 of them. Arrays are numpy arrays of unsigned integers as wide as an
element: bits are moved, and no value is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

# A cell becomes one record. Of 1 MiB: 64 bytes of header and 64 of index for each are nothing, one changed row costs no more than this,
# and hashing and copying stay inside a core's cache. (0.5 to 4 MiB were equally fast, decisions/0036.)
CELL_BYTES = 1 << 20

Extents: TypeAlias = tuple[int, ...]
Bits: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Box(NamedTuple):
    """A part of a tensor: where it begins in each dimension, and how long it is there."""

    offsets: Extents
    sizes: Extents

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.sizes)


def whole(shape: Extents) -> Box:
    """All of a tensor."""
    return Box((0,) * len(shape), shape)


def cell_elements(shape: Extents, item_bytes: int, cell_bytes: int = CELL_BYTES) -> int:
    """Elements of each cell but the last; at least 1."""
    most, row = max(1, cell_bytes // item_bytes), 1
    for size in reversed(shape):
        if row * size > most:
            break
        row *= max(1, size)
    return most // row * row


def cell_count(shape: Extents, each: int) -> int:
    """Cells of a tensor; none when it has no elements."""
    return -(-math.prod(shape) // each)


def rectangles(shape: Extents, start: int, stop: int) -> Iterator[Box]:
    """The elements [start, stop) of a tensor in C order as boxes, in that order; each is one run of it."""
    if start >= stop:
        return
    if not shape:
        yield Box((), ())
        return
    inner, deeper = math.prod(shape[1:]), shape[1:]
    (first, head), (last, tail) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        yield from _in_row(first, deeper, head, tail)
        return
    if head:
        yield from _in_row(first, deeper, head, inner)
        first += 1
    if first < last:
        yield Box((first, *(0,) * len(deeper)), (last - first, *deeper))
    if tail:
        yield from _in_row(last, deeper, 0, tail)


def _in_row(row: int, shape: Extents, start: int, stop: int) -> Iterator[Box]:
    for box in rectangles(shape, start, stop):
        yield Box((row, *box.offsets), (1, *box.sizes))


def overlap(left: Box, right: Box) -> Box | None:
    """What two boxes share, None when that is nothing."""
    offsets = tuple(map(max, left.offsets, right.offsets))
    ends = [min(a + n, b + m) for a, n, b, m in zip(left.offsets, left.sizes, right.offsets, right.sizes, strict=True)]
    sizes = tuple(end - offset for end, offset in zip(ends, offsets, strict=True))
    return Box(offsets, sizes) if all(size > 0 for size in sizes) else None


def run_of(shape: Extents, box: Box) -> tuple[int, int] | None:
    """The elements [start, stop) of the tensor that a box is, None when it is no single run of them."""
    long = [at for at, size in enumerate(box.sizes) if size != 1]
    if long and any(box.sizes[at] != shape[at] for at in range(long[0] + 1, len(shape))):
        return None
    start = 0
    for size, offset in zip(shape, box.offsets, strict=True):
        start = start * size + offset
    return start, start + box.elements


class Shared(NamedTuple):
    """One rectangle that a cell and a box share: where its rectangle of the cell begins there, and slices of both."""

    at: int
    rectangle: Extents
    of_cell: tuple[Any, ...]
    of_box: tuple[Any, ...]
    elements: int

    def in_cell(self, cell: Bits) -> Bits:
        """These elements of the cell's bits (one dimension), as a view."""
        return cell[self.at : self.at + math.prod(self.rectangle)].reshape(self.rectangle)[self.of_cell]


def shared(shape: Extents, start: int, stop: int, box: Box) -> list[Shared]:
    """What the cell [start, stop) of a tensor and a box share, in the order of the cell; empty when that is nothing."""
    out, at = [], 0
    for rectangle in rectangles(shape, start, stop):
        both = overlap(rectangle, box)
        if both is not None:
            out.append(Shared(at, rectangle.sizes, _slices(both, rectangle), _slices(both, box), both.elements))
        at += rectangle.elements
    return out


def _slices(inner: Box, outer: Box) -> tuple[Any, ...]:
    """Ending in an ellipsis, with which numpy gives a view also of an array without dimensions."""
    slices = [
        slice(offset - base, offset - base + size)
        for offset, base, size in zip(inner.offsets, outer.offsets, inner.sizes, strict=True)
    ]
    return (*slices, ...)
