"""Where columns are cut into parts: as docs/FORMAT.md says, by a reading of its own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset.cut import part_ends, sample_hashes

M = (1 << 64) - 1


def mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M
    return x ^ (x >> 31)


def sample(value: bytes) -> int:
    n = len(value)
    c = mixed(n)
    for k in range(5):
        at = min(8 * k, n) + max(n - 40, 0) * k // 4
        c = mixed(c ^ int.from_bytes(value[at : at + 8], "little"))
    return c


def ends_of(values: list[bytes], p: int) -> list[int]:
    if sum(map(len, values)) <= p:
        return [len(values)]
    ends, size = [], 0
    for row, value in enumerate(values):
        if size and size + len(value) > 2 * p:
            ends.append(row)
            size = 0
        size += len(value)
        if size >= p // 3 and (sample(value) >> 11) < min(1, (len(value) + 1) / max(1, p - p // 3)) * (1 << 53):
            ends.append(row + 1)
            size = 0
    return ends if ends and ends[-1] == len(values) else [*ends, len(values)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=60), st.just(b""), st.binary(min_size=150, max_size=260)), max_size=60),
    st.sampled_from([1, 2, 30, 100, 1_000]),
    st.integers(0, 3),
)
def test_parts_are_cut_as_the_format_says(values: list[bytes], p: int, offset: int) -> None:
    array = pa.array([b"x" * 9] * offset + values, pa.binary()).slice(offset)
    assert sample_hashes(array).tolist() == [sample(value) for value in values]
    if values:
        sizes = np.array([len(value) for value in values], np.int64)
        assert part_ends(array, sizes, p) == ends_of(values, p)


def test_nulls_count_as_empty_and_texts_as_their_bytes() -> None:
    texts = ["é" * 30, None, "", "a" * 100]
    expected = [sample((text or "").encode()) for text in texts]
    for kind in (pa.string(), pa.large_string()):
        assert sample_hashes(pa.array(texts, kind)).tolist() == expected
