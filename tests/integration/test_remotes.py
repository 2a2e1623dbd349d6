"""Push, pull and clone between stores: what travels, which refs move, and that what fails leaves both stores as they were."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, FileTable, Source, write_dataset, write_files
from leptonstore.dataset.exchange import clone, pull, push, refs_of
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.refs import ancestry, delete_ref
from leptonstore.dataset.write import publish_commit
from leptonstore.digest import digest_of, parse_hex
from leptonstore.errors import (
    BadInput,
    ChunkCorrupt,
    Conflict,
    FormatTooNew,
    LeptonError,
    NotFound,
    RefMissing,
    StoreFull,
)
from leptonstore.format.commit import Commit
from leptonstore.store import RefUpdate, Store, check_store, fences
from leptonstore.store.config import StoreConfig
from leptonstore.store.gc import Collector, GcReport, collect
from leptonstore.store.keys import KeyFile
from leptonstore.store.lines import Line
from leptonstore.store.log import Proposal
from leptonstore.store.quota import setting
from leptonstore.store.remotes import SETTING, add_remote, remote_url, remotes_of, remove_remote
from leptonstore.store.transfer import Transfer, TransferReport

SMALL = ChunkSizes(cut_above=64 << 10, min_size=4 << 10, avg_size=16 << 10, max_size=64 << 10)
OTHER = ChunkSizes(cut_above=32 << 10, min_size=2 << 10, avg_size=8 << 10, max_size=32 << 10)
KEY = KeyFile(bytes(range(64)))


def table(seed: int, rows: int = 2500) -> pa.Table:
    """Small values, some that are chunks of their own, and a few that are cut into pieces."""
    rng = random.Random(seed)
    sizes = [150_000 if at % 1000 == 7 else 20_000 if at % 250 == 3 else 40 for at in range(rows)]
    return pa.table({"id": np.arange(rows), "data": [rng.randbytes(size) for size in sizes]})


def edited(before: pa.Table, rows: range) -> pa.Table:
    """The same with other values in `rows`; long ones differ in a few bytes."""
    values = before["data"].to_pylist()
    for at in rows:
        values[at] = values[at][:20] + b"edited" + values[at][26:]
    return before.set_column(1, "data", pa.array(values))


def write(store: Store, name: str, rows: pa.Table, branch: str = "main", message: str = "") -> str:
    source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches(max_chunksize=500)), rows.num_rows, {})
    return write_dataset(store, name, source, message, branch).commit


def clean(store: Store) -> bool:
    """All that its refs lead to is there and whole, as somebody sees it who opens it anew, also after a collection."""
    with Store.open(store.url, unlock=KEY if store.unlocked else None) as fresh:
        for _ in range(2):
            report = check_store(fresh, read_data=True)
            assert report.clean, report.problems
            collect(fresh)
    return True


def refs(store: Store) -> dict[str, str]:
    store.refresh()
    return {ref: record.commit for ref, record in store.state.refs.items()}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "here", StoreConfig(chunks=SMALL)) as made:
        yield made


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "there", StoreConfig(chunks=SMALL)) as made:
        yield made


# -- what travels --------------------------------------------------------------------------------------------------------


def test_a_version_travels_whole_and_a_change_travels_alone(here: Store, there: Store) -> None:
    first = table(1)
    write(here, "t", first)
    sent = push(here, there, ["dataset/t/main"]).report
    assert sent.commits == 1 and sent.bytes_sent == there.new_bytes and sent.bytes_saved == 0
    assert refs(here) == refs(there) and Dataset.open(there, "t").to_arrow().equals(first)
    second = edited(first, range(7, 8))  # one of 150 KB, in its middle
    write(here, "t", second)
    before = there.new_bytes
    foreseen = push(here, there, ["dataset/t/main"], dry_run=True).report
    assert there.new_bytes == before and refs(here) != refs(there), "a dry run changes nothing"
    sent = push(here, there, ["dataset/t/main"]).report
    assert sent.bytes_sent < 100_000 and sent.chunks_sent == foreseen.chunks_sent
    assert sent.bytes_saved > 0.8 * Dataset.open(here, "t").commit_object.plain_bytes
    assert refs(here) == refs(there) and Dataset.open(there, "t").to_arrow().equals(second)
    assert push(here, there, ["dataset/t/main"]).report.chunks_sent == 0
    assert clean(there) and clean(here)


def test_what_another_dataset_has_already_does_not_travel(here: Store, there: Store) -> None:
    """The histories have nothing in common: each chunk is looked up."""
    write(there, "other", table(1))
    write(here, "t", edited(table(1), range(100)))
    sent = push(here, there, ["dataset/t/main"]).report
    assert sent.chunks_present > 10 and sent.bytes_sent < 0.4 * sum(pack.bytes for pack in here.state.packs.values())
    assert clean(there)


def test_a_node_without_its_children_is_not_taken_for_a_whole_tree(here: Store, there: Store) -> None:
    """As an interrupted transfer, or a collection in the wrong moment, may leave it."""
    rows = table(1)
    commit = Dataset(here, "t", "main", write(here, "t", rows)).commit_object
    assert commit.root is not None
    there.put(here.get(commit.root), 2)
    there.put(here.get(parse_hex(refs(here)["dataset/t/main"])), 2)
    there.flush()
    push(here, there, ["dataset/t/main"])
    assert Dataset.open(there, "t").to_arrow().equals(rows) and clean(there)


@pytest.mark.parametrize("sizes", [SMALL, OTHER, ChunkSizes()], ids=["same", "smaller", "whole"])
def test_long_values_are_cut_as_the_destination_does(here: Store, tmp_path: Path, sizes: ChunkSizes) -> None:
    rows = table(3)
    write(here, "t", rows)
    with Store.create(tmp_path / "other", StoreConfig(chunks=sizes)) as other, Store.create(tmp_path / "own") as own:
        push(here, other, ["dataset/t/main"])
        assert Dataset.open(other, "t").to_arrow().equals(rows) and clean(other)
        long = digest_of(rows["data"][7].as_py())
        pieces = other.pieces(long)
        with Store.create(tmp_path / "direct", StoreConfig(chunks=sizes)) as direct:
            direct.put(rows["data"][7].as_py())
            direct.flush()
            assert direct.pieces(long) == pieces
        pull(own, other, ["dataset/t/main"])
        assert refs(own) == refs(here) and clean(own)


def test_long_values_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of many windows, of which an edit sends a few pieces."""
    monkeypatch.setattr(limits, "READ_WINDOW_BYTES", 300_000)
    big = random.Random(0).randbytes(3_000_000)
    rows = pa.table({"id": [0], "data": pa.array([big], pa.large_binary())})
    with (
        Store.create(tmp_path / "a", StoreConfig(chunks=SMALL)) as a,
        Store.create(tmp_path / "b", StoreConfig(chunks=SMALL)) as b,
    ):
        write(a, "t", rows)
        push(a, b, ["dataset/t/main"])
        changed = big[:1_500_000] + b"inserted" + big[1_500_000:]
        write(a, "t", pa.table({"id": [0], "data": pa.array([changed], pa.large_binary())}))
        sent = push(a, b, ["dataset/t/main"]).report
        assert sent.bytes_sent < 300_000 and b.get(digest_of(changed)) == changed and clean(b)


