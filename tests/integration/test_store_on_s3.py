"""A store that lives on a bucket of a real S3 server: the engine, collection, repair and the command line, and damage behind its back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import BadInput, ChunkCorrupt, ChunkMissing, StoreMissing, TierUnavailable
from leptonstore.store import Store, check_store
from leptonstore.store.copies import open_copy
from leptonstore.store.gc import collect
from leptonstore.store.repair import repair_store
from leptonstore.testing.seaweed import Server
from leptonstore.testing.tiers import content
from leptonstore.tiers.object import ObjectTier
from tests.conformance.test_tiers_object import run_in_fork
from tests.integration.proxy import Proxy


def fresh_host(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """From now on as on a host that has never seen the store."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))


def tier_of(store: Store) -> ObjectTier:
    assert isinstance(store.home, ObjectTier)
    return store.home


def test_another_host_reads_what_was_put(bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [content(size, size) for size in (0, 1, 5000, 300_000, 9_000_000)]
    with Store.create(bucket_url) as store:
        digests = [store.put(value) for value in values]
        assert [store.get(digest) for digest in digests] == values, "before it is flushed"
        store.flush()
        assert [store.get(digest) for digest in digests] == values
        requests = tier_of(store).counters.to_json()
        assert requests["bytes_written"] >= sum(map(len, values)) and requests["put"] >= 3 and requests["get"]
    fresh_host(monkeypatch, tmp_path / "other host")
    with Store.open(bucket_url + "/") as again:
        assert [again.get(digest) for digest in digests] == values
        assert not check_store(again, read_data=True).problems


def test_opening_reads_the_footers_of_many_packs_at_a_time(
    s3_server: Server, bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    with Store.create(bucket_url) as store:
        for number in range(24):
            digests.append(store.put(content(2000, number)))
            store.flush()
    fresh_host(monkeypatch, tmp_path / "other host")
    with Proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.delay_s = 0.01
        with Store.open(bucket_url) as again:
            assert all(map(again.has, digests))
            assert tier_of(again).counters.to_json()["get"] <= 24 + 24 + 6, "a small pack is one GET, and a log entry"
        assert proxy.most_at_once >= 4


def test_what_is_there_is_not_taken_for_a_store(bucket_url: str) -> None:
    with pytest.raises(StoreMissing, match="does not exist; create a store with `lepton init s3://"):
        Store.open(bucket_url)
    with Store.create(bucket_url) as store:
        with pytest.raises(BadInput, match="is a store already"):
            Store.create(bucket_url)
        with pytest.raises(StoreMissing, match="is not a store"):
            Store.open(bucket_url.rpartition("/")[0])
        with pytest.raises(BadInput, match="not empty and not a store"):
            Store.create(bucket_url.rpartition("/")[0])
        assert not store.state.refs
    for bad in ("s3://", "s3://key:secret@bucket/x", "s3://bucket/a//b", "s3://bucket/../x", "s3://bucket/x?a=b"):
        with pytest.raises(BadInput) as told:
            Store.open(bad)
        assert "secret" not in str(told.value)


def test_collection_removes_what_no_version_needs(bucket_url: str, source_of: Callable[..., Source]) -> None:
    table = pa.table({"id": np.arange(3000), "x": np.random.default_rng(0).integers(0, 1 << 40, 3000)})
    with Store.create(bucket_url) as store:
        write_dataset(store, "t", source_of(table, ("id",)))
        store.put(content(500_000))
        store.flush()
    with Store.open(bucket_url) as store, Store.open(bucket_url) as writer:
        unpublished = writer.put(content(400_000, 7))
        writer.flush()  # a live writer asks for it, although no version has it yet
        before = set(store.tier.packs())
        report = collect(store)
        assert report.packs_removed >= 1 and report.spared == 1 and report.missing == 0
        assert len(before - set(store.tier.packs())) >= 1
        assert writer.get(unpublished) == content(400_000, 7)
        assert Dataset.open(store, "t").to_arrow(["id"]).num_rows == 3000
        assert not check_store(store, read_data=True).problems


def test_damage_behind_our_back_is_found_and_repaired(bucket_url: str, tmp_path: Path) -> None:
    values = {number: content(400_000, number) for number in range(4)}
    with Store.create(bucket_url) as store, Store.create(tmp_path / "copy") as copy:
        digests = {}
        for number, value in values.items():
            digests[number] = store.put(value)
            store.flush()
            copy.put(value)
        copy.flush()
        client = tier_of(store)._client
        paths = {}
        for number in values:
            place = store.locate(digests[number])
            assert place is not None
            paths[number] = f"packs/{place.pack[:2]}/{place.pack}.pack"
        altered = bytearray(client.get(paths[0]))
        altered[200_000] ^= 1
        client.put(paths[0], altered)
        client.put(paths[1], client.get(paths[1])[:100_000])
        client.delete(paths[2])
        for number, error in ((0, ChunkCorrupt), (1, ChunkCorrupt), (2, (ChunkCorrupt, ChunkMissing))):
            with pytest.raises(error):
                store.get(digests[number])
        assert store.get(digests[3]) == values[3]
        assert len(check_store(store, read_data=True).problems) == 3
        report = repair_store(store, [open_copy(store, tmp_path / "copy")])
        assert len(report.repaired) == 3
        assert sorted(tier_of(store).documents("damaged")) == sorted(paths[n].rpartition("/")[2] for n in (0, 1))
        assert not check_store(store, read_data=True).problems


def test_an_outage_is_not_damage(s3_server: Server, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STALL_S", 0.4), ("RETRY_S", 0.4), ("RETRIES_MAX", 1), ("BACKOFF_S_MAX", 0.1)):
        monkeypatch.setattr(limits, f"OBJECT_{name}", value)
    with Proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with Store.create(bucket_url) as store:
            digest = store.put(content(300_000))
            store.flush()
            proxy.fault = lambda method, path, number: "drop"
            for request in (lambda: store.get(digest), store.refresh, lambda: check_store(store, read_data=True)):
                with pytest.raises(TierUnavailable, match="check the endpoint"):
                    request()
            lost = content(100_000, 1)
            with pytest.raises(TierUnavailable):
                store.put(lost)
                store.flush()
            proxy.fault = lambda method, path, number: ""
            assert store.get(digest) == content(300_000)
            again = store.put(lost)
            store.flush()
            assert store.get(again) == lost


def test_a_forked_child_reads_and_writes(bucket_url: str) -> None:
    """As the workers of a DataLoader do."""
    with Store.create(bucket_url) as store:
        digest = store.put(content(300_000))
        store.flush()

        def child() -> None:
            assert store.get(digest) == content(300_000)
            store.put(content(1000, 1))
            store.flush()

        run_in_fork(child)
        store.refresh()
        assert store.has(store.put(content(1000, 1))) and store.get(digest) == content(300_000)


LEPTON = [sys.executable, "-c", "from leptonstore.cli import main; main()"]


def lepton(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run([*LEPTON, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_command_line_on_a_bucket(bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"id": np.arange(20_000), "x": rng.normal(size=20_000)})
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "files").mkdir()
    for number in range(30):
        (tmp_path / "files" / f"{number}.bin").write_bytes(rng.bytes(20_000))
    lepton("init", bucket_url)
    monkeypatch.setenv("LEPTON_STORE", bucket_url)
    lepton("import", tmp_path / "t.parquet", "t", "--key", "id")
    lepton("import", tmp_path / "files", "f", "--format", "files")
    fresh_host(monkeypatch, tmp_path / "other host")
    lepton("export", "t", tmp_path / "back.parquet")
    assert pq.read_table(tmp_path / "back.parquet").equals(table)
    lepton("export", "f", tmp_path / "files back")
    for path in (tmp_path / "files").iterdir():
        assert (tmp_path / "files back" / path.name).read_bytes() == path.read_bytes()
    assert json.loads(lepton("check", "--read-data", "--json"))["clean"]
    assert json.loads(lepton("gc", "--json"))["missing"] == 0
    assert "is a store already" in lepton("init", bucket_url, code=2)
    assert "no such bucket" in lepton("ls", "--store", "s3://no-such-bucket/x", code=11)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "refused these credentials" in lepton("ls", code=9)


def test_near_values_are_read_with_few_requests(bucket_url: str, source_of: Callable[..., Source]) -> None:
    """A column of 50 KB values, as images are, in order and shuffled."""
    rng = np.random.default_rng(0)
    images = [rng.bytes(50_000) for _ in range(600)]
    table = pa.table({"id": np.arange(600), "image": pa.array(images, pa.binary())})
    with Store.create(bucket_url) as store:
        dataset = write_dataset(store, "t", source_of(table, ("id",)))
        counters = tier_of(store).counters
        before = counters.to_json()["get"]
        assert dataset.to_arrow(["image"])["image"].to_pylist() == images
        assert counters.to_json()["get"] - before <= 1.2 * 30_000_000 / (8 << 20) + 20
        rows = rng.permutation(600)[:200].tolist()
        assert dataset.take(rows, ["image"])["image"].to_pylist() == [images[row] for row in rows]
        large = store.put(rng.bytes(20_000_000))
        store.flush()
        before = counters.to_json()["get"]
        store.get(large)
        assert counters.to_json()["get"] - before <= 6, "its pieces lie one after another"


def test_a_store_in_memory_ends_with_the_process_and_not_before() -> None:
    with Store.create("memory://notebook") as store:
        digest = store.put(content(300_000))
        store.flush()
    with Store.open("memory://notebook") as again:
        assert again.get(digest) == content(300_000)
        collect(again)
        assert not check_store(again, read_data=True).problems
    with pytest.raises(StoreMissing):
        Store.open("memory://another")


def test_workers_of_a_dataloader_read_from_a_bucket(bucket_url: str, source_of: Callable[..., Source]) -> None:
    loaders = pytest.importorskip("loaders")
    rng = np.random.default_rng(0)
    images = [rng.bytes(30_000) for _ in range(300)]
    table = pa.table({"id": np.arange(300), "image": pa.array(images, pa.binary())})
    with Store.create(bucket_url) as store:
        dataset = write_dataset(store, "t", source_of(table, ("id",)))
        loader = loaders.DataLoader(dataset, batch_size=32, num_workers=2, collate_fn=list, timeout=60)
        seen = {int(row["id"]): bytes(row["image"]) for batch in loader for row in batch}
    assert seen == dict(enumerate(images))
