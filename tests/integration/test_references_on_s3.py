"""References into a bucket of a real S3 server: ranges of archives, whole objects, stores in a directory and in the bucket itself."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.places import UrlPlace, place_of
from leptonstore.errors import ReferenceBroken
from leptonstore.store import Store, check_store
from leptonstore.store.materialize import materialize

IMAGES, IMAGE_BYTES = 40, 30_000


def image(number: int) -> bytes:
    return random.Random(number).randbytes(IMAGE_BYTES + number)


def write(url: str, data: bytes) -> None:
    place = place_of(url)
    assert isinstance(place, UrlPlace)
    with place.creating() as out:
        out.write(data)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store") as made:
        yield made


@pytest.fixture
def folder(bucket_url: str) -> str:
    for number in range(IMAGES):
        write(f"{bucket_url}/photos/{'ab'[number % 2]}/{number:03}.jpg", image(number))
    return f"{bucket_url}/photos"


@pytest.fixture
def archives(bucket_url: str) -> str:
    for shard in range(2):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for number in range(IMAGES):
                data = image(100 * shard + number)
                info = tarfile.TarInfo(f"{number:03}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        write(f"{bucket_url}/tars/{shard:03}.tar", packed.getvalue())
    return f"{bucket_url}/tars"


def refer(store: Store, url: str, format: str, reference: bool = True) -> Dataset:
    return write_dataset(store, "d", open_source(url, format, reference=reference))


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    return dataset.to_arrow().to_pylist()


def test_objects_are_read_in_place(folder: str, store: Store, tmp_path: Path) -> None:
    dataset = refer(store, folder, "image-folder")
    with Store.create(tmp_path / "copy") as other:
        copied = refer(other, folder, "image-folder", reference=False)
        assert copied.commit == dataset.commit
        assert rows(copied) == rows(dataset)
        assert store.new_bytes < 20_000 < IMAGES * IMAGE_BYTES < other.new_bytes
    assert check_store(store).clean and check_store(store, read_data=True).clean
    write(f"{folder}/a/004.jpg", image(5000)[: IMAGE_BYTES + 4])
    (problem,) = check_store(store).problems
    assert problem.kind == "reference" and ": it was written anew (etag" in problem.what
    with pytest.raises(ReferenceBroken, match=r"row 2 column 'image'.*a/004.jpg.*written anew"):
        dataset[2]
    place_of(f"{folder}/a/004.jpg").unlink()
    with pytest.raises(ReferenceBroken, match=r"it is gone"):
        rows(dataset)


def test_members_of_archives_are_ranges_that_are_read_together(archives: str, store: Store) -> None:
    dataset = refer(store, archives, "webdataset")
    assert [row["jpg"] for row in rows(dataset)] == [
        image(100 * shard + n) for shard in range(2) for n in range(IMAGES)
    ]
    (reader,) = store.references._open.values()
    client = reader._client  # type: ignore[attr-defined]
    before = client.counters.to_json()["get"]
    rows(dataset)
    assert client.counters.to_json()["get"] - before <= 4
    materialize(store, [dataset.commit])
    for shard in range(2):
        place_of(f"{archives}/{shard:03}.tar").unlink()
    assert len(rows(dataset)) == 2 * IMAGES
    assert check_store(store, read_data=True).clean


def test_a_store_in_the_bucket_refers_to_its_neighbours(archives: str, bucket_url: str, tmp_path: Path) -> None:
    with Store.create(f"{bucket_url}/store") as store:
        expected = rows(refer(store, archives, "webdataset"))
    with Store.open(f"{bucket_url}/store") as again:
        assert rows(Dataset.open(again, "d")) == expected
        assert check_store(again, read_data=True).clean