@pytest.mark.parametrize("encrypted", ["here", "there", "both"])
def test_encrypted_stores_exchange_with_any_other(tmp_path: Path, encrypted: str) -> None:
    rows = table(2)
    keys = [KEY if encrypted in (name, "both") else None for name in ("here", "there")]
    config = StoreConfig(chunks=SMALL)
    with (
        Store.create(tmp_path / "a", config, unlock=keys[0]) as a,
        Store.create(tmp_path / "b", StoreConfig(chunks=OTHER), unlock=keys[1]) as b,
    ):
        write(a, "t", rows)
        push(a, b, ["dataset/t/main"])
        assert Dataset.open(b, "t").to_arrow().equals(rows) and clean(b)
        write(b, "t", edited(rows, range(10)))
        sent = pull(a, b, ["dataset/t/main"]).report
        assert refs(a) == refs(b) and sent.bytes_sent < 300_000 and clean(a)


def test_all_kinds_travel_with_their_metrics(here: Store, there: Store, tmp_path: Path) -> None:
    floats = np.random.default_rng(0).normal(size=30_000).astype("f4").tobytes()
    write(here, "t", table(1))
    write_files(here, "model", "m", [("weights", floats), ("config", b"{}")], {"data": "t"})
    for step in range(3):
        state = floats[: -4 * step - 4] + bytes(4 * step + 4)
        write_files(here, "checkpoint", "run", [("state", state)], {}, branch=f"step-{step}", metrics={"loss": step})
    done = clone(here, there)
    assert refs(there) == refs(here) and done.report.commits == 5
    assert there.state.refs["checkpoint/run/step-2"].metrics == {"loss": 2}
    assert FileTable.open(there, "model", "m").read("weights") == floats and clean(there)


