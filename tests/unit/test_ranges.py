"""Which ranges are read together, and by which requests."""

from __future__ import annotations

import itertools
import random

import pytest

from leptonstore import limits
from leptonstore.tiers.ranges import Piece, Run, pieces_of, runs_of

GAP, SIZE = limits.RANGE_GAP_BYTES, limits.WINDOW_BYTES
ENOUGH = int(SIZE * limits.WINDOW_WANTED_SHARE)


def nothing(pack: str, number: int) -> bool:
    """No window is here yet."""
    return False


@pytest.mark.parametrize(
    ("wanted", "runs"),
    [
        ([], []),
        ([("a", 5, 0)], []),
        ([("a", 100, 10), ("a", 0, 10)], [("a", 0, 110)]),
        ([("a", 0, 10), ("a", 10 + GAP, 10)], [("a", 0, 20 + GAP)]),
        ([("a", 0, 10), ("a", 11 + GAP, 10)], [("a", 0, 10), ("a", 11 + GAP, 21 + GAP)]),
        ([("a", 0, 10), ("b", 10, 10)], [("a", 0, 10), ("b", 10, 20)]),
        ([("a", 0, 3 * SIZE), ("a", 5, 10)], [("a", 0, 3 * SIZE)]),
        ([("a", 7, 10), ("a", 7, 10)], [("a", 7, 17)]),
    ],
)
def test_near_ranges_are_one_run(wanted: list[tuple[str, int, int]], runs: list[tuple[str, int, int]]) -> None:
    assert [(run.pack, run.offset, run.end) for run in runs_of(wanted)] == runs


@pytest.mark.parametrize(
    ("wanted", "pieces"),
    [
        ([(10, 20)], [Piece(10, 20)]),
        ([(SIZE - 5, SIZE + 5)], [Piece(SIZE - 5, SIZE + 5)]),
        ([(0, ENOUGH)], [Piece(0, ENOUGH, 0)]),
        ([(0, 10), (ENOUGH, ENOUGH + 10)], [Piece(0, ENOUGH + 10)]),
        ([(5, SIZE + 5)], [Piece(5, SIZE, 0), Piece(SIZE, SIZE + 5, 1)]),
        ([(SIZE - 5, 2 * SIZE)], [Piece(SIZE - 5, SIZE), Piece(SIZE, 2 * SIZE, 1)]),
    ],
)
def test_windows_are_fetched_whole_where_enough_of_them_is_wanted(
    wanted: list[tuple[int, int]], pieces: list[Piece]
) -> None:
    (run,) = runs_of([("a", start, end - start) for start, end in wanted])
    assert pieces_of(run, nothing) == pieces


def test_of_what_is_known_to_be_wanted_alone_nothing_more_is_fetched() -> None:
    (run,) = runs_of([("a", 5, 2 * SIZE)])
    assert pieces_of(run, nothing, alone=True) == [
        Piece(5, SIZE), Piece(SIZE, 2 * SIZE, 1), Piece(2 * SIZE, 2 * SIZE + 5)
    ]  # fmt: skip


def test_a_window_that_is_here_is_used() -> None:
    assert pieces_of(Run("a", 10, 20), lambda pack, number: number == 0) == [Piece(10, 20, 0)]


def test_every_range_is_within_the_pieces_of_its_run() -> None:
    rng = random.Random(0)
    for _ in range(200):
        wanted = [(rng.choice("ab"), rng.randrange(40 << 20), rng.randrange(3 << 20)) for _ in range(rng.randrange(40))]
        here = {(pack, number) for pack in "ab" for number in range(6) if rng.random() < 0.2}
        runs = runs_of(wanted)
        members = sorted(number for run in runs for number in run.members)
        assert members == [number for number, (_, _, length) in enumerate(wanted) if length]
        for run in runs:
            pieces = pieces_of(run, lambda pack, number, here=here: (pack, number) in here)  # type: ignore[misc]
            assert (pieces[0].offset, pieces[-1].end) == (run.offset, run.end)
            assert all(one.end == other.offset for one, other in itertools.pairwise(pieces))
            for piece in pieces:
                if piece.window is not None:
                    assert piece.window * SIZE <= piece.offset < piece.end <= (piece.window + 1) * SIZE
            for number in run.members:
                pack, offset, length = wanted[number]
                assert pack == run.pack and run.offset <= offset and offset + length <= run.end
