"""The cooperative tier: the conformance suite, alone and among three members, and what a cluster promises its readers."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leptonstore import limits
from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.cooperative import CooperativeTier
from leptonstore.daemon.cluster.members import Member
from leptonstore.daemon.cluster.wire import DATA, Answer
from leptonstore.errors import TierUnavailable
from leptonstore.limits import MIB
from leptonstore.testing.tiers import HomeSuite, LockSuite, PackTierSuite, add_pack, content
from tests.integration.cluster_nodes import Node, Nodes
from tests.integration.waiting import unrenewed_s, wait_until


def members_of(*labels: tuple[str, str]) -> list[Member]:
    return [Member(f"10.0.0.{at}:7400", rack, zone) for at, (rack, zone) in enumerate(labels)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Nodes]]:
    """make(count, ...): that many members of one rack over a bucket of their own."""
    monkeypatch.setattr(bounds, "HEDGE_S", 60.0)  # a busy machine is no reason to ask a second member
    all_of: list[Nodes] = []

    def make(count: int = 3, labels: list[tuple[str, str]] | None = None, **more: Any) -> Nodes:
        members = members_of(*(labels or [("", "")] * count))
        nodes = Nodes(f"memory://{secrets.token_hex(8)}", members, **more).start()
        all_of.append(nodes)
        return nodes

    yield make
    for nodes in all_of:
        nodes.close()


class _ClusterSuite(PackTierSuite, HomeSuite, LockSuite):
    MEMBERS = 1

    @pytest.fixture
    def tier(self, made: Callable[..., Nodes], monkeypatch: pytest.MonkeyPatch) -> CooperativeTier:
        monkeypatch.setattr(limits, "LOCK_RENEW_S", 0.02)
        monkeypatch.setattr(limits, "LOCK_DEAD_S", 1.0)
        self.nodes = made(self.MEMBERS)
        return self.nodes.listed[0].tier()

    def reopened(self, tier: CooperativeTier) -> CooperativeTier:
        """As another member has it."""
        return self.nodes.listed[-1].tier()

    def die(self, tier: CooperativeTier, lock: Any) -> None:
        lock.forget()
        wait_until(lambda: unrenewed_s(tier.inner, lock) > limits.LOCK_DEAD_S)


class TestAlone(_ClusterSuite):
    """A cluster of one is a cache."""


class TestThree(_ClusterSuite):
    MEMBERS = 3


def ranges(size: int, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """(offset, length), of which some cross blocks."""
    import random

    rng = random.Random(seed)
    found = []
    for _ in range(count):
        offset = rng.randrange(size)
        found.append((offset, min(size - offset, rng.choice([1, 700, 60_000, 3 * MIB]))))
    return found


PACK = content(11 * MIB + 12_345)


def pack_of(nodes: Nodes, owner: Node) -> str:
    """A pack with these bytes, whose first blocks belong to `owner`."""
    ring = owner.members.ring
    pack = next(pack for pack in iter(lambda: secrets.token_hex(16), "") if ring.owner(pack, 0) is owner.me)
    return add_pack(nodes.listed[0].tier(), PACK, pack)


def read(node: Node, pack: str, wanted: list[tuple[int, int]]) -> None:
    """Together and one by one; what comes is what the pack holds."""
    tier = node.tier()
    together = tier.read_many([(pack, offset, length) for offset, length in wanted])
    for (offset, length), data in zip(wanted, together, strict=True):
        memoryview(bytearray(length))[:] = data  # as readers do: bytes, not Arrow's signed ones
        assert bytes(data) == PACK[offset : offset + length]
    for offset, length in wanted[:10]:
        assert tier.read(pack, offset, length) == PACK[offset : offset + length]


def test_a_block_leaves_the_bucket_once_for_all_members(made):
    nodes = made(3)
    pack = add_pack(nodes.listed[0].tier(), PACK)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda at: read(nodes.listed[at % 3], pack, ranges(len(PACK), 60, at)), range(6)))
    assert set(nodes.fetched.values()) == {1}
    assert len(nodes.fetched) == 12


def test_neighbours_that_are_missed_together_are_one_request(made):
    nodes = made(1)
    pack = add_pack(nodes.listed[0].tier(), PACK)
    size = bounds.BLOCK_BYTES
    read(nodes.listed[0], pack, [(number * size + 10, 100) for number in range(12)])
    assert nodes.requests == 2  # stretches of eight blocks


def test_a_member_that_dies_costs_no_reader_an_error(made):
    nodes = made(4)
    first = nodes.listed[0]
    pack = pack_of(nodes, nodes.listed[1])
    owners = {first.members.ring.owner(pack, number).address for number in range(12)} - {first.me.address}
    for address in owners:
        nodes.nodes[address].alive = False
    read(first, pack, ranges(len(PACK), 60))
    assert set(first.members.away()) == owners
    assert all(first.members.ring.owner(pack, number).address not in owners for number in range(12))


def test_a_member_that_is_back_owns_its_blocks_again(made, monkeypatch):
    monkeypatch.setattr(bounds, "AWAY_S", 0.0)
    nodes = made(2)
    one, two = nodes.listed
    before = one.members.ring
    one.members.failed(two.me.address, "it does not answer")
    assert len(one.members.ring.members) == 1
    one.members.probe()
    assert one.members.ring.members == before.members and not one.members.away()


def test_a_silent_member_is_hedged_and_then_left_out(made, monkeypatch):
    monkeypatch.setattr(bounds, "HEDGE_S", 0.1)
    nodes = made(2)
    one, two = nodes.listed
    pack = pack_of(nodes, two)
    silent = threading.Event()
    nodes.before = lambda mine, address: (silent.wait(60), None)[1]
    try:
        assert one.tier().read(pack, 0, 500) == PACK[:500]
        assert one.sharing.counts["hedged"] == 1
    finally:
        silent.set()


def test_bytes_that_do_not_match_their_check_are_asked_for_elsewhere(made):
    nodes = made(2)
    one, two = nodes.listed
    pack = pack_of(nodes, two)

    def cut(address: str, answers: list[Answer]) -> list[Answer]:
        return [Answer(DATA, bytes(answer.data)[: len(answer.data) // 2]) for answer in answers]

    nodes.alter = cut  # whole by its check, and less than there is
    read(one, pack, ranges(len(PACK), 40))
    assert one.sharing.counts["damaged"] > 0
    assert two.me.address in one.members.away()


def test_a_member_that_lies_is_found_by_a_reader_and_passed_by(made):
    """What it sends fits its own check: only a reader, who has a digest, can tell."""
    nodes = made(2)
    one, two = nodes.listed
    pack = pack_of(nodes, two)
    nodes.alter = lambda address, answers: [Answer(answer.state, bytes(len(answer.data))) for answer in answers]
    offset, tier = 0, one.tier()
    assert tier.read(pack, offset, 500) == bytes(500)  # as it was sent
    assert tier.distrust(pack)
    assert tier.read(pack, offset, 500) == PACK[offset : offset + 500]
    assert two.me.address in one.members.away()
    assert not tier.distrust(pack), "now it is the bucket's"


def test_a_block_that_is_asked_for_again_and_again_is_copied(made):
    nodes = made(2)
    one, two = nodes.listed
    pack, tier = pack_of(nodes, two), one.tier()
    for at in range(30):
        begin = at * 30_000
        assert tier.read(pack, begin, 30_000) == PACK[begin : begin + 30_000]
    assert (pack, 0) in one.sharing.blocks
    assert sum(nodes.calls.values()) <= 20  # half a block by parts, then the whole
    assert one.sharing.counts["peer_bytes"] < 2 * bounds.BLOCK_BYTES


def test_a_copy_in_the_own_rack_is_asked_before_the_owner(made):
    nodes = made(labels=[("a", "z1"), ("a", "z1"), ("b", "z2")])
    one, two, far = nodes.listed
    pack = pack_of(nodes, far)
    for node in (one, one):
        node.tier().read(pack, 0, bounds.BLOCK_BYTES)  # the second time as a copy
    assert (pack, 0) in one.sharing.blocks
    two.tier().read(pack, 0, 100)  # the owner tells who has a copy nearby
    nodes.calls.clear()
    assert two.tier().read(pack, 500, 100) == PACK[500:600]
    assert dict(nodes.calls) == {(two.me.address, one.me.address): 1}
    one.sharing.blocks.forget(lambda key: True)
    nodes.calls.clear()
    assert two.tier().read(pack, 900, 100) == PACK[900:1000]
    assert nodes.calls[two.me.address, far.me.address] == 1, "a copy that is gone costs one more call"


def test_a_missing_pack_is_told_by_every_member(made):
    nodes = made(3)
    for node in nodes.listed:
        with pytest.raises(FileNotFoundError):
            node.tier().read(secrets.token_hex(16), 0, 10)
        with pytest.raises(FileNotFoundError):
            list(node.tier().read_many([(secrets.token_hex(16), at * MIB, 10) for at in range(9)]))


def test_the_bucket_is_asked_by_who_can_reach_it(made):
    """An owner whose own way to the bucket is cut does not keep others from reading."""
    nodes = made(2)
    one, two = nodes.listed
    pack = pack_of(nodes, two)

    def down(pack: str, offset: int, length: int) -> bytes:
        raise TierUnavailable("the bucket does not answer", "memory://")

    two.sharing.flights._fetch = down
    read(one, pack, ranges(len(PACK), 20))


def test_memory_stays_within_the_budget_and_what_is_read_is_right(made):
    nodes = made(1, ram_bytes=bounds.RAM_BYTES_MIN)
    data = [content(7 * MIB, seed) for seed in range(5)]
    node = nodes.listed[0]
    packs = [add_pack(node.tier(), one) for one in data]
    for seed in range(3):
        for pack, whole in zip(packs, data, strict=True):
            wanted = ranges(len(whole), 20, seed)
            parts = node.tier().read_many([(pack, offset, length) for offset, length in wanted])
            for (offset, length), part in zip(wanted, parts, strict=True):
                assert bytes(part) == whole[offset : offset + length]
            assert node.sharing.blocks.bytes <= bounds.RAM_BYTES_MIN


def test_log_entries_are_read_once(made):
    nodes = made(1)
    tier = nodes.listed[0].tier()
    assert tier.read_document("log/1", 100) is None
    tier.create_document("log/1", b"entry")
    assert tier.read_document("log/1", 100) == b"entry"
    gets = nodes.listed[0].bucket.counters.to_json()["get"]
    assert nodes.listed[0].tier().read_document("log/1", 100) == b"entry"
    assert nodes.listed[0].bucket.counters.to_json()["get"] == gets
