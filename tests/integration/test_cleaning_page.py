"""docs/cleaning.md: its code runs, and it names every check of the table with the parameters and actions that it has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.process.checks.check import Check
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.registry import kind_named
from leptonstore.store import Store

pytest.importorskip("daft")

PAGE = (Path(__file__).parents[2] / "docs" / "cleaning.md").read_text()


def scans(store: Store) -> Dataset:
    """Two equal images in train, one of train in test, a patient on both sides, and a wild number."""
    rows = 60
    images = np.random.default_rng(0).integers(0, 256, (rows, 6, 6), np.uint8)
    images[[5, 6]] = images[4]
    images[59] = images[8]
    dose = np.linspace(0, 1, rows)
    dose[20] = 1_000
    fields_ = [
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
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields_))
    return write_dataset(store, "scans", Source(table.schema, ("id",), lambda: iter(table.to_batches()), rows))


def test_the_code_of_the_page_runs(store: Store, tmp_path: Path) -> None:
    ds = scans(store)
    names: dict[str, object] = {"ds": ds, "store": store}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, names)
    assert names["report"].counts() == {"duplicates": 2, "leakage": 1}  # type: ignore[attr-defined]
    assert len(names["looked"].dataset) == 60 and len(names["cleaned"]) == 56  # type: ignore[attr-defined, arg-type]
    assert names["cleaned"].to_arrow(["findings"])["findings"].to_pylist().count(["outliers"]) == 1  # type: ignore[attr-defined]
    assert names["looked"].findings.drop_columns(["action"]).num_rows == 5  # type: ignore[attr-defined]
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "clean.toml").write_text(text)
    result = Pipeline.from_toml(tmp_path / "clean.toml").run(store)
    assert len(result.dataset) == 58


def test_the_table_says_which_parameters_and_actions_there_are() -> None:
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(lines) >= 8
    for name, rest in lines:
        kind = kind_named(f"check.{name}")
        assert issubclass(kind, Check), name
        cells = [cell.strip() for cell in rest.split("|")]
        assert cells[-1] == ", ".join(["keep", "drop", "tag", *(["fix"] if kind.can_fix else [])]), name
        for one in fields(kind):
            assert one.name in ("action", "columns") or f"`{one.name}`" in rest, (name, one.name)
