"""Sketches of pieces, merged: over any cut and for any values, what is exact equals the whole, and the rest is within its stated error."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset.schema import tensor_field
from leptonstore.dataset.values import Column
from leptonstore.errors import FormatDamaged
from leptonstore.process.statistics import distinct
from leptonstore.process.statistics.column import ColumnSketch, Watched
from leptonstore.process.statistics.correlation import CoMoments
from leptonstore.process.statistics.gather import Merger
from leptonstore.process.statistics.moments import Moments
from leptonstore.process.statistics.numbers import NumberSketch
from leptonstore.process.statistics.ranks import Ranks, bucket_ends
from leptonstore.process.statistics.record import pack, unpack
from leptonstore.process.statistics.texts import TextSketch, flat_bytes, text_hashes

ROWS = 9_000
INT64 = np.iinfo(np.int64)

SHAPES = {
    "sorted": lambda rng: np.arange(ROWS, dtype=np.float64),
    "falling": lambda rng: -np.arange(ROWS, dtype=np.float64),
    "constant": lambda rng: np.full(ROWS, 7.25),
    "heavy_tail": lambda rng: rng.pareto(0.3, ROWS),
    "both_tails": lambda rng: rng.standard_cauchy(ROWS),
    "half_zero": lambda rng: np.where(rng.random(ROWS) < 0.5, 0.0, rng.random(ROWS)),
    "signed_zeros": lambda rng: np.where(rng.random(ROWS) < 0.5, 0.0, -0.0),
    "subnormal": lambda rng: rng.integers(-9_000, 9_000, ROWS) * 5e-324,
    "not_finite": lambda rng: rng.choice([np.nan, np.inf, -np.inf, 1.0, 2.0, 1e300, -1e300], ROWS),
    "near": lambda rng: 1.0 + rng.integers(0, 3, ROWS) * 2.0**-52,
    "one_outlier": lambda rng: np.concatenate((rng.normal(size=ROWS - 1), [1e12])),
    "few": lambda rng: rng.integers(-5, 5, ROWS).astype(np.float64),
    "float16": lambda rng: rng.normal(size=ROWS).astype(np.float16),
    "int64_ends": lambda rng: rng.choice(np.array([INT64.min, INT64.min + 1, -1, 0, 1, INT64.max]), ROWS),
    "int64": lambda rng: rng.integers(INT64.min, INT64.max, ROWS),
    "uint64": lambda rng: rng.integers(0, 2**64, ROWS, dtype=np.uint64),
    "int8": lambda rng: rng.integers(-128, 128, ROWS).astype(np.int8),
    "int16": lambda rng: rng.integers(-32_768, 32_768, ROWS).astype(np.int16),
    "runs": lambda rng: np.repeat(rng.integers(0, 2**40, 1 + ROWS // 50), 50)[:ROWS],
    "zipf": lambda rng: rng.zipf(1.3, ROWS).clip(0, 2**40),
}

cuts = st.lists(st.integers(0, ROWS), max_size=12).map(lambda some: [0, *sorted(some), ROWS])


def cut(values: np.ndarray, at: list[int]) -> NumberSketch:
    return NumberSketch.merged([NumberSketch.of(values[one:other]) for one, other in pairwise(at)])


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=8, deadline=None)
@given(at=cuts, seed=st.integers(0, 2**32))
def test_numbers_merged_over_any_cut(shape: str, at: list[int], seed: int) -> None:
    values = SHAPES[shape](np.random.default_rng(seed))
    merged = cut(values, at)
    wide = values.astype(np.float64) if values.dtype.kind == "f" else values
    finite = np.sort(wide[np.isfinite(wide)] + (0.0 if values.dtype.kind == "f" else 0))
    stats = merged.stats()
    assert (stats.count, stats.not_finite) == (len(finite), len(values) - len(finite))
    assert stats.nan == int(np.isnan(wide).sum())
    if not len(finite):
        return
    assert (stats.min, stats.max) == (finite[0].item(), finite[-1].item())
    if values.dtype.kind != "f":
        assert merged.moments.total == sum(values.tolist())
        assert stats.mean == sum(values.tolist()) / len(values)
    elif stats.mean is not None:
        scale = float(np.abs(finite).max())
        assert stats.mean == pytest.approx(
            math.fsum(finite.tolist()) / len(finite), rel=1e-12, abs=1e-13 * scale + 1e-322
        )
    assert stats.rank_error <= 0.5 / limits.STATISTICS_BLOCK_POINTS + len(at) / len(finite)
    for quantile in stats.quantiles:
        low, high = (np.searchsorted(finite, quantile.value, side) / len(finite) for side in ("left", "right"))
        assert low < high  # it occurs
        assert low - stats.rank_error <= quantile.share <= high + stats.rank_error + 1e-12
    shares = np.linspace(0, len(finite) - 1, 200).astype(int)
    below = merged.ranks.below(finite[shares])
    assert np.abs(below - np.searchsorted(finite, finite[shares], "right")).max() <= merged.ranks.error
    counts = Counter(finite.tolist())
    different = merged.cardinality()
    apart = sum(bool(one) for one in merged.apart)
    assert abs(different.count - len(counts) - apart) <= 4 * different.error * different.count
    top, error = merged.top(limits.STATISTICS_TOP)
    for value, rows in top:
        assert counts[value] - error <= rows <= counts[value]
    if merged.ranks.error == 0:
        assert merged.counts() == dict(sorted(counts.items()))
        assert error == 0 and top == sorted(counts.items(), key=lambda one: (-one[1], one[0]))[: limits.STATISTICS_TOP]
    else:
        assert error <= len(values) / limits.STATISTICS_FREQUENT + len(at)
        listed = {value for value, _ in top}
        bound = max(top[-1][1] if len(top) == limits.STATISTICS_TOP else error, error) + error
        assert all(rows <= bound for value, rows in counts.items() if value not in listed)


@pytest.mark.parametrize("shape", ["heavy_tail", "both_tails", "int64", "half_zero", "one_outlier"])
def test_the_histogram_is_within_its_error(shape: str) -> None:
    values = SHAPES[shape](np.random.default_rng(5))
    found = cut(values, [0, 100, 3_000, ROWS]).stats().histogram
    assert found is not None
    counts, edges = np.histogram(values.astype(np.float64), limits.HISTOGRAM_BINS)
    assert np.abs(np.array(found.counts) - counts).max() <= found.error
    assert sum(found.counts) == ROWS and np.allclose(found.edges, edges, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(at=cuts, seed=st.integers(0, 2**32))
def test_merging_the_merged_is_merging_all(at: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for values in (rng.normal(size=ROWS), rng.integers(0, 300, ROWS)):
        pieces = [NumberSketch.of(values[one:other]) for one, other in pairwise(at)]
        middle = len(pieces) // 2
        halves = [some for some in (pieces[:middle], pieces[middle:]) if some]
        twice, once = NumberSketch.merged([NumberSketch.merged(some) for some in halves]), NumberSketch.merged(pieces)
        assert (twice.least, twice.greatest, twice.apart) == (once.least, once.greatest, once.apart)
        assert twice.ranks.error == once.ranks.error and np.array_equal(twice.ranks.values, once.ranks.values)
        assert np.array_equal(twice.ranks.weights, once.ranks.weights)
        assert twice.moments.mean == pytest.approx(once.moments.mean, rel=1e-12, abs=1e-14)
        assert twice.moments.squares == pytest.approx(once.moments.squares, rel=1e-11)
        assert (twice.registers is None) == (once.registers is None)
        if twice.registers is not None:
            assert np.array_equal(twice.registers, once.registers)


def test_many_pieces_stay_few_points_within_the_error() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=400 * 1_500)
    merger = Merger(NumberSketch.merged)
    for piece in np.split(values, 400):
        merger.add(NumberSketch.of(piece))
    found = merger.result()
    assert found is not None
    assert len(found.ranks.values) <= 1.1 * limits.STATISTICS_POINTS_MAX
    ordered = np.sort(values)
    below = found.ranks.below(ordered)
    assert np.abs(below - np.arange(1, len(values) + 1)).max() <= found.ranks.error < 0.002 * len(values)


@given(total=st.integers(1, 10**9), points=st.integers(8, 20_000))
def test_buckets_cover_all_and_are_small(total: int, points: int) -> None:
    ends = bucket_ends(total, points)
    sizes = np.diff(ends, prepend=0)
    assert ends[-1] == total and sizes.min() >= 1
    step = -(-total // points)
    assert sizes.max() <= step and len(sizes) <= points + 4 * step.bit_length() + 2


@pytest.mark.parametrize("count", [1, 10, 1_000, 20_000, 300_000])
def test_the_estimate_of_different_values(count: int) -> None:
    """Four standard errors, for any number; one in 16,000 would fail by chance, and the hashes are fixed."""
    found = distinct.estimate(distinct.registers_of(distinct.number_hashes(np.arange(count) * 7_919)))
    assert abs(found - count) <= max(4 * distinct.ERROR * count, 0.5)


@given(at=st.integers(0, 2_000), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_registers_merge_by_the_maximum(at: int, seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 2**64, 2_000, dtype=np.uint64)
    parts = [distinct.registers_of(one) for one in (hashes[:at], hashes[at:])]
    assert np.array_equal(np.maximum(*parts), distinct.registers_of(hashes))


def test_a_hash_of_zeros_has_the_greatest_rank() -> None:
    assert distinct.registers_of(np.zeros(1, np.uint64))[0] == distinct.RANK_MAX
    assert distinct.registers_of(np.array([2**52 - 1], np.uint64))[0] == 1


# -- texts -----------------------------------------------------------------------------------------------------------

words = st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["", "a", "b", "ä" * 40, "x" * 200, "\0", "\0\0"]))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(words, max_size=60), places=st.lists(st.integers(0, 60), max_size=4))
def test_texts_merged_over_any_cut(rows: list[str | None], places: list[int]) -> None:
    column = Column(pa.array(rows, pa.string()))
    at = [0, *sorted(min(place, len(rows)) for place in places), len(rows)]
    found = TextSketch.merged([TextSketch.of(column.slice(*ends), True) for ends in pairwise(at)])
    present = [row.encode() for row in rows if row is not None]
    counts = Counter(present)
    assert found.lengths.counts() == dict(sorted(Counter(map(len, present)).items()))
    assert found.cardinality().count == len(counts) and found.cardinality().error == 0
    assert found.frequent.error == 0 and sorted(found.frequent.rows.tolist()) == sorted(counts.values())
    assert found.ends == ((min(present)[:1024], max(present)[:1024]) if present else None)
    short = {text for text in counts if len(text) <= limits.STATISTICS_TEXT_BYTES_MAX}
    assert short <= set(found.frequent.texts or ())


def test_frequent_texts_among_many() -> None:
    rng = np.random.default_rng(1)
    rare = [f"rare {number}" for number in range(20_000)]
    rows = np.array(rare + ["often"] * 3_000 + ["now and then"] * 800, dtype=object)
    rng.shuffle(rows)
    pieces = [TextSketch.of(Column(pa.array(some, pa.string())), True) for some in np.array_split(rows, 5)]
    found = TextSketch.merged(pieces)
    top = found.top(20)
    assert [one.value for one in top.values[:2]] == ["often", "now and then"]
    assert 3_000 - top.error <= top.values[0].rows <= 3_000 and 0 < top.error < len(rows) / limits.STATISTICS_FREQUENT
    assert abs(found.cardinality().count - 20_002) <= 4 * found.cardinality().error * 20_002


def test_long_frequent_texts_have_a_bound_and_stay_right() -> None:
    rows = [f"{number:04} " + "long " * 20 for number in range(1_000)] * 2
    found = TextSketch.of(Column(pa.array(rows)), True)
    assert sum(map(len, found.frequent.texts or ())) <= limits.STATISTICS_TEXTS_BYTES_MAX
    assert found.frequent.error == 2
    assert abs(found.cardinality().count - 1_000) <= 4 * distinct.ERROR * 1_000


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.binary(max_size=300), min_size=1, max_size=30), start=st.integers(0, 5))
def test_equal_texts_have_equal_hashes_and_others_do_not(rows: list[bytes], start: int) -> None:
    array = pa.array(rows, pa.binary()).slice(start)
    hashes = text_hashes(*flat_bytes(array)).tolist()
    alone = [text_hashes(*flat_bytes(pa.array([row], pa.large_binary())))[0] for row in rows[start:]]
    assert hashes == alone
    assert len(set(hashes)) == len(set(rows[start:]))


# -- correlation -----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(at=cuts, seed=st.integers(0, 2**32))
def test_correlation_is_numpys_over_the_rows_that_both_have(at: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.normal(1e6, 1, ROWS)
    table = [first, -first + rng.normal(size=ROWS), rng.integers(0, 9, ROWS), np.full(ROWS, 3.0), rng.normal(size=ROWS)]
    masks = [rng.random(ROWS) < share for share in (0.0, 0.2, 0.0, 0.0, 0.9)]
    arrays = [pa.array(values, mask=mask) for values, mask in zip(table, masks, strict=True)]
    pieces = [CoMoments.of([array.slice(one, other - one) for array in arrays]) for one, other in pairwise(at)]
    found = CoMoments.merged(pieces).result(list("abcde"), [])
    for i in range(5):
        for j in range(5):
            both = ~masks[i] & ~masks[j]
            assert found.rows[i][j] == both.sum()
            if 3 in (i, j):
                assert found.values[i][j] is None
            else:
                wanted = np.corrcoef(np.asarray(table[i])[both], np.asarray(table[j])[both])[0, 1]
                assert found.values[i][j] == pytest.approx(wanted, abs=1e-9)


# -- kept ------------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_was_made() -> None:
    rng = np.random.default_rng(2)
    for shape in SHAPES.values():
        sketch = NumberSketch.of(shape(rng))
        data = pack(sketch.arrays())
        assert len(data) <= limits.MEMO_VALUE_BYTES_MAX
        assert pack(NumberSketch.from_arrays(unpack(data), sketch.kind).arrays()) == data
    text = TextSketch.of(Column(pa.array([f"{number % 1500}" for number in range(3_000)])), True)
    assert pack(TextSketch.from_arrays(unpack(pack(text.arrays()))).arrays()) == pack(text.arrays())


def test_the_largest_sketch_is_small_enough_to_be_kept() -> None:
    rng = np.random.default_rng(0)
    numbers = NumberSketch.of(np.repeat(np.arange(limits.STATISTICS_EXACT_VALUES), 2))
    assert len(pack(numbers.arrays())) < limits.MEMO_VALUE_BYTES_MAX
    words = [
        f"{number:06} " + "x" * (number % limits.STATISTICS_EXACT_LENGTHS) for number in rng.integers(0, 1_400, 48_000)
    ]
    texts = TextSketch.of(Column(pa.array(words)), True)
    assert len(pack(texts.arrays())) < limits.MEMO_VALUE_BYTES_MAX
    short = TextSketch.of(Column(pa.array([f"{number:020}" for number in range(1_000)])), True)
    assert short.frequent.error == 0


def columns_of_every_kind() -> dict[str, tuple[Watched, Column]]:
    rng = np.random.default_rng(3)
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8))
    arrays = {
        "floats": pa.array(rng.normal(size=5_000)),
        "few": pa.array(rng.integers(0, 9, 500)),
        "times": pa.array(rng.integers(0, 2**40, 500), pa.timestamp("us")),
        "decimals": pa.array([Decimal(int(one)) / 100 for one in rng.integers(-999, 999, 50)], pa.decimal128(9, 2)),
        "texts": pa.array([f"word {one}" for one in rng.integers(0, 30, 500).tolist()]),
        "others": pa.array([f"{one}" for one in range(2_000)]),
        "lists": pa.array([[1, 2], [], None, [3]], pa.list_(pa.int32())),
        "images": images,
    }
    schema = pa.schema([pa.field(name, array.type) for name, array in arrays.items() if name != "images"])
    schema = schema.append(tensor_field("images", pa.uint8(), (4, 4, 3), "image"))
    watched = Watched.of(schema, list(arrays))
    return {one.field.name: (one, Column(arrays[one.field.name])) for one in watched}


KINDS = columns_of_every_kind()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 255)), max_size=2), short=st.integers(0, 40))
def test_damaged_bytes_are_told_or_harmless(name: str, flips: list[tuple[int, int]], short: int) -> None:
    """The memo checks what it gives; were that not so, nothing but FormatDamaged would come of it."""
    watched, column = KINDS[name]
    sketch = ColumnSketch.of(watched, column, lambda _: [])
    whole = sketch.encode()
    data = bytearray(whole[: len(whole) - short])
    for at, flip in flips:
        data[at % len(data)] ^= flip
    try:
        found = ColumnSketch.decode(bytes(data), watched, len(column.values))
    except FormatDamaged:
        assert flips or short
        return
    assert short == 0
    ColumnSketch.merged([found, sketch]).analysis(watched)
    if not flips:
        assert found.encode() == whole


def test_moments_of_nothing_and_of_too_much() -> None:
    assert Moments.merged([Moments(), Moments()]).average is None
    huge = Moments.of(np.array([1.7e308, 1.7e308, -1.7e308]))
    assert huge.average is None and huge.deviation is None
    assert Ranks.empty("f").quantiles((0.5,)) == ()