def test_a_model_that_was_replaced_moves_on_where_the_old_one_was_here(here: Store, there: Store) -> None:
    write_files(here, "model", "m", [("w", b"1")], {})
    push(here, there, ["model/m/main"])
    write_files(here, "model", "m", [("w", b"2")], {})
    assert push(here, there, ["model/m/main"]).moves[0].action == "forward"
    write_files(there, "model", "m", [("w", b"3")], {})
    with pytest.raises(Conflict, match="is newer than"):
        push(here, there, ["model/m/main"])
    assert pull(here, there, ["model/m/main"]).moves[0].action == "forward"
    assert FileTable.open(here, "model", "m").read("w") == b"3"
    write_files(here, "model", "m", [("w", b"4")], {})
    write_files(there, "model", "m", [("w", b"5")], {})
    with pytest.raises(Conflict, match="was never here"):
        push(here, there, ["model/m/main"])


# -- history -------------------------------------------------------------------------------------------------------------


def test_history_travels_to_where_it_was_forgotten(here: Store, there: Store) -> None:
    rows = table(1, 300)
    for number in range(5):
        rows = edited(rows, range(number, number + 1))
        write(here, "t", rows, message=str(number))
    head = refs(here)["dataset/t/main"]
    forget_all_but(here, "dataset", "t", 3)
    assert push(here, there, ["dataset/t/main"]).report.commits == 3
    there.refresh()
    assert ancestry(there, head) == ancestry(here, head) and len(ancestry(there, head)) == 3
    assert clean(there)


def test_depth_brings_the_newest_versions_and_history_ends_there(here: Store, there: Store) -> None:
    rows = table(1, 300)
    for number in range(5):
        rows = edited(rows, range(number, number + 1))
        write(here, "t", rows, message=str(number))
    assert pull(there, here, ["dataset/t/main"], depth=2).report.commits == 2
    assert clean(there)
    there.refresh()
    assert len(ancestry(there, refs(there)["dataset/t/main"])) == 2
    rows = edited(rows, range(50, 60))
    write(here, "t", rows)
    assert pull(there, here, ["dataset/t/main"], depth=1).moves[0].action == "forward"
    there.refresh()
    assert len(ancestry(there, refs(there)["dataset/t/main"])) == 3, "what is there already stays joined"
    assert Dataset.open(there, "t").to_arrow().equals(rows) and clean(there)
    write(there, "t", edited(rows, range(90, 95)))
    assert push(there, here, ["dataset/t/main"]).moves[0].action == "forward"
    here.refresh()
    assert len(ancestry(here, refs(here)["dataset/t/main"])) == 7 and clean(here), "nothing is forgotten where all is"


def test_a_depth_does_not_cut_a_head_off_from_another(here: Store, there: Store) -> None:
    rows = table(1, 300)
    heads = []
    for number in range(4):
        rows = edited(rows, range(number, number + 1))
        heads.append(write(here, "t", rows, message=str(number)))
    here.publish("tag", lambda state: (RefUpdate("dataset/t/v1", None, heads[2], tag=True),))
    clone(here, there, depth=1)
    there.refresh()
    assert there.state.forgotten == {heads[2]} and len(ancestry(there, heads[3])) == 2 and clean(there)


