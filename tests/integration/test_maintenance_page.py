"""docs/maintenance.md: every kind of job and every option is on it."""

from __future__ import annotations

import re
from pathlib import Path

from leptonstore.daemon.maintenance.kinds import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "maintenance.md").read_text()


def test_every_kind_of_job_is_on_the_page_with_its_options() -> None:
    rows = {row.split("`")[1]: row for row in PAGE.splitlines() if row.startswith("| `")}
    assert rows.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        options = set(re.findall(r"`(\w+)`", rows[name].rsplit("|", 2)[1]))
        assert options == kind.options.keys(), name
