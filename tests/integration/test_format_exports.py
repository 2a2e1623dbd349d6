"""Exports of a dataset in a store to shards: interrupted anywhere they go on; and the command line knows every format."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from leptonstore import limits
from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, Source, exporters, write_dataset
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.exporters.webdataset import _member
from leptonstore.dataset.importers import FORMATS, open_source
from leptonstore.dataset.schema import class_label_field, image_field
from leptonstore.errors import BadInput
from leptonstore.store import Store

ROWS = 9_000


@pytest.fixture
def ds(store: Store, source_of: Callable[..., Source]) -> Dataset:
    rng = np.random.default_rng(0)
    table = pa.Table.from_arrays(
        [
            pa.array([f"{row:05}" * 3 for row in range(ROWS)]),
            pa.array(rng.integers(0, 3, ROWS).astype(np.uint8)),
            pa.array([rng.bytes(40) for _ in range(ROWS)], pa.large_binary()),
        ],
        schema=pa.schema(
            [
                pa.field("text", pa.string()),
                class_label_field("split", ["train", "val", "test"]),
                image_field("image", "jpeg"),
            ]
        ),
    )
    return write_dataset(store, "t", source_of(table, ("text",)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["huggingface", "webdataset", "mds"])
@pytest.mark.parametrize("after", [2, 9])
def test_an_interrupted_export_of_a_dataset_goes_on(
    ds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, after: int
) -> None:
    """A DatasetDict of several files a split, and shards: the same files as without the interruption."""
    monkeypatch.setattr(limits, "EXPORT_SHARD_BYTES", 600_000)
    monkeypatch.setattr(limits, "EXPORT_ARROW_SHARD_BYTES", 100_000)
    export_dataset(ds, tmp_path / "whole", format)
    assert len(files(tmp_path / "whole")) >= 2

    class Interrupted(Exception):
        pass

    calls = 0

    def progress(rows: int) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Interrupted

    told: list[int] = []
    try:
        export_dataset(ds, tmp_path / "out", format, progress)
    except Interrupted:
        assert not any(name.endswith(".partial") for name in files(tmp_path / "out"))
        export_dataset(ds, tmp_path / "out", format, told.append)
        assert sum(told) == ROWS
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    back = write_dataset(ds.store, "back", open_source(tmp_path / "out", identity="text"))
    expected = ds.to_arrow().select(back.column_names)
    order = back.to_arrow()["text"].to_pylist()
    assert len(back) == ROWS and sorted(order) == sorted(expected["text"].to_pylist())
    found = {row["text"]: row for row in back.to_arrow().to_pylist()}
    assert all(found[row["text"]] == row for row in expected.to_pylist())


def test_overwriting_leaves_no_shard_of_the_older_export(
    ds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of tars is all tars in it: three old ones beside a new one would be a data set that nobody made."""
    monkeypatch.setattr(limits, "EXPORT_SHARD_BYTES", 2_000_000)
    export_dataset(ds, tmp_path / "out", "webdataset")
    assert len(files(tmp_path / "out")) > 2
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        export_dataset(ds.select(range(10)), tmp_path / "out", "webdataset")
    export_dataset(ds.select(range(10)), tmp_path / "out", "webdataset", overwrite=True)
    assert sorted(files(tmp_path / "out")) == ["notes.txt", "shard-000000.tar"]


@pytest.mark.parametrize("name", ["a.txt", "x" * 100, "x" * 101, "é.txt", "dir/0.jpg"])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_our_tar_headers_are_those_of_pythons_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    expected = info.tobuf(tarfile.PAX_FORMAT) + b"x" * size + bytes(-size % 512)
    assert _member(name, b"x" * size) == expected


def lepton_ok(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(lepton, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.output.strip().split("\n")[-1])
    return value


def test_the_command_line_knows_every_format(ds: Dataset, tmp_path: Path) -> None:
    store = ("--store", ds.store.home.url, "--json")
    write_dataset(
        ds.store, "small", Source(ds.schema, ("text",), lambda: iter(ds.to_arrow().slice(0, 50).to_batches()))
    )
    for format in ("parquet", "jsonl", "arrow", "webdataset", "mds", "huggingface"):
        dest = tmp_path / {"parquet": "t.parquet", "jsonl": "t.jsonl", "arrow": "t.arrow"}.get(format, format)
        options = ("--compression", "zstd") if format == "mds" else ()
        done = lepton_ok("export", "small", dest, "--format", format, *options, *store)
        assert done["rows"] == 50 and done["path"] == str(dest)
        made = lepton_ok("import", dest, f"back-{format}", *store)
        assert made["rows"] == 50
        again = lepton_ok("import", dest, f"back-{format}", *store)
        assert again["commit"] == made["commit"] and not again["changed"]
    typed = lepton_ok("import", tmp_path / "t.jsonl", "typed", "--type", "image=large_binary", "--key", "text", *store)
    assert (
        Dataset.open(ds.store.home.url, "typed").schema.field("image").type == pa.large_binary() and typed["rows"] == 50
    )
    shards = lepton_ok(
        "import", tmp_path / "webdataset/shard-{000000..000000}.tar", "w", "--extensions", "text.txt", *store
    )
    assert Dataset.open(ds.store.home.url, "w").column_names == ["__key__", "text"] and shards["rows"] == 50
    for arguments, said in (
        (("import", tmp_path / "t.jsonl", "x", "--type", "text"), "give COLUMN=TYPE"),
        (("import", tmp_path / "t.arrow", "x", "--type", "text=int8"), "has no option 'types'"),
    ):
        result = CliRunner().invoke(lepton, [*map(str, arguments), *store])
        assert result.exit_code and said in f"{result.output}{result.exception}"


def test_help_names_every_format() -> None:
    for command, formats in (("import", FORMATS), ("export", exporters.FORMATS)):
        said = CliRunner().invoke(lepton, [command, "--help"]).output
        assert all(f"\n    {name} " in said for name in formats)