def test_a_depth_does_not_cut_the_history_that_another_ref_has(here: Store, there: Store) -> None:
    """The boundary is a property of commits: it must not be drawn where a ref of the destination needs what lies before."""
    rows = table(1, 300)
    for number in range(3):
        rows = edited(rows, range(number, number + 1))
        write(here, "t", rows, message=str(number))
    push(here, there, ["dataset/t/main"])
    head = refs(here)["dataset/t/main"]
    here.publish("copy", lambda state: (RefUpdate("dataset/u/main", None, head),))
    push(here, there, ["dataset/u/main"], depth=1)
    there.refresh()
    assert not there.state.forgotten and len(ancestry(there, head)) == 3


def test_a_new_line_of_commits_is_not_looked_at_again(
    here: Store, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where collections have been, a publication proves what its commits reach: here all of them were just put."""
    write(there, "gone", table(9, 300))
    delete_ref(there, "dataset", "gone", "main")
    collect(there)
    there.close()
    rows = table(1, 300)
    for number in range(4):
        rows = edited(rows, range(number, number + 1))
        write(here, "t", rows)
    with Store.open(there.url) as again:
        assert again.state.gc_sequence
        with monkeypatch.context() as patch:
            patch.setattr(fences, "revalidate", None)
            push(here, again, ["dataset/t/main"])
            write(here, "t", edited(rows, range(100, 110)))
            write(here, "t", edited(rows, range(100, 120)))
            push(here, again, ["dataset/t/main"])
        assert len(ancestry(again, refs(again)["dataset/t/main"])) == 6 and clean(again)


# -- refs ----------------------------------------------------------------------------------------------------------------


def diverge(here: Store, there: Store) -> tuple[str, str]:
    rows = table(1, 300)
    write(here, "t", rows)
    push(here, there, ["dataset/t/main"])
    return write(here, "t", edited(rows, range(5))), write(there, "t", edited(rows, range(7, 9)))


def test_a_push_that_would_leave_versions_behind_names_both_heads_and_the_fix(here: Store, there: Store) -> None:
    mine, theirs = diverge(here, there)
    before = refs(there), there.new_bytes
    with pytest.raises(Conflict, match=f"{mine[:12]} here, {theirs[:12]} in .* `lepton pull t`, merge, and push"):
        push(here, there, ["dataset/t/main"])
    assert (refs(there), there.new_bytes) == before
    with pytest.raises(Conflict, match=f"is at {theirs[:12]}, not at 123456"):
        push(here, there, ["dataset/t/main"], force=True, expect="123456")
    assert (refs(there), there.new_bytes) == before
    assert push(here, there, ["dataset/t/main"], force=True, expect=theirs[:8]).moves[0].action == "forced"
    assert refs(there)["dataset/t/main"] == mine and clean(there)


def test_a_pull_of_what_diverged_keeps_the_remote_head_until_it_is_merged(here: Store, there: Store) -> None:
    mine, theirs = diverge(here, there)
    done = pull(here, there, ["dataset/t/main"])
    assert done.kept == {"dataset/t/main": "dataset/t/origin-main"}
    assert refs(here) == {"dataset/t/main": mine, "dataset/t/origin-main": theirs} and clean(here)
    theirs = write(there, "t", table(4, 300))
    assert pull(here, there, ["dataset/t/main"]).kept and refs(here)["dataset/t/origin-main"] == theirs
    merged = Dataset.open(here, "t").commit_object
    both = Commit(**{**vars(merged), "parents": (parse_hex(mine), parse_hex(theirs)), "message": "merge"})
    head = publish_commit(here, both, "dataset/t/main", mine)
    assert push(here, there, ["dataset/t/main"]).moves[0].action == "forward" and clean(there)
    pull(here, there, ["dataset/t/main"])
    assert refs(here) == {"dataset/t/main": head}, "it is merged: nobody needs the other name"


def test_a_branch_of_ones_own_is_not_taken_for_a_remote_head(here: Store, there: Store) -> None:
    mine, theirs = diverge(here, there)
    own = write(here, "t", table(5, 300), branch="origin-main")
    with pytest.raises(Conflict, match="t@origin-main, which would keep the remote's head, is a branch of your own"):
        pull(here, there, ["dataset/t/main"])
    assert refs(here) == {"dataset/t/main": mine, "dataset/t/origin-main": own}
    push(here, there, ["dataset/t/main"], force=True)
    pull(here, there, ["dataset/t/main"])
    assert refs(here)["dataset/t/origin-main"] == own, "nor taken away"
    assert theirs not in refs(there).values()


def test_heads_that_a_pull_kept_are_not_passed_on(here: Store, there: Store, tmp_path: Path) -> None:
    diverge(here, there)
    pull(here, there, ["dataset/t/main"])
    assert refs_of(here, [], whole=True) == refs_of(here, ["t"], whole=True) == ["dataset/t/main"]
    with Store.create(tmp_path / "copy") as copy:
        clone(here, copy)
        assert list(refs(copy)) == ["dataset/t/main"]
        push(here, copy, refs_of(here, ["t@origin-main"]))
        assert refs_of(copy, [], whole=True) == ["dataset/t/main", "dataset/t/origin-main"], (
            "by its name it is, as a branch"
        )


def test_what_is_older_here_is_not_pushed_and_pulled_back(here: Store, there: Store) -> None:
    rows = table(1, 300)
    write(here, "t", rows)
    push(here, there, ["dataset/t/main"])
    newer = write(there, "t", edited(rows, range(3)))
    with pytest.raises(Conflict, match=rf"is at {newer[:12]}, which is newer .* get it with `lepton pull t`"):
        push(here, there, ["dataset/t/main"])
    assert pull(there, here, ["dataset/t/main"]).moves[0].action == "ahead" and refs(there)["dataset/t/main"] == newer
    assert pull(here, there, ["dataset/t/main"]).moves[0].action == "forward" and refs(here) == refs(there)


def test_tags_travel_and_never_move(here: Store, there: Store) -> None:
    rows = table(1, 300)
    first = write(here, "t", rows)
    here.publish("tag", lambda state: (RefUpdate("dataset/t/v1", None, first, tag=True),))
    push(here, there, refs_of(here, ["t"], whole=True))
    assert there.state.refs["dataset/t/v1"].tag and not there.state.refs["dataset/t/main"].tag
    second = write(here, "t", edited(rows, range(3)))
    delete_ref(here, "dataset", "t", "v1")
    here.publish("tag", lambda state: (RefUpdate("dataset/t/v1", None, second, tag=True),))
    before = refs(there)
    for force in (False, True):
        with pytest.raises(Conflict, match=f"tag t@v1 is {second[:12]} here and {first[:12]} in .* a tag never moves"):
            push(here, there, refs_of(here, ["t"], whole=True), force)
    assert refs(there) == before, "all move or none"
    done = pull(there, here, ["dataset/t/v1"], origin="team")
    assert refs(there)["dataset/t/team-v1"] == second and done.kept and not there.state.refs["dataset/t/team-v1"].tag


def test_who_moves_the_ref_meanwhile_is_not_overwritten(here: Store, there: Store) -> None:
    rows = table(1, 300)
    write(here, "t", rows)
    push(here, there, ["dataset/t/main"])
    write(here, "t", edited(rows, range(3)))
    raced: list[str] = []

    def race(report: TransferReport) -> None:
        if not raced:
            raced.append("")
            with Store.open(there.url) as other:
                raced.append(write(other, "t", edited(rows, range(9, 12))))

    for force in (True, False):
        raced.clear()
        with pytest.raises(Conflict):
            push(here, there, ["dataset/t/main"], force, progress=race)
        if force:
            assert refs(there)["dataset/t/main"] == raced[1]
    assert clean(there)


# -- interruptions and collections ---------------------------------------------------------------------------------------


class Stop(Exception):
    """What a test ends a transfer with."""


def stop_at(count: int) -> Callable[[TransferReport], None]:
    def tell(report: TransferReport) -> None:
        if report.chunks_sent == count:
            raise Stop

    return tell


def test_an_interrupted_transfer_goes_on(here: Store, there: Store) -> None:
    rows = table(1)
    write(here, "t", rows)
    with pytest.raises(Stop):
        push(here, there, ["dataset/t/main"], progress=stop_at(12))
    assert not refs(there) and clean(here)
    with Store.open(there.url) as again:
        first, sent = there.new_bytes, push(here, again, ["dataset/t/main"]).report.bytes_sent
    whole = sum(pack.bytes for pack in here.state.packs.values())
    assert 0 < first < whole and first + sent < 1.05 * whole, "what arrived did not travel again"
    there.refresh()
    assert Dataset.open(there, "t").to_arrow().equals(rows) and clean(there)


def test_an_interrupted_command_keeps_what_arrived(here: Store, there: Store, tmp_path: Path) -> None:
    write(here, "t", table(1))
    code = (
        "import os, signal; from leptonstore.store.transfer import Transfer; count, calls = Transfer._count, []\n"
        "def counted(*given):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 12: os.kill(os.getpid(), signal.SIGINT)\n"
        "    count(*given)\n"
        "Transfer._count = counted\n"
        "from leptonstore.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "push", "t", "--store", here.url, "--to", there.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 130 and "run the command again to go on" in done.stderr, done.stderr
    assert not refs(there) and there.state.packs
    whole = sum(pack.bytes for pack in here.state.packs.values())
    assert push(here, there, ["dataset/t/main"]).report.bytes_sent < whole - 100_000 and clean(there)


def test_a_collection_after_an_interruption_takes_what_arrived_and_nothing_else(here: Store, there: Store) -> None:
    rows = table(1)
    write(here, "t", rows)
    write(there, "other", table(2))
    with pytest.raises(Stop):
        push(here, there, ["dataset/t/main"], progress=stop_at(12))
    there.close()
    with Store.open(there.url) as again:
        assert collect(again).bytes_freed > 50_000
        push(here, again, ["dataset/t/main"])
        assert Dataset.open(again, "t").to_arrow().equals(rows)
        assert clean(again)


@pytest.mark.parametrize("heed_claims", [True, False])
@pytest.mark.parametrize("at", [1, 2, 4, 8])
def test_collections_of_the_destination_while_a_transfer_runs(
    here: Store, there: Store, at: int, heed_claims: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole collection in one moment, half of which the destination's own garbage, that the transfer counts on."""
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 65_536)
    monkeypatch.setattr(limits, "TRANSFER_BATCH_CHUNKS", 2)
    rows = table(1)
    write(there, "old", edited(rows, range(1300)))
    delete_ref(there, "dataset", "old", "main")
    write(here, "t", rows)
    done: list[GcReport] = []

    def tell(report: TransferReport) -> None:
        if report.chunks_sent >= at and not done:
            with Store.open(there.url) as mine:
                done.append(Collector(mine, heed_claims=heed_claims).run())

    copies: list[bool] = []

    def copy(self: Transfer, line: Line, trust: bool = True) -> None:
        copies.append(trust)
        real(self, line, trust)

    real = Transfer.copy
    monkeypatch.setattr(Transfer, "copy", copy)
    push(here, there, ["dataset/t/main"], progress=tell)
    assert done and Dataset.open(there, "t").to_arrow().equals(rows) and clean(there)
    if heed_claims:
        assert copies == [True]
    else:
        assert done[0].packs_removed and copies[1:] in ([], [False]), "what was counted on and is gone is sent"
        assert len(copies) == 2 or at <= 2, "two nodes are sent before anything is looked up and counted on"


