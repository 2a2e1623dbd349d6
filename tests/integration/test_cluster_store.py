"""Stores over the cluster: what a reader is promised when peers lie, packs are deleted elsewhere, and loaders tell what they will read."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.cluster import Cluster, ClusterSettings, blocks_of
from leptonstore.daemon.cluster.members import Member
from leptonstore.daemon.cluster.peers import Peers
from leptonstore.daemon.cluster.prefetch import Plans
from leptonstore.daemon.cluster.secret import peer_token
from leptonstore.daemon.cluster.wire import DATA, Answer, Part
from leptonstore.errors import BadInput, ChunkCorrupt
from leptonstore.limits import MIB
from leptonstore.store import Store
from leptonstore.store import gc as garbage
from leptonstore.store.wire.messages import Request
from leptonstore.testing import daemon
from leptonstore.testing.tiers import add_pack, content
from leptonstore.tiers.open import open_tier
from tests.integration.cluster_nodes import Node, Nodes
from tests.integration.waiting import wait_until

VALUES = [content(60_000, seed) for seed in range(200)]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Two members over a store with VALUES; `digests` of them."""
    monkeypatch.setattr(bounds, "HEDGE_S", 60.0)  # a busy machine is no reason to ask a second member
    url = f"memory://{secrets.token_hex(8)}"
    with Store.create(url) as store:
        digests = [store.put(value) for value in VALUES]
        store.flush()
    made = Nodes(url, [Member("10.0.0.1:7400"), Member("10.0.0.2:7400")]).start()
    made.digests = digests  # type: ignore[attr-defined]
    yield made
    made.close()


def store_on(node: Node, place: Path) -> Store:
    """A Store object of a daemon."""
    _, config = Store.read_config(node.nodes.url)
    return Store(node.tier(), config, place)


def test_a_store_over_two_members_reads_what_was_written(nodes, tmp_path):
    for number, node in enumerate(nodes.listed):
        with store_on(node, tmp_path / str(number)) as store:
            assert list(store.get_many(nodes.digests)) == VALUES
            assert [store.get(digest) for digest in nodes.digests[:20]] == VALUES[:20]
    assert set(nodes.fetched.values()) == {1}


def owners_of(node: Node, nodes: Nodes) -> set[str]:
    """Who owns blocks of the packs."""
    packs = list(open_tier(nodes.url).packs())
    return {node.members.ring.owner(pack, number).address for pack in packs for number in range(12)}


@pytest.mark.parametrize("how", ["together", "one by one", "into place"])
def test_readers_get_the_truth_from_a_cluster_of_liars(nodes, tmp_path, how):
    """A peer whose bytes fit its own check: a digest tells, the pack is read in the bucket, and the peer is left out."""

    def lie(address: str, answers: list[Answer]) -> list[Answer]:
        return [Answer(one.state, bytes(reversed(bytes(one.data))), one.holder) for one in answers]

    nodes.alter = lie
    one, two = nodes.listed
    owners = owners_of(one, nodes)
    if two.me.address not in owners:
        one, two = two, one
    with store_on(one, tmp_path / "index") as store:
        if how == "together":
            assert list(store.get_many(nodes.digests)) == VALUES
        elif how == "one by one":
            assert [store.get(digest) for digest in nodes.digests] == VALUES
        else:
            out = [bytearray(len(value)) for value in VALUES]
            for digest, part in zip(nodes.digests, out, strict=True):
                store.read_into(digest, memoryview(part))
            assert out == VALUES
    assert two.me.address in one.members.away()


def test_damage_in_the_bucket_is_damage(nodes, tmp_path):
    """When the bucket itself is wrong, a reader is told so."""
    with store_on(nodes.listed[0], tmp_path / "index") as store:
        place = store.locate(nodes.digests[0])
        whole = bytes(nodes.listed[0].bucket.read(place.pack, 0, 64 * MIB))
        at = place.row.offset + 100
        damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        home = nodes.listed[0].bucket
        home.delete_pack(place.pack)
        add_pack(home, damaged, place.pack)
        with pytest.raises(ChunkCorrupt):
            store.get(nodes.digests[0])
        assert store.get(nodes.digests[1]) == VALUES[1]


def test_blocks_of_packs_that_the_log_drops_are_forgotten(nodes, tmp_path):
    """Another host collects garbage; what this daemon kept goes when it sees the log."""
    node = nodes.listed[0]
    with store_on(node, tmp_path / "index") as store:
        list(store.get_many(nodes.digests))
        assert node.sharing.blocks.packs()
        with Store.open(nodes.url, tmp_path / "other") as other:
            garbage.collect(other)  # no ref reaches what was put
            assert not other.state.packs
        store.refresh()
        assert not node.sharing.blocks.packs()


