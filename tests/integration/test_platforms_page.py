"""docs/PLATFORMS.md: every call of the code that macOS does not have is on it, and no other; nothing of it has been done already."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "PLATFORMS.md").read_text()
# What Python's documentation says is not available on macOS, or is there with other arguments, of what programs like this one use.
NOT_ON_MACOS = {
    *("sched_getaffinity", "posix_fallocate", "posix_fadvise", "memfd_create", "O_DIRECT", "O_PATH", "O_TMPFILE", "RWF_NOWAIT"),
    *("RWF_DSYNC", "fdatasync", "pipe2", "getrandom", "getxattr", "setxattr", "copy_file_range", "eventfd", "epoll", "sendfile"),
    *("pidfd_open", "F_OFD_SETLK", "F_OFD_SETLKW", "TCP_INFO", "TCP_USER_TIMEOUT", "SO_PEERCRED", "MADV_DONTFORK", "MAP_POPULATE"),
}  # fmt: skip


def attributes() -> set[str]:
    """Of modules (`os.O_DIRECT`), in everything but the help for tests."""
    files = [file for package in ("leptonstore", "loaders", "trainers") for file in (ROOT / package).rglob("*.py")]
    nodes = [node for file in files if "testing" not in file.parts for node in ast.walk(ast.parse(file.read_text()))]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_the_calls_that_macos_lacks_are_those_of_the_page() -> None:
    rows = PAGE.partition("| call |")[2].partition("\n\n")[0]
    told = {name for row in rows.splitlines() for name in re.findall(r"`(?:\w+\.)?(\w+)`", row.split(" | ")[0])}
    assert told & NOT_ON_MACOS == attributes() & NOT_ON_MACOS


def test_what_the_page_says_is_not_done_is_not_done() -> None:
    """Else the page, and the promise of durability on macOS, have to be written anew."""
    assert "F_FULLFSYNC" not in attributes()
