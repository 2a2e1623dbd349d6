"""Which ranges are read together."""

from __future__ import annotations

import random

import pytest

from leptonstore import limits
from leptonstore.tiers.ranges import coalesced

GAP, MOST = limits.RANGE_GAP_BYTES, limits.RANGE_BYTES_MAX


@pytest.mark.parametrize(
    ("wanted", "jobs"),
    [
        ([], []),
        ([("a", 5, 0)], []),
        ([("a", 100, 10), ("a", 0, 10)], [("a", 0, 110)]),
        ([("a", 0, 10), ("a", 10 + GAP, 10)], [("a", 0, 20 + GAP)]),
        ([("a", 0, 10), ("a", 11 + GAP, 10)], [("a", 0, 10), ("a", 11 + GAP, 10)]),
        ([("a", 0, 10), ("b", 10, 10)], [("a", 0, 10), ("b", 10, 10)]),
        ([("a", 0, MOST), ("a", MOST, 1)], [("a", 0, MOST), ("a", MOST, 1)]),
        ([("a", 0, 3 * MOST), ("a", 5, 10)], [("a", 0, 3 * MOST)]),
        ([("a", 7, 10), ("a", 7, 10)], [("a", 7, 10)]),
    ],
)
def test_near_ranges_are_one_request(wanted: list[tuple[str, int, int]], jobs: list[tuple[str, int, int]]) -> None:
    assert [(job.pack, job.offset, job.length) for job in coalesced(wanted)] == jobs


def test_every_range_is_within_the_request_that_it_belongs_to() -> None:
    rng = random.Random(0)
    for _ in range(200):
        wanted = [(rng.choice("ab"), rng.randrange(40 << 20), rng.randrange(3 << 20)) for _ in range(rng.randrange(40))]
        jobs = coalesced(wanted)
        members = sorted(number for job in jobs for number in job.members)
        assert members == [number for number, (_, _, length) in enumerate(wanted) if length]
        for job in jobs:
            for number in job.members:
                pack, offset, length = wanted[number]
                assert pack == job.pack and job.offset <= offset and offset + length <= job.end
            assert job.length <= max(MOST, max(wanted[number][2] for number in job.members))
