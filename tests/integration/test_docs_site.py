"""The documentation as a site: what pages say of files and names of the code is there (links are checked by `mkdocs build --strict`)."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.integration.docs_blocks import ROOT, commands, pages, read, shown

_FILE = re.compile(r"`((?:leptonstore|loaders|trainers|tests|bench|docs)/[\w./-]+\.\w+)`")
API = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))


def test_files_that_pages_name_exist() -> None:
    current = [page for page in pages() if "decisions" not in page.parts]  # these tell of their time
    told = [(shown(page), name) for page in current for name in _FILE.findall(page.read_text())]
    assert len(told) > 20
    assert [one for one in told if not (ROOT / one[1]).exists()] == []


@pytest.mark.parametrize("page", pages(), ids=shown)
def test_lists_stand_after_an_empty_line(page: Path) -> None:
    """The site's Markdown wants it, where GitHub's does not."""
    tokens = MarkdownIt("commonmark").parse(page.read_text())
    lists = [token.map for token in tokens if token.type.endswith("list_open") and token.level == 0 and token.map]
    lines = page.read_text().splitlines()
    assert [first + 1 for first, _ in lists if first and lines[first - 1].strip()] == []


@pytest.mark.parametrize("package", ["leptonstore", "leptonstore.dataset", "loaders", "trainers"])
def test_every_public_name_is_in_the_reference(package: str) -> None:
    told = set(re.findall(r"^::: ([\w.]+)$", API, re.MULTILINE))
    names = set(import_module(package).__all__) - {"__version__"}
    missing = {name for name in names if not {f"{package}.{name}", f"leptonstore.{name}"} & told}
    assert missing == set()


def test_the_chinese_readme_has_the_blocks_of_the_readme() -> None:
    """Comments may differ."""
    ours, theirs = (read(ROOT / name).blocks for name in ("README.md", "README.zh-CN.md"))
    for language, meaning in (("python", lambda text: ast.dump(ast.parse(text))), ("toml", tomllib.loads)):
        one, other = (
            [meaning(block.text) for block in blocks if block.language == language] for blocks in (ours, theirs)
        )
        assert one == other
    one, other = ([list(commands(block.commands())) for block in blocks] for blocks in (ours, theirs))
    assert one == other
