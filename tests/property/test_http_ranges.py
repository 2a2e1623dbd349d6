"""Conditions and ranges of HTTP against a model that says what each byte position is, one at a time (RFC 9110, 13 and 14)."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from leptonstore.daemon.http.bounds import RANGES_MAX
from leptonstore.daemon.http.ranges import Chosen, choose, parse_ranges

SIZES = st.integers(0, 40)
NUMBERS = st.one_of(st.integers(0, 50), st.sampled_from([10**18, 2**63, 2**64, 10**18 + 7]))
SPECS = st.one_of(
    st.tuples(NUMBERS, NUMBERS).map(lambda pair: f"{pair[0]}-{pair[1]}"),
    NUMBERS.map(lambda first: f"{first}-"),
    NUMBERS.map(lambda suffix: f"-{suffix}"),
)
SPACES = st.sampled_from(["", " ", "\t", "  "])
HEADERS = st.lists(st.tuples(SPACES, SPECS, SPACES).map("".join), min_size=1, max_size=RANGES_MAX).map(
    lambda specs: "bytes=" + ",".join(specs)
)
ANYTHING = st.text(st.characters(max_codepoint=255), max_size=40)
TAGS = st.text(st.characters(min_codepoint=0x23, max_codepoint=0x7E), max_size=4)


def wanted(spec: str, size: int) -> set[int] | None:
    """The positions that one part names; None where a first one is behind the last."""
    first, _, last = spec.strip().partition("-")
    if not first:
        return {at for at in range(size) if at >= size - int(last)}
    if last and int(last) < int(first):
        return None
    return {at for at in range(size) if int(first) <= at and (not last or at <= int(last))}


@given(HEADERS, SIZES)
@example("bytes=0-0,1-1", 2)
@example("bytes=5-6,0-1,2-4", 10)
@example("bytes=-0", 5)
@example("bytes=0-", 0)
@example("bytes=-5", 0)
def test_the_parts_are_exactly_the_bytes_that_were_asked_for(header: str, size: int) -> None:
    specs = header.removeprefix("bytes=").split(",")
    named = [wanted(spec, size) for spec in specs]
    parts = parse_ranges(header, size)
    if parts is None:
        empty_suffix = size == 0 and any(spec.strip().startswith("-") and int(spec.strip()[1:]) for spec in specs)
        assert None in named or empty_suffix
        return
    assert None not in named
    covered = [at for start, stop in parts for at in range(start, stop)]
    assert set(covered) == set().union(*(positions or set() for positions in named))
    assert len(covered) == len(set(covered)), "no byte is sent twice"
    assert all(0 <= start < stop <= size for start, stop in parts)
    ends = {stop for _, stop in parts}
    assert not any(start in ends for start, _ in parts), "parts that touch are one"


@given(ANYTHING, SIZES)
def test_any_header_is_answered(header: str, size: int) -> None:
    for text in (header, f"bytes={header}", f"Bytes = {header}"):
        parts = parse_ranges(text, size)
        assert parts is None or all(0 <= start < stop <= size for start, stop in parts)


def test_other_units_and_too_many_parts_are_ignored() -> None:
    assert parse_ranges("rows=0-1", 10) is None
    assert parse_ranges("BYTES=0-1", 10) == [(0, 2)]
    assert parse_ranges("bytes=" + ",".join(f"{at}-{at}" for at in range(0, 2 * RANGES_MAX, 2)), 100) is not None
    assert parse_ranges("bytes=" + ",".join(f"{at}-{at}" for at in range(0, 2 * RANGES_MAX + 2, 2)), 100) is None


@given(st.lists(st.tuples(st.booleans(), TAGS), min_size=1, max_size=4), TAGS, SIZES)
def test_if_none_match_and_if_match_are_each_others_opposite_for_strong_tags(
    tags: list[tuple[bool, str]], tag: str, size: int
) -> None:
    header = " , ".join(f'{"W/" if weak else ""}"{name}"' for weak, name in tags)
    known = any(name == tag for _, name in tags)  # weak comparison
    assert (choose({"if-none-match": header}, tag, size).status == 304) == known
    strong = any(name == tag and not weak for weak, name in tags)
    assert (choose({"if-match": header}, tag, size).status == 412) == (not strong)


@given(ANYTHING, ANYTHING, ANYTHING, HEADERS | ANYTHING, SIZES)
def test_every_combination_of_headers_has_an_answer(
    match: str, none: str, condition: str, asked: str, size: int
) -> None:
    headers = {"if-match": match, "if-none-match": none, "if-range": condition, "range": asked}
    chosen = choose(headers, "tag", size)
    assert chosen.status in (200, 206, 304, 412, 416)
    assert bool(chosen.parts) == (chosen.status in (200, 206))


def test_a_range_is_only_of_what_if_range_names_and_only_for_get() -> None:
    asked = {"range": "bytes=2-3"}
    assert choose(asked, "t", 10) == Chosen(206, ((2, 4),))
    assert choose(asked | {"if-range": '"t"'}, "t", 10) == Chosen(206, ((2, 4),))
    whole = Chosen(200, ((0, 10),))
    for condition in ('"other"', 'W/"t"', "t", "Fri, 27 Nov 2026 13:00:00 GMT", '"t", "u"', ""):
        assert choose(asked | {"if-range": condition}, "t", 10) == whole
    assert choose(asked, "t", 10, ranges=False) == whole
    assert choose(asked | {"if-none-match": "*"}, "t", 10).status == 304
    assert choose(asked | {"if-match": "*"}, "t", 10).status == 206
