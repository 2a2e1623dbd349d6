"""JSON lines: how types are found, and what is refused with its line and column."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.dataset.importers import open_source
from leptonstore.errors import SchemaError, SourceError


def lines(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(path: Path, **options: Any) -> pa.Table:
    source = open_source(path, "jsonl", **options)
    return pa.Table.from_batches(list(source.batches()), source.schema)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "2.5"], pa.float64(), [1.0, 2.5]),
        (["1", "null", "-9223372036854775808"], pa.int64(), [1, None, -(1 << 63)]),
        (["1", "18446744073709551615"], pa.uint64(), [1, (1 << 64) - 1]),
        (["true", "null"], pa.bool_(), [True, None]),
        (["null", "null"], pa.string(), [None, None]),
        (['"2026-11-26"', '"é\\u00e9"'], pa.string(), ["2026-11-26", "éé"]),
        (["[]", "[1]", "[2.5, null]"], pa.list_(pa.float64()), [[], [1.0], [2.5, None]]),
        (["[]", "null"], pa.list_(pa.string()), [[], None]),
        (['{"a": 1}', '{"b": "x"}', "{}"], pa.struct([("a", pa.int64()), ("b", pa.string())]), None),
        (["NaN", "1"], pa.float64(), None),
    ],
)
def test_types_come_from_the_values(
    tmp_path: Path, values: list[str], kind: pa.DataType, expected: list[Any] | None
) -> None:
    found = table(lines(tmp_path / "t.jsonl", "".join(f'{{"x": {value}}}\n' for value in values)))
    assert found.schema.field("x").type == kind
    if expected is not None:
        assert found["x"].to_pylist() == expected


def test_columns_stand_in_the_order_in_which_they_appear_and_a_missing_key_is_null(tmp_path: Path) -> None:
    found = table(lines(tmp_path / "t.jsonl.gz", '\ufeff{"b": 1}\r\n\n  \n{"a": "x", "b": 2}\n{}'))
    assert found.to_pydict() == {"b": [1, 2, None], "a": [None, "x", None]}


def test_blocks_and_lines_over_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f'{{"n": {row}, "t": "{"é" * (row % 40)}"}}\n' for row in range(500))
    whole = table(lines(tmp_path / "t.jsonl", text))
    assert whole["n"].to_pylist() == list(range(500))
    for size in (1, 7, 64, 1_000):
        monkeypatch.setattr(limits, "JSON_BLOCK_BYTES", size)
        assert table(tmp_path / "t.jsonl", types={"t": pa.string()}).equals(whole)


@pytest.mark.parametrize(
    ("second", "match"),
    [
        ('{"x": "a"}', r"line 2, column 'x' is string, the lines before have int64"),
        ('{"x": [1]}', r"line 2, column 'x' is list"),
        ('{"x": 1e999999}', "line 2: Number too big to be stored in double; correct it"),
        (
            '{"x": 99999999999999999999}',
            r"line 2, column 'x' is a longer one, the lines before have integers of 64 bits",
        ),
        ('{"x": true}', r"line 2, column 'x' is bool"),
        ('{"x": -1, "y": {"z": [1, "a"]}}', r"line 2, column 'y\.z\[\]' is string"),
        ("nonsense", "line 2 is not JSON"),
        ('"text"', "line 2 is no object but text"),
    ],
)
def test_types_that_do_not_go_together_are_refused_with_line_and_column(
    tmp_path: Path, second: str, match: str
) -> None:
    path = lines(tmp_path / "t.jsonl", f'{{"x": 1}}\n{second}\n')
    with pytest.raises(SourceError, match=match) as caught:
        table(path)
    assert "t.jsonl" in str(caught.value)


def test_types_can_be_given(tmp_path: Path) -> None:
    text = '{"day": "2026-11-26", "at": "2026-11-26 12:00:00Z", "n": 1, "b": "aGk=", "d": "1.50"}\n{"n": null}\n'
    types = {
        "day": pa.date32(),
        "at": pa.timestamp("us", "UTC"),
        "n": pa.int8(),
        "b": pa.binary(),
        "d": pa.decimal128(5, 2),
    }
    found = table(lines(tmp_path / "t.jsonl", text), types=types)
    assert found.schema.types == list(types.values())
    assert (
        str(found["day"][0].as_py()) == "2026-11-26" and found["b"][0].as_py() == b"hi" and str(found["d"][0]) == "1.50"
    )
    with pytest.raises(SchemaError, match="no column 'nope'"):
        open_source(tmp_path / "t.jsonl", types={"nope": pa.int8()})
    for bad, kind in (
        ('"no day"', pa.date32()),
        ("300", pa.int8()),
        ('"!"', pa.binary()),
        ("[1,2]", pa.list_(pa.int8(), 3)),
    ):
        path = lines(tmp_path / "bad.jsonl", f'{{"x": null}}\n{{"x": {bad}}}\n')
        with pytest.raises(SourceError, match=r"bad\.jsonl: line 2, column 'x'"):
            table(path, types={"x": kind})


@pytest.mark.parametrize("text", ["", "\n\n", "   "])
def test_a_file_without_a_line_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceError, match="holds no line"):
        open_source(lines(tmp_path / "t.jsonl", text))


def test_damaged_gzip(tmp_path: Path) -> None:
    data = gzip.compress(b'{"x": 1}\n' * 1_000)
    (tmp_path / "t.jsonl.gz").write_bytes(data[:-20])
    with pytest.raises(SourceError, match="truncated gzip"):
        table(tmp_path / "t.jsonl.gz")


def test_a_directory_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, text in (
        ("b.jsonl.gz", '{"x": 2}\n'),
        ("a.jsonl", '{"x": 1}\n'),
        ("notes.txt", "no"),
        (".hidden.jsonl", "no"),
    ):
        lines(tmp_path / name, text)
    assert table(tmp_path)["x"].to_pylist() == [1, 2]
    assert [file["name"] for file in open_source(tmp_path).lineage["files"]] == ["a.jsonl", "b.jsonl.gz"]
    lines(tmp_path / "c.jsonl", '{"x": 3}\n{"x": "four"}\n')
    with pytest.raises(SourceError, match=r"c\.jsonl: line 2, column 'x'"):
        table(tmp_path)
    lines(tmp_path / "c.jsonl", '{"y": 3}\n')
    with pytest.raises(SourceError, match=r"c\.jsonl: line 1 has a column 'y'"):
        table(tmp_path)
