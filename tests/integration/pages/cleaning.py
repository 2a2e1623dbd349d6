"""docs/cleaning.md: two equal images in train, one of train in test, a patient on both sides, and a wild number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.process.pipeline_file import parse_pipeline
from tests.integration.docs_blocks import ROOT, Place, read

EXTRAS = ("daft", "cleanlab")


def scans() -> pa.Table:
    rows = 60
    images = np.random.default_rng(0).integers(0, 256, (rows, 6, 6), np.uint8)
    images[[5, 6]] = images[4]
    images[59] = images[8]
    dose = np.linspace(0, 1, rows)
    dose[20] = 1_000
    fields = [
        pa.field("id", pa.int64()),
        tensor_field("image", pa.uint8(), (6, 6), "image"),
        class_label_field("label", ["a", "b"]),
        class_label_field("split", ["train", "test"]),
        pa.field("patient", pa.int64()),
        pa.field("dose", pa.float64()),
    ]
    arrays = [
        pa.array(np.arange(rows)),
        pa.FixedShapeTensorArray.from_numpy_ndarray(images),
        pa.array(np.arange(rows) % 2, pa.uint8()),
        pa.array([0] * 50 + [1] * 10, pa.uint8()),
        pa.array([*range(58), 3, 4]),
        pa.array(dose),
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def setting(place: Place) -> Iterator[None]:
    place.names |= {"store": place.store, "ds": place.write("scans", scans())}
    yield
    names = place.names
    assert names["report"].counts() == {"duplicates": 2, "leakage": 1}
    assert len(names["looked"].dataset) == 60 and len(names["cleaned"]) == 56
    assert names["cleaned"].to_arrow(["findings"])["findings"].to_pylist().count(["outliers"]) == 1
    assert names["looked"].findings.drop_columns(["action"]).num_rows == 5
    (file,) = (block.text for block in read(ROOT / "docs" / "cleaning.md").blocks if block.language == "toml")
    assert len(parse_pipeline(file).run(place.store).dataset) == 58
