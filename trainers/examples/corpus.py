"""Text that every machine has: the source of Python's own standard library, as a dataset of bytes.

path      of the file, below the library's folder
tokens    its bytes, list<uint8>
split     val for every tenth file (the last one of fewer), else train
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from leptonstore.dataset import Source
from leptonstore.dataset.importers.arrays import label_column
from leptonstore.dataset.schema import class_label_field, path_field, tokens_field
from leptonstore.errors import SourceError

# Folders that are no library: what was installed, and tests.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "ensurepip"}
HELD_OUT = 10  # one file of so many is for validation
ROWS_TOGETHER = 64  # files in memory at a time


def library_source(bytes_max: int, folder: Path | None = None) -> Source:
    """Every Python file below `folder` (default: the standard library of this interpreter), in the order of their paths, up to
    about `bytes_max` bytes. Raises SourceError when there are fewer than two."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    chosen, total = [], 0
    for file in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix()):
        below = file.relative_to(root)
        size = file.stat().st_size
        if LEFT_OUT.isdisjoint(below.parts) and size and total + size <= bytes_max:
            chosen.append(below.as_posix())
            total += size
    if len(chosen) < 2:
        raise SourceError(f"{root} has {len(chosen)} Python files of up to {bytes_max:,} bytes together", str(root))
    split = class_label_field("split", ["train", "val"])
    schema = pa.schema([path_field("path"), tokens_field("tokens", pa.uint8()), split])
    every = min(HELD_OUT, len(chosen))

    def batches() -> Iterator[pa.RecordBatch]:
        for at in range(0, len(chosen), ROWS_TOGETHER):
            paths = chosen[at : at + ROWS_TOGETHER]
            held_out = label_column(split, np.arange(at, at + len(paths)) % every == every - 1)
            yield pa.RecordBatch.from_arrays([pa.array(paths), _tokens(root, paths, schema), held_out], schema=schema)

    return Source(
        schema, ("path",), batches, len(chosen), {"format": "python-source", "files": len(chosen), "bytes": total}
    )


def _tokens(root: Path, paths: list[str], schema: pa.Schema) -> pa.Array:
    texts = [(root / path).read_bytes() for path in paths]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    values = pa.Array.from_buffers(pa.uint8(), offsets[-1], [None, pa.py_buffer(b"".join(texts))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values).cast(schema.field("tokens").type)
