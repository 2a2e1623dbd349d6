"""docs/tasks.md: every task and model is on it."""

from __future__ import annotations

from pathlib import Path

from trainers.models import FACTORIES
from trainers.tasks import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()


def test_every_task_and_model_is_on_the_page() -> None:
    assert all(f"`{name}`" in PAGE for name in (*KINDS, *FACTORIES))
