"""docs/reports.md: its sections are those of a report, and its picture is small."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reports.md").read_text()


def test_every_section_that_a_dataset_has_is_on_the_page() -> None:
    table = PAGE.partition("| section |")[2].partition("\n\n")[0]
    told = [name for cell in re.findall(r"^\| ([A-Z][^|]*) \|", table, re.MULTILINE) for name in cell.split(", ")]
    parts = resources.files("leptonstore.process").joinpath("templates", "parts.html.j2").read_text()
    titles = re.findall(r'"\w+": \("(\w+)"', parts)
    models = {"Training", "Evaluation", "Passages", "Predictions", "Steps"}  # of `lepton demo` and `lepton evaluate`
    assert sorted(told) == sorted(set(titles) - models)


def test_the_picture_is_small() -> None:
    (name,) = re.findall(r"!\[.*?\]\((.*?)\)", PAGE)
    assert 0 < (DOCS / name).stat().st_size < 300_000
