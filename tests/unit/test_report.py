"""The report is one harmless, complete, bounded HTML file, whatever the data says."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from process_data import encode, encoded_table, noise, tensor_table, write

from leptonstore import limits
from leptonstore.errors import BadInput, MissingExtra
from leptonstore.process import charts
from leptonstore.process.analyse import analyse
from leptonstore.process.clean import apply_clean, find
from leptonstore.process.gallery import Sample, finding_samples, pick_samples
from leptonstore.process.passages import PIECES_MAX, Passage, leveled
from leptonstore.process.report import EvaluationSection, Report, Version, history, render, write_report
from leptonstore.process.report_dataset import dataset_report
from leptonstore.store import Store

VOID = {"meta", "img", "br", "hr", "input", "link"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</style></title><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "a\x00b\x1b[31m\u202egnp.exe",
    "x" * 5_000,
    "&lt;b&gt; & \ud800",
]


class Page(HTMLParser):
    """Parses strictly: every tag is closed in order. Keeps tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def assert_harmless(html: str, page: Page) -> None:
    allowed = {"href": "#", "src": ("data:image/png;base64,", "data:image/jpeg;base64,")}
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form", "audio", "video"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "poster", "xlink:href", "data"):
                assert value.startswith(allowed[name]), (tag, name, value[:80])
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.S))
    assert html.count("<style") == 1 and "url(" not in style and "@import" not in style
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    assert "default-src 'none'" in html


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store") as store:
        yield store


def full_report(store: Store, names: list[str]) -> Report:
    """Every section, with the given class names."""
    classes = len(names)
    labels = np.arange(300) % classes
    images = noise(300, 12, 12)
    images[7] = images[4]
    images[6] = 0
    table = tensor_table(images, labels, names, ["train", "train", "test"] * 100)
    raw = write(store, "digits", table, ["id"])
    report = find(raw)
    ds = apply_clean(store, raw, report)
    confusion = np.full((classes, classes), 1) + 50 * np.eye(classes, dtype=np.int64)
    pictures = [Sample(3, images[3], names[0], f"said {names[-1]}", wrong=True)]
    return Report(
        title=names[0],
        subtitle=names[-1],
        facts=[(names[0], names[-1])],
        dataset=ds,
        analysis=analyse(ds),
        clean=report,
        findings=finding_samples(raw, report),
        samples=pick_samples(ds),
        training=[
            {"epoch": e, "train_loss": 1 / e, "val_accuracy": 1 - 0.1 / e, "note": names[0]} for e in range(1, 5)
        ],
        evaluation=EvaluationSection(0.9, confusion, names, pictures, names[0], 0.3),
        predictions=[Sample(None, images[0], names[0], "97 %"), Sample(None, None, "nothing")],
        steps=[("collect", 0.5, names[0]), ("train", 83.0, "5 epochs")],
    )


def test_every_section_is_there_and_the_page_is_harmless(store: Store, tmp_path: Path) -> None:
    report = full_report(store, ["zero", "one", "two"])
    path = write_report(tmp_path / "report.html", report)
    html = path.read_text("utf-8")
    page = Page(html)
    assert_harmless(html, page)
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == [
        "samples", "balance", "columns", "storage", "findings", "training", "evaluation", "predictions", "steps",
        "lineage",
    ]  # fmt: skip
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in sections}
    assert report.dataset is not None and report.clean is not None
    for said in (
        report.dataset.commit,
        report.clean.commit,
        "2 of 300 rows",
        "repeats an earlier row (row 4)",
        "83.0 s",
    ):
        assert said in page.words
    assert [one.name for one in tmp_path.iterdir() if one.name != "store"] == ["report.html"]


def test_the_page_can_be_used_without_seeing_it(store: Store) -> None:
    page = Page(render(full_report(store, ["zero", "one", "two"])))
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"].startswith(("row ", "picture")) for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    tables = [table for table in page.all("table") if table.get("class") != "entries"]
    assert len(tables) == len(page.all("caption"))
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {section["aria-labelledby"] for section in page.all("section")} <= set(ids)


def test_hostile_names_stay_text(store: Store) -> None:
    storable = [name.replace("\ud800", "?") for name in HOSTILE]
    html = render(full_report(store, storable))
    page = Page(html)
    assert_harmless(html, page)
    assert "<script>alert(1)</script>" in page.words and "{{ 7 * 7 }}" in page.words and "x" * 500 not in html
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", html)


