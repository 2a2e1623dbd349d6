"""What notebooks show: small, escaped, and never a reason to fail."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset, write_files
from leptonstore.dataset.schema import class_label_field, image_field, tensor_field
from leptonstore.dataset.shown import shown
from leptonstore.store import Store

Make = Callable[..., Source]


def test_everything_that_came_from_data_is_escaped(store: Store, source_of: Make) -> None:
    evil = "<script>alert(1)</script>"
    write_dataset(store, "d", source_of(pa.table({evil: [f"{evil}&'\"", None]}), (evil,)))
    table = write_files(store, "model", "m", [(evil, b"x")], {})
    dataset = Dataset.open(store, "d")
    for made in (dataset._repr_html_(), store._repr_html_(), table._repr_html_()):
        assert "<script" not in made and made.startswith("<div>") and made.endswith("</div>")
    assert "&lt;script&gt;" in dataset._repr_html_() and "2 rows" in dataset._repr_html_()
    assert "d@main" in store._repr_html_() and "1 files" in table._repr_html_()
    assert repr(table).startswith("<FileTable m@main") and repr(store) == f"Store({store.url!r})"


def test_it_is_small_whatever_the_dataset(store: Store, source_of: Make) -> None:
    columns = {f"c{at}": np.arange(3_000) for at in range(100)}
    write_dataset(store, "wide", source_of(pa.table(columns), ("c0",)))
    dataset = Dataset.open(store, "wide")
    made = dataset._repr_html_()
    assert "and 2,995 more rows, and 84 more columns" in made and len(made) < 10_000
    assert dataset.pages.reads == 16, "the columns that are not shown are not read"
    assert "and 88 more columns" in repr(dataset) and "3,000 rows" in repr(dataset)
    assert "10 of 3,000 rows" in repr(dataset.select(range(10)))


def test_pictures_are_shown_small(store: Store, source_of: Make) -> None:
    pillow = pytest.importorskip("PIL.Image")
    encoded = io.BytesIO()
    pillow.fromarray(np.zeros((300, 200, 3), np.uint8)).save(encoded, "PNG")
    huge = io.BytesIO()
    pillow.fromarray(np.zeros((5_000, 5_000), np.uint8)).save(huge, "PNG")  # a small file of many pixels
    tensor = tensor_field("pixels", pa.uint8(), (8, 8), "image")
    pixels = pa.ExtensionArray.from_storage(tensor.type, pa.array([[7] * 64] * 3, pa.list_(pa.uint8(), 64)))
    fields = [image_field("image"), tensor, class_label_field("label", ["cat", "<dog>"])]
    images = pa.array([encoded.getvalue(), b"no picture", huge.getvalue()], pa.large_binary())
    table = pa.table([images, pixels, pa.array([0, 1, 1], pa.uint8())], schema=pa.schema(fields))
    made = write_dataset(store, "p", source_of(table, ("label",)))._repr_html_()
    assert made.count("<img") == 4 and "10 bytes" in made and f"{len(huge.getvalue()):,} bytes" in made
    assert "0 cat" in made and "1 &lt;dog&gt;" in made


def test_damage_is_told_instead_of_rows(store: Store, source_of: Make) -> None:
    dataset = write_dataset(store, "d", source_of(pa.table({"a": np.arange(2_000)}), ("a",)))
    place = store.locate(dataset.leaves.group(0).columns[0][0].digest)
    assert place is not None
    path = store.home.path_of(place.pack)  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[place.row.offset + 100] ^= 1
    path.write_bytes(data)
    assert "is corrupt" in Dataset.open(Store.open(store.url), "d")._repr_html_()


def test_a_value_is_one_short_line() -> None:
    assert shown("a\nb\x1b[31m" + "x" * 100) == "a b?[31m" + "x" * 31 + "…"
    assert shown(b"abc") == "3 bytes" and shown(None) == "-" and shown(1 / 3) == "0.333333"
    assert shown(np.zeros((2, 3), np.float32)) == "float32 2x3"
