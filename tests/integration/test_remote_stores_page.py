"""docs/remote-stores.md: its limits are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from leptonstore import limits

pytest.importorskip("torch")
pytest.importorskip("pandas")

PAGE = (Path(__file__).parents[2] / "docs" / "remote-stores.md").read_text()


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    assert "within\n  a minute" in PAGE and limits.WIRE_RETRY_S == 60
    assert "after five seconds" in PAGE and limits.WIRE_OPEN_S == 5
    assert "every 256 MiB" in PAGE and limits.WIRE_FLUSH_BYTES == 256 << 20
