"""mosaicml-streaming's own library reads what we export and writes what we import: values are equal, both ways.

Its environment conflicts with ours, so it has one of its own (bench/peers/mds_roundtrip.txt), which .ci/run makes:
`python -m tests.integration.test_mds_peer`. Elsewhere these tests are skipped until that was run once.
"""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from bench.harness import ROOT, make_peer, peer_place
from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.schema import class_label_field, image_field, semantic_of, tensor_field, tensor_shape
from leptonstore.store import Store

PEER = "mds_roundtrip"
PLACE = peer_place(PEER)  # before a test gets a cache of its own
pytestmark = pytest.mark.skipif(
    not (PLACE / "ready").exists(),
    reason="mosaicml-streaming has no environment yet: python -m tests.integration.test_mds_peer",
)


def peer(what: str, folder: Path, *more: str) -> list[dict[str, Any]]:
    """What the library wrote or read, as JSON says it."""
    command = [PLACE / "bin/python", ROOT / f"bench/peers/{PEER}.py", what, folder, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads((folder.parent / f"{what}.json").read_text())
    return found


def pixels(data: bytes) -> list[Any]:
    return np.asarray(Image.open(io.BytesIO(data))).tolist()


@pytest.mark.parametrize("compression", ["", "zstd:7", "gz", "bz2"])
def test_we_read_what_the_library_writes(store: Store, tmp_path: Path, compression: str) -> None:
    written = peer("write", tmp_path / "mds", *([compression] if compression else []))
    assert len(list((tmp_path / "mds").glob("shard.*"))) > 2
    found = write_dataset(store, "t", open_source(tmp_path / "mds")).to_arrow()
    schema = found.schema
    assert tensor_shape(schema.field("fixed")) == tensor_shape(schema.field("open"))[::-1] == (2, 3)
    assert tensor_shape(schema.field("raw")) == (5, 4, 3) and semantic_of(schema.field("raw")) == "image"
    assert schema.field("f16").type == pa.float16() and schema.field("u8").type == pa.uint8()
    rows = {row["text"] + str(row["int"]): row for row in written}
    tensors = {name: found[name].combine_chunks().to_numpy_ndarray() for name in ("fixed", "typed", "open", "raw")}
    for at, row in enumerate(found.to_pylist()):
        expected = rows[row["text"] + str(row["int"])]
        assert row["blob"].hex() == expected["blob"]
        for name in ("int", "u8", "i16", "f16", "f32", "f64", "vector", "big", "real", "exact"):
            assert row[name] == expected[name], name
        for name, values in tensors.items():
            assert values[at].tolist() == expected[name], name
        assert json.loads(row["tree"]) == expected["tree"]
        assert pixels(row["png"]) == expected["png"]
        assert np.shape(pixels(row["jpeg"])) == np.shape(expected["jpeg"])
        assert [pixels(image) for image in row["burst"]] == expected["burst"]


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_the_library_reads_what_we_export(
    store: Store,
    source_of: Callable[..., Source],
    tmp_path: Path,
    compression: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "EXPORT_SHARD_BYTES", 8_000)
    rows, out = 60, []
    for row in range(rows):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(row).integers(0, 256, (4, 4, 3), np.uint8)).save(file, "png")
        out.append(file.getvalue())
    tensors = np.random.default_rng(0).random((rows, 2, 3))
    fields = [
        image_field("image", "png"),
        class_label_field("label", ["a", "b"]),
        tensor_field("tensor", pa.float64(), (2, 3)),
        pa.field("text", pa.string()),
        pa.field("half", pa.float16()),
        pa.field("items", pa.list_(pa.int8())),
        pa.field("blob", pa.binary()),
        pa.field("flag", pa.bool_()),
    ]
    columns = [
        pa.array(out, pa.large_binary()),
        pa.array([row % 2 for row in range(rows)], pa.uint8()),
        pa.FixedShapeTensorArray.from_numpy_ndarray(tensors),
        pa.array([f"é {row}" for row in range(rows)]),
        pa.array(np.arange(rows, dtype=np.float16)),
        pa.array([[row] if row % 3 else None for row in range(rows)], pa.list_(pa.int8())),
        pa.array([bytes([row]) * row for row in range(rows)]),
        pa.array([row % 2 == 0 for row in range(rows)]),
    ]
    made: Dataset = write_dataset(
        store, "t", source_of(pa.Table.from_arrays(columns, schema=pa.schema(fields)), ("text",))
    )
    options = {"compression": compression} if compression else {}
    report = export_dataset(made, tmp_path / "mds", "mds", **options)
    assert report.files > 2
    found = peer("read", tmp_path / "mds")
    expected = made.to_arrow()
    assert len(found) == rows
    values = expected["tensor"].combine_chunks().to_numpy_ndarray()
    for at, row in enumerate(expected.to_pylist()):
        assert found[at]["image"] == pixels(row["image"])
        assert found[at]["tensor"] == values[at].tolist()
        assert found[at]["blob"] == row["blob"].hex()
        for name in ("label", "text", "half", "items", "flag"):
            assert found[at][name] == row[name], name


if __name__ == "__main__":
    print(make_peer(PEER, shared=True))
