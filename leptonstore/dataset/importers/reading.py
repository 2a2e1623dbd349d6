"""What every importer of files needs: the machine's refusals as `SourceError`, and the path as the user wrote it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leptonstore import limits
from leptonstore.errors import SourceError


def rows_per_batch(row_bytes: int) -> int:
    """How many rows of `row_bytes` bytes go into one batch (at least one)."""
    return max(1, min(limits.IMPORT_BATCH_ROWS_MAX, limits.IMPORT_BATCH_BYTES_MAX // max(1, row_bytes)))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, an OSError about `path` (no permission, a dead mount, a bad sector) is a SourceError that names it."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise SourceError(f"cannot read {path}: {why}; check the path and its permissions", str(path)) from error


def require_regular_file(path: Path) -> None:
    """Refuse directories, pipes and devices: opening a pipe waits for ever. Raises SourceError."""
    with reading(path):
        path.stat()
    if not path.is_file():
        raise SourceError(f"{path} is not a regular file; give a file, or name its format", str(path))


def name_of(path: Path) -> str:
    """The last component of `path`, also for "." and "..": lineage holds names, never a machine's directories."""
    return path.name if path.name not in ("", ".", "..") else os.path.basename(os.path.abspath(path))
