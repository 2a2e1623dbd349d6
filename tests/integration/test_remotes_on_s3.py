"""Push to and clone from a store on a bucket of a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.exchange import clone, pull, push
from leptonstore.errors import TierUnavailable
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from leptonstore.store.transfer import TransferReport
from leptonstore.testing.seaweed import Server
from leptonstore.tiers.object import ObjectTier
from tests.integration.proxy import Proxy

REF = "dataset/t/main"
ROWS = 40_000


def table(seed: int, rows: int = ROWS) -> pa.Table:
    """Texts of about 900 bytes that hardly compress, and numbers."""
    rng = np.random.default_rng(seed)
    data = rng.bytes(rows * 450).hex()
    text = [data[at * 900 : at * 900 + 900 - at % 50] for at in range(rows)]
    return pa.table({"id": np.arange(rows), "text": text, "x": rng.normal(size=rows), "y": rng.integers(0, 9, rows)})


def write(store: Store, rows: pa.Table) -> str:
    source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches(max_chunksize=4096)), rows.num_rows, {})
    return write_dataset(store, "t", source).commit


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "here") as made:
        yield made


def written(store: Store) -> int:
    assert isinstance(store.home, ObjectTier)
    return store.home.counters.to_json().get("bytes_written", 0)


def test_a_push_of_one_percent_sends_at_most_three(here: Store, bucket_url: str) -> None:
    """1 % of the rows, in one place; all that the bucket is sent counts: packs, log entries, hints."""
    first = table(1)
    write(here, first)
    with Store.create(bucket_url) as remote:
        push(here, remote, [REF])
        whole = written(remote)
        assert whole > 0.4 * first.nbytes
        at, count = ROWS // 3, ROWS // 100
        other = table(2, count).set_column(0, "id", pa.array(np.arange(at, at + count)))
        second = pa.concat_tables([first.slice(0, at), other, first.slice(at + count)])
        write(here, second)
        before = written(remote)
        report = push(here, remote, [REF]).report
        assert written(remote) - before == report.requests["destination"]["bytes_written"] <= 0.03 * whole
        assert report.bytes_sent <= 0.03 * whole and report.bytes_saved >= 0.97 * second.nbytes
        before = written(remote)
        assert push(here, remote, [REF]).report.chunks_sent == 0 and written(remote) == before
    with Store.open(bucket_url) as again:
        assert Dataset.open(again, "t").to_arrow().equals(second) and not check_store(again, read_data=True).problems


def test_a_clone_reads_many_chunks_with_one_request_and_an_update_only_what_changed(
    here: Store, bucket_url: str, s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table(1, 20_000)
    write(here, rows)
    with Store.create(bucket_url) as remote:
        push(here, remote, [REF])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other host"))
    with Proxy(s3_server.endpoint) as proxy, Store.create(tmp_path / "there") as there:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.delay_s = 0.005
        with Store.open(bucket_url) as remote:
            report = clone(remote, there).report
            assert report.chunks_sent > 150 and report.requests["source"]["get"] < 0.1 * report.chunks_sent
            assert proxy.most_at_once >= 2
        assert Dataset.open(there, "t").to_arrow().equals(rows)
        changed = rows.set_column(3, "y", pa.array(np.where(np.arange(20_000) == 77, 5, rows["y"].to_numpy() % 5)))
        write(here, changed)
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
        with Store.open(bucket_url) as remote:
            push(here, remote, [REF])
        with Store.open(bucket_url) as remote:
            report = pull(there, remote, [REF]).report
            assert report.requests["source"]["bytes_read"] < 0.02 * rows.nbytes, "the other column stays here"
        assert Dataset.open(there, "t").to_arrow().equals(changed) and not check_store(there, read_data=True).problems


def test_a_push_that_the_bucket_ends_goes_on(
    here: Store, bucket_url: str, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes away in the middle; what it has is used by the next attempt."""
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 1 << 20)
    for name, value in (("OBJECT_RETRY_S", 1.0), ("OBJECT_RETRIES_MAX", 1), ("OBJECT_CONNECT_S", 1.0)):
        monkeypatch.setattr(limits, name, value)
    rows = table(1, 10_000)
    write(here, rows)
    Store.create(bucket_url).close()
    with Proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with Store.open(bucket_url) as remote:

            def tell(report: TransferReport) -> None:
                if report.chunks_sent == 60:
                    remote.flush()
                    proxy.fault = lambda method, path, number: "drop"

            with pytest.raises(TierUnavailable):
                push(here, remote, [REF], progress=tell)
            arrived = sum(pack.bytes for pack in remote.state.packs.values())
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    with Store.open(bucket_url) as remote:
        assert not remote.state.refs
        report = push(here, remote, [REF]).report
        whole = sum(pack.bytes for pack in here.state.packs.values())
        assert report.bytes_sent <= whole - 0.9 * arrived
        assert Dataset.open(remote, "t").to_arrow().equals(rows)
        collect(remote)
        assert not check_store(remote, read_data=True).problems
