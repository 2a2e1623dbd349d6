"""Processing in notebooks: small, escaped tables, and a report in a frame that may do nothing."""

from __future__ import annotations

from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from process_data import noise, tensor_table, write

from leptonstore import limits
from leptonstore.process.analyse import analyse
from leptonstore.process.clean import find
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.registry import operation_named
from leptonstore.process.report import Report, render
from leptonstore.process.report_dataset import dataset_report
from leptonstore.store import Store

EVIL = "<script>alert(1)</script>'\""


class Balanced(HTMLParser):
    """Every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("img",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def made(store: Store) -> dict[str, object]:
    """One of each, of a dataset with a duplicate and a class with a hostile name."""
    images = noise(60, 8, 8)
    images[10] = images[4]
    ds = write(store, "d", tensor_table(images, np.arange(60) % 2, [EVIL, "b"], ["train", "val"] * 30), ["id"])
    checks = [operation_named("check.duplicates", {"action": "drop"}), operation_named("check.nulls", {})]
    pipeline = Pipeline("d", checks, into="d@clean")
    return {
        "clean": find(ds),
        "analysis": analyse(ds),
        "report": dataset_report(ds, check=True),
        "pipeline": pipeline,
        "plan": pipeline.plan(store),
        "result": pipeline.run(store),
        "dataset": ds,
    }


def test_each_is_small_escaped_and_whole(made: dict[str, object]) -> None:
    for name, one in made.items():
        html = one._repr_html_()  # type: ignore[attr-defined]
        page = Balanced(html)
        assert "script" not in page.seen and EVIL not in html, name
        if name != "report":
            assert len(html) < 40_000 and {"table", "b"} <= page.seen, name


def test_they_say_what_matters(made: dict[str, object]) -> None:
    def said(name: str) -> str:
        return str(made[name]._repr_html_())  # type: ignore[attr-defined]

    assert "1 of 60 rows" in said("clean") and "Leakage" in said("clean")
    assert "60 rows" in said("analysis") and "aria-label" in said("analysis") and "class label" in said("analysis")
    assert "d → d@clean" in said("pipeline") and "check.duplicates" in said("pipeline") and "drop" in said("pipeline")
    assert "passes over the rows" in said("plan")
    assert "59 rows of 60" in said("result") and "1 duplicates" in said("result")
    assert "image of row 0" in said("dataset")


def test_a_report_stands_in_a_frame_without_rights(made: dict[str, object]) -> None:
    report = made["report"]
    assert isinstance(report, Report)
    html = report._repr_html_()
    assert html.startswith("<iframe sandbox ") and "allow" not in html.partition("srcdoc")[0]
    assert unescape(html.partition('srcdoc="')[2].rpartition('" style')[0]) == render(report)
    assert len(html) < 2 * limits.HTML_REPORT_BYTES_MAX
