"""Reports in a browser: they load nothing, complain of nothing, and can be read on any width, in both schemes, by keyboard and by ear."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from looking import CONTRAST_MIN, CONTRASTS

from bench import all_page, all_results
from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import class_label_field, image_field, path_field, text_field
from leptonstore.process.findings import findings_table, joined
from leptonstore.process.report import write_report
from leptonstore.process.report_dataset import dataset_report
from leptonstore.store import Store

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path")

VIEWS = [(scheme, width) for scheme in ("light", "dark") for width in (390, 1280)]
PAGES = ("demo", "photographs", "texts", "table", "benchmarks")


# -- what is looked at -------------------------------------------------------------------------------------------------


def _written(store: Store, name: str, table: pa.Table, identity: str, message: str, **lineage: Any) -> Dataset:
    batches = table.combine_chunks().to_batches()
    return write_dataset(
        store, name, Source(table.schema, (identity,), lambda: iter(batches), len(table), lineage), message
    )


def _photographs(store: Store) -> Dataset:
    """JPEGs with planted faults, in two versions, and the findings of a check that compares rows."""
    from PIL import Image

    rng = np.random.default_rng(0)

    def jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=85)
        return out.getvalue()

    pictures = []
    for _ in range(80):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(coarse))
    files = [jpeg(one) for one in pictures]
    files += [files[at] for at in range(6)]
    files += [jpeg(np.roll(pictures[at], 2, 1)) for at in range(6)]
    files += [files[20][:2_000], b"", jpeg(np.full((240, 320, 3), 200, np.uint8))]
    names = ["a class with a rather long name", "sea", "rock"]
    schema = pa.schema([path_field("path"), image_field("image", "jpeg"), class_label_field("label", names)])
    columns = [
        pa.array([f"pictures/{at:03}.jpg" for at in range(len(files))]),
        pa.array(files, pa.large_binary()),
        pa.array(np.arange(len(files)) % 3, pa.uint8()),
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    sources = [{"name": f"pictures/{at}.tar", "bytes": 10_000} for at in range(6)]
    _written(store, "photographs", table.slice(0, 60), "path", "the first sixty", format="image-folder", files=sources)
    ds = _written(store, "photographs", table, "path", "all of them", format="image-folder", files=sources)
    near = findings_table(
        "near_duplicate_images",
        "image",
        range(86, 92),
        ["shifted by two pixels"] * 6,
        np.linspace(0.91, 0.99, 6),
        range(6),
        range(6),
    )
    _written(store, "photographs.findings", near, "row", "findings", searched={"name": ds.name, "commit": ds.commit})
    return ds


def _texts(store: Store) -> Dataset:
    """Reviews, some of them nearly the same, with findings."""
    rng = np.random.default_rng(1)
    words = np.array(
        re.findall(
            r"\w+", "the a film plot actor was rather quite good bad long short and but I we liked hated it loved never"
        )
    )
    texts = [" ".join(rng.choice(words, int(size))) for size in rng.integers(20, 300, 200)]
    texts[3] = (
        "a film that I liked: long and quite good, the plot was never bad and the actor is loved by the two of us"
    )
    texts[150] = texts[3] + " indeed"
    texts[151] = texts[3].replace("film", "book")
    texts[9] = "<b>bold</b> \u202e\x1b[31m & a longwordwithoutanyspace" + "x" * 300
    table = pa.table(
        {"id": range(200), "review": texts, "stars": rng.integers(1, 6, 200)},
        schema=pa.schema([pa.field("id", pa.int64(), False), text_field("review"), pa.field("stars", pa.int64())]),
    )
    ds = _written(store, "reviews", table, "id", "two hundred reviews")
    found = joined(
        [
            findings_table(
                "near_duplicate_texts", "review", [150, 151], ["reads like it"] * 2, [0.97, 0.82], [3, 3], [3, 3]
            ),
            findings_table("text_charset", "review", [9], ["characters that move a cursor"]),
        ]
    )
    _written(store, "reviews.findings", found, "row", "findings", searched={"name": ds.name, "commit": ds.commit})
    return ds


def _table(store: Store) -> Dataset:
    """Numbers and short strings, wide, with nulls."""
    rng = np.random.default_rng(2)
    columns: dict[str, Any] = {f"measurement number {at}": rng.normal(size=500) for at in range(12)}
    columns |= {"id": np.arange(500), "kind": rng.choice(["x", "y", "z"], 500), "empty": pa.nulls(500, pa.float64())}
    return _written(store, "wide", pa.table(columns), "id", "a wide table")


def _failed_run() -> all_results.Result:
    """A benchmark that came to no end: the page shows what it said."""
    machine = {"system": "Linux", "cores": 2, "memory_gib": 8, "python": "3.11"}
    return all_results.Result(
        "failed", "failed", "0123456789ab", "2026-11-27", machine, log="Traceback: " + "a long line " * 40
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One report of each kind."""
    folder = tmp_path_factory.mktemp("reports")
    command = [sys.executable, "-c", "from leptonstore.cli import main; main()", "demo", "--json", "--epochs", "1"]
    done = subprocess.run([*command, "--workdir", str(folder / "demo")], capture_output=True, text=True, check=True)
    found = {"demo": Path(json.loads(done.stdout.strip().split("\n")[-1])["report"])}
    with Store.create(folder / "store") as store:
        for name, make in (("photographs", _photographs), ("texts", _texts), ("table", _table)):
            found[name] = write_report(folder / f"{name}.html", dataset_report(make(store)))
    found["benchmarks"] = folder / "benchmarks.html"
    found["benchmarks"].write_text(all_page.page([*all_results.read(all_results.LATEST), _failed_run()]), "utf-8")
    return found


