"""A store whose packs live in several tiers: what is read, what moves, and what an interruption or a late mover may not break."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from leptonstore import limits
from leptonstore.cli.tier import command as tier_command
from leptonstore.digest import parse_hex
from leptonstore.errors import BadInput, FormatTooNew, NotFound, StoreFull, TierUnavailable
from leptonstore.store import RefUpdate, Store, check_store
from leptonstore.store import moves as store_moves
from leptonstore.store.gc import collect
from leptonstore.store.moves import Move, apply_moves, plan_for
from leptonstore.store.placement import HOME, Placement, TierSetting, places_of
from leptonstore.store.tier_mark import claim_tier
from leptonstore.tiers.local import LocalTier

VALUES, VALUE_BYTES = 12, 40_000


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A home and two directories farther away; packs of about two values each."""
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 100_000)
    store = Store.create(tmp_path / "store", cache_dir=tmp_path / "cache")
    place(store, tmp_path)
    return store


def place(store: Store, where: Path, **settings: Any) -> None:
    tiers = (
        TierSetting(HOME, watermark=settings.pop("watermark", None)),
        TierSetting("cold", str(where / "cold")),
        TierSetting("colder", str(where / "colder")),
    )
    for tier in tiers[1:]:
        claim_tier(tier.url, store)
    store.configure(Placement(tiers, **settings).setting(), ("tiers",))


def fill(store: Store, name: str = "a", seed: int = 0) -> dict[bytes, bytes]:
    """Values that the ref `name` keeps: digest -> bytes. They do not shrink."""
    import pyarrow as pa

    from leptonstore.dataset import write_dataset
    from leptonstore.dataset.source import Source

    rng = np.random.default_rng(seed)
    values = [rng.bytes(VALUE_BYTES) for _ in range(VALUES)]
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("data", pa.large_binary())])
    batch = pa.RecordBatch.from_arrays([pa.array(range(VALUES)), pa.array(values, pa.large_binary())], schema=schema)
    write_dataset(store, name, Source(schema, ("id",), lambda: iter([batch])))
    return {bytes(number): value for number, value in enumerate(values)}


def readable(store: Store, name: str = "a", seed: int = 0) -> None:
    from leptonstore.dataset import Dataset

    rng = np.random.default_rng(seed)
    expected = [rng.bytes(VALUE_BYTES) for _ in range(VALUES)]
    assert Dataset.open(store, name).to_arrow(["data"]).column(0).to_pylist() == expected


def held(place: Path) -> set[str]:
    return set(LocalTier(place).packs())


def reopened(store: Store, tmp_path: Path, cache: str = "cache2") -> Store:
    return Store.open(tmp_path / "store", cache_dir=tmp_path / cache)


# -- demotion ----------------------------------------------------------------------------------------------------


def test_packs_over_the_watermark_move_on_and_stay_readable(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, watermark=200_000)
    plan = plan_for(store)
    assert plan.moves and {move.why for move in plan.moves} == {"watermark"} and plan.after[HOME] <= 180_000
    report = apply_moves(store, plan.moves)
    assert report.moved == len(plan.moves) == report.deleted
    assert held(tmp_path / "cold") == {move.pack for move in plan.moves}
    assert not held(tmp_path / "store") & held(tmp_path / "cold")
    for other in (store, reopened(store, tmp_path)):
        readable(other)
        assert check_store(other, read_data=True).clean
        assert plan_for(other).moves == []


def test_what_is_coldest_moves_first(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, watermark=320_000)
    reads = dict.fromkeys(list(store.state.packs)[:3], 1_000_000)
    moved = {move.pack for move in plan_for(store, reads).moves}
    assert moved and not moved & reads.keys()


def test_garbage_goes_from_every_tier(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, watermark=100_000)
    apply_moves(store, plan_for(store).moves)
    assert held(tmp_path / "cold")
    record = store.state.refs["dataset/a/main"]
    store.publish("rm", lambda state: (RefUpdate("dataset/a/main", record.commit, None),))
    collect(store)
    assert not held(tmp_path / "cold") and not held(tmp_path / "store")
    assert not store.state.placed


