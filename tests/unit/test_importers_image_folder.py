"""Image folders: folder = class, top folders may be splits, files arrive byte for byte and in one order."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.dataset.importers import detect_format, open_source
from leptonstore.dataset.schema import CODEC, class_names, semantic_of
from leptonstore.dataset.source import Source
from leptonstore.errors import SourceError


def make(root: Path, *paths: str) -> Path:
    """Files whose bytes are their own paths: import never decodes."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def table(source: Source) -> pa.Table:
    batches = list(source.batches())
    assert all(batch.schema.equals(source.schema, check_metadata=True) for batch in batches)
    return pa.Table.from_batches(batches, source.schema)


def test_folders_are_classes(tmp_path: Path) -> None:
    make(tmp_path, "dog/1.png", "cat/2.png", "cat/1.png", "cat/deep/er.png")
    assert detect_format(tmp_path) == "image-folder"
    source = open_source(tmp_path)
    assert source.schema.names == ["path", "image", "label"]
    assert source.identity == ("path",)
    assert source.rows == 4
    assert class_names(source.schema.field("label")) == ["cat", "dog"]
    assert semantic_of(source.schema.field("image")) == "image"
    rows = table(source).to_pydict()
    assert rows["path"] == ["cat/1.png", "cat/2.png", "cat/deep/er.png", "dog/1.png"]
    assert rows["image"] == [path.encode() for path in rows["path"]]
    assert rows["label"] == [0, 0, 0, 1]


def test_top_folders_with_split_names_are_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "Validation/dog/2.jpg", "test/cat/3.jpg")
    source = open_source(tmp_path)
    assert source.schema.names == ["path", "image", "label", "split"]
    assert class_names(source.schema.field("split")) == ["train", "val", "test"]
    assert class_names(source.schema.field("label")) == ["cat", "dog"]
    rows = table(source).to_pydict()
    assert rows["path"] == ["Validation/dog/2.jpg", "test/cat/3.jpg", "train/cat/1.jpg"]
    assert rows["split"] == [1, 2, 0]
    assert rows["label"] == [1, 0, 0]


def test_split_names_can_be_classes_on_request(tmp_path: Path) -> None:
    make(tmp_path, "test/1.png", "control/2.png")
    with pytest.raises(SourceError, match="splits or classes"):
        open_source(tmp_path)
    source = open_source(tmp_path, splits=False)
    assert class_names(source.schema.field("label")) == ["control", "test"]


def test_order_is_that_of_the_bytes_of_whole_paths(tmp_path: Path) -> None:
    """ "a-b/…" sorts before "a/…" and "a.png" between them, whatever order the directory lists."""
    paths = ["c/a/1.png", "c/a-b/1.png", "c/a.png", "c/A.png", "c/é.png", "c/z.png", "c/10.png", "c/9.png"]
    make(tmp_path, *paths)
    assert table(open_source(tmp_path))["path"].to_pylist() == sorted(paths, key=str.encode)


def test_extensions_in_any_case_and_their_codec(tmp_path: Path) -> None:
    make(tmp_path, "c/1.JPG", "c/2.jpeg")
    assert open_source(tmp_path).schema.field("image").metadata[CODEC] == b"jpeg"
    make(tmp_path, "c/3.tif", "c/4.gif", "c/5.bmp", "c/6.WebP", "c/7.png", "c/8.tiff")
    source = open_source(tmp_path)
    assert source.rows == 8
    assert source.schema.field("image").metadata[CODEC] == b"mixed"


def test_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    make(tmp_path, "c/1.png", "c/._1.png", "c/notes.txt", "README.md", ".git/x.png")
    source = open_source(tmp_path)
    assert table(source)["path"].to_pylist() == ["c/1.png"]
    assert source.lineage == {
        "format": "image-folder",
        "root": tmp_path.name,
        "files": 1,
        "bytes": 7,
        "ignored": 3,
        "classes": 1,
    }


