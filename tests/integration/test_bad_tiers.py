"""What can be wrong with a tier, with real parts: the error names tier, object and fix; what another tier has is read all the same.

A store's nearest tier is a bucket or a block volume, and goes bad. Dataset `both` has a copy at home, `near` has none.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from leptonstore import limits
from leptonstore.errors import ChunkCorrupt, Damaged, LeptonError, NotPermitted, TierMissing, TierUnavailable
from leptonstore.format import volume as lvb
from leptonstore.store import Store, check_store
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.placement import HOME, Placement, TierSetting
from leptonstore.store.tier_mark import claim_tier
from leptonstore.testing.seaweed import Server
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.object import ObjectTier
from leptonstore.tiers.open import open_packs
from tests.integration.proxy import Proxy
from tests.integration.test_tiering import fill, readable


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STALL_S", 0.6), ("RETRY_S", 0.4), ("RETRIES_MAX", 2), ("BACKOFF_S_MAX", 0.1)):
        monkeypatch.setattr(limits, f"OBJECT_{name}", value)
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 100_000)


def filled(tmp_path: Path, url: str) -> None:
    """A store whose nearest tier is `url`; its index is filled."""
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        claim_tier(url, store)
        tiers = (TierSetting("fast", url), TierSetting(HOME))
        store.configure(Placement(tiers, write_to="fast", copies=2).setting(), ("tiers",))
        fill(store, "both")
        apply_moves(store, plan_for(store).moves)
        store.configure(Placement(tiers, write_to="fast").setting(), ("tiers",))
        fill(store, "near", seed=1)


def opened(tmp_path: Path, cache: str = "cache") -> Store:
    return Store.open(tmp_path / "store", cache_dir=tmp_path / cache)


def require_told(tmp_path: Path, url: str, kinds: tuple[type[Exception], ...], words: tuple[str, ...]) -> None:
    """`both` is read, `near` is an error of that kind with those words, on hosts that know the store and on a new one."""
    for cache in ("cache", "fresh"):
        with opened(tmp_path, cache) as store:
            readable(store, "both")
            expected = kinds if cache == "cache" else (*kinds, TierUnavailable)
            with pytest.raises(LeptonError) as caught:
                readable(store, "near", seed=1)
            assert isinstance(caught.value, expected), caught.value
            text = str(caught.value)
            assert url in text and "\n" not in text, text
            if cache == "cache":
                assert all(word in text for word in words), text
            readable(store, "both")
            report = check_store(store, read_data=True)
            assert report.problems and {problem.tier for problem in report.problems} == {"fast"}


# -- object stores ---------------------------------------------------------------------------------------------------


def _client(url: str) -> Any:
    tier = open_packs(url)
    assert isinstance(tier, ObjectTier)
    return tier._client


def _packs(url: str) -> list[str]:
    return [f"packs/{pack[:2]}/{pack}.pack" for pack in open_packs(url).packs()]


def _truncate(url: str) -> None:
    client = _client(url)
    for path in _packs(url):
        data = client.get(path)
        client.put(path, data[: len(data) // 2])


def _alter(url: str) -> None:
    client = _client(url)
    for path in _packs(url):
        data = bytearray(client.get(path))
        for at in range(500, len(data) - 500, 1000):
            data[at] ^= 1
        client.put(path, data)


def _delete(url: str) -> None:
    for path in _packs(url):
        _client(url).delete(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, ("pack ", "truncated", "lepton repair")),
        (_alter, ("pack ", "lepton repair")),
        (_delete, ("pack ", "missing", "lepton repair")),
    ],
)
def test_objects_that_somebody_changed_behind_our_back(
    bucket_url: str, tmp_path: Path, damage: Callable[[str], None], words: tuple[str, ...]
) -> None:
    filled(tmp_path, bucket_url)
    damage(bucket_url)
    with opened(tmp_path) as store:
        readable(store, "both")
        with pytest.raises(Damaged) as caught:
            readable(store, "near", seed=1)
        assert isinstance(caught.value, ChunkCorrupt) and "near@main" in caught.value.where
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert bucket_url in str(caught.value)
        report = check_store(store, read_data=True)
        assert {problem.tier for problem in report.problems} <= {"fast", ""}
        assert all(not problem.places for problem in report.problems if problem.whole_in)
    with opened(tmp_path, "fresh") as store:
        readable(store, "both")
        with pytest.raises(LeptonError):
            readable(store, "near", seed=1)


@pytest.mark.parametrize("how", ["bucket", "credentials", "down", "hangs", "errors", "cut"])
def test_a_bucket_that_cannot_be_read(
    s3_server: Server, bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    filled(tmp_path, bucket_url)
    url = bucket_url
    with ExitStack() as stack:
        if how == "bucket":
            url = "s3://no-such-bucket/some/prefix"
            with opened(tmp_path) as store:
                tiers = (TierSetting("fast", url), TierSetting(HOME))
                store.configure(Placement(tiers).setting(), ("tiers",))
            told: tuple[type[Exception], tuple[str, ...]] = TierMissing, ("no such bucket", "create it")
        elif how == "credentials":
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            told = NotPermitted, ("refused these credentials", "check AWS_ACCESS_KEY_ID")
        else:
            told = TierUnavailable, ("check the endpoint",)
            if how in ("down", "hangs"):
                other = stack.enter_context(socket.socket())
                other.bind(("127.0.0.1", 0))
                if how == "hangs":
                    other.listen(64)
                endpoint = f"http://127.0.0.1:{other.getsockname()[1]}"
            else:
                proxy = stack.enter_context(Proxy(s3_server.endpoint))
                fault = "503" if how == "errors" else "cut"
                proxy.fault = lambda method, path, number: fault if method in ("GET", "HEAD") else ""
                endpoint = proxy.endpoint
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        require_told(tmp_path, url, (told[0],), told[1])


@pytest.mark.parametrize("how", ["flapping", "slow"])
def test_a_bucket_that_is_flapping_or_slow_is_read(
    s3_server: Server, bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    filled(tmp_path, bucket_url)
    for name, value in (("STALL_S", 10.0), ("RETRY_S", 20.0), ("RETRIES_MAX", 8)):
        monkeypatch.setattr(limits, f"OBJECT_{name}", value)
    with Proxy(s3_server.endpoint, delay_s=0.03 if how == "slow" else 0.0) as proxy:
        if how == "flapping":
            # Every object fails in each way, twice at most: no request can meet more faults than it is tried again.
            asked = Counter[str]()

            def flap(method: str, path: str, number: int) -> str:
                asked[path] += 1
                return ("503", "", "drop", "", "cut", "", "")[asked[path] % 7] if asked[path] < 14 else ""

            proxy.fault = flap
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with opened(tmp_path, "fresh") as store:
            readable(store, "both")
            readable(store, "near", seed=1)
            problems = check_store(store, read_data=True).problems
            assert not problems, problems[0].what
        assert how == "slow" or all(proxy.done[fault] for fault in ("503", "drop", "cut"))


# -- block volumes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "volume"
    format_block(path, 12 << 20, unit=64 << 10)
    filled(tmp_path, f"block://{path}")
    yield path


def _newer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in (0, lvb.BLOCK_BYTES):
        data[start + 4] = lvb.MAJOR + 1
        data[start : start + lvb.SECTOR_BYTES] = lvb._sector(bytes(data[start : start + lvb.SECTOR_BYTES - 32]))
    path.write_bytes(data)


def _another_stores(path: Path) -> None:
    path.unlink()
    format_block(path, 12 << 20, unit=64 << 10)
    tier = open_packs(f"block://{path}")
    tier.claim(b"another store!!!")  # type: ignore[attr-defined]
    tier.close()  # type: ignore[attr-defined]


def _no_superblock(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    data[lvb.BLOCK_BYTES + 100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, ("there is no volume", "lepton tier format-block")),
        (lambda path: path.write_bytes(b""), ("too small", "lepton tier format-block")),
        (lambda path: path.write_bytes(bytes(12 << 20)), ("is not a LeptonStore volume", "lepton tier format-block")),
        (lambda path: path.write_bytes(path.read_bytes()[: 4 << 20]), ("truncated", "restore it")),
        (_newer, ("upgrade LeptonStore",)),
        (_another_stores, ("volume of another store",)),
        (_no_superblock, ("neither of its superblocks is intact", "restore it")),
    ],
    ids=["missing", "empty", "zeros", "truncated", "newer", "not ours", "superblocks"],
)
def test_a_volume_that_cannot_be_opened(
    volume: Path, tmp_path: Path, damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    damage(volume)
    require_told(tmp_path, f"block://{volume}", (TierUnavailable,), words)


def test_a_directory_of_another_store_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Its packs are not ours, so that all of ours looked lost."""
    place = tmp_path / "near"
    filled(tmp_path, str(place))
    place.rename(tmp_path / "away")
    with Store.create(tmp_path / "other", cache_dir=tmp_path / "other-cache") as other:
        claim_tier(str(place), other)
    require_told(tmp_path, str(place), (TierUnavailable,), ("tier of another store",))
