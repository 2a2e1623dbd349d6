"""docs/lineage.md: every command of `lepton checkpoint` is on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leptonstore.cli.group import SUMMARIES

pytest.importorskip("torch")

PAGE = (Path(__file__).parents[2] / "docs" / "lineage.md").read_text()


def test_every_command_of_the_page_is_there() -> None:
    from trainers.commands_checkpoint import checkpoint

    named = set(re.findall(r"lepton checkpoint (\w+)", PAGE))
    assert named == set(checkpoint.commands), "all of them, and no other"
    assert set(re.findall(r"lepton (\w+)", PAGE)) <= set(SUMMARIES)
