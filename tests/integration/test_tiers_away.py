"""A tier that is away: what the others have is read, what it has is neither missing nor damaged, and nothing is removed meanwhile."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from leptonstore import limits
from leptonstore.cli.check import command as check_command
from leptonstore.digest import digest_of
from leptonstore.errors import ChunkMissing, LeptonError, NotPermitted, TierUnavailable
from leptonstore.store import RefUpdate, Store, check_store
from leptonstore.store.gc import collect
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.repair import repair_store
from leptonstore.tiers.local import LocalTier
from tests.integration.test_tiering import fill, held, place, readable, reopened
from tests.integration.test_tiering import store as store

ABSENT = digest_of(b"nobody has stored this")


@pytest.fixture
def half(store: Store, tmp_path: Path) -> Iterator[Store]:
    """Dataset a lies in the cold tier, dataset b at home; the cold tier is away."""
    fill(store)
    place(store, tmp_path, watermark=0)
    apply_moves(store, plan_for(store).moves)
    place(store, tmp_path)
    fill(store, "b", seed=1)
    store.close()
    shutil.move(tmp_path / "cold", tmp_path / "away")
    yield store


def back(tmp_path: Path) -> None:
    shutil.move(tmp_path / "away", tmp_path / "cold")


def test_a_fresh_host_opens_a_store_while_a_tier_is_away(half: Store, tmp_path: Path) -> None:
    """It did not: the footers of packs that only the absent tier has could not be read, and nothing could."""
    with reopened(half, tmp_path, "fresh") as fresh:
        assert set(fresh.packs_away) == held(tmp_path / "away")
        readable(fresh, "b", seed=1)
        with pytest.raises(TierUnavailable, match=r"tier cold \(.*is its disk mounted.*run it again") as caught:
            readable(fresh)
        assert caught.value.tier == str(tmp_path / "cold")
        with pytest.raises(TierUnavailable):  # whether it is missing cannot be told
            fresh.get(ABSENT)
        assert not fresh.has(ABSENT)
    with reopened(half, tmp_path, "fresh") as again:  # the index remembers what it lacks
        assert set(again.packs_away) == held(tmp_path / "away")
        with pytest.raises(TierUnavailable, match="tier cold"):
            again.get(ABSENT)


def test_what_was_away_is_indexed_by_the_next_miss(half: Store, tmp_path: Path) -> None:
    with reopened(half, tmp_path, "fresh") as fresh:
        with pytest.raises(TierUnavailable):
            readable(fresh)
        back(tmp_path)
        readable(fresh)
        assert fresh.packs_away == []
        with pytest.raises(ChunkMissing):
            fresh.get(ABSENT)
        assert check_store(fresh, read_data=True).clean
    with reopened(half, tmp_path, "other") as other:
        assert other.packs_away == []


def test_storing_again_what_an_absent_tier_has_is_safe(half: Store, tmp_path: Path) -> None:
    with reopened(half, tmp_path, "fresh") as fresh:
        fill(fresh, "c")  # the same rows as a
        readable(fresh, "c")
        assert set(fresh.packs_away) == held(tmp_path / "away")
    back(tmp_path)
    with reopened(half, tmp_path, "fresh") as again:
        again.refresh()
        for name, seed in (("a", 0), ("b", 1), ("c", 0)):
            readable(again, name, seed)
        collect(again)
        for name, seed in (("a", 0), ("b", 1), ("c", 0)):
            readable(again, name, seed)


def test_a_commit_does_not_wait_for_a_tier_that_is_away(
    half: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whoever looks for something asks it again; each commit would cost the time that its retries take."""
    with reopened(half, tmp_path, "fresh") as fresh:
        asked: list[str] = []
        monkeypatch.setattr(
            type(fresh.tier.tiers[1]), "pack_bytes", lambda tier, pack: asked.append(pack), raising=True
        )
        fresh.put(secrets.token_bytes(1000))
        fresh.flush()
        assert not asked


def test_gc_removes_nothing_while_a_tier_is_away(half: Store, tmp_path: Path) -> None:
    packs = held(tmp_path / "store"), held(tmp_path / "away")
    for cache in ("cache", "fresh"):
        with reopened(half, tmp_path, cache) as opened:
            if cache == "fresh":
                commit = opened.state.refs["dataset/b/main"].commit
                opened.publish("rm", lambda state, commit=commit: (RefUpdate("dataset/b/main", commit, None),))
            with pytest.raises(TierUnavailable, match="cold"):
                collect(opened)
    assert (held(tmp_path / "store"), held(tmp_path / "away")) == packs
    with pytest.raises(TierUnavailable), reopened(half, tmp_path, "fresh") as opened:
        repair_store(opened)
    back(tmp_path)
    with reopened(half, tmp_path, "fresh") as opened:
        collect(opened)
        readable(opened)
        assert not held(tmp_path / "store")


