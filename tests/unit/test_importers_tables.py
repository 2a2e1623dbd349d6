"""Parquet and CSV: the table arrives as it is or is refused with the file, the column and, where known, the row."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leptonstore import limits
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.schema import class_label_field, image_field, tensor_field
from leptonstore.dataset.source import Source
from leptonstore.digest import digest_of
from leptonstore.errors import SchemaError, SourceError


def table(source: Source) -> pa.Table:
    batches = list(source.batches())
    assert all(batch.schema.equals(source.schema, check_metadata=True) for batch in batches)
    return pa.Table.from_batches(batches, source.schema)


def parquet(path: Path, rows: pa.Table, **options: Any) -> Path:
    pq.write_table(rows, path, **options)
    return path


def csv(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# -- Parquet -----------------------------------------------------------------------------------------------------


def test_parquet_keeps_types_values_and_semantics(tmp_path: Path) -> None:
    tensor = tensor_field("image", pa.uint8(), (2, 3), "image")
    schema = pa.schema(
        [tensor, class_label_field("label", ["a", "b"]), image_field("jpeg"), pa.field("x", pa.float16())]
    )
    values = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    rows = pa.table(
        [
            values,
            pa.array([0, 1], pa.uint8()),
            pa.array([b"", b"x"], pa.large_binary()),
            pa.array([None, 1], pa.float16()),
        ],
        schema=schema,
    )
    source = open_source(parquet(tmp_path / "t.parquet", rows))
    assert source.schema.equals(schema, check_metadata=True)
    assert table(source).equals(rows)
    assert source.rows == 2
    assert source.identity == ("image", "label", "jpeg", "x")
    assert source.lineage["files"][0]["name"] == "t.parquet"


def test_a_key_identifies_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", pa.table({"id": [1], "day": [2], "x": [3]}))
    assert open_source(path, key="id").identity == ("id",)
    assert open_source(path, key=("day", "id")).identity == ("day", "id")
    with pytest.raises(SchemaError, match="no column 'nope'"):
        open_source(path, key=["nope"])
    with pytest.raises(SchemaError, match="each of them once"):
        open_source(path, key=["id", "id"])


def test_dictionaries_become_their_values_at_any_depth(tmp_path: Path) -> None:
    words = pa.array(["a", "b", None, "a"]).dictionary_encode()
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 1, 3, 4]), words)
    rows = pa.table({"word": words, "words": nested})
    source = open_source(parquet(tmp_path / "t.parquet", rows))
    assert source.schema.types == [pa.string(), pa.list_(pa.string())]
    assert table(source).to_pydict() == {"word": ["a", "b", None, "a"], "words": [["a"], [], ["b", None], ["a"]]}


def test_equal_tables_have_equal_schemas_whatever_parquet_calls_a_lists_child(tmp_path: Path) -> None:
    rows = pa.table({"x": pa.array([[1]], pa.list_(pa.int8()))})
    one = open_source(parquet(tmp_path / "1.parquet", rows))
    two = open_source(parquet(tmp_path / "2.parquet", rows, use_compliant_nested_type=False))
    assert one.schema.field("x").type.value_field.name == two.schema.field("x").type.value_field.name == "item"


@pytest.mark.parametrize(
    "column", [pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), pa.nulls(1), pa.array([1], pa.decimal256(50))]
)
def test_a_type_that_is_not_kept_is_refused_by_its_columns_name(tmp_path: Path, column: pa.Array) -> None:
    path = parquet(tmp_path / "t.parquet", pa.table({"fine": [1], "odd": column}))
    with pytest.raises(SchemaError, match=r"t\.parquet: column 'odd'"):
        open_source(path)


def test_a_directory_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, value in (("b", 2), ("a", 1), ("c", 3), ("_ignored", 9)):
        parquet(tmp_path / f"{name}.parquet", pa.table({"x": [value]}))
    source = open_source(tmp_path)
    assert table(source)["x"].to_pylist() == [1, 2, 3]
    assert source.rows == 3


def test_a_directory_of_different_schemas_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", pa.table({"x": [1]}))
    parquet(tmp_path / "b.parquet", pa.table({"x": ["1"]}))
    with pytest.raises(SourceError, match=r"b\.parquet and a\.parquet have different schemas \(column 'x': int64"):
        open_source(tmp_path)
    parquet(tmp_path / "b.parquet", pa.table({"x": [1], "y": [1]}))
    with pytest.raises(SourceError, match="1 and 2 columns"):
        open_source(tmp_path)


def test_wide_rows_come_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IMPORT_BATCH_BYTES_MAX", 4_000)
    rows = pa.table({"x": [bytes([index]) * 1_000 for index in range(20)]})
    path = parquet(tmp_path / "t.parquet", rows, use_dictionary=False, compression="none")
    source = open_source(path)
    assert max(batch.num_rows for batch in source.batches()) <= 4
    assert table(source).equals(rows)


def test_text_that_is_not_utf8_is_found_at_import(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    source = open_source(parquet(tmp_path / "t.parquet", pa.table({"x": bad})))
    with pytest.raises(SourceError, match="UTF8"):
        list(source.batches())


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_parquet_file(tmp_path: Path, keep: int) -> None:
    path = parquet(tmp_path / "t.parquet", pa.table({"x": list(range(1000))}))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"t\.parquet as Parquet") as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_page(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", pa.table({"x": [f"text {index}" for index in range(1000)]}))
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(SourceError, match=r"t\.parquet as Parquet"):
        list(source.batches())


def test_a_directory_without_parquet(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no \*\.parquet"):
        open_source(tmp_path, "parquet")


# -- CSV ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_csv_with_inferred_types(tmp_path: Path, name: str) -> None:
    source = open_source(csv(tmp_path / name, 'id,x,word,day\n1,0.5,"a,b\nc",2026-01-02\n2,,é,2026-01-03\n'))
    assert source.schema.types == [pa.int64(), pa.float64(), pa.string(), pa.date32()]
    rows = table(source).to_pydict()
    assert rows["id"] == [1, 2]
    assert rows["x"] == [0.5, None]
    assert rows["word"] == ["a,b\nc", "é"]
    assert source.identity == ("id", "x", "word", "day")
    data = (tmp_path / name).read_bytes()
    told = {"name": name, "bytes": len(data), "digest": digest_of(data).hex()}
    assert source.lineage == {"format": "csv", "files": [told]}


def test_csv_options(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", "id;x\n1;007\n")
    source = open_source(path, key="id", delimiter=";", types={"x": pa.string()})
    assert source.identity == ("id",)
    assert table(source).to_pydict() == {"id": [1], "x": ["007"]}
    with pytest.raises(SchemaError, match="no column 'y'"):
        open_source(path, delimiter=";", types={"y": pa.string()})
    with pytest.raises(SourceError, match="one character"):
        open_source(path, delimiter="::")


@pytest.mark.parametrize("name", ["t.tsv", "T.TSV.gz"])
def test_a_tsv_has_tabs(tmp_path: Path, name: str) -> None:
    source = open_source(csv(tmp_path / name, "id\tword\n1\ta,b\n"))
    assert table(source).to_pydict() == {"id": [1], "word": ["a,b"]} and source.notes == []
    again = open_source(csv(tmp_path / "t.csv", "id\tword\n1\ta\n"), delimiter="\\t")
    assert table(again).to_pydict() == {"id": [1], "word": ["a"]}


@pytest.mark.parametrize(("between", "typed"), [(";", ";"), ("\t", "\\t"), ("|", "|")])
def test_a_header_of_one_column_with_another_delimiter_is_noted(tmp_path: Path, between: str, typed: str) -> None:
    rows = "id,name\n1,a\n".replace(",", between)
    (note,) = open_source(csv(tmp_path / "t.csv", rows)).notes
    assert "t.csv has one column" in note and note.endswith(f"import it with --delimiter '{typed}'")
    source = open_source(tmp_path / "t.csv", delimiter=typed)
    assert table(source).to_pydict() == {"id": [1], "name": ["a"]} and source.notes == []
    with pytest.raises(SourceError, match=r"Expected 1 columns.*--delimiter"):
        open_source(csv(tmp_path / "t.csv", rows + f"2{between}b,c\n"))


def test_a_column_of_numbers_with_a_word_in_it_is_noted(tmp_path: Path) -> None:
    rows = [f"{at},{at / 2},w{at},," for at in range(2000)]
    rows[1500] = "1500,notanumber,7,,"
    path = csv(tmp_path / "t.csv", "\n".join(["id,score,word,none,mixed", *rows, "1,1,w,,x"]))
    (note,) = open_source(path, key="id").notes
    assert "column 'score' is text" in note and "row #1502 (the header is #1) has 'notanumber'" in note
    with pytest.raises(SourceError, match="Row #1502"):  # Arrow counts in the same way
        list(open_source(path, types={"score": pa.float64()}).batches())
    assert open_source(path, types={"score": pa.string()}).notes == [], "it was meant"
    assert open_source(csv(path, "x,y\n")).notes == open_source(csv(path, "x\n1\n-2.5e3\n .5 \n")).notes == []


def test_a_column_that_is_empty_at_first_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CSV_BLOCK_BYTES", 100)
    path = csv(tmp_path / "t.csv", "x,y\n" + ",1\n" * 100 + "late,1\n")
    assert table(open_source(path))["x"].to_pylist()[-1] == "late"


def test_a_type_that_changes_later_names_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CSV_BLOCK_BYTES", 100)
    source = open_source(csv(tmp_path / "t.csv", "x,y\n" + "1,1\n" * 100 + "late,1\n"))
    with pytest.raises(SourceError, match=r"t\.csv as CSV.*Row #102.*'late'"):
        list(source.batches())


def test_a_ragged_row_names_the_row(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"t\.csv as CSV.*Row #3: Expected 2 columns, got 1"):
        list(open_source(csv(tmp_path / "t.csv", "x,y\n1,1\n1\n")).batches())


def test_a_row_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CSV_BLOCK_BYTES", 100)
    with pytest.raises(SourceError, match="rows up to 100 bytes"):
        list(open_source(csv(tmp_path / "t.csv", "x,y\n1,1\n" + "1" * 500 + ",1\n")).batches())


@pytest.mark.parametrize(
    ("data", "error", "why"),
    [
        (b"", SourceError, "Empty CSV"),
        ("x,y\né,1\n".encode("latin-1"), SourceError, "column 'x' is not UTF-8"),
        ("é,y\n1,1\n".encode("latin-1"), SourceError, "header is not UTF-8"),
        (b"x,x\n1,2\n", SchemaError, "unique"),
    ],
)
def test_wrong_csv(tmp_path: Path, data: bytes, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why) as caught:
        list(open_source(csv(tmp_path / "t.csv", data)).batches())
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_csv_gz(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=0) as file:
        file.write(b"x,y\n" + b"1,2\n" * 10_000)
    path.write_bytes(out.getvalue()[:20_000])
    with pytest.raises(SourceError, match=r"t\.csv\.gz as CSV"):
        list(open_source(path).batches())


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    source = open_source(csv(tmp_path / "t.csv", "x,y\n"))
    assert table(source).num_rows == 0
    assert source.schema.types == [pa.string(), pa.string()]
