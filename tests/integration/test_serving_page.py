"""docs/serving.md: its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from trainers.serving.metrics import ROUTES
from trainers.serving.payload import ANSWERS, IMAGES
from trainers.serving.refusal import TYPES

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def test_routes_types_and_errors_are_on_the_page() -> None:
    for name in (*ROUTES, *ANSWERS, *IMAGES):
        assert f"{name}`" in PAGE, name
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d{3}", line)]
    told: dict[str, int] = {}
    for row in rows:
        statuses, kinds, _ = (cell.strip() for cell in row.strip("|").split("|"))
        numbers = [int(number) for number in statuses.split(", ")]
        names = kinds.split(", ")
        told |= dict(zip(names, numbers * (len(names) if len(numbers) == 1 else 1), strict=True))
    assert told == TYPES
