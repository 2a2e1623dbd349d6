"""The examples of docs/workers.md do what the page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store

pytest.importorskip("torch")

PAGE = (Path(__file__).parents[2] / "docs" / "workers.md").read_text()


def test_the_examples_run(store: Store, source_of: Callable[..., Source]) -> None:
    table = pa.table(
        {"id": np.arange(1_000), "text": ["not a number" if row == 70 else str(row) for row in range(1_000)]}
    )
    names: dict[str, object] = {
        "ds": write_dataset(store, "samples", source_of(table, ("id",))),
        "__name__": "__main__",
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
