"""docs/parallel-training.md: its code runs, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from training_data import write_patterns

from leptonstore.store import Store
from trainers.devices import KINDS as DEVICES
from trainers.parallel import TENSOR_NAMES
from trainers.wrap import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "parallel-training.md").read_text()


def test_the_code_of_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, block = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        names: dict[str, Any] = {"store": store, "dataset": write_patterns(store)}
        exec(train, names)
    assert capsys.readouterr().out == "0 of 1 took share 0 of 1 for 10 steps\n"
    exec(block, names)
    made = names["Block"](4)
    assert made(torch.zeros(2, 4)).shape == (2, 4) and set(made.tensor_plan()) == {"up", "down"}


def test_kinds_and_devices_are_on_the_page() -> None:
    for name in (*KINDS, *DEVICES, *TENSOR_NAMES):
        assert f"`{name}`" in PAGE, name
