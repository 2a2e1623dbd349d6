"""Who saves which cell: a pure function of what each rank holds, so that every rank makes the same plan by itself.

A cell is saved once, by a rank that holds part of it: the one that was given the fewest bytes so far, the lowest of equals. So what
every rank holds (DDP) is spread over all of them. What else of the cell lies on other ranks (a cell across the edge of a shard, a
tensor that is cut by columns) is sent to that rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from leptonstore.errors import BadInput
from trainers.checkpoint.cells import CELL_BYTES, Box, cell_count, cell_elements, run_of, shared
from trainers.checkpoint.layout import Described, Held


class Part(NamedTuple):
    """What the saving rank of a cell gets from one box, which `rank` holds."""

    rank: int
    box: Box


class Cell(NamedTuple):
    """Elements [start, stop) in C order of the tensor `path`: its cell `number`, saved by `owner`, which puts `parts` together."""

    path: str
    number: int
    start: int
    stop: int
    owner: int
    parts: tuple[Part, ...]


class Plan(NamedTuple):
    """All cells of a state, by path and number."""

    tensors: dict[str, Described]
    cells: tuple[Cell, ...]

    def owned_by(self, rank: int) -> list[Cell]:
        """Those that `rank` saves, in order."""
        return [cell for cell in self.cells if cell.owner == rank]


def make_plan(ranks: Sequence[dict[str, Held]], cell_bytes: int = CELL_BYTES) -> Plan:
    """Of what each rank holds, by rank. Raises BadInput, naming the tensor, when the ranks disagree or have not all of it."""
    tensors: dict[str, Described] = {}
    cells: list[Cell] = []
    load = [0] * len(ranks)
    for path in sorted(set().union(*ranks)):
        tensor, holders = _holders(path, ranks)
        tensors[path] = tensor
        each = cell_elements(tensor.shape, tensor.item_bytes, cell_bytes)
        runs = {box: run_of(tensor.shape, box) for box in holders}
        for number in range(cell_count(tensor.shape, each)):
            start, stop = number * each, min((number + 1) * each, tensor.elements)
            touching = [box for box, run in runs.items() if _touches(tensor, start, stop, box, run)]
            owner = min((rank for box in touching for rank in holders[box]), key=lambda rank: (load[rank], rank))
            load[owner] += (stop - start) * tensor.item_bytes
            parts = tuple(Part(owner if owner in holders[box] else holders[box][0], box) for box in touching)
            cells.append(Cell(path, number, start, stop, owner, parts))
    return Plan(tensors, tuple(cells))


def _touches(tensor: Described, start: int, stop: int, box: Box, run: tuple[int, int] | None) -> bool:
    if run is not None:
        return run[0] < stop and start < run[1]
    return bool(shared(tensor.shape, start, stop, box))


def _holders(path: str, ranks: Sequence[dict[str, Held]]) -> tuple[Described, dict[Box, list[int]]]:
    """The tensor, and which ranks hold each of its boxes."""
    tensor: Described | None = None
    holders: dict[Box, list[int]] = {}
    for rank, held in enumerate(ranks):
        if path not in held:
            continue
        if tensor is not None and held[path].tensor != tensor:
            raise BadInput(f"{path!r} is {tensor} on one rank and {held[path].tensor} on rank {rank}")
        tensor = held[path].tensor
        for box in held[path].boxes:
            if box.elements:
                holders.setdefault(box, []).append(rank)
    assert tensor is not None
    elements = sum(box.elements for box in holders)
    if elements != tensor.elements or _overlapping(holders):
        raise BadInput(
            f"the ranks hold {elements:,} elements of {path!r}, which has {tensor.elements:,}: parts of it must not overlap, "
            "unless they are the same"
        )
    return tensor, holders


def _overlapping(boxes: Iterable[Box]) -> bool:
    """Whether two of them share elements. Sorted by their first dimension, only near ones are compared."""
    ordered = sorted(boxes)
    for at, left in enumerate(ordered):
        for right in ordered[at + 1 :]:
            if left.offsets and right.offsets[0] >= left.offsets[0] + left.sizes[0]:
                break
            if all(
                a < b + m and b < a + n
                for a, n, b, m in zip(left.offsets, left.sizes, right.offsets, right.sizes, strict=True)
            ):
                return True
    return False
