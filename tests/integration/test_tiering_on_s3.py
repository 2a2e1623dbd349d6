"""A store on a directory whose cold packs live in a bucket, with a real server that is killed and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.source import Source
from leptonstore.errors import TierUnavailable
from leptonstore.store import Store, check_store
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.placement import HOME, Placement, TierSetting
from leptonstore.store.reads import FILE, load_reads
from leptonstore.store.tier_mark import claim_tier
from leptonstore.testing import seaweed

VALUES, VALUE_BYTES, WATERMARK = 60, 100_000, 2_000_000
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("data", pa.large_binary())])


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[seaweed.Server]:
    """A server that this test may kill."""
    (tmp_path / "weed").mkdir()
    server = seaweed.start(tmp_path / "weed")
    try:
        yield server
    finally:
        seaweed.stop(server)


def values() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(VALUE_BYTES) for _ in range(VALUES)]


def place(store: Store, url: str, watermark: int | None) -> None:
    tiers = (TierSetting(HOME, watermark=watermark), TierSetting("cold", url))
    store.configure(Placement(tiers).setting(), ("tiers",))


def local_bytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "store/packs").rglob("*.pack"))


def test_cold_packs_live_in_a_bucket_whose_server_may_die(
    own_server: seaweed.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demoted by the watermark, read from there; a server killed in mid-read is a clear error, and reading goes on when it is
    back; what was read becomes hot and is brought home."""
    for name, value in own_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 500_000)
    monkeypatch.setattr(limits, "OBJECT_RETRY_S", 2.0)  # how long a server that is down is waited for
    monkeypatch.setattr(limits, "OBJECT_RETRIES_MAX", 2)
    url = f"s3://{seaweed.make_bucket(own_server)}/cold"
    store = Store.create(tmp_path / "store", cache_dir=tmp_path / "cache")
    batch = pa.RecordBatch.from_arrays([pa.array(range(VALUES)), pa.array(values(), pa.large_binary())], schema=SCHEMA)
    write_dataset(store, "photos", Source(SCHEMA, ("id",), lambda: iter([batch])))
    claim_tier(url, store)
    place(store, url, WATERMARK)
    apply_moves(store, plan_for(store).moves)
    assert local_bytes(tmp_path) <= WATERMARK and plan_for(store).moves == []
    assert check_store(store, read_data=True).clean
    store.close()

    with Store.open(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        photos, expected = Dataset.open(store, "photos"), values()
        read = [photos[row]["data"] for row in range(VALUES // 2)]
        seaweed.stop(own_server)
        with pytest.raises(TierUnavailable, match="s3://"):
            for row in range(VALUES // 2, VALUES):
                read.append(photos[row]["data"])
        assert len(read) < VALUES
        seaweed.restart(own_server)
        read += [photos[row]["data"] for row in range(len(read), VALUES)]
        assert read == expected

    with Store.open(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        place(store, url, None)
        plan = plan_for(store, load_reads(store.cache_path(FILE)))
        assert {move.why for move in plan.moves} == {"hot"}
        apply_moves(store, plan.moves)
        seaweed.stop(own_server)
        assert Dataset.open(store, "photos").to_arrow(["data"]).column(0).to_pylist() == values()