def test_hostile_text_in_every_field_stays_text() -> None:
    for text in HOSTILE:
        report = Report(
            title=text,
            subtitle=text,
            facts=[(text, text)],
            versions=[Version(text, text, (text,), text, {text: {text: [text]}, "list": [{text: text}], "n": 1.5})],
            samples=[Sample(1, noise(1, 3, 3)[0], text, text), Sample(2, None, text, text)],
            training=[{"epoch": text, text: 1.0, f"{text}loss": 0.5, "loss": text}],
            evaluation=EvaluationSection(0.5, np.eye(2, dtype=np.int64), [text, text], (), text),
            steps=[(text, 1.0, text)],
        )
        html = render(report)
        html.encode("utf-8")
        assert_harmless(html, Page(html))


def test_an_empty_report_is_a_page() -> None:
    html = render(Report(title="nothing yet"))
    page = Page(html)
    assert_harmless(html, page)
    assert "nothing yet" in page.words and page.all("section") == []


def test_the_same_report_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    first = render(full_report(store, ["a", "b"]))
    with Store.create(tmp_path / "again") as other:
        again = full_report(other, ["a", "b"])
        assert again.dataset is not None and again.dataset.commit in first
        assert [one.row for one in again.samples] == [one.row for one in pick_samples(again.dataset)]


def test_thumbnails_show_the_pixels(store: Store) -> None:
    pixels = noise(1, 9, 7, 3)[0]
    page = Page(render(Report("t", samples=[Sample(4, pixels, "cat")])))
    (image,) = page.all("img")
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    assert (image["width"], image["height"], image["alt"]) == ("7", "9", "row 4, cat")


def test_large_pictures_and_long_lists_stay_within_the_bound() -> None:
    pictures = [Sample(at, image, "noise", "c" * 1_000) for at, image in enumerate(noise(30, 300, 400, 3))] * 10
    names = [f"class {at}" for at in range(1_000)]
    report = Report(
        "large",
        samples=pictures,
        findings=pictures,
        predictions=pictures,
        training=[{"step": at, "loss": 1 / (at + 1), "accuracy": 0.5} for at in range(20_000)],
        evaluation=EvaluationSection(0.5, np.ones((1_000, 1_000), dtype=np.int64), names, pictures),
        steps=[(f"step {at}", 1.0, "x" * 1_000) for at in range(5_000)],
    )
    html = render(report)
    assert len(html.encode()) <= limits.REPORT_BYTES_MAX
    words = Page(html).words
    assert f"{limits.REPORT_SAMPLES_MAX} of 300 are shown" in words and "960 more classes" in words


def test_thumbnails_shrink_until_the_page_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report("t", samples=[Sample(0, noise(1, 200, 200)[0])] * 10)
    sizes = {image["width"] for image in Page(render(report)).all("img")}
    assert sizes == {"160"}
    monkeypatch.setattr(limits, "REPORT_BYTES_MAX", len(render(report).encode()) - 1)
    assert {image["width"] for image in Page(render(report)).all("img")} == {"96"}
    monkeypatch.setattr(limits, "REPORT_BYTES_MAX", 1_000)
    with pytest.raises(BadInput, match="over 1,000"):
        render(report)


def test_samples_are_spread_over_the_classes(store: Store) -> None:
    labels = [0] * 280 + [1] * 18 + [2] * 2
    ds = write(store, "d", tensor_table(noise(300, 4, 4), labels, ["many", "few", "two"]), ["id"])
    chosen = pick_samples(ds, 12)
    assert [one.label for one in chosen] == ["many"] * 4 + ["few"] * 4 + ["two"] * 2
    assert len({one.row for one in chosen}) == 10
    assert all(np.array_equal(one.image, ds[one.row]["image"]) for one in chosen if one.row is not None)
    assert len(pick_samples(ds, 2)) == 2


def test_findings_in_files_are_shown_even_when_they_do_not_decode(store: Store) -> None:
    files = [encode(one) for one in noise(10, 6, 6)]
    files[2] = b"broken"
    files[3] = encode(np.zeros((6, 6), dtype=np.uint8))
    ds = write(store, "d", encoded_table(files, [0] * 10, ["a"]), ["path"])
    report = find(ds)
    shown = finding_samples(ds, report)
    assert [(one.row, one.image is None) for one in shown] == [(2, True), (3, False)]
    page = Page(render(Report("t", clean=report, findings=shown)))
    assert "no picture" in page.words


def test_the_history_reaches_the_import(store: Store) -> None:
    report = full_report(store, ["a", "b"])
    assert report.dataset is not None and report.clean is not None
    versions = history(report.dataset)
    assert [one.commit for one in versions] == [report.dataset.commit, report.clean.commit]
    assert versions[0].parents == (report.clean.commit,) and versions[0].lineage["operation"] == "clean"


def test_a_confusion_matrix_must_fit_its_names() -> None:
    with pytest.raises(BadInput, match="2 class names"):
        render(Report("t", evaluation=EvaluationSection(1.0, np.eye(3, dtype=np.int64), ["a", "b"])))


