"""docs/orders.md: the orders that it names are those that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import loaders.orders

PAGE = (Path(__file__).parents[2] / "docs" / "orders.md").read_text()


def test_every_order_is_on_the_page() -> None:
    for name in set(loaders.orders.__all__) - {"BlockOrder", "FullOrder", "ShuffleQuality"}:
        assert f"`{name}" in PAGE, name
