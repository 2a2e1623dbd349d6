"""Quotas of datasets: no writer gets past one, however it writes and whoever else does; and what is said to be used is never too little."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.branches import create_ref
from leptonstore.dataset.forget import forget_before
from leptonstore.dataset.refs import delete_ref
from leptonstore.errors import BadInput, ChunkMissing, Conflict, FormatTooNew, StoreFull
from leptonstore.format.framed import NAMED_FEATURES
from leptonstore.limits import MIB
from leptonstore.store import Store, check_store
from leptonstore.store import dataset_quota as dq
from leptonstore.store.gc import collect
from leptonstore.store.quota import OverQuota
from leptonstore.store.usage import measure as du

BYTES = 20_000  # of a row


def rows(seed: int, count: int = 50) -> pa.Table:
    """Values of their own that do not shrink; and one that is cut into pieces."""
    rng = np.random.default_rng(seed)
    values = [rng.bytes(BYTES) for _ in range(count - 1)] + [rng.bytes(MIB)]
    return pa.table({"id": range(seed * 1000, seed * 1000 + count), "data": pa.array(values, pa.large_binary())})


def write(store: Store, name: str, *tables: pa.Table, **more: Any) -> Dataset:
    table = pa.concat_tables(tables)
    return write_dataset(store, name, Source(table.schema, ("id",), lambda: iter(table.to_batches())), **more)


def stored(store: Store, name: str) -> int:
    """What `lepton du` says: counted in another way."""
    return next((one.stored for one in du(store).names if one.name == f"dataset/{name}"), 0)


def used(store: Store, name: str = "a") -> int:
    quota = dq.quota_of(store.state, name)
    assert quota is not None
    return quota.used


def test_what_is_used_is_what_du_says_and_grows_by_what_a_version_adds(store: Store) -> None:
    write(store, "a", rows(1))
    quota = dq.set_quota(store, "a", 100 * MIB)
    assert quota is not None and quota.used == stored(store, "a") > MIB
    for seed in (2, 3):
        write(store, "a", rows(1), *(rows(more) for more in range(2, seed + 1)))
        assert stored(store, "a") <= used(store) <= stored(store, "a") * 1.02
    assert used(store) == dq.measure(store, "a").used >= stored(store, "a")  # type: ignore[union-attr]
    with Store.open(store.url) as other:
        assert dq.quotas(other.state) == {"a": dq.quota_of(store.state, "a")}


def test_what_would_exceed_it_is_not_published_and_what_was_there_stays(store: Store) -> None:
    write(store, "a", rows(1))
    before = dict(store.state.refs)
    dq.set_quota(store, "a", used_now(store) + MIB * 3 // 2)
    with pytest.raises(OverQuota, match=r"'a' .*lepton quota a --set"):
        write(store, "a", rows(1), rows(2))
    assert store.state.refs == before and check_store(store, True).clean
    write(store, "b", rows(2))  # another dataset may
    write(store, "a", rows(1, 45))  # less than there is left
    dq.set_quota(store, "a", 100 * MIB)
    write(store, "a", rows(1), rows(2))


def used_now(store: Store) -> int:
    dq.set_quota(store, "a", 1 << 40)
    return used(store)


def test_a_first_version_counts_in_full_also_when_its_chunks_are_there_already(store: Store) -> None:
    dq.set_quota(store, "a", MIB)
    with pytest.raises(StoreFull):
        write(store, "a", rows(1))
    write(store, "b", rows(1))
    with pytest.raises(StoreFull):
        write(store, "a", rows(1))
    dq.set_quota(store, "a", 10 * MIB)
    write(store, "a", rows(1))
    assert used(store) == stored(store, "a") == stored(store, "b")


def test_branches_tags_and_steps_back_cost_nothing_also_over_the_quota(store: Store) -> None:
    first = write(store, "a", rows(1)).commit
    write(store, "a", rows(1), rows(2))
    dq.set_quota(store, "a", MIB)
    before = used(store)
    assert before > MIB
    create_ref(store, "dataset", "a", "side", first)
    create_ref(store, "dataset", "a", "v1", first, tag=True)
    delete_ref(store, "dataset", "a", "side")
    assert used(store) == before
    with pytest.raises(OverQuota):
        write(store, "a", rows(3), branch="other")


def test_each_branch_is_charged_once_for_what_they_share(store: Store) -> None:
    dq.set_quota(store, "a", 100 * MIB)
    first = write(store, "a", rows(1)).commit
    create_ref(store, "dataset", "a", "side", first)
    write(store, "a", rows(1), rows(2))
    write(store, "a", rows(1), rows(3), branch="side")
    assert stored(store, "a") <= used(store) <= stored(store, "a") * 1.02


def test_what_is_freed_counts_until_it_is_measured(store: Store) -> None:
    dq.set_quota(store, "a", 100 * MIB)
    write(store, "a", rows(1))
    write(store, "a", rows(2))
    before = used(store)
    forget_before(store, "dataset", "a", 1e12)
    assert used(store) == before
    dq.measure(store, "a")
    assert used(store) == stored(store, "a") < before * 0.6
    collect(store)
    assert check_store(store, True).clean


def test_a_measurement_never_takes_away_what_is_charged_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two measure, one of them late, and a version is published in between: the late one must not hide it."""
    dq.set_quota(store, "a", 100 * MIB)
    write(store, "a", rows(1))
    with Store.open(store.url) as late:
        count = dq._stored

        def slow(*arguments: Any, **more: Any) -> Any:
            found = count(*arguments, **more)
            monkeypatch.setattr(dq, "_stored", count)
            dq.measure(store, "a")
            write(store, "a", rows(1), rows(2))
            return found

        monkeypatch.setattr(dq, "_stored", slow)
        dq.measure(late, "a")
    store.refresh()
    assert stored(store, "a") <= used(store) <= stored(store, "a") * 1.02


