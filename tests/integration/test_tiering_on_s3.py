"""A store on a directory whose cold packs live in a bucket, with a real server that is killed and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bench import tiered_run
from leptonstore import limits
from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.source import Source
from leptonstore.digest import digest_of
from leptonstore.errors import TierUnavailable
from leptonstore.store import Store, check_store
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.placement import HOME, Placement, TierSetting
from leptonstore.store.reads import FILE, load_reads
from leptonstore.store.tier_mark import claim_tier
from leptonstore.testing import seaweed

VALUES, VALUE_BYTES, WATERMARK = 60, 100_000, 2_000_000
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("data", pa.large_binary())])


@pytest.fixture(scope="module")
def mortal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.Server]:
    """A server that these tests may kill."""
    server = seaweed.start(tmp_path_factory.mktemp("weed"))
    try:
        yield server
    finally:
        seaweed.stop(server)


@pytest.fixture
def own_server(mortal_server: seaweed.Server, monkeypatch: pytest.MonkeyPatch) -> seaweed.Server:
    """It is alive, and waited for briefly; the environment has what S3 clients need for it."""
    if mortal_server.process.poll() is not None:
        seaweed.restart(mortal_server)
    for name, value in mortal_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(limits, "OBJECT_RETRY_S", 2.0)  # how long a server that is down is waited for
    monkeypatch.setattr(limits, "OBJECT_RETRIES_MAX", 2)
    return mortal_server


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
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 500_000)
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


def test_an_epoch_goes_on_at_the_very_next_batch_after_the_server_was_away(
    own_server: seaweed.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of `python -m bench.tiers --only tiered`, small: every row is seen once, with its pixels, through the outage."""
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 1_000_000)
    monkeypatch.setattr(limits, "READS_SAVE_S", 0.0)
    run = tiered_run.Run(tmp_path, own_server, rows=16_000, watermark=10_000_000)
    for step in (run.fill, run.demote, run.epoch, run.promote, run.check):
        step()
    figures = {figure.name: figure for figure in run.figures}
    assert all(figure.holds is not False for figure in run.figures), figures
    assert figures["tiered_demoted"].value > 10 and figures["tiered_epoch_fetched"].value > 10


def test_a_fresh_host_opens_a_store_while_the_server_is_down(
    own_server: seaweed.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And waits for it once, not once for every pack; when it is back, the next look-up finds what it has."""
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 300_000)
    url = f"s3://{seaweed.make_bucket(own_server)}/cold"
    store = Store.create(tmp_path / "store", cache_dir=tmp_path / "cache")
    batch = pa.RecordBatch.from_arrays([pa.array(range(VALUES)), pa.array(values(), pa.large_binary())], schema=SCHEMA)
    write_dataset(store, "photos", Source(SCHEMA, ("id",), lambda: iter([batch])))
    claim_tier(url, store)
    place(store, url, WATERMARK)
    apply_moves(store, plan_for(store).moves)
    seaweed.stop(own_server)
    begin = time.monotonic()
    with Store.open(tmp_path / "store", cache_dir=tmp_path / "fresh") as fresh:
        assert 10 < len(fresh.packs_away) < len(fresh.state.packs)
        with pytest.raises(TierUnavailable, match=f"tier cold .*{url}") as caught:
            fresh.get(digest_of(b"nobody has stored this"))
        assert caught.value.tier == url
        report = check_store(fresh)
        assert [(problem.kind, problem.tier) for problem in report.problems] == [("unavailable", "cold")]
        assert time.monotonic() - begin < 60
        seaweed.restart(own_server)
        assert Dataset.open(fresh, "photos").to_arrow(["data"]).column(0).to_pylist() == values()
        assert fresh.packs_away == []
