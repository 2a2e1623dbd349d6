"""Sizes and times as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.errors import BadInput
from leptonstore.limits import GIB, KIB, MIB, QUANTITY_MAX
from leptonstore.quantities import human_bytes, lifetime_of, seconds_of, size_of


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("500M", 500 * MIB),
        ("1.5 TiB", 1536 * GIB),
        ("2gb", 2 * GIB),
        (" 7 B ", 7),
        ("1P", GIB * MIB),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert size_of(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("5m", 300), ("1.5h", 5_400), ("30d", 2_592_000), ("2 w", 1_209_600)],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "x", "5 iB", "5 parsecs", "-1", "1e3", "inf", "nan", "9" * 400, f"{QUANTITY_MAX}"]
)
def test_what_is_no_size_and_no_time_is_told(text: str) -> None:
    for parse in (size_of, seconds_of, lifetime_of):
        with pytest.raises(BadInput, match=r"is not a|too much"):
            parse(text)


@given(st.text(max_size=30) | st.from_regex(r"[0-9]{1,400}[A-Za-z]{0,3}", fullmatch=True))
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    for parse in (size_of, seconds_of):
        with contextlib.suppress(BadInput):
            assert 0 <= parse(text) < QUANTITY_MAX


def test_lifetimes() -> None:
    assert lifetime_of("never") is None and lifetime_of("12h") == 43_200
    for text in ("5", "0d", "0.5s", "999999w"):
        with pytest.raises(BadInput, match="lifetime"):
            lifetime_of(text)


def test_sizes_for_people() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1536, 5 * MIB, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 TiB",
    ]
    assert size_of(human_bytes(5 * KIB)) == 5 * KIB