# -- the browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def opened(browser: Any, pages: dict[str, Path]) -> Callable[..., Any]:
    """A context manager: a page in a scheme and a width. What it asked for and complained of fails the test."""

    @contextmanager
    def show(name: str, scheme: str = "light", width: int = 1280) -> Iterator[Any]:
        url = pages[name].as_uri()
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page = context.new_page()
        wrong: list[str] = []
        page.on(
            "request",
            lambda one: wrong.append(one.url[:200]) if one.url != url and not one.url.startswith("data:") else None,
        )
        page.on(
            "console", lambda one: wrong.append(f"{one.type}: {one.text}") if one.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda one: wrong.append(str(one)))
        page.goto(url)
        yield page
        context.close()
        assert wrong == []

    return show


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_a_page_loads_nothing_and_fits(opened: Callable[..., Any], name: str, scheme: str, width: int) -> None:
    with opened(name, scheme, width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        pictures = page.evaluate(
            "Promise.all([...document.images].map(async i => (await i.decode(), [i.naturalWidth, i.alt])))"
        )
        assert all(natural > 0 and alt.strip() for natural, alt in pictures)
        assert (len(pictures) > 0) == (name in ("demo", "photographs"))


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_every_text_can_be_read(opened: Callable[..., Any], name: str, scheme: str, width: int) -> None:
    """Contrast of text and what lies behind it, of all text that is shown, folded parts open."""
    with opened(name, scheme, width) as page:
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        seen = page.evaluate(CONTRASTS)
        assert len(seen) > 50
        assert [one for one in seen if one["contrast"] < CONTRAST_MIN] == []


@pytest.mark.parametrize("name", PAGES)
def test_headings_are_in_order(opened: Callable[..., Any], name: str) -> None:
    with opened(name) as page:
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(one => +one.tagName[1])")
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_keyboard_reaches_what_folds_and_what_scrolls(opened: Callable[..., Any], name: str, width: int) -> None:
    with opened(name, width=width) as page:
        wanted = page.evaluate(_REACHABLE)
        assert wanted > 0
        # This browser focuses whatever scrolls; others need to be told.
        assert page.evaluate(
            "[...document.querySelectorAll('[data-scrolls]')].every(one => one.matches(" + _NAMED + "))"
        )
        for _ in range(10 * wanted + 200):
            page.keyboard.press("Tab")
            if page.evaluate(_REACHED):
                break
        assert page.evaluate("document.querySelectorAll('[data-wanted]:not([data-reached])').length") == 0
        if page.locator("summary").count():
            page.locator("summary").first.focus()
            before = page.evaluate("document.querySelector('details').open")
            page.keyboard.press("Enter")
            assert page.evaluate("document.querySelector('details').open") is not before


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_small(pages: dict[str, Path], name: str) -> None:
    assert pages[name].stat().st_size <= limits.REPORT_BYTES_MAX


def test_both_schemes_are_really_there(opened: Callable[..., Any]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened("table", "light") as page:
        light = page.evaluate(paper)
    with opened("table", "dark") as page:
        assert page.evaluate(paper) != light


def test_rows_that_are_alike_stand_side_by_side(opened: Callable[..., Any]) -> None:
    with opened("photographs") as page:
        groups = page.locator("#clusters .gallery")
        assert groups.count() == 6
        tops = groups.first.locator("img").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
        assert len(tops) == 2 and tops[0] == tops[1]
    with opened("texts") as page:
        assert [one.strip() for one in page.locator("#clusters mark").all_inner_texts()] == ["us indeed", "book"]


_NAMED = '\'[tabindex="0"][aria-label], [tabindex="0"][aria-labelledby], pre[tabindex="0"]\''
_REACHABLE = """() => {
  const folds = [...document.querySelectorAll('summary, nav a')];
  const scrolls = [...document.querySelectorAll('*')].filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth
    && ['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && one.tagName !== 'NAV');
  for (const one of scrolls) one.dataset.scrolls = '1';
  for (const one of [...folds, ...scrolls]) if (one.checkVisibility()) one.dataset.wanted = '1';
  return document.querySelectorAll('[data-wanted]').length;
}"""
_REACHED = """() => {
  if (document.activeElement.dataset.wanted) document.activeElement.dataset.reached = '1';
  return !document.querySelector('[data-wanted]:not([data-reached])');
}"""
