"""docs/reports.md: small pictures of birds, in two versions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.cli.group import lepton
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.process.report import render
from tests.integration.docs_blocks import Place

EXTRAS = ("daft",)


def setting(place: Place) -> Iterator[None]:
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            tensor_field("image", pa.uint8(), (8, 8), "image"),
            class_label_field("label", ["wren", "owl"]),
        ]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    columns = [
        pa.array(range(40)),
        pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        pa.array(np.arange(40) % 2, pa.uint8()),
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    place.names["store"] = place.store
    for tag, rows in (("v1", 30), ("v2", 40)):
        place.write("birds", table[:rows])
        lepton.main(["tag", f"birds@{tag}"], standalone_mode=False)
    yield
    assert (place.folder / "birds-main.html").stat().st_size > 0
    assert (place.folder / "birds.html").read_text() == render(place.names["report"])
