"""The object tier on a real S3 server and in memory: the conformance suite, forks, and everything that servers do wrong."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from leptonstore import limits
from leptonstore.errors import BadInput, MissingExtra, NotPermitted, TierMissing, TierUnavailable
from leptonstore.store.log import Log, LogState, Proposal
from leptonstore.testing import tiers as suite
from leptonstore.testing.seaweed import KEY, SECRET, Server
from leptonstore.testing.tiers import HomeSuite, LockSuite, PackTierSuite
from leptonstore.tiers import object_fork
from leptonstore.tiers.object import ObjectTier
from leptonstore.tiers.object_locks import ObjectLock
from leptonstore.tiers.object_uploads import Access, abort_stale
from leptonstore.tiers.open import open_tier
from tests.integration.proxy import Proxy
from tests.integration.waiting import unrenewed_s, wait_until


def object_tier(url: str) -> ObjectTier:
    tier = open_tier(url)
    assert isinstance(tier, ObjectTier)
    return tier


class _ObjectSuite(PackTierSuite, HomeSuite, LockSuite):
    def reopened(self, tier: ObjectTier) -> ObjectTier:
        return object_tier(tier.url)

    def die(self, tier: ObjectTier, lock: ObjectLock) -> None:
        """Nobody renews it any more; wait until the server's clock says that this is so."""
        lock.forget()
        wait_until(lambda: unrenewed_s(tier, lock) > limits.LOCK_DEAD_S)


class TestMemory(_ObjectSuite):
    @pytest.fixture
    def tier(self, monkeypatch: pytest.MonkeyPatch) -> ObjectTier:
        monkeypatch.setattr(limits, "LOCK_RENEW_S", 0.02)
        monkeypatch.setattr(limits, "LOCK_DEAD_S", 1.0)
        return object_tier(f"memory://{secrets.token_hex(8)}")


