"""The dashboard in a browser: every page loads, complains of nothing, asks nobody else, and can be read, used and heard by everybody."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from dashboard_store import DIGITS, MARKUP
from looking import CONTRAST_MIN, CONTRASTS, FAULTS

from leptonstore.dataset import Dataset

pytest.importorskip("starlette", reason="the extra server is not installed")
if TYPE_CHECKING:
    from leptonstore.testing.daemon import Served

# Of each kind of page, one or more that show all that it has.
PAGES = {
    "overview": "/ui",
    "datasets": "/ui/dataset",
    "models": "/ui/model",
    "checkpoints": "/ui/checkpoint",
    "history": "/ui/dataset/digits",
    "history of a run": "/ui/checkpoint/digits-run",
    "version": "/ui/dataset/digits/main",
    "version with files": "/ui/dataset/photographs/main",
    "version of a table": "/ui/dataset/wide/main",
    "model": "/ui/model/digits-model/main",
    "rows": "/ui/dataset/digits/main/rows",
    "rows as a table": "/ui/dataset/digits/main/rows?view=table",
    "rows that fit": "/ui/dataset/digits/main/rows?where=score+%3C+0.1",
    "no rows that fit": "/ui/dataset/digits/main/rows?where=score+%3C+-1",
    "a condition that is none": "/ui/dataset/digits/main/rows?where=nonsense+%3D+1",
    "texts": "/ui/dataset/reviews/main/rows",
    "wide": "/ui/dataset/wide/main/rows",
    "row": "/ui/dataset/digits/main/rows/7",
    "row with a file": "/ui/dataset/photographs/main/rows/3",
    "wide row": "/ui/dataset/wide/main/rows/299",
    "diff": "/ui/dataset/digits/diff?before=v1&after=main",
    "diff of pictures": "/ui/dataset/photographs/diff",
    "jobs": "/ui/jobs",
    "tokens": "/ui/tokens",
    "cluster": "/ui/cluster",
    "audit": "/ui/audit",
}
IMAGES = {
    "version",
    "version with files",
    "rows",
    "rows that fit",
    "row",
    "row with a file",
    "diff",
    "diff of pictures",
}
VIEWS = [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_every_page_loads_fits_and_can_be_read(visit: Callable[..., Any], scheme: str, width: int) -> None:
    """No complaint, no request elsewhere (`visit` sees to that); no sideways scrolling; pictures that are drawn; contrast of all text."""
    with visit(scheme=scheme, width=width) as page:
        for name, path in PAGES.items():
            answer = page.goto(path)
            assert answer.status == 200, (name, answer.status)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            pictures = page.evaluate(
                "Promise.all([...document.images].map(async i => (await i.decode(), [i.naturalWidth, i.alt])))"
            )
            assert all(natural > 0 and alt.strip() for natural, alt in pictures), (name, pictures)
            assert bool(pictures) == (name in IMAGES), name
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            faint = [one for one in page.evaluate(CONTRASTS) if one["contrast"] < CONTRAST_MIN]
            assert faint == [], (name, faint)


def test_every_page_can_be_heard(visit: Callable[..., Any]) -> None:
    with visit() as page:
        for name, path in PAGES.items():
            page.goto(path)
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert page.evaluate(FAULTS) == [], name


def test_pages_for_those_who_are_not_signed_in_can_be_heard(visit: Callable[..., Any]) -> None:
    with visit(token="", expected=("404", "401")) as page:
        for path in ("/ui/login", "/ui/login?code=used", "/ui/login?out=1", "/ui/dataset"):
            page.goto(path)
            assert page.evaluate(FAULTS) == [], path
            assert [one for one in page.evaluate(CONTRASTS) if one["contrast"] < CONTRAST_MIN] == []


def test_the_schemes_differ(visit: Callable[..., Any]) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        with visit(scheme=scheme) as page:
            papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def test_markup_of_data_is_text(visit: Callable[..., Any]) -> None:
    """In messages, names of columns, cells, classes and addresses; nothing of it has run, and it is there to be read."""
    places = {
        "/ui/dataset/photographs": "message",
        "/ui/dataset/photographs/main": "message",
        "/ui/dataset/wide/main": "column",
        "/ui/dataset/wide/main/rows": "cell",
        "/ui/dataset/wide/main/rows/0": "cell",
        "/ui/dataset/reviews/main/rows": "text",
        "/ui/dataset/reviews/main/rows/0": "text",
    }
    with visit(expected=("404", "400")) as page:
        for path, what in places.items():
            page.goto(path)
            assert "onerror=" in page.locator("main").inner_text(), (path, what)
            assert page.evaluate("document.querySelectorAll('main script, img[src=x]').length") == 0, path
            assert "taken" not in page.title()
        page.goto("/ui/dataset/photographs/main/rows")
        assert "a <b>rock</b>" in page.locator("main").inner_text()
        for path in (
            f"/ui/dataset/{'<script>x'}/main",
            "/ui/dataset?q=<script>x",
            "/ui/dataset/digits/main/rows?where=<script>x",
        ):
            page.goto(path)
            assert page.evaluate("document.querySelectorAll('main script').length") == 0
        assert "<script>x" in page.locator("#where").input_value()
    assert "onerror" in MARKUP


def test_everything_is_reached_and_used_by_keyboard(visit: Callable[..., Any]) -> None:
    """From the overview to a row of a dataset with Tab and Enter alone, seeing where one is."""
    with visit() as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to content"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.querySelector('main').contains(document.activeElement)")

        def go(path: str) -> None:
            for _ in range(400):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.getAttribute('href')") == path:
                    break
            else:
                raise AssertionError(f"Tab does not reach {path}")
            style = "getComputedStyle(document.activeElement)"
            assert page.evaluate(f"{style}.outlineStyle") != "none" and page.evaluate(f"{style}.outlineWidth") != "0px"
            page.keyboard.press("Enter")
            page.wait_for_url(f"**{path}")

        go("/ui/dataset")
        go("/ui/dataset/digits")
        version = page.get_by_role("link", name="Open main").get_attribute("href")
        go(version)
        go(f"{version}/rows")
        go(f"{version}/rows/5")
        go(f"{version}/rows/6")
        assert "Row 6" in page.title()


def test_whatever_scrolls_can_be_scrolled_by_keyboard(visit: Callable[..., Any]) -> None:
    with visit(width=390) as page:
        for name, path in PAGES.items():
            page.goto(path)
            lost = page.evaluate(
                """[...document.querySelectorAll('*')].filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth
                && ['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && !(one.tabIndex === 0)
                && !['INPUT', 'SELECT'].includes(one.tagName)).map(one => one.className)"""
            )
            assert lost == [], name


def test_rows_are_paged_found_and_gone_to(visit: Callable[..., Any], served: Served) -> None:
    with visit() as page:
        page.goto("/ui/dataset/digits/v1/rows")
        pager = page.get_by_role("navigation", name="Pages of rows").first
        assert pager.inner_text().startswith(f"Rows 0–47 of {DIGITS:,}")
        pager.get_by_role("link", name="Next").click()
        assert page.get_by_role("navigation", name="Pages of rows").first.inner_text().count("Rows 48–95")
        page.get_by_role("link", name="Last").first.click()
        assert "Rows 1,152–1,199" in page.locator("main").inner_text()
        page.get_by_label("Row", exact=True).fill("700")
        page.get_by_role("button", name="Go").click()
        assert "Rows 700–747" in page.locator("main").inner_text()
        page.get_by_label("Where").fill("label = 'digit 3' and score < 0.5")
        page.get_by_role("button", name="Search").click()
        labels = page.locator(".gallery .caption b").all_inner_texts()
        assert labels and set(labels) == {"digit 3"}
        while page.get_by_role("link", name="Next").count():
            page.get_by_role("link", name="Next").first.click()
            labels += page.locator(".gallery .caption b").all_inner_texts()
        found = len(Dataset.open(served.told["store"], "digits@v1").filter("label = 'digit 3' and score < 0.5"))
        assert len(labels) == found > 40


def test_a_difference_shows_the_pictures_that_changed(visit: Callable[..., Any]) -> None:
    with visit() as page:
        page.goto("/ui/dataset/photographs/diff")
        numbers = page.locator(".facts dd").all_inner_texts()
        assert [re.sub(r"\s", "", one) for one in numbers] == ["0", "0", "2", "62→62"]
        assert page.locator(".changes img").count() == 4
        before, after = page.locator(".changes tbody").first.locator("img").evaluate_all("all => all.map(i => i.src)")
        assert before != after


def test_a_row_shows_all_of_its_text(visit: Callable[..., Any], served: Served) -> None:
    """What the list cuts is whole on the row's own page; numbers of a list to its bound."""
    texts = Dataset.open(served.told["store"], "reviews").to_arrow(["review"]).column(0).to_pylist()
    longest = max(range(len(texts)), key=lambda row: len(texts[row]))
    assert len(texts[longest]) > 700
    with visit() as page:
        page.goto(f"/ui/dataset/reviews/main/rows/{longest}")
        assert texts[longest] in page.locator(".values").inner_text()
        page.goto("/ui/dataset/wide/main/rows/299")
        assert "254, 255, …" in page.locator(".values").inner_text()
