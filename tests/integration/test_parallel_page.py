"""docs/parallel-training.md: it names all that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")


from trainers.devices import KINDS as DEVICES
from trainers.parallel import TENSOR_NAMES
from trainers.wrap import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "parallel-training.md").read_text()


def test_kinds_and_devices_are_on_the_page() -> None:
    for name in (*KINDS, *DEVICES, *TENSOR_NAMES):
        assert f"`{name}`" in PAGE, name
