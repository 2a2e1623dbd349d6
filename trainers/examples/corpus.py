"""Text that every machine has: the docstrings of Python's own standard library.

name      module and what it documents ("json.decoder:JSONDecoder.decode")
module    the file's module: what stands on one side of a split together
text      the docstring, without its indentation
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from leptonstore.dataset import Source
from leptonstore.dataset.schema import text_field
from leptonstore.digest import digest_of
from leptonstore.errors import SourceError

# Folders that are no library: what was installed, and tests.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "ensurepip"}
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("module", pa.string(), nullable=False),
        text_field("text", nullable=False),
    ]
)


def docstrings(bytes_max: int, folder: Path | None = None) -> Source:
    """Every docstring of Python files below `folder` (default: the standard library of this interpreter), up to about `bytes_max` bytes of
    text. Files come in the order of their paths' digests, so that part of the library is a sample of it. Raises SourceError when there
    are none."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    rows: list[tuple[str, str, str]] = []
    total = files = 0
    files_there = sorted(root.rglob("*.py"), key=lambda file: digest_of(file.relative_to(root).as_posix().encode()))
    for file in files_there:
        below = file.relative_to(root)
        if total >= bytes_max:
            break
        if not LEFT_OUT.isdisjoint(below.parts):
            continue
        module = ".".join(below.with_suffix("").parts).removesuffix(".__init__")
        found = [(f"{module}:{name}", module, text) for name, text in _documented(file)]
        rows += found
        total += sum(len(text.encode()) for _, _, text in found)
        files += 1
    if not rows:
        raise SourceError(f"{root} has no Python file with a docstring", str(root))
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
    lineage = {"format": "python-docstrings", "files": files, "bytes": total}
    return Source(SCHEMA, ("name",), lambda: iter(table.to_batches()), len(rows), lineage)


def _documented(file: Path) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a module, its classes and functions, in the order of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files have escapes that are none
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # templates and examples of errors
            return
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and text.strip():
                yield name, inspect.cleandoc(text).strip()
            below = f"{name}." if name else ""
            children = [child for child in node.body if hasattr(child, "name")]
            waiting += [(f"{below}{child.name}", child) for child in reversed(children)]
