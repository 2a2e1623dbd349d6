"""Sorted runs on disk are a set of keys, whatever the limit of memory is."""

from __future__ import annotations

import bisect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.store.runs import SortedRuns, iter_keys, positions, scratch_array


@st.composite
def keys_of_one_width(draw: st.DrawFn) -> list[bytes]:
    """Few different bytes, so that there are repetitions, common beginnings and zeros at the end."""
    width = draw(st.sampled_from([1, 3, 16, 36]))
    byte = st.sampled_from([0, 1, 127, 128, 255])
    return draw(st.lists(st.lists(byte, min_size=width, max_size=width).map(bytes), min_size=1, max_size=120))


@settings(max_examples=150, deadline=None)
@given(keys_of_one_width(), keys_of_one_width(), st.integers(1, 200), st.booleans())
def test_runs_are_a_sorted_set(keys: list[bytes], other: list[bytes], spill: int, before: bool) -> None:
    width = len(keys[0])
    other = [key for key in other if len(key) == width]
    expected = sorted({*keys, *other})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SPILL_BYTES", spill)
        runs = SortedRuns(width)
        if before:
            first = SortedRuns(width)
            first.add_all(other)
            runs.add_sorted(first.finish())
        else:
            runs.add_all(other)
        runs.add_all(keys)
        found = runs.finish()
    assert list(iter_keys(found)) == expected
    wanted = [*other, *keys, bytes(width), b"\xff" * width, b"\x01" * width]
    at, hit = positions(found, np.array(wanted, f"S{width}"))
    for key, place, there in zip(wanted, at.tolist(), hit.tolist(), strict=True):
        assert there == (key in expected)
        assert not there or place == bisect.bisect_left(expected, key)


def test_nothing_is_found_among_no_keys() -> None:
    none = SortedRuns(16).finish()
    assert len(none) == 0 and not positions(none, np.array([bytes(16)], "S16"))[1].any()


def test_scratch_is_zeros_in_memory_and_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    small = scratch_array(10, np.int32, None)
    monkeypatch.setattr(limits, "SPILL_BYTES", 8)
    large = scratch_array(10, np.int32, None)
    assert isinstance(large, np.memmap) and not isinstance(small, np.memmap)
    large[3] = 7
    assert large.sum() == 7 and small.sum() == 0
