"""docs/cleaning.md: it names every check of the table with the parameters and actions that it has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from leptonstore.process.checks.check import Check
from leptonstore.process.registry import kind_named

pytest.importorskip("daft")

PAGE = (Path(__file__).parents[2] / "docs" / "cleaning.md").read_text()


def test_the_table_says_which_parameters_and_actions_there_are() -> None:
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(lines) >= 8
    for name, rest in lines:
        kind = kind_named(f"check.{name}")
        assert issubclass(kind, Check), name
        cells = [cell.strip() for cell in rest.split("|")]
        assert cells[-1] == ", ".join(["keep", "drop", "tag", *(["fix"] if kind.can_fix else [])]), name
        for one in fields(kind):
            assert one.name in ("action", "columns") or f"`{one.name}`" in rest, (name, one.name)
