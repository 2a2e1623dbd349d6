"""The other projects' own libraries read what we export and write what we import: values are equal, both ways.

mosaicml-streaming has an environment of its own (test_mds_peer.py).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pytest
import safetensors.numpy
import webdataset
from PIL import Image

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.schema import (
    class_label_field,
    class_names,
    image_field,
    semantic_of,
    tensor_field,
    tensor_shape,
)
from leptonstore.store import Store

ROWS = 50


def picture(seed: int, codec: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)).save(out, codec)
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


TENSORS = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
PICTURES = [picture(row) for row in range(ROWS)]
TABLE = pa.Table.from_arrays(
    [
        pa.array(PICTURES, pa.large_binary()),
        pa.array([row % 3 for row in range(ROWS)], pa.uint8()),
        pa.FixedShapeTensorArray.from_numpy_ndarray(TENSORS),
        pa.array([f"text é {row}" for row in range(ROWS)]),
        pa.array([row / 7 for row in range(ROWS)], pa.float64()),
        pa.array([[row] * (row % 4) for row in range(ROWS)], pa.list_(pa.int32())),
        pa.array([row % 2 for row in range(ROWS)], pa.uint8()),
    ],
    schema=pa.schema(
        [
            image_field("image", "png"),
            class_label_field("label", ["cat", "dog", "owl"]),
            tensor_field("tensor", pa.float32(), (2, 3)),
            pa.field("text", pa.string()),
            pa.field("score", pa.float64()),
            pa.field("items", pa.list_(pa.int32())),
            class_label_field("split", ["train", "test"]),
        ]
    ),
)


@pytest.fixture
def ds(store: Store, source_of: Callable[..., Source]) -> Dataset:
    return write_dataset(store, "t", source_of(TABLE, ("text",)))


def imported(store: Store, path: Path, **options: Any) -> pa.Table:
    """Through a store, as a user does it."""
    name = f"n{len(store.state.refs)}"
    return write_dataset(store, name, open_source(path, **options)).to_arrow()


# -- webdataset --------------------------------------------------------------------------------------------------


def test_webdataset_reads_our_shards(ds: Dataset, tmp_path: Path) -> None:
    export_dataset(ds.select(range(20)), tmp_path / "shards", "webdataset")
    found = list(webdataset.WebDataset(str(tmp_path / "shards/shard-000000.tar"), shardshuffle=False).decode("rgb8"))
    expected = ds.to_arrow().slice(0, 20)
    assert [sample["__key__"] for sample in found] == [f"{row:06}" for row in range(20)]
    for row, sample in enumerate(found):
        assert np.array_equal(sample["image.png"], pixels(expected["image"][row].as_py()))
        assert np.array_equal(sample["tensor.npy"], expected["tensor"].combine_chunks().to_numpy_ndarray()[row])
        assert sample["label.cls"] == expected["label"][row].as_py()
        assert sample["text.txt"] == expected["text"][row].as_py()
        assert sample["score.json"] == expected["score"][row].as_py()
        assert sample["items.json"] == expected["items"][row].as_py()


def test_we_read_what_webdataset_writes(store: Store, tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=20, verbose=0) as sink:
        for row in range(ROWS):
            sample = {
                "png": PICTURES[row],
                "cls": row % 3,
                "txt": f"text é {row}",
                "npy": TENSORS[row],
                "json": {"a": row},
            }
            sink.write({"__key__": f"dir/{row:06}", **sample})
    found = imported(store, tmp_path / "s-{000000..000002}.tar")
    assert found.num_rows == ROWS
    assert semantic_of(found.schema.field("png")) == "image"
    assert found["__key__"].to_pylist() == [f"dir/{row:06}" for row in range(ROWS)]
    assert found["png"].to_pylist() == PICTURES
    assert found["cls"].to_pylist() == [row % 3 for row in range(ROWS)]
    assert found["txt"].to_pylist() == TABLE["text"].to_pylist()
    assert np.array_equal(found["npy"].combine_chunks().to_numpy_ndarray(), TENSORS)
    assert [json.loads(text) for text in found["json"].to_pylist()] == [{"a": row} for row in range(ROWS)]
    assert imported(store, tmp_path).equals(found)


# -- datasets ----------------------------------------------------------------------------------------------------


def test_datasets_reads_what_we_save(ds: Dataset, tmp_path: Path) -> None:
    export_dataset(ds, tmp_path / "saved", "huggingface")
    found = datasets.load_from_disk(str(tmp_path / "saved"))
    assert list(found) == ["train", "test"]
    for name, part in found.items():
        expected = ds.split(name).to_arrow()
        assert part.features["label"].names == ["cat", "dog", "owl"]
        assert part.features["tensor"].shape == (2, 3)
        assert isinstance(part.features["image"], datasets.Image)
        assert len(part) == expected.num_rows
        tensors = expected["tensor"].combine_chunks().to_numpy_ndarray()
        for row, sample in enumerate(part.with_format("numpy")):
            assert np.array_equal(sample["image"], pixels(expected["image"][row].as_py()))
            assert np.array_equal(sample["tensor"], tensors[row])
        for name_ in ("label", "text", "score", "items"):
            assert part[name_][:] == expected[name_].to_pylist()


def test_we_read_what_datasets_saves(store: Store, tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "owl"]),
            "tensor": datasets.Array2D((2, 3), "float32"),
            "open": datasets.Array2D((None, 3), "int8"),
            "pair": datasets.Sequence(datasets.Value("int16"), length=2),
            "items": [{"x": datasets.Value("int32")}],
            "inner": {"a": datasets.Value("string"), "b": datasets.Value("timestamp[us]")},
            "text": datasets.Value("large_string"),
        }
    )
    rows = range(ROWS)
    columns: dict[str, Any] = {
        "image": [{"bytes": PICTURES[row], "path": None} for row in rows],
        "label": [row % 3 for row in rows],
        "tensor": list(TENSORS),
        "open": [np.full((row % 3 + 1, 3), row, np.int8) for row in rows],
        "pair": [[row, -row] for row in rows],
        "items": [[{"x": row}] * (row % 3) for row in rows],
        "inner": [{"a": str(row), "b": None} for row in rows],
        "text": [f"{row}" if row % 5 else None for row in rows],
    }
    made = datasets.Dataset.from_dict(columns, features=features)
    made.save_to_disk(str(tmp_path / "one"), num_shards=3)
    found = imported(store, tmp_path / "one")
    assert found["image"].to_pylist() == PICTURES
    assert class_names(found.schema.field("label")) == ["cat", "dog", "owl"]
    assert semantic_of(found.schema.field("image")) == "image"
    assert tensor_shape(found.schema.field("tensor")) == (2, 3)
    assert np.array_equal(found["tensor"].combine_chunks().to_numpy_ndarray(), TENSORS)
    assert found["open"].to_pylist() == [value.tolist() for value in columns["open"]]
    for name in ("label", "pair", "items", "inner", "text"):
        assert found[name].to_pylist() == columns[name], name
    datasets.DatasetDict(train=made.select(range(30)), test=made.select(range(30, ROWS))).save_to_disk(
        str(tmp_path / "two")
    )
    both = imported(store, tmp_path / "two", identity="text")
    assert class_names(both.schema.field("split")) == ["train", "test"]
    assert both["split"].to_pylist() == [0] * 30 + [1] * 20
    assert both.drop_columns(["split"]).equals(found)


def test_an_image_of_which_there_is_only_a_path_is_refused(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PICTURES[0])
    rows = pa.table({"image": pa.array([{"bytes": None, "path": str(secret)}], datasets.Image().pa_type)})
    made = datasets.Dataset(rows.cast(datasets.Features({"image": datasets.Image()}).arrow_schema))
    made.save_to_disk(str(tmp_path / "d"))
    state = json.loads((tmp_path / "d/dataset_info.json").read_text())
    if (
        pa.ipc.open_stream((tmp_path / "d/data-00000-of-00001.arrow").read_bytes())
        .read_all()["image"][0]["bytes"]
        .as_py()
    ):
        # this version of `datasets` embeds the image when it saves; one that did not is what we are after
        table = pa.table({"image": pa.array([{"bytes": None, "path": str(secret)}], datasets.Image().pa_type)})
        with pa.ipc.new_stream(tmp_path / "d/data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
    assert state["features"]["image"]["_type"] == "Image"
    before = dict(store.state.refs)
    with pytest.raises(Exception, match="only a path") as caught:
        write_dataset(store, "t", open_source(tmp_path / "d"))
    assert type(caught.value).__name__ == "SourceError"
    store.refresh()
    assert store.state.refs == before


# -- pandas, numpy, safetensors, pyarrow ---------------------------------------------------------------------------


def test_pandas_both_ways(ds: Dataset, store: Store, tmp_path: Path) -> None:
    plain = ["label", "text", "score"]
    expected = ds.to_arrow(plain)
    export_dataset(ds, tmp_path / "t.jsonl")
    export_dataset(ds, tmp_path / "t.arrow")
    lines = pd.read_json(tmp_path / "t.jsonl", lines=True, precise_float=True)
    assert lines["text"].tolist() == expected["text"].to_pylist()
    assert lines["score"].tolist() == expected["score"].to_pylist()
    assert lines["label"].tolist() == [["cat", "dog", "owl"][label] for label in expected["label"].to_pylist()]
    assert lines["items"].tolist() == ds.to_arrow(["items"])["items"].to_pylist()
    arrow = pd.read_feather(tmp_path / "t.arrow", columns=plain)
    for name in plain:
        assert arrow[name].tolist() == expected[name].to_pylist()
    frame = pd.DataFrame(
        {"a": [1, 2, 3], "b": ["x", None, "é"], "c": [0.5, float("inf"), 1e-300], "d": [True, False, True]}
    )
    frame.to_json(tmp_path / "f.jsonl", orient="records", lines=True, double_precision=15)
    frame.to_feather(tmp_path / "f.feather")
    assert imported(store, tmp_path / "f.feather").to_pydict() == pa.Table.from_pandas(frame).to_pydict()
    read = imported(store, tmp_path / "f.jsonl")
    assert read["a"].to_pylist() == [1, 2, 3] and read["b"].to_pylist() == ["x", None, "é"]
    assert read["c"].to_pylist() == [0.5, None, 1e-300], "pandas writes infinity as null"


def test_numpy_and_safetensors_both_ways(store: Store, source_of: Callable[..., Source], tmp_path: Path) -> None:
    table = TABLE.select(["label", "tensor", "score"])
    ds = write_dataset(store, "numbers", source_of(table, ("score",)))
    export_dataset(ds, tmp_path / "t.npz")
    export_dataset(ds, tmp_path / "t.safetensors")
    found = [np.load(tmp_path / "t.npz", allow_pickle=False), safetensors.numpy.load_file(tmp_path / "t.safetensors")]
    for arrays in found:
        assert sorted(arrays) == ["label", "score", "tensor"]
        assert np.array_equal(arrays["tensor"], ds.to_arrow()["tensor"].combine_chunks().to_numpy_ndarray())
        assert arrays["label"].tolist() == ds.to_arrow()["label"].to_pylist()
    arrays = {
        "x": TENSORS.astype(">f4"),
        "y": np.arange(ROWS, dtype=np.int16),
        "z": np.array([f"é{n}" for n in range(ROWS)]),
    }
    np.savez_compressed(tmp_path / "n.npz", **arrays)
    np.save(tmp_path / "n.npy", np.asfortranarray(TENSORS))
    read = imported(store, tmp_path / "n.npz")
    assert np.array_equal(read["x"].combine_chunks().to_numpy_ndarray(), TENSORS)
    assert read["y"].to_pylist() == list(range(ROWS)) and read["z"].to_pylist() == arrays["z"].tolist()
    one = imported(store, tmp_path / "n.npy", column="pixels")
    assert np.array_equal(one["pixels"].combine_chunks().to_numpy_ndarray(), TENSORS)
    safetensors.numpy.save_file({"b": TENSORS, "a": arrays["y"]}, tmp_path / "n.safetensors", {"made": "by hand"})
    read = imported(store, tmp_path / "n.safetensors")
    assert np.array_equal(read["b"].combine_chunks().to_numpy_ndarray(), TENSORS)
    assert read["a"].to_pylist() == list(range(ROWS))


def test_pyarrow_both_ways(ds: Dataset, store: Store, tmp_path: Path) -> None:
    export_dataset(ds, tmp_path / "t.arrow")
    export_dataset(ds, tmp_path / "t.arrows")
    assert pa.ipc.open_file(tmp_path / "t.arrow").read_all().equals(ds.to_arrow())
    assert pa.ipc.open_stream(tmp_path / "t.arrows").read_all().equals(ds.to_arrow())
    words = pa.table(
        {"w": pa.array(["a", "b", "a"]).dictionary_encode(), "v": pa.array(["x", "y", None], pa.string_view())}
    )
    feather.write_feather(words, str(tmp_path / "w.feather"), compression="zstd")
    assert imported(store, tmp_path / "w.feather").to_pydict() == words.to_pydict()