def test_the_source_holds_what_is_copied(here: Store, there: Store) -> None:
    """Its ref is removed and its garbage collected in the middle of the transfer."""
    rows = table(1)
    write(here, "t", rows)
    done: list[GcReport] = []

    def tell(report: TransferReport) -> None:
        if report.chunks_sent >= 3 and not done:
            with Store.open(here.url) as other:
                delete_ref(other, "dataset", "t", "main")
                done.append(collect(other))

    push(here, there, ["dataset/t/main"], progress=tell)
    assert done and Dataset.open(there, "t").to_arrow().equals(rows) and clean(there)


# -- bad input, and no room ----------------------------------------------------------------------------------------------


def test_bad_input_is_told_and_changes_nothing(here: Store, there: Store) -> None:
    write(here, "t", table(1, 300))
    before = refs(here), refs(there), here.state.sequence, there.state.sequence
    with Store.open(here.url) as same, pytest.raises(BadInput, match="is the same store"):
        push(here, same, ["dataset/t/main"])
    with pytest.raises(RefMissing, match=r"no dataset 'u' in .*; there is: t"):
        refs_of(here, ["u"])
    with pytest.raises(RefMissing, match="has no branch or tag 'v9'; it has: main"):
        refs_of(here, ["t@v9"])
    with pytest.raises(RefMissing, match="no model 't'"):
        refs_of(here, ["t"], "model")
    with pytest.raises(BadInput, match="nothing to do"):
        pull(here, there, refs_of(there, [], whole=True))
    with pytest.raises(BadInput, match="1 or more"):
        push(here, there, ["dataset/t/main"], depth=0)
    with pytest.raises(BadInput, match="forced"):
        push(here, there, ["dataset/t/main"], expect="123456")
    assert (refs(here), refs(there), here.state.sequence, there.state.sequence) == before


