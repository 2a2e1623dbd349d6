"""docs/training.md: its keys are those that there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("torch")


from trainers.config import TrainConfig

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_every_key_is_on_the_page() -> None:
    for part in dataclasses.fields(TrainConfig):
        assert f"`{part.name}" in PAGE or part.name in ("epochs", "seed", "device", "threads"), part.name
