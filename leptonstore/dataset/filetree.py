"""A directory of files as a table: one row for every file, directory and symbolic link, the root included.

    path      bytes, relative to the root, "/" between names; the root is "." (bytes: names need not be UTF-8)
    kind      class label: file, directory, symlink
    mode      permission bits (the lower 12 of st_mode)
    mtime_ns  time of the last change, nanoseconds since 1970
    size      bytes of a file's content as it was read, 0 for the others
    data      a file's content, a link's target, empty for a directory

Rows stand in the order of a walk: a directory before what it holds, names sorted as bytes. Files of 4 KiB and more are
chunks of their own, so that an edit writes that file and a small page of references; smaller ones share pages of at most 16 KiB.
Owners, access times, hard links and extended attributes are not kept: they differ between machines and change no content.
"""

from __future__ import annotations

import stat

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.schema import INLINE_BYTES, PART_BYTES, SEMANTIC, class_label_field

FILE, DIRECTORY, SYMLINK = 0, 1, 2
KINDS = ["file", "directory", "symlink"]
ROOT = b"."

SCHEMA = pa.schema(
    [
        pa.field(
            "path",
            pa.binary(),
            nullable=False,
            metadata={SEMANTIC: b"path", PART_BYTES: str(limits.TREE_PART_BYTES).encode()},
        ),
        class_label_field("kind", KINDS),
        pa.field("mode", pa.uint16(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field(
            "data",
            pa.large_binary(),
            nullable=False,
            metadata={
                INLINE_BYTES: str(limits.TREE_INLINE_BYTES_MAX).encode(),
                PART_BYTES: str(limits.TREE_PART_BYTES).encode(),
            },
        ),
    ]
)


def is_file_tree(schema: pa.Schema) -> bool:
    """Whether a dataset is a directory of files."""
    return bool(schema.names == SCHEMA.names and schema.types == SCHEMA.types)


def kind_of(mode: int) -> int | None:
    """FILE, DIRECTORY or SYMLINK for an st_mode; None for what is not kept (devices, pipes, sockets)."""
    if stat.S_ISREG(mode):
        return FILE
    if stat.S_ISDIR(mode):
        return DIRECTORY
    return SYMLINK if stat.S_ISLNK(mode) else None
