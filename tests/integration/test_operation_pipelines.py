"""Operations through pipelines, over versions of many row groups: sides that stay, groups to the last bit, several operations in a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import class_names, tensor_field
from leptonstore.process import images
from leptonstore.process.operations.group_by import GroupBy
from leptonstore.process.operations.images import Crop, Decode, Resize
from leptonstore.process.operations.join import Join
from leptonstore.process.operations.normalise import Normalise
from leptonstore.process.operations.rows import Sample, Select, Split
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store

SourceOf = Callable[..., Source]


def numbers(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "id": np.arange(rows),
            "g": rng.integers(0, 7, rows),
            "x": rng.normal(size=rows) * 10.0 ** rng.integers(-9, 9, rows),
        }
    )


def test_groups_of_many_pieces_are_those_of_the_whole_to_the_last_bit(store: Store, source_of: SourceOf) -> None:
    ds = write_dataset(store, "n", source_of(numbers(30_000), ("id",)))
    operation = GroupBy(["g"], ["count", "sum(x)", "mean(x)", "std(x)", "min(x)", "max(x)"])
    made = Pipeline("n", [operation], into="groups").run(store)
    whole = ds.to_arrow(operation.reads(ds.schema)).combine_chunks().to_batches()[0]
    assert len(ds.leaves.starts) > 3
    assert made.dataset.to_arrow().equals(operation.result(pa.Table.from_batches([operation.partial(whole)])))
    assert made.dataset.identity == ("g",)


def test_a_row_keeps_its_side_when_the_dataset_has_grown(store: Store, source_of: SourceOf) -> None:
    split = Pipeline("n", [Split(["train", "val", "test"], [0.7, 0.2, 0.1])], into="sides")

    def sides(rows: int) -> dict[int, int]:
        write_dataset(store, "n", source_of(numbers(rows), ("id",)))
        made = split.run(store).dataset.to_arrow(["id", "split"])
        return dict(zip(made["id"].to_pylist(), made["split"].to_pylist(), strict=True))

    before, after = sides(5_000), sides(9_000)
    assert len(after) == 9_000 and all(after[row] == side for row, side in before.items())


def test_a_sample_of_rows_is_exact_over_many_row_groups(store: Store, source_of: SourceOf) -> None:
    write_dataset(store, "n", source_of(numbers(12_000), ("id",)))
    made = Pipeline("n", [Sample(rows=1_234)], into="sample").run(store).dataset
    more = Pipeline("n", [Sample(rows=2_000)], into="larger").run(store).dataset
    ids = [set(one.to_arrow(["id"]).column(0).to_pylist()) for one in (made, more)]
    assert len(made) == 1_234 and ids[0] < ids[1]


def test_operations_in_a_row_do_what_each_does_alone(store: Store, source_of: SourceOf) -> None:
    rows = 300
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 12, 10, 3), np.uint8)
    files = [images.encode(one, "png") for one in pixels]
    image = pa.field("image", pa.large_binary(), nullable=False, metadata={"lepton.semantic": "image"})
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), image, pa.field("key", pa.string())])
    keys = [f"k{at % 4}" if at % 5 else None for at in range(rows)]
    table = pa.Table.from_arrays(
        [pa.array(range(rows)), pa.array(files, pa.large_binary()), pa.array(keys)], schema=schema
    )
    write_dataset(store, "files", source_of(table, ("id",)))
    known = pa.table({"key": ["k1", "k2", "k3"], "weight": [1.0, 2.0, 3.0]})
    write_dataset(store, "known", source_of(known, ("key",)))
    made: Dataset = (
        Pipeline(
            "files",
            [
                Select("id >= 10"),
                Crop("image", [10, 8]),
                Resize("image", [6, 6]),
                Decode("image", [6, 6, 3], "pixels"),
                Normalise("pixels", "range", low=[0], high=[255]),
                Join("known", ["key"], kind="inner"),
                Split(by=["key"]),
            ],
            into="ready",
        )
        .run(store)
        .dataset
    )
    chosen = [at for at in range(10, rows) if keys[at] in ("k1", "k2", "k3")]
    result = made.to_arrow()
    assert result["id"].to_pylist() == chosen
    assert result["weight"].to_pylist() == [float(str(keys[at])[1]) for at in chosen]
    small = np.stack([images.resize(np.ascontiguousarray(pixels[at, 1:11, 1:9]), (6, 6)) for at in chosen])
    assert made.schema.field("pixels").type == tensor_field("pixels", pa.float32(), (6, 6, 3)).type
    found = result["pixels"].combine_chunks().to_numpy_ndarray()
    assert np.array_equal(found, (small.astype(np.float64) / 255).astype(np.float32))
    assert class_names(made.schema.field("split")) == ["train", "val"]
    assert result.column_names == ["id", "image", "key", "pixels", "weight", "split"]
