"""docs/lineage.md: its code runs, and the commands that it names are there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.cli.group import SUMMARIES
from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import tensor_field
from leptonstore.store import Store

pytest.importorskip("torch")

PAGE = (Path(__file__).parents[2] / "docs" / "lineage.md").read_text()


def test_the_loop_of_the_page_runs_and_goes_on(store: Store, source_of: Callable[..., Source]) -> None:
    from trainers.listing import list_checkpoints

    rng = np.random.default_rng(0)
    field = tensor_field("x", pa.float32(), (4,))
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), field, pa.field("y", pa.float32())])
    columns = [
        pa.array(np.arange(40)),
        tensor_column(field, rng.random((40, 4), np.float32)),
        pa.array(rng.random(40), pa.float32()),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    ds = write_dataset(store, "samples", Source(schema, ("id",), lambda: iter([batch]), 40))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {"ds": ds, "store": store}
    exec(block, names)
    assert [one.step for one in list_checkpoints(store, "my-run")] == [15, 20]
    exec(block, names)  # there is nothing left to do
    assert names["step"] == 20


def test_every_command_of_the_page_is_there() -> None:
    from trainers.commands_checkpoint import checkpoint

    named = set(re.findall(r"lepton checkpoint (\w+)", PAGE))
    assert named == set(checkpoint.commands), "all of them, and no other"
    assert set(re.findall(r"lepton (\w+)", PAGE)) <= set(SUMMARIES)
