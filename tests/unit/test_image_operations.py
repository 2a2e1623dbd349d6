"""image.decode, image.resize, image.crop: pixels are what everybody else sees, and nothing is written in vain."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from operation_data import applied
from PIL import Image
from process_data import encode, encoded_table, noise, tensor_table, write

from leptonstore.dataset.schema import CODEC, tensor_shape
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process import images
from leptonstore.process.operations.rows import Split
from leptonstore.process.registry import operation_named
from leptonstore.store import Store


def files(pixels: list[np.ndarray], *formats: str, **options: Any) -> pa.Table:
    data = [encode(one, formats[at % len(formats)], **options) for at, one in enumerate(pixels)]
    return encoded_table(data, [0] * len(data), ["a"])


def made_of(name: str, table: pa.Table, **parameters: Any) -> list[Any]:
    return applied(operation_named(name, {"column": "image", **parameters}), table).columns["image"].to_pylist()


def test_decoding_gives_the_pixels_that_everybody_else_sees() -> None:
    pixels = [*noise(3, 9, 7, 3), *noise(3, 5, 6)]
    made = applied(
        operation_named("image.decode", {"column": "image", "shape": [4, 5, 3]}), files(pixels, "PNG", "BMP")
    )
    found = made.columns["image"].to_numpy_ndarray()
    assert all(
        np.array_equal(one, images.fit(original, (4, 5, 3))) for one, original in zip(found, pixels, strict=True)
    )


def test_rows_that_do_not_decode_have_failed_with_the_reason() -> None:
    table = files(list(noise(4, 5, 5)), "PNG")
    broken = table["image"].to_pylist()
    broken[1], broken[3] = b"", broken[3][:-30]
    table = table.set_column(1, table.schema.field(1), pa.array(broken, pa.large_binary()))
    for name, parameters in (("image.decode", {"shape": [5, 5]}), ("image.resize", {"size": [5, 5]})):
        made = applied(operation_named(name, {"column": "image", **parameters}), table)
        assert set(made.failed) == {1, 3} and "empty" in made.failed[1] and "damaged" in made.failed[3]


def test_a_file_of_the_right_size_and_format_is_kept_byte_for_byte() -> None:
    table = files(list(noise(3, 8, 8, 3)), "JPEG", "PNG", "BMP")
    before, after = table["image"].to_pylist(), made_of("image.resize", table, size=[8, 8])
    assert after[:2] == before[:2]
    assert Image.open(io.BytesIO(after[2])).format == "PNG"  # BMP is none of the formats that are written
    assert np.array_equal(images.decode(after[2]), images.decode(before[2]))


def test_a_jpeg_that_lies_on_its_side_is_written_upright() -> None:
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6
    table = files(list(noise(1, 8, 16, 3)), "JPEG", exif=exif)
    for parameters in ({"size": [8, 4]}, {"shorter_max": 8}):
        (file,) = made_of("image.resize", table, **parameters)
        assert images.decode(file).shape[0] > images.decode(file).shape[1]
    assert made_of("image.resize", table, shorter_max=8) == table["image"].to_pylist()  # and nothing is written in vain


def test_the_shorter_edge_is_bounded_and_proportions_stay() -> None:
    table = files([np.zeros(size, np.uint8) for size in ((40, 20), (10, 30), (5, 7))], "PNG")
    shapes = [images.decode(file).shape for file in made_of("image.resize", table, shorter_max=10)]
    assert shapes == [(20, 10), (10, 30), (5, 7)]


def test_a_crop_is_a_part_of_the_pixels() -> None:
    pixels = noise(2, 9, 8, 3)
    centre, box = (
        [images.decode(file) for file in made_of("image.crop", files(list(pixels), "PNG"), **parameters)]
        for parameters in ({"size": [5, 4]}, {"box": [1, 2, 3, 6]})
    )
    assert all(np.array_equal(one, original[2:7, 2:6]) for one, original in zip(centre, pixels, strict=True))
    assert all(np.array_equal(one, original[1:4, 2:8]) for one, original in zip(box, pixels, strict=True))


def test_the_format_that_is_written_stands_in_the_schema() -> None:
    table = files(list(noise(2, 9, 9, 3)), "PNG", "JPEG")
    resize = operation_named("image.resize", {"column": "image", "size": [4, 4], "format": "jpeg"})
    assert resize.output(table.schema).field("image").metadata[CODEC] == b"jpeg"
    made = applied(resize, table).columns["image"].to_pylist()
    assert {Image.open(io.BytesIO(file)).format for file in made} == {"JPEG"}


@pytest.mark.parametrize(
    ("name", "parameters", "match"),
    [
        ("image.decode", {"shape": [5]}, "list of 2 or 3 whole"),
        ("image.decode", {"shape": [5, 5, 4]}, "shape is"),
        ("image.decode", {"shape": [100_000, 100_000]}, "shape"),
        ("image.decode", {"shape": [5, 5], "into": 3}, "into is text, not 3"),
        ("image.resize", {"shorter_max": "big"}, "shorter_max is a whole number, not"),
        ("text.tokenise", {"tokenizer": "x", "special": "yes"}, "special is true or false"),
        ("image.resize", {}, "either `size` or `shorter_max`"),
        ("image.resize", {"size": [4, 0]}, "from 1 on"),
        ("image.resize", {"size": [4, 4], "format": "gif"}, "keep, jpeg, png"),
        ("image.resize", {"size": [4, 4], "quality": 101}, "1 to 100"),
        ("image.crop", {"size": [4, 4], "box": [0, 0, 1, 1]}, "either"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(name: str, parameters: Mapping[str, Any], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        operation_named(name, {"column": "image", **parameters})


def test_columns_that_hold_no_images_are_refused_before_anything_runs(store: Store) -> None:
    ds = write(store, "d", tensor_table(noise(3, 6, 6), [0] * 3, ["a"]), ["id"])
    for name, parameters, match in (
        ("image.decode", {"column": "label", "shape": [4, 4]}, "holds no images"),
        ("image.crop", {"column": "image", "size": [7, 7]}, "6 x 6"),
        ("image.resize", {"column": "image", "size": [4, 4], "format": "png"}, "decoded images"),
        ("image.resize", {"column": "image", "size": [4, 4], "into": "label"}, "a column 'label' already"),
    ):
        with pytest.raises(SchemaError, match=match):
            operation_named(name, parameters).output(ds.schema)
    made = Split(by=["id"]).output(ds.schema).append(ds.schema.field("image").with_name("later"))
    with pytest.raises(BadInput, match="give `shape`"):
        operation_named("image.decode", {"column": "later"}).bound(ds, made)


def test_the_shape_is_looked_up_where_none_is_given(store: Store) -> None:
    pixels = [*noise(5, 6, 7), *noise(3, 9, 9)]
    ds = write(store, "d", files(pixels, "PNG"), ["path"])
    bound = operation_named("image.decode", {"column": "image"}).bound(ds, ds.schema)
    assert bound.recipe()["shape"] == [6, 7]
    assert tensor_shape(bound.output(ds.schema).field("image")) == (6, 7)
