"""docs/operations.md: its pipelines run, its code runs, and every operation and parameter that there is stands on it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from operation_examples import write
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
from leptonstore.process.registry import OPERATIONS, kind_named
from leptonstore.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
ROWS = 40
MINE = [name for name in OPERATIONS if name.split(".")[0] in ("image", "numbers", "rows") or name == "text.tokenise"]


def photos(store: Store, folder: Path) -> Dataset:
    """A dataset as the page has it in mind."""
    rng = np.random.default_rng(0)
    files = []
    for row in range(ROWS):
        place = folder / f"{row}.jpg"
        Image.fromarray(rng.integers(0, 256, (18 + row % 3, 24, 3), np.uint8)).save(place)
        files.append(place.read_bytes())
    write(store, "patients", pa.table({"patient": [f"p{at}" for at in range(5)], "ward": ["a", "b", "a", None, "c"]}))
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
    write(store, "photos", pa.Table.from_arrays(columns, schema=schema).drop_columns("split"))
    return write(store, "split_photos", pa.Table.from_arrays(columns, schema=schema))


@pytest.fixture
def ds(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.chdir(tmp_path)
    return photos(store, tmp_path)


def test_the_pipelines_of_the_page_run(store: Store, ds: Dataset, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {"ds": ds}
    exec(code, names)
    (tmp_path / "tokenizer.json").write_text(str(names["json_text"]))
    whole, *blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    made = parse_pipeline(whole).run(store).dataset
    assert made.label == "photos@train" and made.splits() == ["train", "val"] and 0 < len(made) <= ROWS
    results: dict[str, Dataset] = {}
    for number, block in enumerate(blocks):
        source = "photos" if "rows.split" in block else "split_photos"
        pipeline = parse_pipeline(f'dataset = "{source}"\ninto = "made-{number}"\n{block}')
        results[pipeline.operations[0].name] = pipeline.run(store).dataset
    assert set(results) == set(MINE)
    assert tensor_shape(results["image.decode"].schema.field("image")) == (12, 12, 3)
    assert results["image.resize"].column_names[-1] == "thumbnail"
    assert semantic_of(results["text.tokenise"].schema.field("tokens")) == "tokens"
    assert class_names(results["rows.split"].schema.field("split")) == ["train", "val", "test"]
    assert results["rows.join"].to_arrow(["ward"]).column(0).null_count > 0
    patients = Dataset.open(store, "patients").commit
    links, _ = lineage(store, results["rows.join"].label, "dataset")
    assert patients in [link.digest for link in links]
    assert results["rows.group_by"].column_names == ["label", "count", "score_mean", "score_std", "oldest"]


@pytest.mark.parametrize("name", MINE)
def test_every_parameter_is_on_the_page(name: str) -> None:
    assert f"\n## {name}\n" in PAGE
    for one in dataclasses.fields(kind_named(name)):
        assert not one.init or re.search(rf"`{one.name}`|\b{one.name} = ", PAGE), one.name
