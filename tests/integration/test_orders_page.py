"""docs/orders.md: its code runs, and the orders that it names are those that there are."""

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

import loaders.orders

PAGE = (Path(__file__).parents[2] / "docs" / "orders.md").read_text()


def test_the_code_of_the_page_runs(store: Store, source_of: Callable[..., Source]) -> None:
    rng = np.random.default_rng(0)
    rows = 2_000
    table = pa.table(
        {
            "id": np.arange(rows),
            "label": rng.integers(0, 10, rows),
            "weight": rng.random(rows),
            "score": rng.random(rows),
            "tokens": pa.array([list(range(int(size))) for size in rng.integers(1, 50, rows)]),
        }
    )
    names: dict[str, object] = {"ds": write_dataset(store, "samples", source_of(table, ("id",)))}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        exec(line, names)
    assert len(names["rows"]) == 64  # type: ignore[arg-type]


def test_every_order_is_on_the_page() -> None:
    for name in set(loaders.orders.__all__) - {"BlockOrder", "FullOrder", "ShuffleQuality"}:
        assert f"`{name}" in PAGE, name
