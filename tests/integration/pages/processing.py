"""docs/processing.md: forty pictures, two of them equal and one that is none; four texts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.process.pipeline import Pipeline
from leptonstore.process.pipeline_file import parse_pipeline
from tests.integration.docs_blocks import ROOT, Place, read
from tests.unit.process_data import encode, encoded_table

EXTRAS = ("daft",)


def setting(place: Place) -> Iterator[None]:
    rng = np.random.default_rng(0)
    files = [encode(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8), "JPEG") for _ in range(40)]
    files[5], files[7] = files[4], b"no image"
    place.write("birds", encoded_table(files, [row % 2 for row in range(40)], ["a", "b"]), "path")
    place.write("texts", pa.table({"id": range(4), "text": ["a", "long", None, "longer"]}))
    place.names["store"] = place.store
    yield
    file, function = (block.text for block in read(ROOT / "docs" / "processing.md").blocks if block.language == "toml")
    names = place.names
    made = parse_pipeline(file).with_changes(message="").run(place.store)
    assert made.dropped() == {"check.duplicates": 1, "failed": 1}
    assert names["result"].dataset.commit == made.dataset.commit, "the file and the Python make the same"
    assert parse_pipeline(names["text"]) == names["pipeline"]
    operations = parse_pipeline(f'dataset = "texts"\n{function}').operations
    lengths = Pipeline("texts", operations, "made").run(place.store).dataset
    assert lengths.to_arrow(["id", "length"]).to_pylist() == [{"id": 1, "length": 4}, {"id": 3, "length": 6}]