def test_a_quota_that_was_set_anew_is_not_changed_by_a_measurement_of_the_old_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dq.set_quota(store, "a", 100 * MIB)
    write(store, "a", rows(1))
    with Store.open(store.url) as late:
        count = dq._stored

        def slow(*arguments: Any, **more: Any) -> Any:
            found = count(*arguments, **more)
            monkeypatch.setattr(dq, "_stored", count)
            dq.set_quota(store, "a", None)
            dq.set_quota(store, "a", MIB)
            return found

        monkeypatch.setattr(dq, "_stored", slow)
        with pytest.raises(Conflict):
            dq.measure(late, "a")


def test_writers_that_race_cannot_exceed_it_together(store: Store) -> None:
    one = write(store, "a", rows(0))
    dq.set_quota(store, "a", int(used_now(store) * 3.5))
    for number in range(6):
        create_ref(store, "dataset", "a", f"b{number}", one.commit)

    def attempt(number: int) -> bool:
        with Store.open(store.url) as writer:
            try:
                write(writer, "a", rows(0), rows(number + 1), branch=f"b{number}")
            except OverQuota:
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(attempt, range(6)))
    store.refresh()
    quota = dq.quota_of(store.state, "a")
    assert sum(done) == 2 and quota is not None and stored(store, "a") <= quota.used <= quota.bytes


def test_any_history_of_writes_and_removals_is_never_counted_too_low(store: Store) -> None:
    """Random work on two datasets and several branches: `used` is never under what du says, and a measurement makes them equal."""
    draw = random.Random(7)
    dq.set_quota(store, "a", 1 << 40)
    for step in range(25):
        name, branch = draw.choice("aab"), draw.choice(("main", "side"))
        match draw.choice(("write", "write", "write", "delete", "forget", "gc", "measure")):
            case "write":
                write(store, name, *(rows(seed, 8) for seed in sorted(draw.sample(range(5), 2))), branch=branch)
            case "delete" if f"dataset/{name}/{branch}" in store.state.refs:
                delete_ref(store, "dataset", name, branch)
            case "forget" if f"dataset/{name}/{branch}" in store.state.refs:
                forget_before(store, "dataset", f"{name}@{branch}", 1e12)
            case "gc":
                collect(store)
            case "measure":
                dq.measure(store, "a")
                assert used(store) == stored(store, "a"), step
        store.refresh()
        assert used(store) >= stored(store, "a"), step


def test_a_collection_between_measuring_and_publishing_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dq.set_quota(store, "a", 100 * MIB)
    measured, calls = dq.measure_new, []

    def collecting(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            with Store.open(store.url) as other:
                collect(other)
            raise ChunkMissing("0" * 64)
        return measured(*arguments)

    monkeypatch.setattr(dq, "measure_new", collecting)
    write(store, "a", rows(1))
    assert len(calls) == 2 and check_store(store, True).clean and used(store) == stored(store, "a")


def test_a_program_that_knows_no_quotas_is_kept_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, "a", rows(1))
    assert "quotas" not in store.state.requires
    dq.set_quota(store, "a", 100 * MIB)
    monkeypatch.delitem(NAMED_FEATURES, "quotas")
    with pytest.raises(FormatTooNew, match="quotas"):
        Store.open(store.url)


@pytest.mark.parametrize("value", [1, "x", {}, {"bytes": True, "used": 0, "charged": 0, "since": 1}, {"bytes": -1}])
def test_a_quota_that_is_not_understood_lets_nothing_be_written(store: Store, value: Any) -> None:
    store.configure({"quota/a": value})
    with pytest.raises(FormatTooNew):
        write(store, "a", rows(1))
    with pytest.raises(BadInput):
        dq.set_quota(store, "b", -1)


def test_the_command_line_sets_shows_measures_and_takes_away(store: Store) -> None:
    write(store, "a", rows(1))

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(lepton, ["quota", "--store", store.url, *arguments])

    told = json.loads(call("a", "--set", "100MiB", "--json").output)
    assert told["quota_bytes"] == 100 * MIB and told["used_bytes"] == stored(store, "a")
    assert "a: " in call().output and "100.0 MiB" in call().output
    assert json.loads(call("--json").output)["datasets"]["a"] == {
        key: told[key] for key in ("quota_bytes", "used_bytes")
    }
    assert call("a", "--measure").exit_code == 0
    assert "no quota" in call("a", "--none").output and "a" not in json.loads(call("--json").output)["datasets"]
    assert call("a", "--set", "1G", "--none").exit_code == 2 and call("--measure").exit_code == 2
    assert isinstance(call("../x", "--set", "1G").exception, BadInput)


def test_a_store_of_other_settings_pays_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dq, "measure_new")
    dq.set_quota(store, "b", MIB)
    write(store, "a", rows(1))


def test_it_counts_what_the_other_encodings_hold(tmp_path: Any) -> None:
    """Small records share records and dictionaries; encrypted ones have other names."""
    from leptonstore.store.keys import KeyFile

    with Store.create(tmp_path / "sealed", unlock=KeyFile(b"0123456789abcdef" * 4)) as sealed:
        dq.set_quota(sealed, "a", 1 << 40)
        texts = pa.table(
            {"id": range(5000), "text": [f"a line of text, number {at}, and the same words" * 3 for at in range(5000)]}
        )
        write(sealed, "a", texts)
        assert used(sealed) == stored(sealed, "a") > 0