class TestS3(_ObjectSuite):
    @pytest.fixture
    def tier(self, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> ObjectTier:
        monkeypatch.setattr(limits, "LOCK_RENEW_S", 0.2)
        monkeypatch.setattr(limits, "LOCK_DEAD_S", 5.0)  # the server's clock has whole seconds
        monkeypatch.setattr(suite, "RACERS", 3)  # a race of eight takes SeaweedFS seconds
        return object_tier(bucket_url)


# -- what servers and networks do wrong ------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bounds, in seconds that a test can wait for."""
    for name, value in (
        ("STALL_S", 0.4),
        ("CONNECT_S", 0.4),
        ("RETRY_S", 0.6),
        ("RETRIES_MAX", 3),
        ("BACKOFF_S_MAX", 0.1),
    ):
        monkeypatch.setattr(limits, f"OBJECT_{name}", value)


def every_request(tier: ObjectTier) -> list[Callable[[], object]]:
    pack = "0" * 32

    def write(size: int) -> None:
        sink = tier.create_pack(pack)
        try:
            sink.write(bytes(size))
            sink.seal()
        finally:
            sink.abort()

    return [
        lambda: tier.read_document("config", 100),
        lambda: tier.create_document("config", b"x"),
        lambda: tier.replace_document("HEAD", b"x"),
        lambda: tier.documents("log"),
        lambda: tier.contents(),
        lambda: list(tier.packs()),
        lambda: write(10),
        lambda: write(9 << 20),
        lambda: tier.hold_lock("leases", b"x"),
    ]


def test_a_missing_bucket_is_named(bucket_url: str) -> None:
    for request in every_request(object_tier("s3://no-such-bucket/x")):
        with pytest.raises(TierMissing, match="s3://no-such-bucket/x: no such bucket: create it"):
            request()


def test_wrong_credentials_are_told(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "wrong")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            for request in every_request(object_tier(bucket_url)):
                with pytest.raises(NotPermitted, match=r"refused these credentials .*; check AWS_ACCESS_KEY_ID"):
                    request()


def test_an_endpoint_that_is_down_is_told_soon(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        for request in every_request(object_tier(bucket_url)):
            with pytest.raises(
                TierUnavailable, match=r"s3://.*the server does not answer as it should .*check the endpoint"
            ):
                request()


@pytest.mark.parametrize("endpoint", ["localhost:8333", "16,3,2", "ftp://127.0.0.1", "http://", "s3.example.com"])
def test_an_endpoint_that_is_no_url_is_told_by_its_variable(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore ended in a panic, which no handler of exceptions catches."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(BadInput, match=r"AWS_ENDPOINT_URL is .*: give http://HOST"):
        open_tier("s3://bucket/prefix")


def test_an_endpoint_that_hangs_is_given_up(bucket_url: str, monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)  # the kernel accepts; nobody answers
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        tier, started = object_tier(bucket_url), time.monotonic()
        for request in every_request(tier)[:3]:
            with pytest.raises(TierUnavailable):
                request()
        assert time.monotonic() - started < 30  # three times 1.4 s; without bounds it hangs for ever


@pytest.fixture
def proxy(s3_server: Server, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3_server.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


def test_a_flapping_server_is_asked_again(bucket_url: str, proxy: Proxy, impatient: None) -> None:
    proxy.fault = lambda method, path, number: ("503", "drop", "")[number % 3]
    tier = object_tier(bucket_url)
    data = suite.content(9_000_000)
    pack = suite.add_pack(tier, data)
    assert tier.create_document("log/1", b"x") and tier.documents("log") == ["1"]
    assert tier.read(pack, 0, len(data)) == data
    assert proxy.done["503"] and proxy.done["drop"]
    proxy.fault = lambda method, path, number: "503"
    with pytest.raises(TierUnavailable, match=r"SlowDown|503"):
        tier.read(pack, 0, 10)


def test_a_body_that_ends_early_is_no_short_pack(bucket_url: str, proxy: Proxy, impatient: None) -> None:
    tier = object_tier(bucket_url)
    data = suite.content(300_000)
    pack = suite.add_pack(tier, data)
    proxy.fault = lambda method, path, number: "cut" if method == "GET" and proxy.done["cut"] < 1 else ""
    assert tier.read(pack, 0, len(data)) == data and proxy.done["cut"] == 1
    proxy.fault = lambda method, path, number: "cut" if method == "GET" else ""
    with pytest.raises(TierUnavailable):
        tier.read(pack, 0, len(data))


def test_a_pack_whose_last_answer_was_lost_is_sealed(bucket_url: str, proxy: Proxy, impatient: None) -> None:
    tier = object_tier(bucket_url)
    for size in (1000, 9_000_000):
        lost = proxy.done["lost"]
        last = "PUT" if size == 1000 else "POST"  # a conditional PUT, and what completes a multipart upload

        def fault(method: str, path: str, number: int, last: str = last, lost: int = lost) -> str:
            ends = method == last and "uploads" not in path and proxy.done["lost"] == lost
            return "lost" if ends else ""

        proxy.fault = fault
        data = suite.content(size)
        pack = suite.add_pack(tier, data)
        assert proxy.done["lost"] == lost + 1
        assert tier.read(pack, 0, size) == data


def test_a_create_whose_answer_was_lost_does_not_win_twice(bucket_url: str, proxy: Proxy, impatient: None) -> None:
    """The tier may say "exists" to the one who created it; the log knows its own entry by the write id."""
    tier = object_tier(bucket_url)
    log, state = Log(tier, tier.url), LogState()
    for number in range(1, 6):
        lost = proxy.done["lost"]
        proxy.fault = lambda method, path, at, lost=lost: (
            "lost" if method == "PUT" and "/log/" in path and proxy.done["lost"] == lost else ""
        )
        log.append(state, lambda state, number=number: Proposal(f"entry {number}"))
        assert proxy.done["lost"] == lost + 1
    entries: list[dict[str, Any]] = []
    log.replay(LogState(), entries.append)
    assert [entry["action"] for entry in entries] == [f"entry {number}" for number in range(1, 6)]


def test_uploads_of_crashed_writers_are_aborted(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed in the middle of an upload leaves parts that the server keeps, and charges for."""
    begin = f"""
import os, sys
from leptonstore.tiers.open import open_tier
tier = open_tier({bucket_url!r})
sink = tier.create_pack("ab" * 16)
sink.write(bytes(20 << 20))
while tier.counters.to_json().get("part", 0) < 2 or sink._running:
    pass
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", begin], check=False, timeout=60).returncode == 9
    tier = object_tier(bucket_url)
    other = object_tier(bucket_url.rpartition("/")[0])
    assert tier.remove_dead_temporaries() == 0, "it may be another writer's that is at work"
    monkeypatch.setattr(limits, "UPLOAD_STALE_S", -10.0)
    assert other.remove_dead_temporaries() == 0, "it is not below that prefix's packs/"
    assert tier.remove_dead_temporaries() == 1
    assert tier.remove_dead_temporaries() == 0
    assert list(tier.packs()) == []


NO_TIME = f"<r><Upload><Key>p/packs/ab/{'ab' * 16}.pack</Key><Initiated>soon</Initiated></Upload></r>".encode()


@pytest.mark.parametrize(
    "answer", [b"", b"not xml", b"<!DOCTYPE x [<!ENTITY a 'b'>]><a/>", b"<Upload><Key>packs/x", NO_TIME, b"<a/>"]
)
def test_a_listing_of_uploads_that_is_none_is_harmless(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            access = Access("bucket", "key", "secret", "token", "r", f"http://127.0.0.1:{server.server_address[1]}")
            if answer == b"<a/>":
                assert abort_stale(access, "p") == 0
            else:
                with pytest.raises(TierUnavailable, match="listed its uploads"):
                    abort_stale(access, "p")
        finally:
            server.shutdown()
            thread.join(60)


# -- where credentials come from ------------------------------------------------------------------------------------


def test_credentials_come_from_a_profile_when_no_variable_has_them(
    bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((KEY, SECRET), ("other", "wrong")):
        with open(tmp_path / "credentials", "a") as file:
            profile = "team" if name == KEY else "default"
            file.write(f"[{profile}]\naws_access_key_id = {name}\naws_secret_access_key = {value}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(NotPermitted):
        object_tier(bucket_url).read_document("config", 10)
    monkeypatch.setenv("AWS_PROFILE", "team")
    tier = object_tier(bucket_url)
    assert tier.create_document("config", b"x") and tier.read_document("config", 10) == b"x"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(BadInput, match=r"the AWS profile cannot be used: .*nobody"):
        object_tier(bucket_url).read_document("config", 10)


def test_other_clouds_name_their_own_variables(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """No server of theirs runs here: what is made, and what is said when it is not there."""
    with pytest.raises(BadInput, match=r"az://c/p cannot be opened: .*check AZURE_STORAGE_ACCOUNT_NAME"):
        object_tier("az://c/p").read_document("config", 10)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "/nonexistent")
    with pytest.raises(BadInput, match=r"gs://b/p cannot be opened: .*check GOOGLE_APPLICATION_CREDENTIALS"):
        object_tier("gs://b/p").read_document("config", 10)
    monkeypatch.delenv("GOOGLE_SERVICE_ACCOUNT")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for name, value in (
            ("GOOGLE_SKIP_SIGNATURE", "true"),
            ("GOOGLE_BASE_URL", endpoint),
            ("AZURE_STORAGE_ACCOUNT_NAME", "a"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "aGVsbG8="),
            ("AZURE_STORAGE_ENDPOINT", endpoint),
        ):
            monkeypatch.setenv(name, value)
        for url in ("gs://b/p", "az://c/p"):
            with pytest.raises(TierUnavailable, match="check the endpoint"):
                object_tier(url).read_document("config", 10)


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_fork, "_loaded", None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    for url in ("s3://bucket/x", "memory://x"):
        with pytest.raises(MissingExtra, match=r"leptonstore\[object\]"):
            object_tier(url).read_document("config", 10)


# -- processes ---------------------------------------------------------------------------------------------------------


def race(url: str, processes: int, rounds: int) -> list[set[int]]:
    """In each round all processes are told at once to create the same entry; the entries that each was told to have created."""
    command = [sys.executable, "-u", "-c", RACER, url]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(processes)
    ]
    won: list[set[int]] = [set() for _ in racers]

    def say(line: str) -> list[str]:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"{line}\n")
        return [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]

    try:
        assert say("ready?") == ["ready"] * processes
        for number in range(rounds):
            for racer, answer in enumerate(say(f"log/{number:020d}")):
                assert answer in ("won", "lost")
                if answer == "won":
                    won[racer].add(number)
        return won
    finally:
        for one in racers:
            one.kill()
            one.communicate()


RACER = """
import os, sys
from leptonstore.tiers.open import open_tier
tier = open_tier(sys.argv[1])
tier.read_document("config", 10)
me = str(os.getpid()).encode()
for line in sys.stdin:
    name = line.strip()
    if name == "ready?":
        print("ready")
        continue
    won = tier.create_document(name, me)
    assert (tier.read_document(name, 100) == me) == won
    print("won" if won else "lost")
"""


def assert_one_winner_each(won: list[set[int]], rounds: int) -> None:
    assert sum(map(len, won)) == rounds and set().union(*won) == set(range(rounds))


def test_of_two_processes_on_s3_one_wins_each_entry(bucket_url: str) -> None:
    rounds = int(os.environ.get("LEPTON_RACE_ROUNDS", "40"))
    won = race(bucket_url, 2, rounds)
    assert_one_winner_each(won, rounds)
    assert all(won), "it was a race"


def test_of_eight_processes_on_a_directory_one_wins_each_entry(tmp_path: Path) -> None:
    rounds = int(os.environ.get("LEPTON_RACE_ROUNDS", "100"))
    won = race(str(tmp_path / "store"), 8, rounds)
    assert_one_winner_each(won, rounds)
    assert sum(map(bool, won)) > 1, "it was a race"


def test_a_forked_child_reads_writes_and_leaves_its_parents_locks(bucket_url: str) -> None:
    tier = object_tier(bucket_url)
    data = suite.content(9_000_000)
    pack, lock = suite.add_pack(tier, data), tier.hold_lock("leases", b"parent's")
    open_sink = tier.create_pack(suite.pack_id())
    open_sink.write(data)

    def child() -> None:
        tier.after_fork()
        lock.forget()
        open_sink.abort()
        assert tier.read(pack, 0, len(data)) == data
        assert tier.create_document("log/1", b"child's") and not tier.create_document("log/1", b"again")
        mine = tier.hold_lock("leases", b"child's")
        assert set(tier.live_locks("leases", 100).values()) == {b"parent's", b"child's"}
        mine.release()

    run_in_fork(child)
    assert tier.live_locks("leases", 100) == {lock.name: b"parent's"}
    open_sink.seal()
    assert len(list(tier.packs())) == 2
    lock.release()


def test_a_forked_child_cannot_reach_the_memory_of_its_parent() -> None:
    tier = object_tier("memory://fork")
    tier.create_document("config", b"x")

    def child() -> None:
        with pytest.raises(TierUnavailable, match="lives in the process that made it"):
            tier.read_document("config", 10)

    run_in_fork(child)


def run_in_fork(work: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(60)  # a child that waits for ever ends, and fails
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "Error performing PUT http://127.0.0.1:49403/t/config in 401.8103ms - HTTP error: error sending request",
            TierUnavailable,
        ),
        ("Server returned non-2xx status code: 403 Forbidden: ", NotPermitted),
        ("Server returned non-2xx status code: 401 Unauthorized: ", NotPermitted),
        ("request took 507 ms, then status code: 500", TierUnavailable),
    ],
)
def test_a_duration_or_port_is_no_status(text: str, kind: type[Exception]) -> None:
    """A server that was down after 401.8 ms was reported as one that refused the credentials."""
    tier = open_tier("memory://texts")
    assert isinstance(tier, ObjectTier)
    assert type(tier._client.error(OSError(text), "config")) is kind
