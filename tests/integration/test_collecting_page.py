"""docs/collecting.md: its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from leptonstore.dataset import Dataset
from leptonstore.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "collecting.md").read_text()


def test_the_code_of_the_page_runs(store: Store, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.png").write_bytes(b"\x89PNG not really")
    committed: list[int] = []
    messages = [
        SimpleNamespace(partition=lambda: 0, offset=lambda at=at: at, value=lambda at=at: b"%d" % at) for at in range(5)
    ]

    class Consumer(list[Any]):
        def commit(self, message: Any) -> None:
            committed.append(message.offset())

    names: dict[str, Any] = {"store": store, "folder": tmp_path / "scans", "consumer": Consumer(messages)}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["done"].added == 1 and len(names["trips"]) == 1
    assert len(Dataset.open(store, "events")) == 5