def test_a_ref_that_leads_to_another_kind_is_refused(here: Store, there: Store) -> None:
    commit = write(here, "t", table(1, 300))
    here.publish("wrong", lambda state: (RefUpdate("model/t/main", None, commit),))
    with pytest.raises(BadInput, match="leads to a dataset, not to a model"):
        push(here, there, ["model/t/main"])
    assert not refs(there)


def test_a_full_quota_leaves_refs_as_they_were(here: Store, there: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 65_536)
    kept = write(there, "other", table(2, 300))
    collect(there)
    write(here, "t", table(1))
    used = sum(pack.bytes for pack in there.state.packs.values())
    there.configure(setting(used + 200_000))
    with pytest.raises(StoreFull, match="quota"):
        push(here, there, ["dataset/t/main"])
    assert refs(there) == {"dataset/other/main": kept}
    there.close()
    with Store.open(there.url) as again:
        collect(again)
        assert sum(pack.bytes for pack in again.state.packs.values()) <= used + 5_000
        assert clean(again) and clean(here)
        again.configure(setting(None))
        push(here, again, ["dataset/t/main"])
        assert clean(again)


def test_a_full_disk_is_told_and_both_stores_are_as_they_were(here: Store, there: Store, tmp_path: Path) -> None:
    """No file of the process may become larger than the limit: as a disk that is full in the middle of a pack."""
    rng = random.Random(0)
    rows = pa.table({"id": np.arange(3000), "data": [rng.randbytes(1000) for _ in range(3000)]})
    write(here, "t", rows)
    kept = write(there, "other", table(2, 300))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000));"
        "from leptonstore.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "push", "t", "--store", here.url, "--to", there.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 6 and "no space left" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert refs(there) == {"dataset/other/main": kept} and clean(here) and clean(there)
    push(here, there, ["dataset/t/main"])
    assert Dataset.open(there, "t").to_arrow().equals(rows) and clean(there)


