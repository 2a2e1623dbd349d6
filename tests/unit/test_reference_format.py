"""References as bytes: a pinned value, a way back, and nothing that is out of bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.errors import FormatDamaged
from leptonstore.format.reference import Reference, check_reference, encode_reference, parse_reference

PINNED = Reference(7, "a/b.jpg", 512, 50_000, 60_000, "mtime_ns 12")
_names = st.text(st.characters(codec="utf-8", exclude_characters="/\\"), min_size=1, max_size=20)


def test_its_bytes_are_those_of_the_spec() -> None:
    assert encode_reference(PINNED).hex() == (
        "4c5246310700000000020000000000005 0c3000000000000 60ea000000000000 0700 0b00".replace(" ", "")
        + b"a/b.jpg".hex()
        + b"mtime_ns 12".hex()
    )


@given(
    st.integers(0, (1 << 32) - 1),
    st.lists(_names, min_size=1, max_size=5).map("/".join),
    st.integers(0, limits.OBJECT_BYTES_MAX - limits.CHUNK_BYTES_MAX),
    st.integers(1, limits.CHUNK_BYTES_MAX),
    st.one_of(st.none(), st.integers(0, 1000)),
    st.text(max_size=30),
)
def test_what_is_in_bounds_comes_back(
    root: int, path: str, offset: int, length: int, more: int | None, version: str
) -> None:
    size = None if more is None else min(offset + length + more, limits.OBJECT_BYTES_MAX)
    reference = Reference(root, path, offset, length, size, version)
    data = encode_reference(reference)
    if check_reference(reference):
        with pytest.raises(FormatDamaged):
            parse_reference(data)
    else:
        assert parse_reference(data) == reference


@given(st.binary(max_size=200))
def test_noise_is_damage(data: bytes) -> None:
    with pytest.raises(FormatDamaged):
        parse_reference(data)


@given(st.data())
def test_altered_bytes_are_damage_or_another_sound_reference(data: st.DataObject) -> None:
    made = bytearray(encode_reference(PINNED))
    for _ in range(data.draw(st.integers(1, 3))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_reference(bytes(made[: data.draw(st.integers(0, len(made)))]))
    except FormatDamaged:
        return
    assert not check_reference(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 0},
        {"length": limits.CHUNK_BYTES_MAX + 1, "object_bytes": None},
        {"offset": limits.OBJECT_BYTES_MAX + 1, "object_bytes": None},
        {"object_bytes": 50_511},
        {"version": "two\nlines"},
        {"version": "x" * 257},
        {"path": "x" * 2048},
    ],
)
def test_what_is_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(FormatDamaged):
        parse_reference(encode_reference(PINNED._replace(**wrong)))  # type: ignore[arg-type]
