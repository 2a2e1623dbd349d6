"""rows.split, rows.sample, rows.join and rows.group_by against what they promise: stable, exact, indifferent to pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset import Source, write_dataset
from leptonstore.process.identity import split_side
from leptonstore.process.operations.group_by import GroupBy
from leptonstore.process.operations.join import Join
from leptonstore.process.operations.rows import Sample, SampleRows, Split
from leptonstore.store import Store

IDS = st.lists(st.integers(0, 10**6), unique=True, max_size=200)


def ids(found: Sequence[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"id": pa.array(found, pa.int64())})


def sides(operation: Split, found: Sequence[int]) -> dict[int, int]:
    return dict(zip(found, operation.apply(ids(found)).columns["split"].to_pylist(), strict=True))


@given(IDS, IDS, st.integers(0, 5))
def test_a_row_keeps_its_side_whatever_other_rows_there_are(some: list[int], more: list[int], seed: int) -> None:
    operation = Split(["train", "val", "test"], [0.6, 0.3, 0.1], by=["id"], seed=seed)
    grown = list(dict.fromkeys([*more, *some]))
    after = sides(operation, grown)
    assert all(after[row] == side for row, side in sides(operation, some).items())


def test_sides_have_the_fractions_that_were_asked_for() -> None:
    found = list(sides(Split(["a", "b", "c", "d"], [0.5, 0.25, 0.15, 0.1], by=["id"]), range(20_000)).values())
    shares = np.bincount(found) / len(found)
    assert np.abs(shares - [0.5, 0.25, 0.15, 0.1]).max() < 0.01


@given(st.floats(0.05, 0.45), st.floats(0.01, 0.5))
def test_raising_the_last_fraction_takes_rows_and_gives_none(fraction: float, more: float) -> None:
    before = sides(Split(["train", "val"], [1 - fraction, fraction], by=["id"]), range(300))
    raised = fraction + more
    after = sides(Split(["train", "val"], [1 - raised, raised], by=["id"]), range(300))
    assert all(after[row] == 1 for row, side in before.items() if side == 1)


@given(st.floats(0.001, 0.999), st.integers(-(2**63), 2**63 - 1))
def test_two_sides_are_those_that_trainers_hold_out(fraction: float, seed: int) -> None:
    rows = list(range(100))
    found = sides(Split(["train", "val"], [1 - fraction, fraction], by=["id"], seed=seed), rows)
    assert list(found.values()) == split_side([pa.array(rows)], fraction, seed).tolist()


def test_rows_of_one_patient_are_on_one_side() -> None:
    patients = np.arange(3_000) // 7
    batch = pa.RecordBatch.from_pydict({"patient": pa.array(patients)})
    side = Split(by=["patient"]).apply(batch).columns["split"].to_numpy()
    assert all(len(set(side[patients == patient].tolist())) == 1 for patient in range(428))
    assert 0.1 < side.mean() < 0.3


@given(IDS, IDS, st.floats(0.05, 0.5))
def test_a_sample_of_a_fraction_stays_when_rows_come_and_is_part_of_larger_ones(
    some: list[int], more: list[int], fraction: float
) -> None:
    def kept(found: Sequence[int], share: float) -> set[int]:
        operation = Sample(by=["id"], fraction=share).bound(None, ids([]).schema)  # type: ignore[arg-type]
        keep = operation.apply(ids(found)).keep  # type: ignore[attr-defined]
        return {row for row, is_in in zip(found, keep.tolist(), strict=True) if is_in}

    small = kept(some, fraction)
    assert small <= kept(some, fraction + 0.3)
    assert small == kept(list(dict.fromkeys([*more, *some])), fraction) & set(some)


@given(IDS, st.integers(1, 50))
def test_a_sample_of_a_number_of_rows_has_that_number_in_any_order(found: list[int], count: int) -> None:
    operation = SampleRows(by=["id"], rows=count)

    def kept(order: Sequence[int]) -> set[int]:
        keep = operation.decide(pa.Table.from_batches([operation.measure(ids(order))])).keep
        assert keep is not None
        return {order[at] for at in np.flatnonzero(keep).tolist()}

    assert len(kept(found)) == min(count, len(found))
    assert kept(found) == kept(found[::-1])


# -- join --------------------------------------------------------------------------------------------------------------

KEYS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["", "a", "b\0", "ab"])), max_size=40)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("join")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return Store.create(Path(folder / "store"))


def _table(keys: list[tuple[int, str]]) -> pa.Table:
    return pa.table({"n": pa.array([n for n, _ in keys], pa.int32()), "s": pa.array([s for _, s in keys], pa.string())})


@settings(max_examples=40, deadline=None)
@given(KEYS, KEYS, st.booleans())
def test_a_join_finds_what_a_dict_finds(
    shop: Store, here: list[tuple[int, str]], there: list[tuple[int, str]], clash: bool
) -> None:
    """clash: as if all keys had one hash."""
    other = _table(list(dict.fromkeys(there)))
    known = dict(zip(zip(other["n"].to_pylist(), other["s"].to_pylist(), strict=True), range(len(other)), strict=True))
    other = other.append_column("row", pa.array(range(len(other)), pa.int64()))
    ds = write_dataset(shop, "there", Source(other.schema, ("n",), lambda: iter(other.to_batches())))
    with pytest.MonkeyPatch.context() as patch:
        if clash:
            patch.setattr(
                "leptonstore.process.operations.join.row_hashes", lambda keys: np.zeros(len(keys[0]), np.uint64)
            )
            patch.setattr("leptonstore.process.operations.join._LOADED", {})
        joined = Join("there", ["n", "s"], ["row"]).bound(ds, _table([]).schema)
        batch = _table(here).combine_chunks().to_batches(max_chunksize=100)
        found = joined.apply(batch[0]).columns["row"].to_pylist() if batch else []  # type: ignore[attr-defined]
    assert found == [known.get(key) for key in here]


# -- group by ----------------------------------------------------------------------------------------------------------

VALUES = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from(["a", "b", ""])),
        st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=False)),
        st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
    ),
    min_size=1,
    max_size=60,
)


@given(VALUES, st.data())
def test_groups_are_the_same_to_the_last_bit_however_rows_are_cut_and_ordered(
    found: list[tuple], data: st.DataObject
) -> None:
    operation = GroupBy(
        ["g"], ["count", "count(x)", "sum(x)", "mean(x)", "std(x)", "min(x)", "max(x)", "sum(i)", "std(i)", "min(g)"]
    )

    def batch(rows: list[tuple]) -> pa.RecordBatch:
        g, x, i = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
        arrays = [pa.array(g, pa.string()), pa.array(x, pa.float64(), from_pandas=False), pa.array(i, pa.int32())]
        return pa.RecordBatch.from_arrays(arrays, names=["g", "x", "i"])

    whole = operation.result(pa.Table.from_batches([operation.partial(batch(found))]))
    order = data.draw(st.permutations(found))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(found)), max_size=4)))
    parts = [operation.partial(batch(order[a:b])) for a, b in zip([0, *cuts], [*cuts, len(found)], strict=True)]
    again = operation.result(pa.Table.from_batches(parts))
    assert [repr(row) for row in again.to_pylist()] == [repr(row) for row in whole.to_pylist()]
    for row in whole.to_pylist():
        own = [one for one in found if one[0] == row["g"]]
        floats = [x for _, x, _ in own if x is not None]
        assert row["count"] == len(own) and row["x_count"] == len(floats)
        assert row["i_sum"] == (
            sum(i for *_, i in own if i is not None) if any(i is not None for *_, i in own) else None
        )
        if floats and not any(map(math.isnan, floats)):
            assert row["x_min"] == min(floats) and row["x_max"] == max(floats)
        if floats and any(map(math.isnan, floats)):
            assert math.isnan(row["x_max"]) and math.isnan(row["x_mean"])
