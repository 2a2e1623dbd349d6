"""docs/reports.md: its code runs, its commands and options are there, and its picture is small."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.cli.browse import command as browse
from leptonstore.cli.group import SUMMARIES
from leptonstore.cli.report import command as report
from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.process.report import render
from leptonstore.store import Store

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reports.md").read_text()


@pytest.fixture
def birds(store: Store) -> Store:
    """A dataset `birds` of small pictures."""
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
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    write_dataset(store, "birds", Source(schema, ("id",), lambda: iter([batch]), 40))
    return store


def test_the_code_of_the_page_runs(birds: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {"store": birds}
    exec(block, names)
    html = (tmp_path / "birds.html").read_text()
    assert html == render(names["report"])  # type: ignore[arg-type]


def test_every_section_that_a_dataset_has_is_on_the_page() -> None:
    table = PAGE.partition("| section |")[2].partition("\n\n")[0]
    told = [name for cell in re.findall(r"^\| ([A-Z][^|]*) \|", table, re.MULTILINE) for name in cell.split(", ")]
    parts = resources.files("leptonstore.process").joinpath("templates", "parts.html.j2").read_text()
    titles = re.findall(r'"\w+": \("(\w+)"', parts)
    models = {"Training", "Evaluation", "Passages", "Predictions", "Steps"}  # of `lepton demo` and `lepton evaluate`
    assert sorted(told) == sorted(set(titles) - models)


def test_every_command_and_option_of_the_page_is_there() -> None:
    assert set(re.findall(r"lepton (\w+)", PAGE)) <= set(SUMMARIES)
    options = {option for command in (report, browse) for one in command.params for option in one.opts}
    assert set(re.findall(r"--[a-z]+", PAGE)) <= options


def test_the_picture_is_small() -> None:
    (name,) = re.findall(r"!\[.*?\]\((.*?)\)", PAGE)
    assert 0 < (DOCS / name).stat().st_size < 300_000