def test_batches_are_bounded_by_bytes_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"c/{index}.png" for index in range(7)))  # 7 bytes each
    monkeypatch.setattr(limits, "IMPORT_BATCH_BYTES_MAX", 15)
    assert [batch.num_rows for batch in open_source(tmp_path).batches()] == [2, 2, 2, 1]
    monkeypatch.setattr(limits, "IMPORT_BATCH_ROWS_MAX", 1)
    assert [batch.num_rows for batch in open_source(tmp_path).batches()] == [1] * 7
    monkeypatch.setattr(limits, "IMPORT_BATCH_BYTES_MAX", 1)
    assert table(open_source(tmp_path)).num_rows == 7


def test_undecodable_bytes_are_imported(tmp_path: Path) -> None:
    make(tmp_path, "c/broken.png")
    assert table(open_source(tmp_path))["image"].to_pylist() == [b"c/broken.png"]


def test_a_link_inside_is_read_and_one_outside_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "cat/1.png")
    (root / "cat" / "2.png").symlink_to("1.png")
    (root / "dog").symlink_to("cat")
    assert table(open_source(root))["path"].to_pylist() == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    make(tmp_path, "secret/x.png", "root-of-another-name/y.png")
    for target in ("secret/x.png", "root-of-another-name/y.png"):
        link = root / "cat" / "3.png"
        link.symlink_to(tmp_path / target)
        with pytest.raises(SourceError, match="leads outside"):
            open_source(root)
        link.unlink()
    (root / "bird").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="leads outside"):
        open_source(root)


def test_links_in_a_circle_and_to_nowhere(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png")
    circle = tmp_path / "cat" / "again"
    circle.symlink_to(tmp_path / "cat")
    with pytest.raises(SourceError, match="link to a folder that it lies in"):
        open_source(tmp_path)
    circle.unlink()
    (tmp_path / "cat" / "2.png").symlink_to("missing.png")
    with pytest.raises(SourceError, match="cannot read"):
        open_source(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png")
    os.mkfifo(tmp_path / "cat" / "2.png")
    with pytest.raises(SourceError, match="not a regular file"):
        open_source(tmp_path)


def test_an_empty_and_a_huge_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "none.png").touch()
    with pytest.raises(SourceError, match=r"none\.png is empty"):
        open_source(tmp_path)
    (tmp_path / "cat" / "none.png").unlink()
    monkeypatch.setattr(limits, "IMAGE_FILE_BYTES_MAX", 8)
    with pytest.raises(SourceError, match=r"1\.png is larger than 8 bytes"):
        open_source(tmp_path)


def test_images_outside_of_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    with pytest.raises(SourceError, match="lies in no class folder"):
        open_source(tmp_path)
    (tmp_path / "1.png").unlink()
    make(tmp_path, "train/cat/1.png", "test/2.png")
    with pytest.raises(SourceError, match=r"test holds images outside of a class folder"):
        open_source(tmp_path)


def test_no_image_and_no_folder(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.txt")
    with pytest.raises(SourceError, match="holds no image"):
        open_source(tmp_path, "image-folder")
    with pytest.raises(SourceError, match="not a folder"):
        open_source(tmp_path / "cat" / "1.txt", "image-folder")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png")
    with open(os.fsencode(tmp_path / "cat") + b"/\xff.png", "wb") as file:
        file.write(b"x")
    with pytest.raises(SourceError, match="not UTF-8"):
        open_source(tmp_path)


def test_folders_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FOLDER_DEPTH_MAX", 3)
    make(tmp_path, "a/b/1.png")
    assert open_source(tmp_path).rows == 1
    make(tmp_path, "a/b/c/1.png")
    with pytest.raises(SourceError, match="folders deep"):
        open_source(tmp_path)


@pytest.mark.parametrize("change", ["added", "removed", "new class"])
def test_a_tree_that_changes_between_listing_and_reading(tmp_path: Path, change: str) -> None:
    make(tmp_path, "cat/1.png", "cat/2.png")
    source = open_source(tmp_path)
    if change == "removed":
        (tmp_path / "cat" / "1.png").unlink()
    else:
        make(tmp_path, "cat/3.png" if change == "added" else "dog/1.png")
    with pytest.raises(SourceError, match="changed while it was read"):
        list(source.batches())
