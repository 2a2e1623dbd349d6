"""Real daemons over a real S3 server, and loaders that read from them: a byte leaves the bucket once, and any daemon may die.

On loopback, always; and on hosts of their own (network namespaces), where the kernel counts what leaves the bucket.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.daemon_cluster import PORT, Made, make, own_place
from bench.daemon_cluster_loader import epoch
from leptonstore.errors import NotPermitted
from leptonstore.limits import MIB
from leptonstore.store.wire.address import Host, parse_address
from leptonstore.store.wire.link import Link
from leptonstore.testing import daemon, namespaces, seaweed
from leptonstore.testing.daemon import Served
from leptonstore.testing.ports import free_ports
from tests.integration.certificates import HERE
from tests.integration.certificates import make as certificate
from tests.integration.counted_link import counted
from tests.integration.waiting import wait_until

ROWS, BATCH = 640, 32


@contextmanager
def members(made: Made, place: Path, addresses: Sequence[str], **more: Any) -> Iterator[list[Served]]:
    """A daemon at each address; `inside`: a command for each; `each`: settings."""
    inside, each = more.pop("inside", [[]] * len(addresses)), more.pop("each", [{"insecure": True}] * len(addresses))
    with ExitStack() as stack:
        started = []
        for at, address in enumerate(addresses):
            own, (host, _, port) = place / f"daemon{at}", address.rpartition(":")
            own.mkdir()
            served = daemon.start(
                made.url, folder=own, environment={**made.environment, **own_place(own)}, inside=inside[at], name="store",
                host=host, port=int(port), cache_bytes=0, members=list(addresses), block_cache_bytes=64 * MIB,
                **each[at], **more,
            )  # fmt: skip
            stack.callback(served.kill)
            started.append(served)
        yield started


def acquainted(urls: Sequence[str]) -> None:
    """Wait until each daemon of a cluster says that all of them answer: before that, they go to the bucket themselves."""
    for url in urls:
        link = Link(parse_address(url))
        link.open({})
        wait_until(lambda link=link: len(link.act("hello")["members"]) >= len(urls), lambda url=url: f"{url} is alone")
        link.close()


def read_all(
    urls: Sequence[str], tell: Callable[[int, int], None] = lambda reader, step: None
) -> list[dict[str, object]]:
    """An epoch of each URL at the same time, each in an order of its own."""
    with ThreadPoolExecutor(len(urls)) as pool:
        running = [
            pool.submit(epoch, url, seed, BATCH, 0, lambda step, seed=seed: tell(seed, step))
            for seed, url in enumerate(urls)
        ]
        return [{key: value for key, value in one.result(300).items() if key != "seconds"} for one in running]


def killer(served: Served, at_step: int) -> Callable[[int, int], None]:
    """Kills a daemon when the second reader is so far."""
    once = threading.Event()

    def tell(reader: int, step: int) -> None:
        if reader == 1 and step == at_step and not once.is_set():
            once.set()
            served.kill()

    return tell


@pytest.fixture(scope="module")
def data(
    s3_server: seaweed.Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Made, list[dict[str, object]]]]:
    """A dataset in a bucket, and what loaders tell that read the bucket themselves."""
    before = dict(os.environ)
    os.environ.update({**s3_server.environment(), **own_place(tmp_path_factory.mktemp("writer"))})
    try:
        made = make(f"s3://{seaweed.make_bucket(s3_server)}/store", s3_server.environment(), ROWS)
        yield made, read_all([made.url] * 4)
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_daemons_on_one_host_are_one_cache_and_one_may_die(data, s3_server, tmp_path, monkeypatch):
    made, wanted = data
    monkeypatch.setenv("LEPTON_TOKEN", made.token)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    urls = [f"lepton://{address}/store" for address in addresses]
    with counted(s3_server.endpoint) as link:
        through = Made(made.url, made.bytes, made.token, {**made.environment, "AWS_ENDPOINT_URL": link.endpoint})
        with members(through, tmp_path, addresses) as started:
            assert read_all(urls) == wanted[:3]
            assert link.sent <= 1.1 * made.bytes
            assert read_all(urls, killer(started[1], ROWS // BATCH // 2)) == wanted[:3]
            assert link.sent <= 1.1 * made.bytes + 0.5 * made.bytes  # what the dead one had, again
            started[1].restart()
            assert read_all([urls[1]]) == wanted[:1]


def test_what_peers_may_ask_no_client_may(data, tmp_path, monkeypatch):
    made, _ = data
    monkeypatch.setenv("LEPTON_TOKEN", made.token)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with members(made, tmp_path, [address]):
        link = Link(parse_address(f"lepton://{address}/store"))
        with pytest.raises(NotPermitted):
            link.act("member", {}, host=Host("127.0.0.1", int(address.rpartition(":")[2])))
        with pytest.raises(NotPermitted):
            from leptonstore.store.wire.messages import encode

            list(link.stream(lambda rows: encode("block", {"from": address}, bytes(32))))
        link.close()


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
def test_members_talk_tls_to_each_other(data, tmp_path, monkeypatch, mutual):
    """Each has a certificate of its own, which one authority signed."""
    made, wanted = data
    authority = certificate(tmp_path, "authority")
    own = [certificate(tmp_path, name, authority, HERE) for name in ("one", "two")]
    monkeypatch.setenv("LEPTON_TOKEN", made.token)
    monkeypatch.setenv("LEPTON_CA", str(authority.chain))
    monkeypatch.setenv("LEPTON_CLIENT_CERT", str(own[0].chain))
    monkeypatch.setenv("LEPTON_CLIENT_KEY", str(own[0].key_file))
    each = [
        {"tls_cert": str(one.chain), "tls_key": str(one.key_file)}
        | ({"client_ca": str(authority.chain)} if mutual else {})
        for one in own
    ]
    # Addresses decide who owns which of the few stretches of blocks: one of two owns all of them about once in ten times.
    for number in range(8):
        addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
        urls = [f"lepton+tls://{address}/store" for address in addresses]
        told = []
        place = tmp_path / f"try{number}"
        place.mkdir()
        with members(made, place, addresses, each=each) as started:
            acquainted(urls)
            assert read_all(urls) == wanted[:2]
            for served in started:
                served.stop()
                told.append(json.loads(re.findall(r"blocks of packs: ({.*})", served.said())[-1]))
        for one in told:
            assert all(member["answers"] or "refuse" not in member["why"] for member in one["members"])
        if all(one["parts"].get("peer") and one["parts"].get("answered") for one in told):
            return
    pytest.fail(f"in no try each of them asked the other: {told}")


@pytest.mark.requires_root
def test_four_hosts_read_a_bucket_once_and_one_of_them_may_die(data, tmp_path, monkeypatch):
    why = namespaces.why_not()
    if why:
        pytest.skip(why)
    _, wanted = data
    names = [f"node{at}" for at in range(4)]
    with namespaces.network(["bucket", *names]) as hosts:
        (tmp_path / "weed").mkdir()
        bucket = hosts["bucket"]
        server = seaweed.start(tmp_path / "weed", bucket.address, bucket.inside)
        try:
            for name, value in server.environment().items():
                monkeypatch.setenv(name, value)
            made = make(f"s3://{seaweed.make_bucket(server)}/store", server.environment(), ROWS)
            monkeypatch.setenv("LEPTON_TOKEN", made.token)
            nodes = [hosts[name] for name in names]
            addresses = [f"{node.address}:{PORT}" for node in nodes]
            urls = [f"lepton://{address}/store" for address in addresses]
            before = bucket.sent
            with members(made, tmp_path, addresses, inside=[node.inside for node in nodes]) as started:
                acquainted(urls)
                assert read_all(urls) == wanted
                assert bucket.sent - before <= 1.1 * made.bytes
                assert read_all(urls, killer(started[1], ROWS // BATCH // 2)) == wanted
        finally:
            seaweed.stop(server)
