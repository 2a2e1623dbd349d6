"""Which blocks stay: within the budget whatever happens, against a model; and what a scan, a shuffled epoch and copies find."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.daemon.cluster.keep import Keep
from leptonstore.limits import MIB

KEYS = st.integers(0, 60)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.sampled_from("aacrt"), KEYS, st.integers(1, 9)), max_size=300),
)
def test_what_is_held_is_what_was_added_and_not_told_to_go(budget, steps):
    keep, held = Keep[int](budget), dict[int, int]()
    for step, key, size in steps:
        if step in "ac":
            held.setdefault(key, size)
            for gone in keep.add(key, size, copy=step == "c"):
                del held[gone]
        elif step == "r":
            keep.remove(key)
            held.pop(key, None)
        else:
            keep.touch(key)
        assert set(keep.keys()) == set(held) and len(keep) == len(held)
        assert keep.bytes == sum(held.values())
        assert keep.bytes <= max(budget, size)
        assert all((key in keep) == (key in held) for key in range(61))


def hits(keep: Keep[int], asked: list[int], size: int = MIB) -> int:
    found = 0
    for key in asked:
        if key in keep:
            found += 1
            keep.touch(key)
        else:
            keep.add(key, size)
    return found


def test_scans_of_twice_what_fits_find_much_of_it_again():
    """Least recently used finds nothing of a scan that is longer than the cache."""
    keep, blocks = Keep[int](100 * MIB), list(range(200))
    hits(keep, blocks * 2)
    assert hits(keep, blocks) > 0.35 * len(blocks)


def test_shuffled_epochs_find_the_share_that_fits():
    """A block is read in many small pieces close together, as loaders with a block-wise order do, and not again before the next epoch."""
    keep, rng = Keep[int](100 * MIB), random.Random(0)

    def epoch() -> int:
        order = rng.sample(range(200), 200)
        fetched = 0
        for key in order:
            fetched += 20 - hits(keep, [key] * 20)
        return fetched

    for _ in range(3):
        epoch()
    assert epoch() < 0.65 * 200  # 0.5 can be had


def test_what_is_visited_often_survives_a_scan():
    keep, rng = Keep[int](100 * MIB), random.Random(0)
    hot = list(range(40))
    for _ in range(30):
        hits(keep, [rng.choice(hot) for _ in range(40)] + [rng.randrange(10_000, 20_000) for _ in range(20)])
    hits(keep, list(range(1_000, 3_000)))
    assert sum(key in keep for key in hot) > 30


def test_copies_use_free_room_and_make_way():
    keep = Keep[int](100 * MIB)
    for key in range(90):
        assert keep.room_for_copy(MIB) or key > 60
        keep.add(key, MIB, copy=True)
    full = keep.copies_bytes
    assert full > 50 * MIB
    for key in range(1_000, 1_200):
        keep.add(key, MIB)
    assert keep.copies_bytes <= 13 * MIB, "own blocks take the room, but for the share of copies"