def test_new_packs_go_where_the_settings_say(store: Store, tmp_path: Path) -> None:
    place(store, tmp_path, write_to="cold")
    fill(store)
    assert not held(tmp_path / "store") and held(tmp_path / "cold") == store.state.packs.keys()
    assert all(places_of(store.state, pack) == ("cold",) for pack in store.state.packs)
    readable(reopened(store, tmp_path))


def test_each_pack_gets_its_copies(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, copies=2)
    apply_moves(store, plan_for(store).moves)
    assert held(tmp_path / "store") == held(tmp_path / "cold") == store.state.packs.keys()
    shutil.rmtree(tmp_path / "store" / "packs")
    readable(reopened(store, tmp_path))


# -- promotion ---------------------------------------------------------------------------------------------------


def test_hot_packs_come_nearer_as_extras(store: Store, tmp_path: Path) -> None:
    """An extra may vanish at any moment: the log does not count on it."""
    fill(store)
    place(store, tmp_path, watermark=100_000)
    apply_moves(store, plan_for(store).moves)
    place(store, tmp_path, watermark=10_000_000)
    hot = next(iter(held(tmp_path / "cold")))
    plan = plan_for(store, {hot: 10_000_000})
    assert [(move.pack, move.why, move.target, move.leaves) for move in plan.moves] == [(hot, "hot", HOME, None)]
    apply_moves(store, plan.moves)
    assert hot in held(tmp_path / "store") and places_of(store.state, hot) == ("cold",)
    LocalTier(tmp_path / "store").delete_pack(hot)
    readable(reopened(store, tmp_path))


def test_one_plan_does_not_move_a_pack_out_and_back_in(store: Store, tmp_path: Path) -> None:
    """What the watermark sends away is not hot in the same plan: it was copied for nothing, and told as changed by others."""
    fill(store)
    place(store, tmp_path, watermark=100_000)
    plan = plan_for(store, dict.fromkeys(store.state.packs, 10_000_000))
    moved = [move.pack for move in plan.moves]
    assert moved and len(set(moved)) == len(moved)
    assert apply_moves(store, plan.moves).skipped == 0


