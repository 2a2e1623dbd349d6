"""The code of docs/accounting.md runs."""

from __future__ import annotations

import re
from pathlib import Path

from training_data import quick_config, write_patterns

from leptonstore.store import Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "accounting.md"


def test_the_code_of_the_page_runs(store: Store) -> None:
    known = {"store": store, "patterns": write_patterns(store), "config": quick_config()}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, known)
