"""numbers.normalise: constants are exact, and nothing is learnt from rows that are held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from operation_data import applied, texts
from process_data import noise, tensor_table, write

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.operations.normalise import Normalise
from leptonstore.process.registry import operation_named
from leptonstore.store import Store


def numbers(store: Store, values: np.ndarray, splits: list[str] | None = None) -> Dataset:
    return write(store, "n", tensor_table(values, [0] * len(values), ["a"], splits), ["id"])


def test_a_column_is_brought_to_mean_0_and_deviation_1(store: Store) -> None:
    pixels = noise(50, 4, 4, 3)
    ds = numbers(store, pixels)
    whole = Normalise("image", type="float64").bound(ds, ds.schema)
    found = applied(whole, ds.to_arrow()).columns["image"].to_numpy_ndarray()
    assert abs(found.mean()) < 1e-12 and abs(found.std() - 1) < 1e-12
    channels = Normalise("image", per="channel").bound(ds, ds.schema)
    assert np.allclose(channels.recipe()["mean"], pixels.mean((0, 1, 2)), rtol=1e-15)
    assert np.allclose(channels.recipe()["std"], pixels.std((0, 1, 2)), rtol=1e-15)
    unit = applied(Normalise("image", "range").bound(ds, ds.schema), ds.to_arrow()).columns["image"].to_numpy_ndarray()
    assert unit.dtype == np.float32 and unit.min() == 0 and unit.max() == 1


def test_nothing_is_learnt_from_rows_that_are_held_out(store: Store) -> None:
    values = noise(40, 2, 2)
    splits = ["train", "val"] * 20
    ds = numbers(store, values, splits)
    before = Normalise("image", split="train").bound(ds, ds.schema).recipe()
    values[1::2] = 255
    after = numbers(store, values, splits)
    assert Normalise("image", split="train").bound(after, after.schema).recipe() == before
    assert Normalise("image").bound(after, after.schema).recipe()["mean"] != before["mean"]


def test_equal_values_become_zero(store: Store) -> None:
    ds = numbers(store, np.full((5, 2, 2), 7, np.uint8))
    for kind in ("standard", "range"):
        made = applied(Normalise("image", kind).bound(ds, ds.schema), ds.to_arrow())
        assert not made.columns["image"].to_numpy_ndarray().any()


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"mean": 1}, "give both"),
        ({"mean": 1, "std": 0}, "above 0"),
        ({"kind": "range", "low": 1, "high": 1}, "above low"),
        ({"low": 1}, "another kind"),
        ({"mean": 1, "std": float("inf")}, "finite"),
        ({"mean": 1, "std": 2, "split": "train"}, "nothing is taken"),
        ({"kind": "log"}, "standard, range"),
        ({"type": "int8"}, "float16"),
    ],
)
def test_constants_that_do_not_fit_are_refused(parameters: Mapping[str, Any], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        operation_named("numbers.normalise", {"column": "x", **parameters})


def test_columns_without_numbers_are_refused(store: Store) -> None:
    ds = texts(store)
    with pytest.raises(SchemaError, match="neither numbers"):
        Normalise("text").bound(ds, ds.schema)
    with pytest.raises(SchemaError, match="3 constants for the 1 channels"):
        Normalise("id", mean=[1, 2, 3], std=[1, 2, 3]).output(ds.schema)
    empty = write(store, "empty", ds.to_arrow().slice(0, 0), ["id"])
    with pytest.raises(BadInput, match="no finite value"):
        Normalise("id").bound(empty, empty.schema)


def test_constants_are_looked_up_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = numbers(store, noise(40, 2, 2), ["train", "val"] * 20)
    before = [Normalise("image", split=split).bound(ds, ds.schema).recipe() for split in ("", "train")]
    assert before[0]["mean"] != before[1]["mean"]
    monkeypatch.setattr("leptonstore.process.operations.normalise._constants", None)
    assert [Normalise("image", split=split).bound(ds, ds.schema).recipe() for split in ("", "train")] == before
