"""The README in two languages: the same program, the same sections, and a tree that names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "README.zh-CN.md")
TEXTS = {name: (ROOT / name).read_text() for name in NAMES}


def blocks(text: str) -> list[str]:
    return re.findall(r"^```(\w*\n.*?)^```$", text, re.S | re.M)


def tree_of(text: str) -> list[str]:
    """The paths that the annotated tree names, in full; `a, b` and `x*` as they stand."""
    found, parent = [], ""
    for line in blocks(text)[-1].strip().split("\n"):
        name = re.split(r"\s{2,}", line.strip())[0]
        if not line.startswith(" "):
            parent = name
        found += [name if name == parent else parent + one for one in name.split(", ")]
    return found


def test_both_languages_show_the_same_code():
    english, chinese = (blocks(TEXTS[name]) for name in NAMES)
    assert english[:-1] == chinese[:-1]
    assert tree_of(TEXTS[NAMES[0]]) == tree_of(TEXTS[NAMES[1]])


@pytest.mark.parametrize("name", NAMES)
def test_places_that_are_pushed_to_are_options(name):
    """`lepton push birds s3://…` would take the place for a name."""
    commands = re.findall(r"^lepton (?:push|pull) ([^#;\n]*)", TEXTS[name], re.M)
    assert commands and all(re.fullmatch(r"(\w+ )*(--(to|from) \S+)?\s*", one) for one in commands)


def test_both_languages_have_the_same_sections_rows_and_promises():
    def shape(text: str) -> list[tuple[str, int]]:
        parts = re.split(r"^(#+) .*$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), flags=re.M)
        return [
            (level, len(re.findall(r"^[|-]", part, re.M))) for level, part in zip(parts[1::2], parts[2::2], strict=True)
        ]

    assert shape(TEXTS[NAMES[0]]) == shape(TEXTS[NAMES[1]])


def test_both_languages_tell_the_same_figures():
    def figures(text: str) -> list[str]:
        return re.findall(r"\d+(?:\.\d+)+", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))

    assert figures(TEXTS[NAMES[0]]) == figures(TEXTS[NAMES[1]])


@pytest.mark.parametrize("name", NAMES)
def test_what_falls_short_says_what_the_table_says(name):
    """Its ratios that are no whole numbers are those of the table "Measured", which bench.all writes."""
    table = TEXTS[name].split("<!-- bench:begin -->")[1].split("<!-- bench:end -->")[0]
    short = re.split("^## (?:What falls short|不足之处)$", TEXTS[name], flags=re.M)[1].split("\n## ")[0]
    told = re.findall(r"(\d+\.\d+)(?:x| 倍)", short)
    assert told and set(told) <= set(re.findall(r"(\d+\.\d+)×", table))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_the_tree_names_what_is_there(name):
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXTS[name])
    assert links
    assert [one for one in [*links, *tree_of(TEXTS[name])] if not (ROOT / one).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_files_that_the_tree_mentions_are_there(name):
    """Names such as `flight.py` in the remarks: below the folder that the line is about, or beside it."""
    lost, parent = [], ""
    for line in blocks(TEXTS[name])[-1].strip().split("\n"):
        path, _, remark = line.strip().partition("  ")
        parent = path if not line.startswith(" ") else parent
        for one in re.findall(r"[\w/]+\.py\b", remark):
            below = ROOT / parent / path if path.endswith("/") and path != parent else ROOT / parent
            if not [*below.rglob(one), *(ROOT / parent).glob(one)]:
                lost.append((path, one))
    assert lost == []
