"""Who the members are: lists, names, documents of live daemons; who answers, and who is back; what their requests may be."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.daemon.cluster import bounds, wire
from leptonstore.daemon.cluster.members import FAR, SAME_RACK, SAME_ZONE, Member, parse_member, parse_members
from leptonstore.daemon.cluster.membership import HeartbeatMembers, Membership, NamedMembers, StaticMembers
from leptonstore.daemon.cluster.secret import is_peer, peer_token, require_secret, shared_secret
from leptonstore.errors import BadInput, TierUnavailable
from leptonstore.tiers.open import open_tier

A, B, C = (Member(f"10.0.0.{number}:7400") for number in (1, 2, 3))


def test_a_list_names_addresses_racks_and_zones():
    found = parse_members("b:7400/r2/eu, a:1 ,[::1]:7400/r1")
    assert found == (Member("[::1]:7400", "r1"), Member("a:1"), Member("b:7400", "r2", "eu"))
    a, b = Member("a:1", "r1", "z"), Member("b:1", "r1", "z")
    assert a.distance(b) == SAME_RACK
    assert a.distance(Member("c:1", "r2", "z")) == SAME_ZONE and a.distance(Member("c:1", "r1", "y")) == FAR


@pytest.mark.parametrize(
    "text",
    ["host", "host:0", "host:99999", "ho st:1", "-a:1", "a:1/rack one", f"a:1/{'x' * 100}", "lepton://a:1", "a:b"],
)
def test_what_is_no_member_is_refused(text):
    with pytest.raises(BadInput):
        parse_members(text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_documents_of_others_are_never_trusted(data):
    try:
        member = parse_member(data)
    except BadInput:
        return
    assert parse_member(member.encode()) == member


def test_a_name_is_resolved_again_and_again(monkeypatch):
    found = [["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "fd00::1"]]
    answers = iter(found)

    def resolve(name: str, port: int, type: int) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET6 if ":" in host else socket.AF_INET, type, 6, "", (host, port)) for host in next(answers)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    source = NamedMembers("daemons.svc", 7400)
    members = Membership(A, source, lambda address: Member(address))
    members.look()
    assert members.members == [A, B]
    members.look()
    assert members.members == [A, B, Member("[fd00::1]:7400")], "this daemon is one, listed or not"
    members.failed("10.0.0.2:7400", "dead")
    with pytest.raises(StopIteration):
        members.look()


def test_a_name_that_does_not_resolve_leaves_the_members_that_were_known():
    class Gone:
        looks = 0

        def look(self) -> Sequence[Member]:
            self.looks += 1
            if self.looks > 1:
                raise socket.gaierror("no such name")
            return [A, B]

        def close(self) -> None:
            """Nothing."""

    members = Membership(A, Gone(), lambda address: Member(address))
    members.look()
    members.look()
    assert members.members == [A, B] and "no such name" in members.why_not


def test_live_daemons_find_each_other_by_documents_and_the_dead_go(monkeypatch):
    monkeypatch.setattr(limits, "LOCK_RENEW_S", 0.02)
    monkeypatch.setattr(limits, "LOCK_DEAD_S", 1.0)
    url = f"memory://{secrets.token_hex(8)}"
    one, two = HeartbeatMembers(open_tier(url), A, 0.0), HeartbeatMembers(open_tier(url), B, 0.0)
    assert one.look() == two.look() == (A, B)
    two.close()
    assert one.look() == (A,)
    three = HeartbeatMembers(open_tier(url), C, 0.0)
    three._mine.forget()  # its process has died
    assert C in one.look()
    while C in one.look():
        assert A in one.look()
    one.close()


def test_a_look_reads_documents_only_when_one_came_or_went():
    home = open_tier(f"memory://{secrets.token_hex(8)}")
    source = HeartbeatMembers(home, A)
    assert source.look() == (A,)
    gets = home.counters.to_json()["get"]
    assert source.look() == (A,) and home.counters.to_json()["get"] == gets
    other = HeartbeatMembers(home, B)
    assert source.look() == (A, B)
    for one in (source, other):
        one.close()


def test_one_that_does_not_answer_is_left_out_for_longer_each_time(monkeypatch):
    alive = False

    def ask(address: str) -> Member:
        if not alive:
            raise TierUnavailable("dead", address)
        return Member(address, "r9", weight=2.0)

    monkeypatch.setattr(bounds, "AWAY_S", 0.0)
    members = Membership(A, StaticMembers([A, B, C]), ask)
    members.look()
    members.failed(B.address, "it does not answer")
    assert not members.answers(B.address) and members.answers(C.address)
    assert B not in members.ring.members and len(members.members) == 3
    members.probe()
    assert not members.answers(B.address)
    alive = True
    members._away[B.address].until = 0.0
    members.probe()
    assert members.answers(B.address)
    assert members.get(B.address) == Member(B.address, "r9", weight=2.0), "labels are what it tells itself"


def test_one_late_answer_is_forgiven_and_a_second_is_not():
    members = Membership(A, StaticMembers([A, B]), Member)
    members.look()
    members.late(B.address)
    assert members.answers(B.address)
    members.answered(B.address)
    members.late(B.address)
    assert members.answers(B.address)
    members.late(B.address)
    assert not members.answers(B.address)


def test_nobody_leaves_itself_out():
    members = Membership(A, StaticMembers([A, B]), Member)
    members.look()
    members.failed(A.address, "?")
    members.damaged(A.address, "?")
    assert members.answers(A.address) and A in members.ring.members


def test_the_secret_is_the_stores_and_the_token_does_not_tell_it():
    home = open_tier(f"memory://{secrets.token_hex(8)}")
    secret = shared_secret(home)
    assert shared_secret(home) == secret and len(secret) == 64
    token = peer_token(secret)
    assert secret.decode() not in token
    assert is_peer(f"Bearer {token}", secret)
    for wrong in (
        None,
        "",
        "Bearer ",
        token,
        f"Bearer {token}x",
        f"bearer {token[:-1]}",
        f"Bearer {peer_token(secret + b'x')}",
    ):
        assert not is_peer(wrong, secret)
    with pytest.raises(BadInput):
        require_secret(b"short")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=130))
def test_requests_for_parts_are_bounded_before_anything_is_read(payload):
    try:
        parts = wire.parse_parts(payload)
    except BadInput:
        return
    assert all(0 <= part.start < part.stop <= bounds.BLOCK_BYTES for part in parts)
    assert wire.payload_of(parts) == payload


def test_parts_of_a_range_are_the_range():
    for offset, length in [(0, 1), (bounds.BLOCK_BYTES - 1, 2), (5, 3 * bounds.BLOCK_BYTES), (7, 0)]:
        parts = wire.parts_of("ab" * 16, offset, length)
        assert sum(part.stop - part.start for part in parts) == length
        at = offset
        for part in parts:
            assert part.offset == at
            at += part.stop - part.start
