"""docs/TROUBLESHOOTING.md: the messages that it quotes are those of the code; every class of errors and every exit code is on it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from leptonstore import errors
from leptonstore.cli.runtime import EXIT_CODES
from leptonstore.errors import LeptonError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text()
MESSAGES = [
    text.strip()
    for part in PAGE.split("\n| message | ")[1:]
    for _, text in re.findall(r"^\| (`+)(.+?)\1 \| ", part.partition("\n\n")[0], re.MULTILINE)
]


@cache
def texts() -> list[str]:
    """Every text of the code; … where a value stands in it."""
    found = []
    for package in ("leptonstore", "loaders", "trainers"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [one.value if isinstance(one, ast.Constant) else "…" for one in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_there_are_messages() -> None:
    assert len(MESSAGES) >= 30


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_says_what_the_page_quotes(message: str) -> None:
    pieces = re.split("…+", message)
    likely = [text for text in texts() if max(pieces, key=len) in text]
    pattern = re.compile(".*?".join(map(re.escape, pieces)), re.DOTALL)
    assert any(pattern.search(text) for text in likely), message


def test_every_class_is_on_the_page_with_its_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\w, ]*?) ?\| ", PAGE.partition("## By exit code")[2], re.MULTILINE)
    told = {name: int(code) for code, names in rows for name in re.findall(r"\b[A-Z]\w+", names)}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, LeptonError):
            assert told[name] == next((code for one, code in EXIT_CODES if issubclass(kind, one)), 1), name
