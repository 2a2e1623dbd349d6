"""WebDataset: what becomes of endings, patterns of shards, and samples that are not alike."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.importers.tar import read_tar
from leptonstore.dataset.importers.webdataset import shards_of
from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import BadInput, SourceError


def tar(files: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def table(path: Path, **options: Any) -> pa.Table:
    source = open_source(path, "webdataset", **options)
    return pa.Table.from_batches(list(source.batches()), source.schema)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.lists(
            st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1, max_size=90),
            min_size=1,
            max_size=4,
        )
        .map("/".join)
        .filter(lambda name: not {".", ".."} & set(name.split("/"))),
        st.binary(max_size=1_200),
        max_size=4,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_our_reader_and_pythons_see_the_same_files(files: dict[str, bytes], format: int) -> None:
    data = tar(list(files.items()), format)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    members = list(read_tar(io.BytesIO(data), "t.tar"))
    assert [tuple(member[:2]) for member in members] == expected == list(files.items())
    assert all(data[offset : offset + len(content)] == content for _, content, offset in members)


def test_endings_become_columns(tmp_path: Path) -> None:
    files = [
        ("0.jpg", b"\xff\xd8"),
        ("0.left.png", b"png"),
        ("0.cls", b" 7\n"),
        ("0.txt", "é".encode()),
        ("0.npy", npy(np.ones((2, 2), np.float32))),
        ("0.pth", b"\x80pickle"),
        ("0.mask.npy", npy(np.ones(2))),
        ("1.jpg", b""),
        ("1.npy", npy(np.zeros((2, 2), np.float32))),
        ("1.mask.npy", npy(np.ones(3))),
        ("1.TXT", b"capital"),
    ]
    (tmp_path / "a.tar").write_bytes(tar(files))
    found = table(tmp_path / "a.tar")
    assert {field.name: str(field.type) for field in found.schema} == {
        "__key__": "string",
        "cls": "int64",
        "jpg": "large_binary",
        "left": "large_binary",
        "mask": "large_binary",
        "npy": str(pa.fixed_shape_tensor(pa.float32(), [2, 2])),
        "pth": "large_binary",
        "txt": "string",
    }
    assert semantic_of(found.schema.field("left")) == semantic_of(found.schema.field("jpg")) == "image"
    assert found["cls"].to_pylist() == [7, None] and found["txt"].to_pylist() == ["é", "capital"]
    assert found["__key__"].to_pylist() == ["0", "1"] and found["pth"].to_pylist() == [b"\x80pickle", None]


def test_endings_that_would_share_a_column_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("0.a.txt", b"x"), ("0.a.json", b"{}"), ("0.a.b.txt", b"y")]))
    assert table(tmp_path / "a.tar").schema.names == ["__key__", "a.b", "a.json", "a.txt"]


def test_an_ending_that_the_first_samples_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WDS_PROBE_ROWS", 2)
    files = [(f"{row}.txt", b"x") for row in range(5)]
    (tmp_path / "a.tar").write_bytes(tar([*files, ("5.txt", b"y"), ("5.cls", b"1")]))
    with pytest.raises(SourceError, match=r"a\.tar: sample '5' has a file \.cls.*extensions"):
        table(tmp_path / "a.tar")
    assert table(tmp_path / "a.tar", extensions=["txt"]).num_rows == 6
    found = table(tmp_path / "a.tar", extensions=[".cls", "txt"])
    assert found["cls"].to_pylist() == [None] * 5 + [1]


@pytest.mark.parametrize(
    ("ending", "data", "match"),
    [
        ("cls", b"seven", "column 'cls'"),
        ("txt", b"\xff", "column 'txt'"),
        ("npy", npy(np.ones(3)), "column 'npy'"),
        ("npy", b"no", "column 'npy'"),
    ],
)
def test_a_value_that_does_not_fit_names_archive_sample_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, data: bytes, match: str
) -> None:
    monkeypatch.setattr(limits, "WDS_PROBE_ROWS", 1)
    good = {"cls": b"1", "txt": b"x", "npy": npy(np.ones(2))}[ending]
    (tmp_path / "a.tar").write_bytes(tar([(f"{row}.{ending}", good if row != 3 else data) for row in range(5)]))
    with pytest.raises(SourceError, match=rf"a\.tar: sample '3', {match}"):
        table(tmp_path / "a.tar")


def test_files_that_belong_to_no_sample_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("README", b"x"), ("._0.txt", b"mac"), ("0.txt", b"y")]))
    source = open_source(tmp_path / "a.tar")
    assert source.notes == ["files that belong to no sample were left out, such as a.tar: README"]
    assert sum(batch.num_rows for batch in source.batches()) == 1


def test_patterns(tmp_path: Path) -> None:
    for name in ("a-000", "a-001", "b-000"):
        (tmp_path / f"{name}.tar").write_bytes(tar([(f"{name}.txt", name.encode())]))
    assert table(tmp_path / "a-{000..001}.tar")["txt"].to_pylist() == ["a-000", "a-001"]
    assert table(tmp_path / "{b,a}-{000..000}.tar")["txt"].to_pylist() == ["b-000", "a-000"]
    assert table(tmp_path)["txt"].to_pylist() == ["a-000", "a-001", "b-000"]
    assert [path.name for path in shards_of(tmp_path / "x{8..11}.tar")] == ["x8.tar", "x9.tar", "x10.tar", "x11.tar"]
    with pytest.raises(SourceError, match=r"a-002\.tar"):
        open_source(tmp_path / "a-{000..002}.tar")
    for wrong in ("a-{0..99999999999}.tar", "{0..999}" * 9 + ".tar", "{5..1}.tar"):
        with pytest.raises(BadInput, match="stands for"):
            shards_of(tmp_path / wrong)


def test_keys_may_repeat_in_another_archive_but_not_be_mixed_into_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("0.txt", b"a")]))
    (tmp_path / "b.tar").write_bytes(tar([("0.txt", b"b")]))
    assert table(tmp_path).to_pydict() == {"__key__": ["0", "0"], "txt": ["a", "b"]}
