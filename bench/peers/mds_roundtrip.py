"""mosaicml-streaming writes and reads MDS in an environment of its own: the other half of tests/integration/test_mds_peer.py.

    write DIR [COMPRESSION]   write ROWS samples of every encoding that we read; prints the values as JSON
    read DIR                  prints every sample as JSON: pixels of images, lists for arrays, hex for bytes

The packages `streaming` and `streaming.base` import vision, text and clouds that need not be installed here, so what reads
and writes MDS is imported from below them, as it is.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS = 40
COLUMNS = {
    "blob": "bytes",
    "text": "str",
    "int": "int",
    "u8": "uint8",
    "i16": "int16",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "fixed": "ndarray:float32:2,3",
    "typed": "ndarray:int16",
    "open": "ndarray",
    "vector": "ndarray:uint8",
    "big": "str_int",
    "real": "str_float",
    "exact": "str_decimal",
    "tree": "json",
    "png": "png",
    "jpeg": "jpeg",
    "raw": "pil",
    "burst": "list[png]",
}


def _library(module: str) -> Any:
    spec = importlib.util.find_spec("streaming")
    assert spec is not None and spec.submodule_search_locations is not None
    for name, place in (("streaming", ""), ("streaming.base", "/base")):
        package = types.ModuleType(name)
        package.__path__ = [f"{root}{place}" for root in spec.submodule_search_locations]
        sys.modules.setdefault(name, package)
    return importlib.import_module(module)


def sample(row: int) -> dict[str, Any]:
    """A row of every encoding."""
    rng = np.random.default_rng(row)
    picture = Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8))
    return {
        "blob": rng.bytes(row),
        "text": f"text é {row}" * (row % 3),
        "int": row - 20,
        "u8": np.uint8(row),
        "i16": np.int16(-row),
        "f16": np.float16(row / 3),
        "f32": np.float32(row / 3),
        "f64": np.float64(row / 3),
        "fixed": rng.random((2, 3), np.float32),
        "typed": rng.integers(-9, 9, (2, 2)).astype(np.int16),
        "open": rng.random((3, 2)),
        "vector": np.arange(row % 5 + 1, dtype=np.uint8),
        "big": row * 10**12,
        "real": row / 7,
        "exact": Decimal(row) / 8,
        "tree": {"a": [row, None], "b": str(row)},
        "png": picture,
        "jpeg": picture,
        "raw": picture,
        "burst": [picture] * (row % 3),
    }


def plain(value: Any) -> Any:
    """A value as JSON can say it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Image.Image):
        return np.asarray(value).tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def write(folder: str, compression: str | None) -> list[dict[str, Any]]:
    """Small shards, so that there are several."""
    samples = [sample(row) for row in range(ROWS)]
    with _library("streaming.base.format.mds.writer").MDSWriter(
        out=folder, columns=COLUMNS, compression=compression, hashes=["sha1", "xxh64"], size_limit=1 << 13
    ) as out:
        for row in samples:
            out.write(row)
    return [{name: plain(value) for name, value in row.items()} for row in samples]


def read(folder: str) -> list[dict[str, Any]]:
    """By the library's own dataset, in order; it unpacks compressed shards."""
    dataset = _library("streaming.base.dataset").StreamingDataset(
        local=folder, batch_size=1, shuffle=False, validate_hash="sha1"
    )
    return [{name: plain(value) for name, value in dataset[row].items()} for row in range(len(dataset))]


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    result = write(folder, rest[0] if rest else None) if what == "write" else read(folder)
    (Path(folder).parent / f"{what}.json").write_text(json.dumps(result))
    print(json.dumps({"rows": len(result)}))
