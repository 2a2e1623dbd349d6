"""Damage of one copy of a pack that lies in several tiers: what check says of it, and what repair makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from leptonstore.cli.repair import command as repair_command
from leptonstore.errors import TierUnavailable
from leptonstore.store import Store, check_store
from leptonstore.store import repair as store_repair
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.placement import HOME, places_of
from leptonstore.store.repair import repair_store
from tests.integration.test_tiering import fill, held, place, readable, reopened
from tests.integration.test_tiering import store as store

TIERS = {HOME: "store", "cold": "cold"}


@pytest.fixture
def twice(store: Store, tmp_path: Path) -> Store:
    """Every pack at home and in the cold tier, and the log counts on both."""
    fill(store)
    place(store, tmp_path, copies=2)
    apply_moves(store, plan_for(store).moves)
    assert held(tmp_path / "store") == held(tmp_path / "cold") == store.state.packs.keys()
    return store


def path_of(tmp_path: Path, tier: str, pack: str) -> Path:
    return tmp_path / TIERS[tier] / "packs" / pack[:2] / f"{pack}.pack"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "altered": (flip, "chunk", True),
    "truncated": (cut, "pack", False),
    "removed": (Path.unlink, "pack", False),
}


def a_data_pack(store: Store) -> str:
    return max(store.state.packs, key=lambda pack: store.state.packs[pack].bytes)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_copy_of_two_is_found_costs_no_row_and_is_replaced(
    twice: Store, tmp_path: Path, tier: str, how: str
) -> None:
    damage, kind, needs_reading = DAMAGES[how]
    pack = a_data_pack(twice)
    before = path_of(tmp_path, tier, pack).read_bytes()
    damage(path_of(tmp_path, tier, pack))
    other = "cold" if tier == HOME else HOME
    with reopened(twice, tmp_path) as opened:
        readable(opened)
        if needs_reading:
            assert check_store(opened).clean
        report = check_store(opened, read_data=needs_reading)
        assert {(one.kind, one.pack, one.tier, one.whole_in) for one in report.problems} == {(kind, pack, tier, other)}
        assert all(not one.places and f"tier {other} has it whole" in one.line() for one in report.problems)
        foreseen = repair_store(opened, dry_run=True)
        assert path_of(tmp_path, other, pack).exists() and not check_store(opened, read_data=True).clean
        done = repair_store(opened)
        assert [vars(one) for one in done.replaced] == [vars(one) for one in foreseen.replaced]
        assert [(one.pack, one.tier, one.source) for one in done.replaced] == [(pack, tier, other)]
        assert not done.repaired and done.whole
        assert path_of(tmp_path, tier, pack).read_bytes() == before
        assert check_store(opened, read_data=True).clean and places_of(opened.state, pack) == (HOME, "cold")
    if how != "removed":
        assert (tmp_path / TIERS[tier] / "damaged" / f"{pack}.pack").exists()
    readable(reopened(twice, tmp_path, "fresh"))


def test_every_copy_is_read(twice: Store, tmp_path: Path) -> None:
    """It read the nearest one only."""
    report = check_store(twice, read_data=True)
    assert report.clean and report.bytes_read > 1.8 * report.bytes_all
    flip(path_of(tmp_path, "cold", a_data_pack(twice)))
    assert not check_store(twice, read_data=True).clean


def test_both_copies_damaged_in_different_records_cost_no_row_and_are_saved(twice: Store, tmp_path: Path) -> None:
    """Each record is read from the copy that has it; no copy is whole, so the pack is written anew."""
    pack = a_data_pack(twice)
    first, last = path_of(tmp_path, HOME, pack), path_of(tmp_path, "cold", pack)
    data = first.read_bytes()
    first.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    at = len(data) - 5000
    last.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    report = check_store(twice, read_data=True)
    assert {(one.tier, one.whole_in) for one in report.problems} == {(HOME, "cold"), ("cold", HOME)}
    done = repair_store(twice)
    assert [one.pack for one in done.repaired] == [pack] and done.repaired[0].lost == 0 and done.whole
    assert pack not in twice.state.packs and not first.exists() and not last.exists()
    readable(twice)
    apply_moves(twice, plan_for(twice).moves)
    assert check_store(twice, read_data=True).clean


def test_the_same_record_damaged_in_both_copies_costs_its_rows(twice: Store, tmp_path: Path) -> None:
    pack = a_data_pack(twice)
    for tier in TIERS:
        path = path_of(tmp_path, tier, pack)
        data = path.read_bytes()
        path.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    report = check_store(twice, read_data=True)
    assert {one.tier for one in report.problems} == {HOME, "cold"}
    assert all(one.places and not one.whole_in for one in report.problems)
    assert not repair_store(twice).whole


def test_a_damaged_extra_is_taken_away(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, watermark=0)
    apply_moves(store, plan_for(store).moves)
    place(store, tmp_path)
    pack = a_data_pack(store)
    apply_moves(store, plan_for(store, {pack: 1 << 40}).moves)
    assert pack in held(tmp_path / "store") and places_of(store.state, pack) == ("cold",)
    cut(path_of(tmp_path, HOME, pack))
    done = repair_store(store)
    assert [(one.pack, one.tier, one.source, one.extra) for one in done.replaced] == [(pack, HOME, "cold", True)]
    assert pack not in held(tmp_path / "store") and check_store(store, read_data=True).clean


def test_what_only_an_extra_has_whole_is_written_anew(store: Store, tmp_path: Path) -> None:
    """Anybody may delete the extra at any moment, so the damaged copy that is counted on cannot be taken away first."""
    fill(store)
    place(store, tmp_path, watermark=0)
    apply_moves(store, plan_for(store).moves)
    place(store, tmp_path)
    pack = a_data_pack(store)
    apply_moves(store, plan_for(store, {pack: 1 << 40}).moves)
    flip(path_of(tmp_path, "cold", pack))
    done = repair_store(store)
    assert [one.pack for one in done.repaired] == [pack] and done.whole and not done.replaced
    assert pack not in store.state.packs
    readable(store)
    assert check_store(store, read_data=True).clean


@pytest.mark.parametrize("step", ["_set_aside", "copy_pack"])
def test_a_repair_that_is_interrupted_goes_on(
    twice: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Stop(Exception):
        pass

    def stop(*arguments: object) -> None:
        raise Stop

    pack = a_data_pack(twice)
    flip(path_of(tmp_path, "cold", pack))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(store_repair, step, stop)
        repair_store(twice)
    readable(reopened(twice, tmp_path))
    assert repair_store(twice).whole
    assert check_store(twice, read_data=True).clean


def test_repair_judges_nothing_while_a_tier_is_away(twice: Store, tmp_path: Path) -> None:
    cut(path_of(tmp_path, HOME, a_data_pack(twice)))
    (tmp_path / "cold").rename(tmp_path / "away")
    with reopened(twice, tmp_path) as opened, pytest.raises(TierUnavailable, match="cold"):
        repair_store(opened)
    (tmp_path / "away").rename(tmp_path / "cold")
    with reopened(twice, tmp_path) as opened:
        assert repair_store(opened).whole


def test_the_command_names_the_tiers(twice: Store, tmp_path: Path) -> None:
    pack = a_data_pack(twice)
    cut(path_of(tmp_path, "cold", pack))
    environment = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    done = CliRunner().invoke(repair_command, ["--store", str(tmp_path / "store")], env=environment)
    assert f"pack {pack}" in done.output and "replaced in tier cold: tier home has it whole" in done.output, done.output


def test_an_index_is_filled_from_the_copy_that_is_whole(twice: Store, tmp_path: Path) -> None:
    """It was filled from the nearest one, whatever that was like."""
    for pack in held(tmp_path / "store"):
        cut(path_of(tmp_path, HOME, pack))
    with reopened(twice, tmp_path, "fresh") as fresh:
        assert not fresh.damaged_packs
        readable(fresh)
