"""Samples of several modalities from a store to a batch: an image, text, tokens and a struct, each with its collate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import tensor_field, text_field, tokens_field
from leptonstore.errors import BadInput
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, NumpyLoader  # noqa: E402
from loaders.batched import RaggedError  # noqa: E402
from loaders.collate import keep, pad, ragged, stack, struct  # noqa: E402

ROWS = 300
BOX = pa.struct([("boxes", pa.list_(pa.list_(pa.float32(), 4))), ("weight", pa.float32()), ("source", pa.string())])


def sample(row: int) -> dict[str, Any]:
    rng = np.random.default_rng(row)
    return {
        "id": row,
        "image": rng.integers(0, 256, (2, 3, 3), np.uint8),
        "text": f"caption {row}" if row % 9 else None,
        "tokens": rng.integers(0, 60_000, row % 11).astype(np.uint16),
        "objects": {
            "boxes": rng.random((row % 4, 4), np.float32),
            "weight": np.float32(row / 4),
            "source": "camera" if row % 2 else "scan",
        },
    }


@pytest.fixture
def ds(store: Store, source_of: Callable[..., Source]) -> Dataset:
    samples = [sample(row) for row in range(ROWS)]
    fields = [
        pa.field("id", pa.int64(), False),
        tensor_field("image", pa.uint8(), (2, 3, 3), "image"),
        text_field("text"),
        tokens_field("tokens", pa.uint16()),
        pa.field("objects", BOX),
    ]
    pixels = pa.array(np.concatenate([one["image"].reshape(-1) for one in samples]))
    columns = [
        pa.array([one["id"] for one in samples]),
        pa.ExtensionArray.from_storage(fields[1].type, pa.FixedSizeListArray.from_arrays(pixels, 18)),
        pa.array([one["text"] for one in samples]),
        pa.array([one["tokens"] for one in samples], fields[3].type),
        pa.array([{**one["objects"], "boxes": one["objects"]["boxes"].tolist()} for one in samples], BOX),
    ]
    return write_dataset(store, "scenes", source_of(pa.table(columns, schema=pa.schema(fields)), ("id",)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_modality_has_its_collate(ds: Dataset, num_workers: int) -> None:
    loader = DataLoader(
        ds, 32, shuffle=True, num_workers=num_workers,
        collate={
            "image": lambda images: stack()(images).float() / 255,
            "tokens": pad(0, multiple=4, extra="mask", dtype=torch.int64),
            "objects": struct(boxes=ragged(), source=keep()),
        },
    )  # fmt: skip
    seen = []
    for batch in loader:
        expected = [sample(row) for row in batch["id"].tolist()]
        seen += batch["id"].tolist()
        images = torch.from_numpy(np.stack([one["image"] for one in expected]))
        assert torch.equal(batch["image"], images.float() / 255)
        assert batch["text"] == [one["text"] for one in expected]
        tokens, mask = batch["tokens"]["values"], batch["tokens"]["mask"]
        assert tokens.shape[1] % 4 == 0 and tokens.dtype == torch.int64
        for row, there, one in zip(tokens, mask, expected, strict=True):
            assert row[there].tolist() == one["tokens"].tolist()
        objects = batch["objects"]
        assert objects["weight"].dtype == torch.float32
        assert objects["weight"].tolist() == [float(one["objects"]["weight"]) for one in expected]
        assert objects["source"] == [one["objects"]["source"] for one in expected]
        boxes = np.concatenate([one["objects"]["boxes"] for one in expected])
        np.testing.assert_array_equal(objects["boxes"]["values"], boxes)
        assert objects["boxes"]["offsets"].diff().tolist() == [len(one["objects"]["boxes"]) for one in expected]
    assert sorted(seen) == list(range(ROWS))


def test_without_collates_the_type_of_a_batch_does_not_depend_on_its_data(ds: Dataset) -> None:
    for batch in (*DataLoader(ds, 64), *DataLoader(ds.select(np.arange(0, ROWS, 44)), 4)):
        expected = [sample(row) for row in batch["id"].tolist()]
        assert [one.dtype for one in batch["tokens"]] == [torch.uint16] * len(expected)
        assert [one.tolist() for one in batch["tokens"]] == [one["tokens"].tolist() for one in expected]
        assert [tuple(one.shape) for one in batch["objects"]["boxes"]] == [
            one["objects"]["boxes"].shape for one in expected
        ]
        assert batch["objects"]["weight"].shape == (len(expected),)


def test_what_does_not_fit_names_dataset_row_and_column(ds: Dataset) -> None:
    chosen = ds.select([22, 44, 7])  # of 0, 0 and 7 tokens
    for collate, message in (
        ({"tokens": stack()}, r"scenes row 2 column 'tokens': a value of shape \(7,\) beside one of \(0,\)"),
        ({"tokens": pad(0, length=4)}, "scenes row 2 column 'tokens': a sequence of 7 is longer"),
        ({"text": pad(0)}, "scenes row 0 column 'text': .* of str"),
        ({"objects": struct(boxes=stack())}, "scenes row 1 column 'objects': field 'boxes'"),
    ):
        loader = DataLoader(chosen, 3, collate=collate)
        with pytest.raises(RaggedError, match=message) as caught:
            next(iter(loader))
        assert isinstance(caught.value, BadInput | ValueError)
        assert loader.state_dict()["consumed"] == 0


def test_collates_that_name_nothing_are_refused(ds: Dataset) -> None:
    for options, message in (
        ({"collate": {"label": keep()}}, "collate names 'label', which is not loaded; the loader has id, image"),
        ({"collate": {"text": keep()}, "columns": ["id"]}, "collate names 'text'"),
        ({"collate": {"text": keep()}, "collate_fn": list}, "collate and collate_fn exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            DataLoader(ds, 4, **options)
    with pytest.raises(ValueError, match="collate: only for a LeptonStore dataset"):
        DataLoader([1, 2], collate={"text": keep()})


def test_a_transform_that_gives_several_shapes_names_the_row_unless_there_is_a_collate(ds: Dataset) -> None:
    def part(image: np.ndarray) -> np.ndarray:
        return image[:, : 1 + int(image.flat[0]) % 3].astype(np.float32)

    chosen = {"columns": ["id", "image"], "transforms": {"image": [part]}}
    widths = [1 + int(sample(row)["image"].flat[0]) % 3 for row in range(8)]
    first = next(row for row, width in enumerate(widths) if width != widths[0])
    with pytest.raises(RaggedError, match=rf"scenes row {first} column 'image': .*cannot be stacked.*collate"):
        next(iter(DataLoader(ds, 8, **chosen)))
    batch = next(iter(DataLoader(ds, 8, **chosen, collate={"image": lambda images: [one.shape[1] for one in images]})))
    assert batch["image"] == widths


def test_without_torch_structs_are_dicts_of_arrays(ds: Dataset) -> None:
    for batch in (next(iter(NumpyLoader(ds, 16))), next(iter(NumpyLoader(ds, 16, num_workers=2)))):
        assert batch["objects"]["weight"].dtype == np.float32 and isinstance(batch["objects"]["weight"], np.ndarray)
        assert [one.tolist() for one in batch["tokens"]] == [sample(row)["tokens"].tolist() for row in range(16)]


# -- lists of numbers, decoded ahead --------------------------------------------------------------------------------------

LISTS = {
    "clouds": pa.list_(pa.list_(pa.float32(), 3)),
    "codes": pa.large_list(pa.uint16()),
    "holes": pa.list_(pa.int32()),  # null rows: none of these is decoded ahead
    "gaps": pa.list_(pa.int32()),  # nulls inside
    "words": pa.list_(pa.string()),
}


@pytest.fixture
def lists(store: Store, source_of: Callable[..., Source]) -> Dataset:
    rng = np.random.default_rng(3)
    rows = [
        {
            "id": row,
            "clouds": rng.random((row % 5, 3), np.float32).tolist(),
            "codes": rng.integers(0, 60_000, row % 7).tolist(),
            "holes": None if row == 17 else [row] * (row % 3),
            "gaps": [row, None] if row == 23 else [row],
            "words": ["word"] * (row % 2),
        }
        for row in range(2_500)
    ]
    schema = pa.schema([pa.field("id", pa.int64()), *(pa.field(name, kind) for name, kind in LISTS.items())])
    return write_dataset(store, "lists", source_of(pa.Table.from_pylist(rows, schema), ("id",)))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("view", ["all", "repeated"])
@pytest.mark.parametrize("cached", [False, True])
def test_lists_that_are_decoded_ahead_are_those_that_are_read(
    lists: Dataset, tmp_path: Path, num_workers: int, view: str, cached: bool
) -> None:
    chosen = lists if view == "all" else lists.select(np.random.default_rng(1).integers(0, 2_500, 700))
    hot = DataLoader(
        chosen.cached(tmp_path / "cache", 64 << 20) if cached else chosen, 100, shuffle=True, num_workers=num_workers
    )
    cold = DataLoader(chosen, 100, shuffle=True, arena_bytes_max=0)
    for one, other in zip(hot, cold, strict=True):
        for name in one:
            for value, expected in zip(one[name], other[name], strict=True):
                if isinstance(expected, torch.Tensor):
                    assert value.dtype == expected.dtype and torch.equal(value, expected), name
                    assert name == "id" or value.untyped_storage().nbytes() == value.nbytes
                else:
                    assert value == expected, name
    assert hot._source is not None
    gaps = ["gaps"] if view == "all" else []  # the view has no row with a null inside
    assert [spec.name for spec in hot._source.cold] == ["holes", *gaps, "words"]
    assert len(next(iter(DataLoader(chosen, 100, columns=["codes"])))["codes"]) == 100


def test_lists_are_decoded_ahead_within_the_budget(lists: Dataset) -> None:
    def cold(budget: int) -> list[str]:
        loader = DataLoader(lists, 10, columns=["id", "clouds", "codes"], arena_bytes_max=budget)
        next(iter(loader))
        assert loader._source is not None
        return [spec.name for spec in loader._source.cold]

    assert cold(2_500 * 8) == ["clouds", "codes"] and cold(80_000) == ["clouds"] and cold(1 << 20) == []


def test_a_dataset_of_lists_without_rows(lists: Dataset, store: Store, source_of: Callable[..., Source]) -> None:
    empty = write_dataset(store, "empty", source_of(lists.to_arrow().slice(0, 0), ("id",)))
    assert list(DataLoader(empty, 4, shuffle=True)) == [] == list(DataLoader(lists.select([]), 4))