def test_damage_in_the_source_does_not_travel(here: Store, there: Store) -> None:
    write(here, "t", table(1))
    pack = max(Path(here.url, "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    with Store.open(here.url) as again, pytest.raises(ChunkCorrupt):
        push(again, there, ["dataset/t/main"])
    assert not refs(there) and clean(there)


# -- remembered remotes, and the command line ----------------------------------------------------------------------------


def test_remotes_are_remembered_without_secrets(here: Store, there: Store) -> None:
    assert add_remote(here, "origin", there.url) == there.url
    add_remote(here, "origin", there.url)
    add_remote(here, "cold", "s3://bucket/birds/")
    with Store.open(here.url) as again:
        assert remotes_of(again.state) == {"origin": there.url, "cold": "s3://bucket/birds"}
        assert remote_url(again, "origin") == remote_url(again, there.url) == ("origin", there.url)
        assert remote_url(again, "gs://x/y") == ("", "gs://x/y")
        with pytest.raises(NotFound, match=r"no remote 'nix'.*cold, origin.*lepton remote add nix URL"):
            remote_url(again, "nix")
        remove_remote(again, "cold")
        with pytest.raises(NotFound):
            remove_remote(again, "cold")
    here.refresh()
    assert remotes_of(here.state) == {"origin": there.url}
    bad = ["s3://key:very-secret@bucket/x", "s3://bucket/x?token=very-secret", "", "s3://" + "x" * 3000]
    for name, url in [*(("x", url) for url in bad), ("Bad", "a"), ("../x", "a"), ("origin", "s3://elsewhere/x")]:
        with pytest.raises(BadInput) as told:
            add_remote(here, name, url)
        assert "very-secret" not in str(told.value)
    here.append(lambda state: Proposal("settings", settings={SETTING: ["?"]}))
    with pytest.raises(FormatTooNew):
        remotes_of(here.state)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(lepton, list(map(str, arguments)))
    error = result.exception if isinstance(result.exception, LeptonError) else None
    assert (result.exit_code == 0) == (code == 0) and (error is not None or code == 0), (
        result.output,
        result.exception,
    )
    return result


def json_of(*arguments: object) -> dict[str, object]:
    found: dict[str, object] = json.loads(run(*arguments, "--json").stdout.strip().splitlines()[-1])
    return found


def test_push_pull_and_clone_on_the_command_line(here: Store, there: Store, tmp_path: Path) -> None:
    rows = table(1)
    write(here, "t", rows)
    run("remote", "add", "origin", there.url, "--store", here.url)
    assert json_of("remote", "ls", "--store", here.url) == {"remotes": {"origin": there.url}}
    assert "would travel" in run("push", "t", "--dry-run", "--store", here.url).stdout
    done = json_of("push", "t", "--store", here.url)
    assert done["chunks_sent"] and done["bytes_sent"] and done["bytes_saved"] == 0 and done["requests"] == {}
    assert "t@main is the same" in run("push", "t", "--store", here.url).stdout
    copy = tmp_path / "copy"
    assert "t@main is new" in run("clone", there.url, copy).stdout
    run("clone", there.url, copy)  # as after an interruption
    with Store.open(copy) as cloned:
        assert remotes_of(cloned.state) == {"origin": there.url} and refs(cloned) == refs(there)
        assert cloned.config.chunks == SMALL and clean(cloned)
        write(cloned, "t", edited(rows, range(4)))
    assert "t@main moved on" in run("push", "--all", "--store", copy).stdout
    write(here, "t", edited(rows, range(50, 60)))
    Store.create(tmp_path / "third").close()
    diverged = run("pull", "t", "--store", here.url, code=5)
    assert isinstance(
        diverged.exception, Conflict
    ) and "kept as @origin-main: merge that (`lepton merge t@origin-main --into t`)" in str(diverged.exception)
    assert "t@main has diverged" in diverged.stdout
    for arguments, error in [
        (("push", "t", "--to", tmp_path / "nowhere", "--store", here.url), NotFound),
        (("push", "--store", here.url), BadInput),
        (("pull", "--store", here.url), BadInput),
        (("pull", "u", "--store", here.url), RefMissing),
        (("clone", there.url, tmp_path / "third"), BadInput),
        (("clone", tmp_path / "nowhere", tmp_path / "new"), NotFound),
        (("clone", there.url, tmp_path / "new", "--key-file", "x"), BadInput),
    ]:
        assert isinstance(run(*arguments, code=1).exception, error), arguments
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("command", "option"), [("push", "--to"), ("pull", "--from")])
@pytest.mark.parametrize("place", ["s3://bucket/birds", "/backup/store", "./store"])
def test_a_place_among_the_names_is_told(here: Store, command: str, option: str, place: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"{place!r} is a place, not a name; did you mean {option} {place}?")):
        lepton.main([command, "birds", place, "--store", here.url], standalone_mode=False)


def test_an_encrypted_clone_and_an_encrypted_remote(here: Store, tmp_path: Path) -> None:
    rows = table(1, 300)
    write(here, "t", rows)
    key, secret = tmp_path / "key", tmp_path / "secret"
    run("clone", here.url, secret, "--encrypt", "--key-file", key)
    run("push", "t", "--store", here.url, "--to", secret, "--remote-key-file", key)
    run("clone", secret, tmp_path / "back", "--remote-key-file", key)
    with Store.open(tmp_path / "back") as back:
        assert Dataset.open(back, "t").to_arrow().equals(rows) and clean(back)
