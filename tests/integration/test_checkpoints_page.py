"""docs/checkpoints.md: its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from leptonstore.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        names: dict[str, Any] = {"store": store}
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block, names)
    assert names["step"] == 5 and names["saved"].commit == names["commit"]
    assert torch.equal(names["target"]["model"]["weight"], names["weight"])
