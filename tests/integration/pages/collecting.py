"""docs/collecting.md: scans in a folder, a list of photos, trips in Parquet files, and a queue of messages."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leptonstore.dataset import Dataset
from tests.integration.docs_blocks import Place
from tests.integration.pages.cleaning_images import jpeg, scene


class Queue(list[Any]):
    """committed: offsets that the consumer has told it."""

    committed: list[int]

    def commit(self, message: Any) -> None:
        self.committed.append(message.offset())


def setting(place: Place) -> Iterator[None]:
    for name in ("scans", "trips"):
        (place.folder / name).mkdir()
    (place.folder / "scans" / "a.png").write_bytes(b"\x89PNG not really")
    (place.folder / "one.jpg").write_bytes(jpeg(scene(1)))
    (place.folder / "photos.csv").write_text("path,licence\none.jpg,CC0\n")
    trips = pa.table({"id": pa.array([1, 2], pa.int32()), "fare": pa.array([Decimal("2.5"), Decimal("3.0")])})
    pq.write_table(trips, place.folder / "trips" / "a.parquet")
    queue = Queue(
        SimpleNamespace(partition=lambda: 0, offset=lambda at=at: at, value=lambda at=at: b"%d" % at) for at in range(5)
    )
    queue.committed = []
    place.names |= {"store": place.store, "folder": place.folder / "scans", "consumer": queue}
    yield
    names = place.names
    assert names["done"].added == 1 and len(names["trips"]) == 2
    assert len(Dataset.open(place.store, "events")) == 5
    assert Dataset.open(place.store, "photos").to_arrow(["licence"])["licence"].to_pylist() == ["CC0"]
