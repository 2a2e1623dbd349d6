"""Searching many patterns at once finds what searching for each alone finds; a value that was cut is found in each of its pieces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.store import search
from leptonstore.store.search import Needles, patterns_of

FEW = st.lists(st.sampled_from(b"abcd"), min_size=8, max_size=40).map(bytes)  # so that much is alike


@given(
    st.lists(FEW, max_size=12), st.lists(FEW, max_size=12), st.binary(max_size=30), st.sampled_from([3, 16, 1 << 16])
)
def test_what_is_found_is_what_is_there(patterns: list[bytes], others: list[bytes], gap: bytes, at_a_time: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_AT_A_TIME", at_a_time)
        data = gap.join([*patterns[::2], *others])
        needles = Needles(patterns)
        assert needles.find(data) == {number for number, one in enumerate(needles.patterns) if one in data}


@given(st.integers(0, 2**32), st.integers(1, 60_000), st.sampled_from([512, 4096, 65_536]))
def test_every_piece_but_the_last_holds_a_pattern(seed: int, size: int, piece_min: int) -> None:
    rng = random.Random(seed)
    value = rng.randbytes(size)
    patterns = list(patterns_of(value, piece_min))
    pieces, at = [], 0
    while at < size:
        pieces.append(value[at : at + rng.randrange(piece_min, 3 * piece_min)])
        at += len(pieces[-1])
    needles = Needles(patterns)
    assert all(needles.find(piece) for piece in pieces[:-1])
    assert (size < limits.SEARCH_BYTES_MIN) or needles.find(value)


@pytest.mark.parametrize("value", [b"", b"seven b", bytes(1000), b"abcabcabcabc"])
def test_what_is_too_short_or_too_plain_is_not_searched_for(value: bytes) -> None:
    assert not list(patterns_of(value, 4096))