def test_apply_tells_json_why_packs_moved(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, watermark=100_000)
    done = CliRunner().invoke(tier_command, ["apply", "--store", str(tmp_path / "store"), "--json"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["moved"] > 0 and told["why"] == {"watermark": told["moved"]}


def test_reads_are_remembered_and_make_packs_hot(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, watermark=100_000)
    apply_moves(store, plan_for(store).moves)
    store.close()
    with reopened(store, tmp_path, "cache") as other:
        for _ in range(3):
            readable(other)
    runner = CliRunner()
    arguments = ["--store", str(tmp_path / "store"), "--json"]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    with Store.open(tmp_path / "store", cache_dir=None) as _:
        pass
    done = runner.invoke(tier_command, ["set", HOME, "--no-watermark", *arguments], env=environment)
    assert done.exit_code == 0, done.output
    from leptonstore.store.reads import FILE, halve_reads, load_reads

    path = other.cache_path(FILE)
    reads = load_reads(path)
    assert {move.why for move in plan_for(reopened(store, tmp_path, "cache"), reads).moves} == {"hot"}
    halve_reads(path)
    assert all(load_reads(path)[pack] == count // 2 for pack, count in reads.items())


def test_what_was_read_of_each_tier_is_counted(store: Store, tmp_path: Path) -> None:
    """A child of a fork begins anew: what the parent read is the parent's to tell."""
    fill(store)
    place(store, tmp_path, watermark=200_000)
    apply_moves(store, plan_for(store).moves)
    home, cold = (tier.url for tier in store.tier.tiers[:2])
    with reopened(store, tmp_path) as other:
        before = other.bytes_read
        readable(other)
        read = {url: other.bytes_read.get(url, 0) - before.get(url, 0) for url in (home, cold)}
        assert VALUES * VALUE_BYTES <= sum(read.values()) < 1.2 * VALUES * VALUE_BYTES
        assert min(read.values()) >= VALUE_BYTES
        other.tier.after_fork()
        assert other.bytes_read == {}


def test_reads_of_a_single_tier_are_counted_by_every_way_of_reading(tmp_path: Path) -> None:
    with Store.create(tmp_path / "alone", cache_dir=tmp_path / "cache3") as store:
        values = [np.random.default_rng(at).bytes(VALUE_BYTES) for at in range(3)]
        digests = [store.put(value) for value in values]
        store.flush()
        out = bytearray(VALUE_BYTES)
        ways = [
            lambda: store.get(digests[0]),
            lambda: list(store.get_many(digests)),
            lambda: store.read_into(digests[1], memoryview(out)),
        ]
        for way, least in zip(ways, (1, 3, 1), strict=True):
            before = store.bytes_read.get(store.url, 0)
            way()
            assert least * VALUE_BYTES <= store.bytes_read[store.url] - before < least * VALUE_BYTES + 5_000


def test_a_pin_brings_what_its_ref_reaches_and_keeps_it(store: Store, tmp_path: Path) -> None:
    fill(store)
    fill(store, "b", seed=1)
    place(store, tmp_path, watermark=0)
    apply_moves(store, plan_for(store).moves)
    assert not held(tmp_path / "store")
    place(store, tmp_path, watermark=0, pins={"dataset/b/main": HOME})
    apply_moves(store, plan_for(store).moves)
    assert held(tmp_path / "store")
    reopened(store, tmp_path).close()  # fills its index: from footers, also those in the far tier
    shutil.move(tmp_path / "cold", tmp_path / "elsewhere")
    readable(reopened(store, tmp_path), "b", seed=1)
    with pytest.raises(TierUnavailable, match="is its disk mounted"):  # and not: the data is lost
        readable(reopened(store, tmp_path))
    fresh = reopened(store, tmp_path, "cache3")  # a host that has no index yet
    readable(fresh, "b", seed=1)
    with pytest.raises(TierUnavailable, match="tier cold"):
        readable(fresh)
    shutil.move(tmp_path / "elsewhere", tmp_path / "cold")
    assert plan_for(store).moves == []


# -- faults ------------------------------------------------------------------------------------------------------


def test_an_interruption_anywhere_loses_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step in turn: what there is is readable, and running it again ends where an undisturbed run ends."""
    fill(store)
    place(store, tmp_path, watermark=150_000)
    steps = 0

    class Stop(Exception):
        pass

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps -= 1
            if steps == 0:
                raise Stop
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(store_moves, "copy_pack", counted(store_moves.copy_pack))
    monkeypatch.setattr(store_moves, "_publish", counted(store_moves._publish))
    monkeypatch.setattr(store_moves, "_delete", counted(store_moves._delete))
    monkeypatch.setattr(limits, "MOVES_PER_ENTRY_MAX", 2)
    for number in range(1, 40):
        steps = number
        other = reopened(store, tmp_path)
        try:
            apply_moves(other, plan_for(other).moves)
        except Stop:
            readable(reopened(store, tmp_path, "cache3"))
            continue
        break
    final = reopened(store, tmp_path, "cache4")
    steps = 0
    apply_moves(final, plan_for(final).moves)
    assert number > 3 and plan_for(final).moves == []
    assert sum(store.state.packs[pack].bytes for pack in held(tmp_path / "store")) <= 150_000
    readable(final)


def test_a_mover_that_was_held_up_deletes_nothing_that_counts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has published and not yet deleted; meanwhile the packs come back near, the far tier is emptied and taken away."""
    fill(store)
    place(store, tmp_path, watermark=0)
    late: list[tuple[Store, Move]] = []
    with monkeypatch.context() as patch:
        patch.setattr(store_moves, "_delete", lambda mover, move: late.append((mover, move)) or 0)
        slow = reopened(store, tmp_path)
        apply_moves(slow, plan_for(slow).moves)
    assert late
    run_tier(tmp_path, "set", HOME, "--no-watermark")
    run_tier(tmp_path, "rm", "colder")
    run_tier(tmp_path, "rm", "cold")
    readable(reopened(store, tmp_path, "cache3"))
    for mover, move in late:
        mover.tier.delete_pack(move.pack)  # without even looking again
    final = reopened(store, tmp_path, "cache4")
    readable(final)
    assert check_store(final, read_data=True).clean


def run_tier(tmp_path: Path, *words: str, code: int = 0) -> Result:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    done = CliRunner().invoke(tier_command, [*words, "--store", str(tmp_path / "store")], env=environment)
    if code == 0:
        assert done.exit_code == 0, (words, done.output, done.exception)
    return done


def test_a_damaged_copy_is_read_from_another_tier(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, copies=2)
    apply_moves(store, plan_for(store).moves)
    for path in (tmp_path / "store/packs").rglob("*.pack"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    readable(reopened(store, tmp_path))


def test_a_far_tier_that_is_away_keeps_nobody_from_writing_at_home(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every commit asked all tiers whether they had its new packs, and failed when one did not answer."""

    def away(tier: LocalTier, pack: str) -> int | None:
        if tier.root.name == "store":
            return real(tier, pack)
        raise TierUnavailable("the far tier does not answer", tier.url)

    real = LocalTier.pack_bytes
    monkeypatch.setattr(LocalTier, "pack_bytes", away)
    fill(store)
    readable(store)


def test_a_full_tier_stops_the_move_and_nothing_is_lost(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    place(store, tmp_path, watermark=0)
    real, room = LocalTier.create_pack, 2

    def create_pack(tier: LocalTier, pack: str) -> Any:
        nonlocal room
        room -= tier.root == tmp_path / "cold"
        if room < 0:
            raise StoreFull("no space left in the cold tier")
        return real(tier, pack)

    monkeypatch.setattr(LocalTier, "create_pack", create_pack)
    with pytest.raises(StoreFull):
        apply_moves(store, plan_for(store).moves)
    readable(reopened(store, tmp_path))
    room = 1_000
    apply_moves(store, plan_for(store).moves)
    readable(reopened(store, tmp_path))
    assert not held(tmp_path / "store")


def test_packs_that_gc_took_meanwhile_are_left_alone(store: Store, tmp_path: Path) -> None:
    fill(store)
    place(store, tmp_path, watermark=0)
    mover = reopened(store, tmp_path)
    moves = plan_for(mover).moves
    record = store.state.refs["dataset/a/main"]
    store.publish("rm", lambda state: (RefUpdate("dataset/a/main", record.commit, None),))
    gone, moves = moves[0], moves[1:]
    from leptonstore.tiers.moving import copy_pack

    copy_pack(mover.tier.tiers[0], mover.tier.tiers[1], gone.pack)
    collect(store)
    with pytest.raises(FileNotFoundError):
        apply_moves(mover, moves)
    assert store_moves._publish(mover, [gone]) == [] and not mover.state.placed
    collect(store)
    assert not held(tmp_path / "cold")


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "placement",
    [
        Placement((TierSetting(HOME), TierSetting("A!", "/x"))),
        Placement((TierSetting(HOME), TierSetting("x"))),
        Placement((TierSetting("x", "/x"),)),
        Placement((TierSetting(HOME), TierSetting("x", "/x"), TierSetting("x", "/y"))),
        Placement((TierSetting(HOME), TierSetting("x", "s3://user:secret@bucket/x"))),
        Placement((TierSetting(HOME, watermark=-1),)),
        Placement(copies=2),
        Placement(write_to="nowhere"),
    ],
)
def test_settings_that_make_no_sense_are_refused(placement: Placement) -> None:
    with pytest.raises((BadInput, NotFound)):
        placement.setting()


def test_settings_of_a_newer_version_are_told(store: Store) -> None:
    with pytest.raises(FormatTooNew):
        store.configure({"tiers": {"tiers": [{"name": "home"}, {"shape": "round"}]}})


def test_another_stores_place_is_refused(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", cache_dir=tmp_path / "cache9")
    done = run_tier(tmp_path, "add", "x", str(tmp_path / "other"), code=1)
    assert isinstance(done.exception, BadInput) and "is a store itself" in str(done.exception)
    run_tier(tmp_path, "add", "y", str(tmp_path / "shared"))
    environment = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    words = ["add", "y", str(tmp_path / "shared"), "--store", other.url]
    refused = CliRunner().invoke(tier_command, words, env=environment)
    assert isinstance(refused.exception, BadInput) and "another store" in str(refused.exception)


def test_the_command_line_from_one_directory_to_two_and_back(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.close()
    for name in ("colder", "cold"):
        run_tier(tmp_path, "rm", name)
    run_tier(tmp_path, "add", "far", str(tmp_path / "far"))
    run_tier(tmp_path, "set", "home", "--watermark", "100K")
    told = json.loads(run_tier(tmp_path, "plan", "--json").output)
    assert told["moves"] and told["tiers"][1]["month_after"] > told["tiers"][1]["month"] == 0
    assert "packs moved" in run_tier(tmp_path, "apply").output
    listed = json.loads(run_tier(tmp_path, "ls", "--json").output)["tiers"]
    assert [tier["name"] for tier in listed] == ["home", "far"] and listed[0]["bytes"] <= 100 << 10 < listed[1]["bytes"]
    run_tier(tmp_path, "pin", "a", "home")
    run_tier(tmp_path, "apply")
    assert "pinned" in run_tier(tmp_path, "ls").output
    run_tier(tmp_path, "pin", "a", "--off")
    run_tier(tmp_path, "rm", "far")
    assert not held(tmp_path / "far")
    readable(reopened(store, tmp_path, "cache5"))


def test_a_block_volume_is_a_tier_of_one_store(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.close()
    volume = tmp_path / "volume"
    done = CliRunner().invoke(tier_command, ["format-block", str(volume), "--size", "16M"])
    assert done.exit_code == 0, done.output
    run_tier(tmp_path, "rm", "colder")
    run_tier(tmp_path, "rm", "cold")
    run_tier(tmp_path, "add", "volume", f"block://{volume}")
    run_tier(tmp_path, "set", "home", "--watermark", "0")
    run_tier(tmp_path, "apply")
    assert not held(tmp_path / "store")
    with reopened(store, tmp_path) as other:
        readable(other)
        assert check_store(other, read_data=True).clean
    Store.create(tmp_path / "other", cache_dir=tmp_path / "cache9").close()
    words = ["add", "mine", f"block://{volume}", "--store", str(tmp_path / "other")]
    refused = CliRunner().invoke(tier_command, words, env={"XDG_CACHE_HOME": str(tmp_path / "xdg")})
    assert isinstance(refused.exception, BadInput) and "another store" in str(refused.exception)


def test_a_malformed_price_table_is_named(store: Store, tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    for text, why in [
        ("[[price]]\nurl = 's3://'", "gib_month"),
        ("nonsense", "malformed"),
        ("[[price]]\nurl='x'\ngib_month=-1", "-1"),
    ]:
        table.write_text(text)
        done = run_tier(tmp_path, "plan", "--prices", str(table), code=1)
        assert (
            isinstance(done.exception, BadInput) and why in str(done.exception) and "prices.toml" in str(done.exception)
        )
    table.write_text(CliRunner().invoke(tier_command, ["prices"]).output)
    run_tier(tmp_path, "plan", "--prices", str(table))


def test_a_group_kept_of_a_damaged_copy_does_not_hide_a_whole_one(store: Store, tmp_path: Path) -> None:
    """Small values share a record, which is kept decoded when one of them is whole, though it be of a copy that is not."""
    fill(store)
    digest = parse_hex(store.state.refs["dataset/a/main"].commit)
    other = reopened(store, tmp_path)
    wanted, place = other.get(digest), other.locate(digest)
    offset, plain = other.opened(place.pack).group or (0, b"")
    assert place.row.is_member and offset == place.row.offset
    other.opened(place.pack).group = offset, bytes(len(plain))
    assert other.get(digest) == wanted
