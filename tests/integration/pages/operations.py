"""docs/operations.md: photographs as the page has them in mind, without and with a split, and a table of patients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from leptonstore.dataset import Dataset
from leptonstore.dataset.lineage import lineage
from leptonstore.dataset.schema import (
    class_label_field,
    class_names,
    image_field,
    semantic_of,
    tensor_shape,
    text_field,
)
from leptonstore.process.pipeline_file import parse_pipeline
from leptonstore.process.registry import OPERATIONS
from tests.integration.docs_blocks import ROOT, Place, read
from tests.integration.pages.cleaning_images import jpeg

EXTRAS = ("daft",)
ROWS = 40


def photos(place: Place) -> Dataset:
    """All three; the one with a split."""
    rng = np.random.default_rng(0)
    files = [jpeg(Image.fromarray(rng.integers(0, 256, (18 + row % 3, 24, 3), np.uint8))) for row in range(ROWS)]
    place.write("patients", pa.table({"patient": [f"p{at}" for at in range(5)], "ward": ["a", "b", "a", None, "c"]}))
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            image_field("image"),
            text_field("caption"),
            class_label_field("label", ["cat", "dog"]),
            pa.field("patient", pa.string()),
            pa.field("score", pa.float64()),
            pa.field("age", pa.int32()),
            class_label_field("split", ["train", "val"]),
        ]
    )
    columns = [
        pa.array(range(ROWS)),
        pa.array(files, pa.large_binary()),
        pa.array([f"picture {at} of a cat or a dog" for at in range(ROWS)]),
        pa.array([at % 2 for at in range(ROWS)], pa.uint8()),
        pa.array([f"p{at % 7}" for at in range(ROWS)]),
        pa.array(rng.random(ROWS)),
        pa.array(rng.integers(0, 100, ROWS), pa.int32()),
        pa.array([at % 4 // 3 for at in range(ROWS)], pa.uint8()),
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    place.write("photos", table.drop_columns("split"))
    return place.write("split_photos", table)


def of_the_page(name: str) -> bool:
    """Whether an operation is described there; the others are checks, which have pages of their own."""
    return name.split(".")[0] in ("image", "numbers", "rows") or name == "text.tokenise"


def setting(place: Place) -> Iterator[None]:
    place.names["ds"] = photos(place)
    yield
    made = Dataset.open(place.store, "photos@train")
    assert made.splits() == ["train", "val"] and 0 < len(made) <= ROWS
    (place.folder / "tokenizer.json").write_text(place.names["json_text"])
    _, *blocks = [one.text for one in read(ROOT / "docs" / "operations.md").blocks if one.language == "toml"]
    results: dict[str, Dataset] = {}
    for number, block in enumerate(blocks):
        source = "photos" if "rows.split" in block else "split_photos"
        pipeline = parse_pipeline(f'dataset = "{source}"\ninto = "made-{number}"\n{block}')
        results[pipeline.operations[0].name] = pipeline.run(place.store).dataset
    assert set(results) == {name for name in OPERATIONS if of_the_page(name)}
    assert tensor_shape(results["image.decode"].schema.field("image")) == (12, 12, 3)
    assert results["image.resize"].column_names[-1] == "thumbnail"
    assert semantic_of(results["text.tokenise"].schema.field("tokens")) == "tokens"
    assert class_names(results["rows.split"].schema.field("split")) == ["train", "val", "test"]
    assert results["rows.join"].to_arrow(["ward"]).column(0).null_count > 0
    patients = Dataset.open(place.store, "patients").commit
    links, _ = lineage(place.store, results["rows.join"].label, "dataset")
    assert patients in [link.digest for link in links]
    assert results["rows.group_by"].column_names == ["label", "count", "score_mean", "score_std", "oldest"]
