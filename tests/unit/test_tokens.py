"""Tokens: who gets in, for how long, and how soon no longer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.daemon.access import Access, AccessSettings
from leptonstore.daemon.live_tokens import TOKEN_AWAY_S, TOKEN_LOOK_S, TOKEN_STALE_S
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant, Principal
from leptonstore.daemon.rates import Rate, RateLimits
from leptonstore.daemon.tokens import CLOCK_TOLERANCE_S, TOKENS_MAX, TokenRing, id_in
from leptonstore.errors import BadInput, NotAuthenticated, NotFound, TierUnavailable, TooBusy
from leptonstore.format import framed
from leptonstore.store import Store
from leptonstore.store.keys import Passphrase, ScryptCost

READ = [Grant(Scope.READ)]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def enter(access: Access, secret: str | None, certificate: str | None = None, address: str = "10.0.0.1") -> Principal:
    return access.authenticate(None if secret is None else f"Bearer {secret}", certificate, address)


def test_a_token_stands_for_its_grants(store: Store) -> None:
    ring = TokenRing.of(store)
    token, secret = ring.add("ci", [Grant.parse("read:birds"), Grant.parse("write:fish")])
    who = enter(Access.of(store), secret)
    assert (who.id, who.name) == (token.id, "ci")
    assert who.may(Scope.READ, "birds") and not who.may(Scope.WRITE, "birds") and not who.may(Scope.READ)
    assert who.may(Scope.WRITE, "fish") and who.may(Scope.READ, "fish") and not who.may(Scope.READ, "cats")


def test_the_text_of_a_token_stands_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Store.create(tmp_path / "store") as store:
        token, secret = TokenRing.of(store).add("ci", READ)
        access = Access.of(store)
        enter(access, secret)
        with pytest.raises(NotAuthenticated) as refused:
            enter(access, secret[:-1])
        told = f"{token!r} {token.to_json(0.0)} {refused.value} {caplog.text}"
    files = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    part = secret.split("_", 2)[2]
    assert len(part) == 43 and part not in told and part.encode() not in files


@given(st.text(max_size=90))
def test_what_is_no_token_leads_to_no_document(text: str) -> None:
    found = id_in(text)
    assert found is None or re.fullmatch(r"[0-9a-f]{16}", found)  # no path climbs, whatever is presented


@pytest.mark.parametrize(
    "given",
    [
        "",
        "lepton_",
        "lepton_../../config_" + 43 * "A",
        "lepton_0123456789abcdef_" + 43 * "A",
        "x" * 10_000,
        "\ud800",
        "é",
    ],
)
def test_garbage_is_refused(store: Store, given: str) -> None:
    access = Access.of(store, local_token="y" * 43)
    for header in (f"Bearer {given}", f"bearer  {given}", given, f"Basic {given}", f"Bearer\t{given}"):
        with pytest.raises(NotAuthenticated):
            access.authenticate(header, None, "10.0.0.1")


def test_a_token_ends_by_the_daemon_s_clock_with_the_tolerance_that_is_told(store: Store) -> None:
    maker, daemon = Clock(), Clock()
    token, secret = TokenRing.of(store).add("ci", READ, 3_600.0, now=maker)
    access = Access(TokenRing.of(store), now=daemon)
    end = maker.now + 3_600.0
    for skew in (-86_400.0, 0.0, 3_599.0, 3_600.0 + CLOCK_TOLERANCE_S - 0.1):
        daemon.now = maker.now + skew
        assert enter(access, secret).id == token.id
    daemon.now = end + CLOCK_TOLERANCE_S + 0.1
    with pytest.raises(NotAuthenticated):
        enter(access, secret)
    assert token.to_json(daemon.now)["expired"] is True


def test_in_a_directory_a_revocation_holds_from_the_next_request_on(store: Store) -> None:
    access = Access.of(store)
    for number in range(20):  # however soon after it was made
        token, secret = TokenRing.of(store).add(f"t{number}", READ)
        assert enter(access, secret).id == token.id
        TokenRing.of(store).revoke(token.id)  # by another process
        with pytest.raises(NotAuthenticated):
            enter(access, secret)


@contextmanager
def in_a_bucket(name: str) -> Iterator[tuple[Store, TokenRing, Access, Clock]]:
    with Store.create(f"memory://{name}") as store:
        clock = Clock()
        yield store, TokenRing.of(store), Access(TokenRing.of(store), clock=clock), clock


def test_in_a_bucket_a_revocation_elsewhere_holds_within_two_seconds(tmp_path: Path) -> None:
    with in_a_bucket(tmp_path.name + "a") as (_, ring, access, clock):
        token, secret = ring.add("ci", READ)
        enter(access, secret)
        ring.revoke(token.id)
        clock.now += TOKEN_STALE_S
        with pytest.raises(NotAuthenticated):
            enter(access, secret)


def test_in_a_bucket_a_revocation_through_the_daemon_holds_at_once(tmp_path: Path) -> None:
    with in_a_bucket(tmp_path.name + "b") as (_, ring, access, _clock):
        token, secret = ring.add("ci", READ)
        enter(access, secret)
        ring.revoke(token.id)
        access.tokens.forget(token.id)
        with pytest.raises(NotAuthenticated):
            enter(access, secret)


def test_in_a_bucket_strangers_cost_one_listing_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_a_bucket(tmp_path.name + "c") as (store, ring, _, clock):
        access = Access(TokenRing.of(store), AccessSettings(rates=RateLimits(failures=None)), clock=clock)
        asked: list[str] = []
        for call in ("documents", "read_document"):
            plain = getattr(store.home, call)
            monkeypatch.setattr(store.home, call, lambda *of, plain=plain, call=call: asked.append(call) or plain(*of))
        for number in range(1_000):
            with pytest.raises(NotAuthenticated):
                enter(access, f"lepton_{number:016x}_" + 43 * "A")
        assert asked == ["documents"]
        monkeypatch.undo()
        _, secret = ring.add("new", READ)
        clock.now += TOKEN_LOOK_S
        assert enter(access, secret).name == "new"


def test_a_home_that_is_away_keeps_known_tokens_good_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_a_bucket(tmp_path.name + "d") as (store, ring, access, clock):
        _, secret = ring.add("ci", READ)
        _, other = ring.add("other", READ)
        enter(access, secret)

        def away(*of: Any) -> Any:
            raise TierUnavailable("the bucket does not answer")

        monkeypatch.setattr(store.home, "read_document", away)
        monkeypatch.setattr(store.home, "documents", away)
        clock.now += TOKEN_AWAY_S - 1
        assert enter(access, secret).name == "ci"
        clock.now += 2
        for one in (secret, other):
            with pytest.raises(TierUnavailable) as told:
                enter(access, one)
            assert "bucket" not in str(told.value)


def test_a_document_of_another_store_or_another_hand_opens_nothing(tmp_path: Path) -> None:
    with Store.create(tmp_path / "a") as mine, Store.create(tmp_path / "b") as other:
        token, secret = TokenRing.of(other).add("ci", READ)
        data = TokenRing.of(other).read(token.id)
        assert data is not None
        mine.home.create_document(f"tokens/{token.id}", data)
        mine.home.create_document("tokens/" + "0" * 16, b"garbage")
        mine.home.create_document("tokens/" + "1" * 16, b"x" * 100_000)
        access = Access.of(mine)
        for text in (secret, f"lepton_{'0' * 16}_{'A' * 43}", f"lepton_{'1' * 16}_{'A' * 43}"):
            with pytest.raises(NotAuthenticated):
                enter(access, text)
        ring = TokenRing.of(mine)
        assert ring.all() == [] and len(ring.damaged) == 3


def test_in_an_encrypted_store_nobody_forges_a_token(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    with Store.create(tmp_path / "s", unlock=Passphrase(b"secret"), cost=ScryptCost(n=1024)) as store:
        ring = TokenRing.of(store)
        token, secret = ring.add("a name that is nobody's business", READ)
        sealed = ring.read(token.id)
        assert sealed is not None and b"business" not in sealed and b"sha256" not in sealed
        access = Access.of(store)
        assert enter(access, secret).id == token.id
        # Who can write into the bucket, and has no key, writes what an unencrypted store would hold.
        body = {**token.body(), "grants": ["admin"]}
        store.home.delete_document(f"tokens/{token.id}")
        store.home.create_document(f"tokens/{token.id}", framed.encode("token", body))
        with pytest.raises(NotAuthenticated):
            enter(access, secret)


def test_a_certificate_stands_for_its_entry(store: Store) -> None:
    ring = TokenRing.of(store)
    token, secret = ring.add("node 7", READ, certificate="node-7.train.example")
    access = Access.of(store)
    assert secret == "" and enter(access, None, "node-7.train.example").id == token.id
    for name in ("node-8.train.example", "NODE-7.train.example", "x" * 1_000, "\n"):
        with pytest.raises(NotAuthenticated):
            enter(access, None, name)
    with pytest.raises(BadInput, match="already"):
        ring.add("again", READ, certificate="node-7.train.example")
    # The entry's id is no secret; presented as a token it opens nothing.
    with pytest.raises(NotAuthenticated):
        enter(access, f"lepton_{token.id}_" + 43 * "A")
    ring.revoke(token.id)
    with pytest.raises(NotAuthenticated):
        enter(access, None, "node-7.train.example")


def test_what_is_given_and_wrong_is_not_taken_for_nothing(store: Store) -> None:
    access = Access.of(store, AccessSettings(anonymous=tuple(READ)))
    assert enter(access, None).name == "anonymous"
    with pytest.raises(NotAuthenticated):
        enter(access, "wrong")
    with pytest.raises(NotAuthenticated):
        access.authenticate("", None, "10.0.0.1")
    with pytest.raises(NotAuthenticated):
        enter(access, None, "a certificate that nobody knows")


def test_an_address_that_fails_often_is_told_to_wait_and_a_valid_credential_passes_from_there(store: Store) -> None:
    clock = Clock()
    _, secret = TokenRing.of(store).add("ci", READ)
    access = Access(TokenRing.of(store), AccessSettings(rates=RateLimits(failures=Rate(1, 5))), clock=clock)
    outcomes = []
    for _ in range(10):
        with pytest.raises((NotAuthenticated, TooBusy)) as refused:
            enter(access, "wrong")
        outcomes.append(type(refused.value))
    assert outcomes == [NotAuthenticated] * 5 + [TooBusy] * 5
    assert (access.failures.refused, access.failures.slowed) == (10, 5)
    assert enter(access, secret).name == "ci"
    with pytest.raises(NotAuthenticated):
        enter(access, "wrong", address="10.0.0.2")
    clock.now += 1.0
    with pytest.raises(NotAuthenticated):
        enter(access, "wrong")


def test_what_makes_no_token(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = TokenRing.of(store)
    ring.add("ci", READ)
    for name, grants, lifetime in (("ci", READ, None), ("", READ, None), ("a\nb", READ, None), ("x" * 65, READ, None),
                                   ("b", [], None), ("b", READ, 0.0), ("b", READ, float("nan"))):  # fmt: skip
        with pytest.raises(BadInput):
            ring.add(name, grants, lifetime)
    monkeypatch.setattr("leptonstore.daemon.tokens.TOKENS_MAX", 1)
    with pytest.raises(BadInput, match="already: revoke some"):
        ring.add("b", READ)
    assert [token.name for token in ring.all()] == ["ci"] and TOKENS_MAX > 1


@pytest.mark.parametrize(
    "text", ["", "reed", "read:", "read:a/b", "read:../x", "peer:birds", "READ", "read:" + "x" * 1_000]
)
def test_what_grants_nothing(text: str) -> None:
    with pytest.raises(BadInput):
        Grant.parse(text)


def test_tokens_are_found_by_name_or_the_beginning_of_their_id(store: Store) -> None:
    ring = TokenRing.of(store)
    made = [ring.add(f"t{number}", READ)[0] for number in range(3)]
    assert ring.find("t1") == made[1] and ring.find(made[2].id[:10]) == made[2]
    for wanted in ("t9", "", "../config"):
        with pytest.raises(NotFound):
            ring.find(wanted)
    with pytest.raises(BadInput):
        ring.revoke("../../config")