def test_a_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    path = write_report(tmp_path / "r.html", Report("old"))
    with pytest.raises(BadInput):
        write_report(path, Report("t", evaluation=EvaluationSection(1.0, np.eye(3, dtype=np.int64), ["a"])))
    assert "old" in path.read_text() and [one.name for one in tmp_path.iterdir()] == ["r.html"]


def test_without_jinja_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"leptonstore\[process\]"):
        render(Report("t"))


@pytest.mark.parametrize(
    ("low", "high", "ceiling"),
    [
        (0, 1, None),
        (0, 0.17, None),
        (0.9717, 0.9858, 1.0),
        (0.5, 0.5, 1.0),
        (1, 1, 1.0),
        (0, 0, None),
        (-3, 12_345, None),
    ],
)
def test_ticks_are_round_few_and_enclose_the_values(low: float, high: float, ceiling: float | None) -> None:
    ticks = charts.nice_ticks(low, high, ceiling)
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low and ticks[-1] >= high
    assert ceiling is None or ticks[-1] <= ceiling + 1e-9


def test_curves_skip_what_is_no_number_and_keep_the_last_point() -> None:
    rows = [{"step": at, "loss": float("nan") if at == 3 else 1.0 / (at + 1)} for at in range(2_001)]
    (chart,) = charts.line_charts(rows)
    (line,) = chart.lines
    assert line.path.count("L") <= charts.POINTS_MAX and "nan" not in line.path
    assert line.path.endswith(f"L320.0 {line.path.split(' ')[-1]}") and line.last == charts.short(1 / 2_001)
    assert charts.line_charts([{"loss": None}]) == [] and charts.line_charts([]) == []


def test_a_finding_whose_score_is_infinite_is_shown(store: Store) -> None:
    """An infinity among numbers is infinitely far from their median; the page could not be written."""
    table = pa.table({"id": pa.array(range(60)), "x": pa.array([float("inf"), *(float(row % 9) for row in range(59))])})
    found = dataset_report(write(store, "odd", table, ["id"]), check=True)
    assert found.clean is not None and found.clean.counts() == {"outliers": 1} and "∞" in render(found)


def test_numbers_read_well() -> None:
    assert [charts.short(value) for value in (70_000, 0.98374, 33.3184, 1.5e-5, 2.5e9, None)] == [
        "70,000", "0.9837", "33.32", "1.5e-05", "2,500,000,000", "–",
    ]  # fmt: skip
    assert [charts.short(value) for value in (float("inf"), -float("inf"), float("nan"))] == ["∞", "-∞", "NaN"]
    assert [charts.as_bytes(count) for count in (0, 999, 1_000, 55_000_000, 2**40)] == [
        "0 B", "999 B", "0.98 KiB", "52.5 MiB", "1.00 TiB",
    ]  # fmt: skip
    assert [charts.as_seconds(seconds) for seconds in (0.0123, 1.25, 83, 7_260)] == [
        "12 ms", "1.2 s", "83.0 s", "2 h 01 min",
    ]  # fmt: skip
    assert [charts.as_percent(share) for share in (0, 0.98374, 1)] == ["0 %", "98.37 %", "100 %"]


# -- passages of text --------------------------------------------------------------------------------------------------


def test_passages_show_their_marks_and_all_of_their_text() -> None:
    """Neighbours of like strength are one piece; a piece longer than a text of the page is not cut, but parted."""
    long = "x" * (3 * limits.REPORT_TEXT_CHARS_MAX)
    page = render(
        Report("t", passages=[Passage([("a<b", 0.0), ("c", 0.99), ("d", 1.0), (long, 0.5)], "window 3", "9 nats")])
    )
    assert "a&lt;b" in page and '<span style="--v:1.0">cd</span>' in page
    assert page.count("x" * limits.REPORT_TEXT_CHARS_MAX) == 3 and "\N{HORIZONTAL ELLIPSIS}" not in page
    assert "window 3" in page and "9 nats" in page


def test_passages_are_bounded() -> None:
    pieces = [("ab", float(at % 2)) for at in range(5 * PIECES_MAX)]
    assert len(leveled(pieces)) == PIECES_MAX + 1
    page = render(Report("t", passages=[Passage(pieces)] * 40))
    assert "of 40 are shown" in page and len(page.encode()) < limits.REPORT_BYTES_MAX


def test_an_evaluation_of_too_many_classes_for_a_matrix_shows_its_worst_classes() -> None:
    names = [f"class {at}" for at in range(2_000)]
    counts = np.array([np.full(2_000, 10), np.arange(2_000) % 11])
    page = render(Report("t", evaluation=EvaluationSection(0.5, None, names, counts=counts)))
    assert "Accuracy per class" in page and "Confusion" not in page and "class 11" in page
    with pytest.raises(BadInput, match="counts of 2000 classes"):
        render(Report("t", evaluation=EvaluationSection(0.5, None, names)))
