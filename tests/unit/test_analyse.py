"""Statistics equal numpy's on the whole column, exactly or within the error that they state, nulls and NaN included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from process_data import encode, encoded_table, noise, tensor, tensor_table, write

from leptonstore.dataset.schema import tensor_field
from leptonstore.process.analyse import analyse
from leptonstore.process.statistics.numbers import NumberSketch
from leptonstore.process.statistics.results import NumberStats
from leptonstore.store import Store

ROWS = 9_000  # more than one row group


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store") as store:
        yield store


def assert_numpy(stats: NumberStats | None, values: np.ndarray) -> None:
    assert stats is not None and stats.histogram is not None
    assert stats.count == values.size
    assert (stats.min, stats.max) == (values.min(), values.max())
    wide = values.astype(np.float64)
    assert stats.mean == pytest.approx(wide.mean(), rel=1e-12, abs=1e-12)
    assert stats.std == pytest.approx(wide.std(), rel=1e-9, abs=1e-12)
    counts, edges = np.histogram(wide.reshape(-1), bins=32)
    assert np.abs(np.array(stats.histogram.counts) - counts).max() <= stats.histogram.error
    assert np.allclose(stats.histogram.edges, edges, rtol=1e-6)
    assert sum(stats.histogram.counts) == values.size
    ordered = np.sort(values.reshape(-1))
    for quantile in stats.quantiles:
        low, high = (np.searchsorted(ordered, quantile.value, side) / values.size for side in ("left", "right"))
        assert low - stats.rank_error <= quantile.share <= high + stats.rank_error


NUMBERS = {
    "uint8": np.random.default_rng(1).integers(0, 256, ROWS, dtype=np.uint8),
    "int8": np.random.default_rng(2).integers(-100, 100, ROWS, dtype=np.int8),
    "int16": np.random.default_rng(3).integers(-30_000, 30_000, ROWS, dtype=np.int16),
    "uint16": np.random.default_rng(4).integers(0, 65_536, ROWS, dtype=np.uint16),
    "int32": np.random.default_rng(5).integers(-(2**31), 2**31 - 1, ROWS, dtype=np.int32),
    "int64": np.random.default_rng(6).integers(-(2**40), 2**40, ROWS, dtype=np.int64),
    "uint64": np.random.default_rng(7).integers(0, 2**50, ROWS, dtype=np.uint64),
    "float32": np.random.default_rng(8).normal(1000, 0.1, ROWS).astype(np.float32),
    "float64": np.random.default_rng(9).normal(1e6, 1, ROWS),
    "equal": np.full(ROWS, 7, dtype=np.uint8),
    "equal_floats": np.full(ROWS, 2.5),
}


def test_numbers_are_numpys(store: Store) -> None:
    ds = write(store, "d", pa.table({"id": np.arange(ROWS), **NUMBERS}), ["id"])
    columns = {column.name: column for column in analyse(ds).columns}
    for name, values in NUMBERS.items():
        assert_numpy(columns[name].numeric, values)
        assert columns[name].nulls == 0 and columns[name].rows == ROWS


def test_tensors_are_numpys(store: Store) -> None:
    values = np.random.default_rng(0).normal(size=(ROWS, 3, 2)).astype(np.float32)
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), tensor_field("x", pa.float32(), (3, 2))])
    ds = write(store, "d", pa.Table.from_arrays([pa.array(np.arange(ROWS)), tensor(values)], schema=schema), ["id"])
    column = analyse(ds).columns[1]
    assert_numpy(column.numeric, values)
    assert column.type == "tensor of float, 3 x 2"


def test_nulls_nan_and_booleans(store: Store) -> None:
    table = pa.table(
        {
            "id": [0, 1, 2, 3, 4],
            "x": pa.array([1.0, None, float("nan"), 3.0, float("inf")]),
            "n": pa.array([5, None, None, 7, 7], type=pa.int8()),
            "b": pa.array([True, None, False, True, True]),
            "none": pa.array([None] * 5, type=pa.float64()),
        }
    )
    columns = {column.name: column for column in analyse(write(store, "d", table, ["id"])).columns}
    x = columns["x"].numeric
    assert x is not None and (x.count, x.not_finite, x.min, x.max, x.mean) == (2, 2, 1.0, 3.0, 2.0)
    assert columns["x"].nulls == 1
    assert [(one.value, one.rows) for one in columns["n"].distinct or ()] == [(5, 1), (7, 2)]
    assert [(one.value, one.rows) for one in columns["b"].distinct or ()] == [(0, 1), (1, 3)]
    none = columns["none"].numeric
    assert none is not None and none.count == 0 and none.mean is None and none.histogram is None


def test_lengths_of_text(store: Store) -> None:
    words = ["", "a", "äöü", "x" * 500] * (ROWS // 4)
    table = pa.table({"id": np.arange(ROWS), "text": pa.array([None, *words[1:]])})
    column = analyse(write(store, "d", table, ["id"])).columns[1]
    assert column.nulls == 1
    assert_numpy(column.lengths, np.array([len(word.encode()) for word in words[1:]]))


def test_decoded_images_by_channel(store: Store) -> None:
    images = noise(ROWS, 3, 2, 3)
    images[..., 1] //= 2
    ds = write(store, "d", tensor_table(images, [0] * ROWS, ["a"]), ["id"])
    column = analyse(ds).columns[1]
    assert column.image is not None
    assert [(s.height, s.width, s.channels, s.rows) for s in column.image.sizes] == [(3, 2, 3, ROWS)]
    assert column.image.channel_means == pytest.approx(images.mean(axis=(0, 1, 2)))
    assert column.image.channel_stds == pytest.approx(images.std(axis=(0, 1, 2)))
    assert_numpy(column.numeric, images)


def test_encoded_images_of_several_sizes(store: Store) -> None:
    grey, colour = noise(6, 5, 4), noise(3, 2, 2, 3, seed=1)
    files = [encode(one) for one in [*grey, *colour]]
    files.append(b"broken")
    column = analyse(write(store, "d", encoded_table(files, [0] * 10, ["a"]), ["path"])).columns[1]
    assert column.image is not None and column.image.undecodable == 1
    assert [(s.height, s.width, s.channels, s.rows) for s in column.image.sizes] == [(5, 4, 1, 6), (2, 2, 3, 3)]
    red = np.concatenate([grey.reshape(-1), colour[..., 0].reshape(-1)])
    assert column.image.channel_means[0] == pytest.approx(red.mean())
    assert_numpy(column.numeric, np.concatenate([grey.reshape(-1), colour.reshape(-1)]))
    assert_numpy(column.lengths, np.array([len(file) for file in files]))


def test_images_are_looked_at_again_when_the_decoder_is_another(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from leptonstore.process import images

    ds = write(store, "e", encoded_table([encode(one) for one in noise(6, 5, 4)], [0] * 6, ["a"]), ["path"])
    looked: list[int] = []
    decoded = images.map_decoded

    def counted(*arguments: Any) -> Any:
        looked.append(1)
        return decoded(*arguments)

    monkeypatch.setattr(images, "map_decoded", counted)
    for versions, times in (("1", 1), ("1", 1), ("2", 2)):
        monkeypatch.setattr(images, "decoders", lambda versions=versions: {"pillow": versions})
        analyse(ds)
        assert len(looked) == times


def test_class_balance_overall_and_by_split(store: Store) -> None:
    rng = np.random.default_rng(0)
    labels, splits = rng.integers(0, 4, ROWS), rng.choice(["train", "test"], ROWS)
    table = tensor_table(noise(ROWS, 2, 2), labels, ["a", "b", "c"], [str(split) for split in splits])
    found = analyse(write(store, "d", table, ["id"]))
    (balance,) = found.balance
    assert balance.column == "label" and balance.names == ("a", "b", "c")
    assert balance.rows == tuple(np.bincount(labels)[:3]) and balance.unnamed == (labels == 3).sum()
    for split in ("train", "test"):
        assert balance.splits[split] == tuple(np.bincount(labels[splits == split])[:3])
        assert found.splits[split] == (splits == split).sum()
    label = next(column for column in found.columns if column.name == "label")
    assert [one.name for one in label.distinct or ()] == ["a", "b", "c", ""]


def test_a_view_is_analysed_alone(store: Store) -> None:
    labels = np.arange(100) % 2
    ds = write(store, "d", tensor_table(noise(100, 2, 2), labels, ["a", "b"]), ["id"])
    view = analyse(ds.select(np.flatnonzero(labels == 1)))
    assert view.rows == 50 and view.balance[0].rows == (0, 50)
    assert view.fingerprint != analyse(ds).fingerprint


def test_sizes_are_those_of_the_store(store: Store) -> None:
    ds = write(store, "d", tensor_table(np.zeros((ROWS, 8, 8), dtype=np.uint8), [0] * ROWS, ["a"]), ["id"])
    sizes, stats = analyse(ds).sizes, ds.stats()
    assert (sizes.logical_bytes, sizes.stored_bytes) == (stats.logical_bytes, stats.stored_bytes)
    assert sizes.total_ratio == pytest.approx(sizes.dedup_ratio * sizes.compression_ratio)
    assert sizes.total_ratio > 5


def test_an_analysis_is_json(store: Store) -> None:
    ds = write(store, "d", tensor_table(noise(20, 4, 4), [0] * 20, ["a"], ["train", "test"] * 10), ["id"])
    document = analyse(ds).to_json()
    assert json.loads(json.dumps(document, allow_nan=False))["rows"] == 20
    assert document["sizes"]["dedup_ratio"] >= 1


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.0, np.nextafter(1.0, 2.0)]),  # no 31 numbers between them
        np.array([-1.7e308, 1.7e308]),  # their distance is infinite
        np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max]),
        np.array([65_504, -65_504], dtype=np.float16),
    ],
)
def test_extreme_ranges_do_not_fail(values: np.ndarray) -> None:
    stats = NumberSketch.of(values).stats()
    assert stats.count == 2 and (stats.min, stats.max) == (values.min(), values.max())
    assert stats.histogram is None or sum(stats.histogram.counts) == 2
