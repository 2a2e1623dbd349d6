"""Digests are equal exactly where values are, whatever their type and place, and whether a page holds them or a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset.values import intern
from leptonstore.format.page import encode_page
from leptonstore.process.digests import as_numbers, combined, digests_in, stored_digests, value_digests
from leptonstore.process.digests import digest_field as field_of
from leptonstore.store import Store

VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int16(): st.integers(-3, 3),
    pa.float64(): st.sampled_from([0.5, 1.0, -7.25]),
    pa.bool_(): st.booleans(),
    pa.string(): st.sampled_from(["", "a", "ä", "aa"]),
    pa.large_binary(): st.binary(max_size=2),
    pa.binary(2): st.binary(min_size=2, max_size=2),
    pa.list_(pa.int32()): st.lists(st.integers(0, 2), max_size=3),
    pa.list_(pa.int32(), 2): st.lists(st.none() | st.integers(0, 1), min_size=2, max_size=2),
    pa.large_list(pa.string()): st.lists(st.sampled_from(["", "a", "b"]), max_size=2),
    pa.struct({"x": pa.int8(), "y": pa.string()}): st.fixed_dictionaries(
        {"x": st.none() | st.integers(0, 1), "y": st.sampled_from(["", "q"])}
    ),
}


@pytest.mark.parametrize("kind", VALUES, ids=str)
@settings(deadline=None)
@given(data=st.data())
def test_equal_digests_are_equal_values(kind: pa.DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | VALUES[kind], max_size=12))
    array = pa.array(values, kind)
    start = data.draw(st.integers(0, len(values)))
    digests = value_digests(array.slice(start))
    assert len(digests) == len(values) - start
    names: dict[str, bytes] = {}
    for value, digest in zip(array.slice(start).to_pylist(), digests.to_pylist(), strict=True):
        assert (value is None) == (digest is None)
        if value is not None:
            assert names.setdefault(repr(value), digest) == digest
    assert len(set(names.values())) == len(names)


def _tensors(values: list[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pa.array(values, pa.list_(pa.int32(), 2))
    )


def _nested(values: list[Any]) -> pa.Array:
    return pa.array([[value, [7, 7]] for value in values], pa.list_(pa.list_(pa.int32(), 2), 2))


def _lists_of_tensors(values: list[Any]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), _tensors(values))


@pytest.mark.parametrize("made", [_tensors, _nested, _lists_of_tensors])
def test_a_null_inside_is_not_the_zero_that_a_page_has_in_its_place(made: Any) -> None:
    digests = value_digests(made([[0, 1], [None, 1], [None, 1], [0, None], [0, 0]])).to_pylist()
    assert digests[1] == digests[2] and len(set(digests)) == 4


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.list_(pa.int32(), 2), pa.large_list(pa.int8())], ids=str)
def test_a_null_in_a_neighbour_changes_no_digest(kind: pa.DataType) -> None:
    beside = value_digests(pa.array([[1, 2], [None, 2], [1, 2]], kind))
    alone = value_digests(pa.array([[1, 2]], kind))
    assert beside[0] == beside[2] == alone[0]
    assert beside[1] == value_digests(pa.array([[None, 2]], kind))[0]


def test_no_value_has_the_digest_of_the_page_of_one_with_nulls() -> None:
    kind = pa.list_(pa.uint8())
    holed = pa.array([[None, 1]], kind)
    crafted = pa.array([list(encode_page(holed))], kind)
    assert value_digests(holed)[0] != value_digests(crafted)[0]


def test_tensors_are_compared_whole() -> None:
    images = np.random.default_rng(0).integers(0, 2, (200, 2, 3), np.uint8)
    digests = value_digests(pa.FixedShapeTensorArray.from_numpy_ndarray(images))
    same = (images[:, None] == images[None]).all((2, 3))
    numbers = as_numbers(digests)
    assert ((numbers[:, None] == numbers[None]).all(2) == same).all()


@settings(deadline=None)
@given(st.lists(st.none() | st.binary(max_size=6), min_size=1, max_size=12))
def test_a_reference_has_the_digest_of_its_value(tmp_path_factory: pytest.TempPathFactory, values: list[bytes]) -> None:
    place: Path = tmp_path_factory.getbasetemp() / "digests-store"
    with Store.open(place) if place.exists() else Store.create(place) as store:
        array = pa.array(values, pa.binary())
        assert stored_digests(intern(store, array, inline=3)) == value_digests(array)
        assert stored_digests(intern(store, array)) == value_digests(array)


def test_several_columns_are_one_digest() -> None:
    table = pa.table({"a": ["x", "x", "xy", None], "b": ["y", "y", "", "y"]})
    found = combined([value_digests(table[name].combine_chunks()) for name in ("a", "b")])
    assert found[0] == found[1] != found[2] and found.null_count == 1 and not found[3].is_valid


def test_a_batch_may_bring_its_digests() -> None:
    plain = pa.record_batch({"a": pa.array(["x", None, "z"])})
    known = value_digests(plain.column(0))
    brought = pa.RecordBatch.from_arrays([known], schema=pa.schema([field_of(plain.schema.field(0))]))
    assert digests_in(brought, "a") == digests_in(plain, "a") == known
