"""ARCHITECTURE.md, "Where is what?": every file that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "ARCHITECTURE.md").read_text().partition("\n## Where is what?\n")[2]


def test_each_file_of_the_tables_is_there() -> None:
    """A name stands below the folder of its table, or beside the name before it."""
    lost, count, base, before = [], 0, ROOT, ROOT
    for line in TEXT.split("\n"):
        if line.startswith("**"):
            base = before = ROOT / re.findall(r"`([^`]+)`", line)[0]
        if not line.startswith("|"):
            continue
        for name in re.findall(r"`([\w./*]+(?:\.py|/))`", line.split("|")[2]):
            found = [place / name for place in (base, before) if list(place.glob(name))]
            count += 1
            if found:
                before = found[0].parent
            else:
                lost.append(name)
    assert lost == [] and count > 200