def test_check_reports_what_is_away_as_unavailable(half: Store, tmp_path: Path) -> None:
    for cache in ("cache", "fresh"):
        with reopened(half, tmp_path, cache) as opened:
            report = check_store(opened, read_data=True)
        assert [(problem.kind, problem.tier) for problem in report.problems] == [("unavailable", "cold")]
        assert not report.clean and not report.damaged
        assert "is its disk mounted" in report.problems[0].what and "of which" in report.problems[0].what
    path = next((tmp_path / "store/packs").rglob("*.pack"))
    path.write_bytes(path.read_bytes()[:-1])
    with reopened(half, tmp_path, "fresh") as opened:
        report = check_store(opened)
    assert {problem.kind for problem in report.problems} >= {"unavailable", "pack"} and report.damaged


def test_check_exits_with_11_when_only_a_tier_is_away(half: Store, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    done = CliRunner().invoke(
        check_command, ["--store", str(tmp_path / "store")], env=environment, standalone_mode=False
    )
    assert done.return_value == 11 and "as far as could be seen" in done.output, done.output


def test_a_disk_that_goes_while_a_store_is_open_is_away_and_nothing_is_written_below_it(
    store: Store, tmp_path: Path
) -> None:
    """Its packs looked missing, and packs were moved into the empty directory that was left: below the disk that came back."""
    fill(store)
    place(store, tmp_path, watermark=0)
    moves = plan_for(store).moves
    apply_moves(store, moves[:-1])
    with reopened(store, tmp_path) as opened:
        shutil.move(tmp_path / "cold", tmp_path / "away")
        (tmp_path / "cold").mkdir()
        opened.tier.close()  # open files would hold a disk, and the stores of a process share them
        store.tier.close()
        with pytest.raises(TierUnavailable, match="is its disk mounted"):
            readable(opened)
        for work in (
            lambda: apply_moves(opened, moves[-1:]),
            lambda: collect(opened),
            lambda: repair_store(opened),
            lambda: opened.tier.delete_pack(moves[0].pack),
            lambda: list(opened.tier.packs()),
        ):
            with pytest.raises(TierUnavailable, match="is its disk mounted"):
                work()
        report = check_store(opened)
        assert [(problem.kind, problem.tier) for problem in report.problems] == [("unavailable", "cold")]
        assert not any((tmp_path / "cold").iterdir())
        (tmp_path / "cold").rmdir()
        back(tmp_path)
        readable(opened)
        assert check_store(opened, read_data=True).clean


@pytest.mark.parametrize("error", [NotPermitted("this user may not read it"), OSError(116, "Stale file handle")])
def test_a_tier_whose_mark_cannot_be_read_keeps_no_store_from_being_opened(
    half: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    back(tmp_path)
    real = LocalTier.read_document

    def fails(tier: LocalTier, name: str, bytes_max: int) -> bytes | None:
        if tier.root.name == "cold":
            raise error
        return real(tier, name, bytes_max)

    monkeypatch.setattr(LocalTier, "read_document", fails)
    with reopened(half, tmp_path, "fresh") as fresh:
        readable(fresh, "b", seed=1)
        with pytest.raises(TierUnavailable, match=r"may not read it|Stale file handle"):
            readable(fresh)


@pytest.mark.parametrize("error", [TierUnavailable("it does not answer", ""), NotPermitted("wrong credentials")])
def test_a_tier_that_fails_while_footers_are_read_is_waited_for_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: LeptonError
) -> None:
    """Each request to a server that is down takes up to OBJECT_RETRY_S: not once for every pack."""
    fill(store)
    place(store, tmp_path, watermark=0)
    apply_moves(store, plan_for(store).moves)
    real, asked = LocalTier.pack_bytes, 0

    def fails(tier: LocalTier, pack: str) -> int | None:
        nonlocal asked
        if tier.root.name == "cold":
            asked += 1
            if isinstance(error, TierUnavailable):
                raise TierUnavailable(str(error), tier.url)
            raise error
        return real(tier, pack)

    monkeypatch.setattr(limits, "INDEX_FOOTER_THREADS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(LocalTier, "pack_bytes", fails)
        fresh = reopened(store, tmp_path, "fresh")
        assert set(fresh.packs_away) == held(tmp_path / "cold")
        if isinstance(error, TierUnavailable):
            # One for each thread that was waiting when the first answer came.
            assert asked <= 2 < len(fresh.packs_away)
        with pytest.raises(TierUnavailable, match=str(error)):
            fresh.get(ABSENT)
    readable(fresh)
    assert fresh.packs_away == []
