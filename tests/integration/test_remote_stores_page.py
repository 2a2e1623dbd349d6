"""docs/remote-stores.md: its code runs over a daemon, and its limits are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from remote_data import Served, served

from leptonstore import limits
from leptonstore.dataset import Source, write_dataset

pytest.importorskip("torch")
pytest.importorskip("pandas")

PAGE = (Path(__file__).parents[2] / "docs" / "remote-stores.md").read_text()


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served(tmp_path, monkeypatch) as one:
        yield one


def test_the_code_of_the_page_runs(there: Served) -> None:
    rows = 200
    table = pa.table({"id": np.arange(rows), "label": np.arange(rows) % 3, "text": [str(row) for row in range(rows)]})
    write_dataset(there.store, "samples", Source(table.schema, ("id",), table.to_batches, rows, {}))
    names: dict[str, object] = {"URL": there.url}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert len(names["first"]["id"]) == 32 and len(names["frame"]) == len(names["table"]) == rows  # type: ignore[index,arg-type]


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    assert "within\n  a minute" in PAGE and limits.WIRE_RETRY_S == 60
    assert "after five seconds" in PAGE and limits.WIRE_OPEN_S == 5
    assert "every 256 MiB" in PAGE and limits.WIRE_FLUSH_BYTES == 256 << 20
