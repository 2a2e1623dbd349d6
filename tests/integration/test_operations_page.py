"""docs/operations.md: every operation and parameter that there is stands on it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from leptonstore.process.registry import OPERATIONS, kind_named
from tests.integration.pages.operations import of_the_page

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("name", [name for name in OPERATIONS if of_the_page(name)])
def test_every_parameter_is_on_the_page(name: str) -> None:
    assert f"\n## {name}\n" in PAGE
    for one in dataclasses.fields(kind_named(name)):
        assert not one.init or re.search(rf"`{one.name}`|\b{one.name} = ", PAGE), one.name