def test_a_forked_child_reads_the_home_alone(tmp_path, bucket_url):
    with Store.create(bucket_url, cache_dir=tmp_path / "made") as store:
        digest = store.put(VALUES[0])
        store.flush()
    cluster = Cluster(open_tier(bucket_url), store.config.store_id.hex(), ClusterSettings(Member("127.0.0.1:1")))
    home, config = Store.read_config(bucket_url)
    with Store(cluster.tier(home), config, tmp_path / "index") as store:
        assert store.get(digest) == VALUES[0]
        child = os.fork()
        if not child:
            os._exit(0 if store.get(digest) == VALUES[0] else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert store.get(digest) == VALUES[0]
    cluster.close()


# -- plans ---------------------------------------------------------------------------------------------------------


def plans_of(node: Node, budget: int = 1 << 30) -> Plans:
    def tell(address: str, parts: list[Part]) -> None:
        other = node.nodes.nodes[address]
        other.sharing.flights.begin([part.key for part in parts])

    return Plans(node.sharing, tell, budget)


def test_what_a_reader_will_read_is_there_when_it_reads(nodes, tmp_path):
    node = nodes.listed[0]
    plans = plans_of(node)
    with store_on(node, tmp_path / "index") as store:
        keys = list(dict.fromkeys(blocks_of(store, nodes.digests)))
        assert len(keys) == 12
        plans.set("loader", keys)
        wait_until(lambda: len(nodes.fetched) == len(keys))
        requests = nodes.requests
        assert list(store.get_many(nodes.digests)) == VALUES
        assert nodes.requests == requests
    plans.close()


def test_a_plan_stays_within_its_budget_until_its_reader_goes_on(nodes, tmp_path):
    node = nodes.listed[0]
    plans = plans_of(node, budget=64 * MIB)  # 4 blocks ahead
    with store_on(node, tmp_path / "index") as store:
        keys = list(dict.fromkeys(blocks_of(store, nodes.digests)))
        plans.set("loader", keys)
        wait_until(lambda: len(plans._plans["loader"].ahead) == 4)
        assert len(plans._plans["loader"].coming) == len(keys) - 4
        for key in keys[:3]:
            plans.read(key)
        # As many again; what came with its neighbour in one request is passed over.
        wait_until(lambda: len(plans._plans["loader"].coming) <= len(keys) - 7)
        assert len(plans._plans["loader"].ahead) <= 4
        plans.gone("loader")
        assert not plans.readers
    plans.close()


def test_a_reader_that_is_not_heard_of_is_gone(nodes, monkeypatch):
    monkeypatch.setattr(bounds, "PLAN_IDLE_S", 0.0)
    plans = plans_of(nodes.listed[0], budget=64 * MIB)
    plans.set("loader", [(secrets.token_hex(16), number) for number in range(50)])
    wait_until(lambda: not plans.readers)
    plans.close()


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members, why",
    [
        ("10.0.0.2:7400", "not in its list"),
        ("dns:name", "dns:NAME:PORT"),
        ("dns:name:x", "dns:NAME:PORT"),
        ("???", "address"),
    ],
)
def test_members_that_make_no_sense_are_refused(members, why):
    home = open_tier(f"memory://{secrets.token_hex(8)}")
    with pytest.raises(BadInput, match=why):
        Cluster(home, "0" * 32, ClusterSettings(Member("10.0.0.1:7400"), members))


@pytest.mark.parametrize(
    "arguments, payload",
    [
        ({"from": 5}, b""),
        ({"from": "a:1", "here": "yes"}, b""),
        ({"from": "x" * 301}, b""),
        ({"from": "a:1"}, b"1"),
        ({"from": "a:1"}, bytes(32)),
        ({"from": "a:1"}, bytes(32 * (bounds.PEER_REQUEST_RANGES + 1))),
    ],
)
def test_requests_of_peers_are_checked_like_any(arguments, payload):
    cluster = Cluster(open_tier(f"memory://{secrets.token_hex(8)}"), "0" * 32, ClusterSettings(Member("10.0.0.1:7400")))
    with pytest.raises(BadInput):
        cluster.block(Request("block", arguments, payload))
    cluster.close()


# -- places --------------------------------------------------------------------------------------------------------


def test_a_daemon_whose_places_clients_hold_answers_its_peers(tmp_path):
    """Else two daemons whose clients wait for blocks of each other would wait for ever."""
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "index") as store:
        store.put(VALUES[0])
        store.flush()
        (pack,) = store.state.packs
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    served = daemon.start_here(tmp_path / "store", port=port, members=[address], cache_bytes=0)
    assert served.daemon is not None
    flight, cluster = served.daemon.flight, served.daemon.cluster
    held = [flight.admissions["get"], flight.admissions["action"]]
    try:
        for admission in held:
            for _ in range(admission.at_once):
                admission.enter()
        peers = Peers("10.0.0.9:7400", lambda: peer_token(cluster._secret), cluster.store_id)
        (answer,) = peers.fetch(address, [Part(pack, 0, 0, 50)], "10.0.0.9:7400", False)
        assert answer.state == DATA and len(answer.data) == 50
        assert peers.ask(address).address == address
        peers.close()
    finally:
        for admission in held:
            for _ in range(admission.at_once):
                admission.leave()
        served.stop()
