"""Preparing: images become tensors of one shape; a row's side of the split depends on nothing but its identity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from process_data import encode, encoded_table, noise, tensor_table, write

from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import class_names, semantic_of, tensor_field, tensor_shape
from leptonstore.errors import BadInput, SourceError
from leptonstore.process import images
from leptonstore.process.identity import split_side
from leptonstore.process.preprocess import prepare
from leptonstore.store import Store

NAMES = ["a", "b"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store") as store:
        yield store


def test_nothing_to_do_gives_the_dataset_itself(store: Store) -> None:
    ds = write(store, "d", tensor_table(noise(20, 4, 4), [0] * 20, NAMES, ["train", "test"] * 10), ["id"])
    assert prepare(store, ds) is ds


def test_grey_files_become_one_tensor_of_the_most_common_size(store: Store) -> None:
    pixels = [*noise(60, 5, 4), *noise(20, 9, 9, seed=1)]
    ds = write(store, "d", encoded_table([encode(one) for one in pixels], [0, 1] * 40, NAMES), ["path"])
    done = prepare(store, ds)
    field = done.schema.field("image")
    assert tensor_shape(field) == (5, 4) and semantic_of(field) == "image"
    rows = {row["path"]: row for row in (done[at] for at in range(80))}
    for original, one in zip((ds[at] for at in range(80)), pixels, strict=True):
        assert np.array_equal(rows[original["path"]]["image"], images.fit(one, (5, 4)))
        assert rows[original["path"]]["label"] == original["label"]
    commit = done.commit_object
    assert [parent.hex() for parent in commit.parents] == [ds.commit]
    assert [step["operation"] for step in commit.lineage["steps"]] == ["image.decode", "rows.split"]
    assert commit.lineage["steps"][0]["shape"] == [5, 4]


def test_one_coloured_file_makes_all_rgb(store: Store) -> None:
    files = [encode(one) for one in noise(39, 5, 5)] + [encode(noise(1, 5, 5, 3)[0])]
    ds = write(store, "d", encoded_table(files, [0] * 40, NAMES), ["path"])
    assert tensor_shape(prepare(store, ds).schema.field("image")) == (5, 5, 3)


def test_a_size_that_is_asked_for_is_kept(store: Store) -> None:
    files = [encode(one) for one in noise(40, 5, 5)]
    encoded = write(store, "files", encoded_table(files, [0] * 40, NAMES), ["path"])
    assert tensor_shape(prepare(store, encoded, size=(7, 3)).schema.field("image")) == (7, 3)
    decoded = write(store, "d", tensor_table(noise(40, 8, 8, 3), [0] * 40, NAMES), ["id"])
    assert tensor_shape(prepare(store, decoded, size=(4, 4)).schema.field("image")) == (4, 4, 3)


def test_photographs_are_scaled_down(store: Store) -> None:
    files = [encode(np.full((600, 300), shade, dtype=np.uint8)) for shade in range(12)]
    ds = write(store, "d", encoded_table(files, [0] * 12, NAMES), ["path"])
    assert tensor_shape(prepare(store, ds, split_fraction=0.5).schema.field("image")) == (256, 128)


def test_pieces_of_any_size_give_the_same_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = write(store, "d", encoded_table([encode(one) for one in noise(50, 4, 4)], [0] * 50, NAMES), ["path"])
    whole = prepare(store, ds)
    monkeypatch.setattr("leptonstore.process.preprocess.DECODE_BATCH_BYTES", 3 * 16)
    assert prepare(store, ds).commit == whole.commit


def test_an_undecodable_image_is_named_with_its_row(store: Store) -> None:
    files = [encode(one) for one in noise(40, 5, 5)]
    files[17] = files[17][:-30]
    ds = write(store, "d", encoded_table(files, [0] * 40, NAMES), ["path"])
    with pytest.raises(SourceError, match=r"image of row 17.*clean"):
        prepare(store, ds)


def test_the_split_has_the_size_asked_for(store: Store) -> None:
    ds = write(store, "d", tensor_table(noise(9_000, 2, 2), [0] * 9_000, NAMES), ["id"])
    done = prepare(store, ds, split_fraction=0.25)
    assert class_names(done.schema.field("split")) == ["train", "val"]
    train, val = len(done.split("train")), len(done.split("val"))
    assert train + val == 9_000 and abs(val / 9_000 - 0.25) < 0.02
    assert done.commit_object.lineage["steps"][-1]["rows"] == [train, val]
    assert prepare(store, ds, split_fraction=0.25).commit == done.commit
    assert prepare(store, ds, split_fraction=0.25, seed=1).commit != done.commit


def sides(store: Store, name: str, table: pa.Table) -> dict[int, int]:
    done = prepare(store, write(store, name, table, ["id"])).to_arrow(columns=["id", "split"])
    return dict(zip(done.column("id").to_pylist(), done.column("split").to_pylist(), strict=True))


def test_a_row_never_changes_side_when_the_dataset_changes(store: Store) -> None:
    table = tensor_table(noise(3_000, 2, 2), [0] * 3_000, NAMES)
    all_rows = sides(store, "all", table)
    assert sides(store, "fewer", table.slice(0, 1_000)) == {row: all_rows[row] for row in range(1_000)}
    assert sides(store, "reversed", table.take(pa.array(np.arange(2_999, -1, -1)))) == all_rows


def test_a_side_depends_on_the_own_values_alone() -> None:
    numbers, words = pa.array([1, None, 3, 4], type=pa.int32()), pa.array(["a", "b", None, ""])
    whole = split_side([numbers, words], 0.5)
    alone = [split_side([numbers.slice(at, 1), words.slice(at, 1)], 0.5)[0] for at in range(4)]
    assert whole.tolist() == alone
    # Values of neighbouring columns do not run into each other.
    many = [pa.array([f"{n}" for n in range(100)]), pa.array([f"{n}" for n in range(100)])]
    assert split_side(many, 0.5).tolist() != split_side([many[0]], 0.5).tolist()


def test_tensors_of_any_number_identify_a_row() -> None:
    """float32 tensors had no bytes for the hash: a dataset that they identify could not be split."""
    values = np.arange(40, dtype=np.float32).reshape(20, 2)
    field = tensor_field("x", pa.float32(), (2,))
    side = split_side([tensor_column(field, values)], 0.5)
    assert side.tolist() == [int(split_side([tensor_column(field, row[None])], 0.5)[0]) for row in values]
    assert 0 < side.sum() < 20


def test_the_split_of_old_versions_stays_as_it_is() -> None:
    """Pinned: a change here would move rows of existing datasets to the other side."""
    assert "".join(map(str, split_side([pa.array(np.arange(40))], 0.5))) == PINNED


PINNED = "0101010110110011101010000000101101000011"


def test_bad_parameters_and_views_are_refused(store: Store) -> None:
    ds = write(store, "d", tensor_table(noise(20, 4, 4), [0] * 20, NAMES), ["id"])
    for fraction in (0, 1, -0.1, 1.5):
        with pytest.raises(BadInput, match="between 0 and 1"):
            prepare(store, ds, split_fraction=fraction)
    with pytest.raises(BadInput, match="at least 1"):
        prepare(store, ds, size=(0, 4))
    with pytest.raises(BadInput, match="view"):
        prepare(store, ds.select(np.arange(10)))


def test_a_split_with_an_empty_side_is_refused(store: Store) -> None:
    ds = write(store, "d", tensor_table(noise(2, 4, 4), [0] * 2, NAMES), ["id"])
    with pytest.raises(BadInput, match="empty"):
        prepare(store, ds, split_fraction=0.0001)
