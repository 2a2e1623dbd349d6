"""docs/cleaning-images.md: the checks and parameters that it names are those that there are."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from leptonstore.process.registry import OPERATIONS, kind_named

pytest.importorskip("daft")

PAGE = (Path(__file__).parents[2] / "docs" / "cleaning-images.md").read_text()
CHECKS = ("undecodable", "constant", "image_size", "image_quality", "near_duplicate_images")


def test_every_check_of_images_and_every_parameter_is_on_the_page() -> None:
    for name in (f"check.{check}" for check in CHECKS):
        assert name in OPERATIONS
        (row,) = re.findall(rf"^\| `{name}` .*$", PAGE, re.MULTILINE)
        for one in fields(kind_named(name)):
            assert one.name == "action" or f"`{one.name}`" in row, (name, one.name)
