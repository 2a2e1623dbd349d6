"""docs/cleaning-texts.md: the checks and rules that it names are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

from leptonstore.process.checks.text_quality import RULES
from leptonstore.process.registry import OPERATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "cleaning-texts.md").read_text()


def test_every_check_of_texts_and_every_rule_is_on_the_page() -> None:
    for name in OPERATIONS:
        if name.startswith("check.text_") or name in ("text.mask_pii", "check.near_duplicate_texts"):
            assert f"`{name}`" in PAGE, name
    shown = set(re.findall(r"`((?:gopher|c4)\.\w+)`", PAGE))
    between = {"gopher.top_3_words", *(f"gopher.repeated_{size}_words" for size in range(6, 10))}  # "2 to 4", "5 to 10"
    assert shown | between == set(RULES)
