"""Cells against numpy: whatever the shape, the grid, the ranks and who holds what, the same cells come out, and go back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.errors import BadInput
from trainers.checkpoint.cells import Box, cell_count, cell_elements, overlap, rectangles, run_of, shared, whole
from trainers.checkpoint.layout import Described, Held, held_from_json, held_to_json
from trainers.checkpoint.leaves import Leaf, Shards, leaf_of
from trainers.checkpoint.plan import Plan, make_plan
from trainers.checkpoint.staging import Buffer, Staged, stage

shapes = st.lists(st.integers(1, 7), max_size=4).map(tuple)


def numbered(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)


def cut(shape: tuple[int, ...], draw: st.DataObject, parts: int) -> list[Box]:
    """The tensor in `parts` boxes (some of them empty), each cut across a dimension of its own choice."""
    boxes = [whole(shape)]
    while len(boxes) < parts:
        box = boxes.pop(0)
        if not shape:
            boxes += [box, Box((), ())] if not boxes else [box]
            break
        dimension = draw.draw(st.integers(0, len(shape) - 1))
        at = draw.draw(st.integers(0, box.sizes[dimension]))
        for offset, size in ((0, at), (at, box.sizes[dimension] - at)):
            offsets, sizes = list(box.offsets), list(box.sizes)
            offsets[dimension] += offset
            sizes[dimension] = size
            boxes.append(Box(tuple(offsets), tuple(sizes)))
    return boxes


@given(shapes, st.data())
def test_rectangles_are_the_run_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    array, count = numbered(shape), math.prod(shape)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    found = [
        array[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))].reshape(-1)
        for box in rectangles(shape, start, stop)
    ]
    assert np.concatenate([*found, np.empty(0, np.int32)]).tolist() == list(range(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)


@given(shapes, st.sampled_from([1, 2, 4, 8]), st.integers(1, 300))
def test_a_cell_is_a_whole_number_of_rows_and_not_longer_than_it_may_be(
    shape: tuple[int, ...], item: int, cell_bytes: int
) -> None:
    each = cell_elements(shape, item, cell_bytes)
    assert 1 <= each <= max(1, cell_bytes // item)
    rows = [math.prod(shape[at:]) for at in range(len(shape) + 1)]
    assert any(each % row == 0 and row <= each for row in rows)
    assert sum(min((at + 1) * each, rows[0]) - at * each for at in range(cell_count(shape, each))) == rows[0]


@given(shapes, st.data())
def test_what_a_cell_and_a_box_share_is_what_numpy_says(shape: tuple[int, ...], data: st.DataObject) -> None:
    array, count = numbered(shape), math.prod(shape)
    box = data.draw(st.sampled_from(cut(shape, data, 4)))
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    if not box.elements:
        return
    part = array[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))]
    cell, expected = np.full(stop - start, -1, np.int32), np.full(stop - start, -1, np.int32)
    for one in shared(shape, start, stop, box):
        one.in_cell(cell)[...] = part[one.of_box]
    inside = part.reshape(-1)
    inside = inside[(inside >= start) & (inside < stop)]
    expected[inside - start] = inside
    assert cell.tolist() == expected.tolist()
    run = run_of(shape, box)
    flat = part.reshape(-1)
    assert (run is not None) == (flat[-1] - flat[0] + 1 == len(flat))
    assert run is None or (run[0], run[1]) == (flat[0], flat[-1] + 1)


def stage_all(plan: Plan, ranks: list[dict[str, Leaf]], in_place: bool) -> list[Staged]:
    """What each rank stages, with their messages delivered."""
    staged = [stage(plan, leaves, rank, len(ranks), Buffer(), in_place) for rank, leaves in enumerate(ranks)]

    class Delivery:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def exchange(self, out: Any, into: Any) -> None:
            for peer, message in enumerate(into):
                sent = staged[peer]._out[self.rank]
                assert (message is None) == (sent is None)
                if message is not None:
                    message[:] = sent

    for rank, one in enumerate(staged):
        one.exchange(Delivery(rank))  # type: ignore[arg-type]
    return staged


@settings(max_examples=60)
@given(
    st.lists(st.tuples(shapes, st.booleans()), min_size=1, max_size=3), st.integers(1, 4), st.integers(8, 64), st.data()
)
def test_any_ranks_save_the_same_cells(
    tensors: list[tuple[tuple[int, ...], bool]], size: int, cell_bytes: int, data: st.DataObject
) -> None:
    wholes = {f"t{number}": numbered(shape) + number for number, (shape, _) in enumerate(tensors)}
    ranks: list[dict[str, Leaf]] = [{} for _ in range(size)]
    for (path, array), (shape, replicated) in zip(wholes.items(), tensors, strict=True):
        if replicated:
            for rank in data.draw(st.sets(st.integers(0, size - 1), min_size=1)):
                ranks[rank][path] = leaf_of(array, path)
            continue
        parts: list[list[tuple[tuple[int, ...], Any]]] = [[] for _ in range(size)]
        for box in cut(shape, data, data.draw(st.integers(1, 2 * size))):
            if box.elements and len(box.sizes) == len(shape):
                slices = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))
                parts[data.draw(st.integers(0, size - 1))].append((box.offsets, array[slices]))
        for rank in range(size):
            ranks[rank][path] = leaf_of(Shards("int32", shape, parts[rank]), path)
    told = [held_from_json(held_to_json({path: leaf.held for path, leaf in leaves.items()}), "x") for leaves in ranks]
    plan = make_plan(told, cell_bytes)
    expected = {
        (path, number): array.reshape(-1)[number * each : (number + 1) * each].tobytes()
        for path, array in wholes.items()
        for each in [cell_elements(array.shape, 4, cell_bytes)]
        for number in range(cell_count(array.shape, each))
    }
    for in_place in (False, True):
        found = {
            (own.cell.path, own.cell.number): own.data.tobytes()
            for staged in stage_all(plan, ranks, in_place)
            for own in staged.own
        }
        assert found == expected
    assert sum(len(plan.owned_by(rank)) for rank in range(size)) == len(expected)


def test_what_every_rank_holds_is_spread_over_them() -> None:
    held = {f"t{number}": Held(Described("float32", (64, 1_024)), (whole((64, 1_024)),)) for number in range(16)}
    plan = make_plan([held] * 4, 64 << 10)
    assert [len(plan.owned_by(rank)) for rank in range(4)] == [16, 16, 16, 16]


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([Box((0,), (3,)), Box((4,), (2,))], "5 elements of 't', which has 6"),
        ([Box((0,), (4,)), Box((3,), (3,))], "7 elements"),
        ([Box((0,), (3,)), Box((1,), (3,))], "must not overlap"),
    ],
)
def test_ranks_that_have_not_each_element_once_are_refused(boxes: list[Box], said: str) -> None:
    ranks = [{"t": Held(Described("uint8", (6,)), (box,))} for box in boxes]
    with pytest.raises(BadInput, match=said):
        make_plan(ranks)


def test_ranks_that_disagree_are_refused_by_name() -> None:
    left, right = ({"t": Held(Described("uint8", (size,)), (whole((size,)),))} for size in (6, 7))
    with pytest.raises(BadInput, match=r"'t' is uint8 \[6\] on one rank and uint8 \[7\] on rank 1"):
        make_plan([left, right])


def test_boxes_that_do_not_meet_share_nothing() -> None:
    assert overlap(Box((0, 0), (2, 2)), Box((2, 0), (1, 2))) is None
