"""Checkpoints of any state, by one process: what is kept, what is refused by name, and what a failure leaves."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leptonstore.dataset import FileTable, StoredValue, delete_ref, list_refs, write_files
from leptonstore.dataset.branches import create_ref
from leptonstore.errors import BadInput, ChunkCorrupt, ChunkMissing, FormatDamaged, LeptonWarning, RefMissing, StoreFull
from leptonstore.format.pack import CONTENT_DATA
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from leptonstore.store.repair import repair_store
from trainers.checkpoint import Checkpointer, Retention, Shards, apply_retention, branch_of, exists, load, restore
from trainers.checkpoint.cells import CELL_BYTES


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        yield store


def state_of(seed: int = 0, rows: int = 700) -> dict[str, Any]:
    """Of every kind that a run has; the large tensor is three cells."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 1_024, generator=generator)
    return {
        "model": {"weight": weight, "bias": torch.randn(8, generator=generator), "empty": torch.empty(0, 4)},
        "optimizer": {"weight": {"exp_avg": weight.to(torch.bfloat16), "step": torch.tensor(3.0)}, "bias": {"step": 7}},
        "scaler": {"scale": 65_536.0, "limits": (1, float("inf"))},
        "rng": {"rank-0": {"cpu": torch.get_rng_state()}},
    }


def save(store: Store, step: int, state: dict[str, Any], run: str = "run", **options: Any) -> str:
    with Checkpointer(store, run, **options) as checkpointer:
        checkpointer.save(step, state, {"note": [step]}, {"loss": 1 / (1 + step)})
        saved = checkpointer.wait()
    assert saved is not None and saved[0] == step
    return saved[1]


def flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in state.items():
        out |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return out


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    pairs = [(flat(left)[path], flat(right)[path]) for path in flat(left) | flat(right)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else (a == b and type(a) is type(b)) for a, b in pairs)


def data_bytes(store: Store) -> int:
    store.refresh()
    return sum(record.bytes for record in store.state.packs.values() if record.content == CONTENT_DATA)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_state_comes_back_as_it_was(store: Store, asynchronous: bool) -> None:
    state = state_of()
    commit = save(store, 5, state, asynchronous=asynchronous)
    other = state_of(seed=1)
    other["scaler"] = {"scale": 1.0, "limits": None}
    found = load(store, "run")
    assert (found.commit, found.branch, found.step, found.manifest["note"]) == (commit, branch_of(5), 5, [5])
    assert not equal(state, other)
    restore(found, other)
    assert equal(state, other)
    assert found.paths == sorted(
        [
            "model/weight",
            "model/bias",
            "model/empty",
            "optimizer/exp_avg/weight",
            "optimizer/step/weight",
            "rng/rank-0/cpu",
        ]
    )
    assert torch.equal(found.tensor("model/weight"), state["model"]["weight"])


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "uint16", "uint32", "int64", "float16", "float64", "complex64"]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 1, 2)])
def test_arrays_of_any_kind_come_back_without_torch_tensors(store: Store, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.arange(int(np.prod(shape))).reshape(shape) % 2 + 0.0).astype(dtype)
    save(store, 1, {"params": {"layer/w": array, "scalar": array.reshape(-1)[0] if array.size else np.float32(1)}})
    into = {
        "params": {"layer/w": np.zeros_like(array), "scalar": np.zeros((), array.dtype if array.size else "float32")}
    }
    restore(load(store, "run"), into)
    np.testing.assert_array_equal(into["params"]["layer/w"], array)
    assert load(store, "run").array("params/layer/w").dtype == array.dtype


def test_memory_in_any_layout_is_one_checkpoint(store: Store) -> None:
    """Transposed, channels last, sliced, in parts of another framework: equal values are the same commit."""
    image = torch.arange(2 * 3 * 40 * 50, dtype=torch.float32).reshape(2, 3, 40, 50)
    lasts = image.contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(2, 3, 40, 60)
    wide[..., :50] = image
    parts = Shards("float32", image.shape, [((0, 0, 0, 0), image[:, :1].numpy()), ((0, 1, 0, 0), image[:, 1:].numpy())])
    commits = {save(store, 1, {"model": {"w": one}}) for one in (image, lasts, wide[..., :50], parts, image.numpy())}
    assert len(commits) == 1
    into = torch.zeros_like(lasts)
    restore(load(store, "run"), {"model": {"w": into}})
    assert torch.equal(into, image) and into.is_contiguous(memory_format=torch.channels_last)


def test_a_state_that_did_not_change_adds_no_data_and_a_changed_row_one_cell(store: Store) -> None:
    state = state_of()
    save(store, 1, state)
    before = data_bytes(store)
    save(store, 2, state)
    assert data_bytes(store) == before
    state["model"]["weight"][3, 5] += 1
    save(store, 3, state)
    assert before < data_bytes(store) <= before + CELL_BYTES + 4_096
    first, third = load(store, "run", 1), load(store, "run", 3)
    differing = [path for path in first.paths if first.cells(path) != third.cells(path)]
    assert differing == ["model/weight"]
    assert [a == b for a, b in zip(first.cells("model/weight"), third.cells("model/weight"), strict=True)] == [
        False,
        True,
        True,
    ]


def test_the_same_state_is_the_same_commit_in_every_store(store: Store, tmp_path: Path) -> None:
    with Store.create(tmp_path / "other", cache_dir=tmp_path / "cache") as other:
        assert save(store, 4, state_of()) == save(other, 4, state_of(), asynchronous=True)


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: state["model"].update(weight=torch.ones(700, 1_023)),
            r"'model/weight' is float32 \[700, 1024\] there and",
        ),
        (
            lambda state: state["model"].update(bias=torch.empty(8, dtype=torch.float64)),
            r"'model/bias' is float32 .* float64 \[8\] here",
        ),
        (lambda state: state["model"].update(head=torch.empty(2)), "it has no tensor 'model/head'"),
        (lambda state: state["model"].pop("bias"), "it has 'model/bias', which is not here"),
        (lambda state: state["scaler"].update(more=1), "it has no 'scaler/more'"),
        (lambda state: state["optimizer"]["bias"].pop("step"), "it has 'optimizer/step/bias', which is not here"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name_and_left_alone(store: Store, change: Any, said: str) -> None:
    save(store, 1, state_of())
    other = state_of(seed=1)
    change(other)
    before = other["model"]["weight"].clone()
    with pytest.raises(BadInput, match=f"checkpoint step-000000001 of run 'run' does not fit: .*{said}"):
        restore(load(store, "run"), other)
    assert torch.equal(before, other["model"]["weight"])


def test_parts_of_a_state_can_be_restored_alone(store: Store) -> None:
    save(store, 1, state_of())
    weight = torch.zeros(700, 1_024)
    restore(load(store, "run"), {"model": {"weight": weight}}, strict=False)
    assert torch.equal(weight, state_of()["model"]["weight"])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "'model/x' of the state is a builtins.object"),
        (torch.empty(2, device="meta"), "'model/x' is a tensor of torch.float32"),
        (torch.zeros(2, dtype=torch.complex128), "'model/x' is of complex128"),
        (torch.zeros(3).to_sparse(), "'model/x' is a tensor of"),
        (np.array(["text"]), "'model/x' is of str"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(store: Store, value: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        save(store, 1, {"model": {"x": value}})
    assert not list_refs(store, "checkpoint")


# -- in the background -------------------------------------------------------------------------------------------------


def test_an_optimizer_that_goes_on_does_not_tear_what_is_being_saved(store: Store) -> None:
    """The state changes from the moment that `save` returns; each checkpoint is of one moment, and in order."""
    weights = [torch.zeros(300, 1_024) for _ in range(4)]
    with Checkpointer(store, "run", asynchronous=True) as checkpointer:
        for step in range(1, 5):
            for weight in weights:
                weight.fill_(step)
            checkpointer.save(step, {"model": dict(zip("abcd", weights, strict=True))}, {})
            for weight in weights:
                weight.fill_(-1)
            if step == 2:
                assert checkpointer.wait() == (2, load(store, "run", 2).commit)
    for step in range(1, 5):
        for name in "abcd":
            assert bool((load(store, "run", step).tensor(f"model/{name}") == step).all())
    order = sorted(list_refs(store, "checkpoint", "run"), key=lambda ref: ref.sequence)
    assert [ref.branch for ref in order] == [branch_of(step) for step in range(1, 5)]


def test_one_save_is_in_flight_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    going, most, lock = 0, 0, threading.Lock()
    flush = Store.publish

    def counted(self: Store, *arguments: Any, **options: Any) -> None:
        nonlocal going, most
        with lock:
            going += 1
            most = max(most, going)
        flush(self, *arguments, **options)
        with lock:
            going -= 1

    monkeypatch.setattr(Store, "publish", counted)
    with Checkpointer(store, "run", asynchronous=True) as checkpointer:
        for step in range(6):
            checkpointer.save(step, {"model": {"w": torch.full((300, 1_024), step)}}, {})
    assert most == 1 and len(list_refs(store, "checkpoint", "run")) == 6


def test_memory_for_staging_is_used_again(store: Store) -> None:
    state = {"model": {"w": torch.randn(900, 1_024)}}
    with Checkpointer(store, "run", asynchronous=True) as checkpointer:
        checkpointer.save(1, state, {})
        memory = checkpointer._saving._buffer._memory
        for step in (2, 3):
            state["model"]["w"] += 1
            checkpointer.save(step, state, {})
            assert checkpointer._saving._buffer._memory is memory


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_store_that_fills_during_a_save_keeps_the_checkpoint_before(store: Store, asynchronous: bool) -> None:
    first = state_of()
    with Checkpointer(store, "run", asynchronous=asynchronous, retention=Retention(1)) as checkpointer:
        checkpointer.save(1, first, {})
        checkpointer.wait()
        store.configure({"quota_bytes": data_bytes(store) + 100_000})
        with pytest.raises(StoreFull):
            checkpointer.save(2, state_of(seed=1), {})
            checkpointer.wait()
        assert load(store, "run").step == 1
        restored = state_of(seed=2)
        restore(load(store, "run"), restored)
        assert equal(restored, first)
        store.configure({"quota_bytes": None})
        checkpointer.save(3, state_of(seed=1), {})  # goes on when there is room again
    assert [ref.branch for ref in list_refs(store, "checkpoint", "run")] == [branch_of(3)]
    assert not check_store(store, read_data=True).problems


def test_a_device_without_space_is_an_error_and_no_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1, state_of())
    write = os.pwritev

    def full(fd: int, buffers: Any, offset: int, *rest: int) -> int:
        if sum(len(one) for one in buffers) > 100_000:
            raise OSError(28, "No space left on device")
        return write(fd, buffers, offset, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(StoreFull):
            save(store, 2, state_of(seed=1))
    assert load(store, "run").step == 1
    load(store, "run").verify()
    save(store, 2, state_of(seed=1))
    load(store, "run", 2).verify()


def damage(store: Store, path: str, number: int = 0, step: int = 2) -> None:
    """Flip a byte in the middle of the record of a cell."""
    cell = load(store, "run", step).cell(path, number)
    assert isinstance(cell, StoredValue)
    place = store.locate(cell.digest)
    assert place is not None
    file = Path(store.url) / "packs" / place.pack[:2] / f"{place.pack}.pack"
    data = bytearray(file.read_bytes())
    data[(place.row.offset + place.row.end) // 2] ^= 1
    file.write_bytes(data)


def test_a_corrupt_cell_is_named_and_the_checkpoint_before_is_there_on_request(store: Store) -> None:
    first = state_of()
    save(store, 1, first)
    save(store, 2, state_of(seed=1))
    damage(store, "model/weight", 1)
    with pytest.raises(ChunkCorrupt, match=r"checkpoint step-000000002 of run 'run', tensor 'model/weight', cell 1"):
        restore(load(store, "run"), state_of())
    with pytest.warns(
        LeptonWarning, match=r"checkpoint step-000000002 of run 'run' is damaged: .*'model/weight', cell 1"
    ):
        found = load(store, "run", fallback=True)
    assert found.step == 1
    restored = state_of(seed=2)
    restore(found, restored)
    assert equal(restored, first)
    save(
        store, 2, state_of(seed=1)
    )  # the run comes to the same step again: the damaged chunk is not taken for one that is there
    repair_store(store)
    load(store, "run", 2).verify()
    damage(store, "model/weight", 0, step=1)
    damage(store, "model/weight", 2, step=2)
    with pytest.warns(LeptonWarning), pytest.raises(ChunkCorrupt, match="step-000000002"):
        load(store, "run", fallback=True)


def test_a_pack_that_is_gone_is_named_too(store: Store, tmp_path: Path) -> None:
    save(store, 1, state_of())
    cell = load(store, "run").cell("model/weight", 2)
    assert isinstance(cell, StoredValue)
    place = store.locate(cell.digest)
    assert place is not None
    store.close()  # the stores of a process share the files that are open
    (Path(store.url) / "packs" / place.pack[:2] / f"{place.pack}.pack").unlink()
    with (
        Store.open(tmp_path / "store", cache_dir=tmp_path / "cache") as again,
        pytest.raises((ChunkMissing, ChunkCorrupt), match="in checkpoint step-000000001 of run 'run'"),
    ):
        load(again, "run").tensor("model/weight")


@pytest.mark.parametrize("where", ["cell", "layout", "scalar"])
def test_a_pickle_bomb_is_not_executed(store: Store, tmp_path: Path, where: str) -> None:
    """Wherever it stands in a checkpoint that somebody else wrote."""
    marker = tmp_path / "executed"
    bomb = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    save(store, 1, {"model": {"w": torch.zeros(len(bomb), dtype=torch.uint8)}, "scaler": {"scale": "1"}})
    table = FileTable.open(store, "checkpoint", f"run@{branch_of(1)}")
    files, lineage = {path: table.read(path) for path in table.paths()}, dict(table.lineage)
    if where == "cell":
        files["model/w/000000.cell"] = bomb
    elif where == "layout":
        files["layout.json"] = bomb
    else:
        lineage["scalars"] = {"scaler/scale": bomb.decode()}
    write_files(store, "checkpoint", "run", list(files.items()), lineage, branch=branch_of(1), apart=True)
    into = {"model": {"w": torch.zeros(len(bomb), dtype=torch.uint8)}, "scaler": {"scale": ""}}
    if where == "layout":
        with pytest.raises(FormatDamaged):
            load(store, "run")
    else:
        restore(load(store, "run"), into)
        assert bytes(into["model"]["w"].numpy()) == bomb or into["scaler"]["scale"] == bomb.decode()
    assert not marker.exists()


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_retention_keeps_the_last_every_so_many_steps_and_the_best(store: Store) -> None:
    retention = Retention(keep_last=2, keep_every=1_000, keep_best=2, best_metric="val_loss")
    losses = {
        100: 0.9,
        500: 0.1,
        900: 0.5,
        1_000: 0.8,
        1_100: 0.2,
        1_200: float("nan"),
        2_000: 0.7,
        2_100: 0.6,
        2_200: 0.65,
    }
    with Checkpointer(store, "run", retention=retention) as checkpointer:
        for step, loss in losses.items():
            checkpointer.save(
                step, {"model": {"w": torch.full((2,), step)}}, {}, {"val_loss": loss if loss == loss else None}
            )
    kept = [ref.branch for ref in list_refs(store, "checkpoint", "run")]
    assert kept == [branch_of(step) for step in (500, 1_000, 1_100, 2_000, 2_100, 2_200)]
    best = Retention(1, keep_best=1, best_metric="+val_loss")
    refs = sorted(list_refs(store, "checkpoint", "run"), key=lambda ref: ref.sequence)
    assert best.kept(refs) == {branch_of(1_000), branch_of(2_200)}


def test_a_branch_of_ones_own_is_not_the_newest_checkpoint(store: Store) -> None:
    """`lepton branch run@best --from step-000000010 --kind checkpoint` made a run go on from step 10, and cost it a step of keep_last."""
    retention = Retention(keep_last=2, keep_best=1, best_metric="-loss")
    with Checkpointer(store, "run", retention=retention) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, state_of(step, rows=2), {}, {"loss": step})
        create_ref(store, "checkpoint", "run", "best", load(store, "run", 10).commit)
        assert load(store, "run").step == load(store, "run", fallback=True).step == 30
        with pytest.raises(RefMissing, match=r"it has step-000000010, step-000000020, step-000000030$"):
            load(store, "run", 40)
        checkpointer.save(40, state_of(40, rows=2), {}, {"loss": 40})
    named = [ref.branch for ref in list_refs(store, "checkpoint", "run")]
    assert named == ["best", *(branch_of(step) for step in (10, 30, 40))]


def test_of_a_run_that_has_only_branches_of_ones_own_the_newest_is_taken(store: Store) -> None:
    save(store, 10, state_of(rows=2))
    create_ref(store, "checkpoint", "run", "best", load(store, "run").commit)
    delete_ref(store, "checkpoint", "run", branch_of(10))
    assert exists(store, "run") and load(store, "run").branch == "best"
    assert load(store, "run", fallback=True).step == 10
    assert apply_retention(store, "run", Retention(keep_last=1)) == []


def test_a_damaged_checkpoint_does_not_lead_to_a_branch_of_ones_own(store: Store) -> None:
    for step in (10, 20, 30):
        save(store, step, state_of(step, rows=2))
    create_ref(store, "checkpoint", "run", "aside", load(store, "run", 10).commit)
    table = FileTable.open(store, "checkpoint", f"run@{branch_of(30)}")
    files = [(path, b"{" if path == "layout.json" else table.read(path)) for path in table.paths()]
    write_files(store, "checkpoint", "run", files, dict(table.lineage), branch=branch_of(30), apart=True)
    with pytest.warns(LeptonWarning, match="checkpoint step-000000030 of run 'run' is damaged"):
        assert load(store, "run", fallback=True).branch == branch_of(20)


def test_what_retention_lets_go_is_freed_by_gc_and_the_rest_stays_whole(store: Store) -> None:
    with Checkpointer(store, "run", retention=Retention(keep_last=1)) as checkpointer:
        for step in range(1, 5):
            checkpointer.save(step, state_of(seed=step), {})
        full = data_bytes(store)
        collect(store)
        assert data_bytes(store) < full / 3
        checkpointer.save(5, state_of(seed=4), {})  # what it shares with the last one was moved, not lost
    collect(store)
    restored = state_of()
    restore(load(store, "run"), restored)
    assert equal(restored, state_of(seed=4))
    assert not check_store(store, read_data=True).problems


def test_values_that_are_not_there_are_not_named_in_a_table(store: Store) -> None:
    with pytest.raises(ChunkMissing):
        write_files(store, "checkpoint", "run", [("a", StoredValue(b"\1" * 32, 40))], {}, apart=True)
    with pytest.raises(RefMissing):
        load(store, "run")


def test_what_one_process_put_is_spared_until_another_published_it(store: Store, tmp_path: Path) -> None:
    """The part of another rank: its claims hold until the commit is there, and end with `hand_over`."""
    values = [os.urandom(100_000) for _ in range(5)]
    with Store.open(tmp_path / "store", cache_dir=tmp_path / "cache-2") as other:
        files = [(f"{number}", StoredValue(other.put(value), len(value))) for number, value in enumerate(values)]
        other.flush()
        collect(store)
        table = write_files(store, "checkpoint", "run", files, {}, branch="parts", apart=True)
        other.hand_over()
        collect(store)
        assert [table.read(path) for path in table.paths()] == values
        delete_ref(store, "checkpoint", "run", "parts")
        collect(store)
        assert data_bytes(store) == 0, "the other process still asks for its packs to be spared"


def test_what_garbage_collection_took_is_not_named_in_a_table(store: Store, tmp_path: Path) -> None:
    value = os.urandom(100_000)
    with Store.open(tmp_path / "store", cache_dir=tmp_path / "cache-2") as other:
        stored = StoredValue(other.put(value), len(value))
        other.flush()
    collect(store)  # its writer is gone
    with pytest.raises(ChunkMissing, match="model/w"):
        write_files(store, "checkpoint", "run", [("model/w", stored)], {}, apart=True)
    assert store.put(value) == stored.digest
    write_files(store, "checkpoint", "run", [("model/w", stored)], {}, apart=True)


def test_short_values_stand_in_the_page_and_others_apart(store: Store) -> None:
    values = {"empty": b"", "one": b"x", "two": b"yz", "long": os.urandom(70_000)}
    stored = [(path, StoredValue(store.put(value), len(value))) for path, value in values.items()]
    given = write_files(store, "model", "given", list(values.items()), {}, apart=True)
    named = write_files(store, "model", "named", stored, {}, apart=True)
    assert given.commit == named.commit
    assert {path: named.read(path) for path in named.paths()} == values
    kinds = {path: isinstance(value, StoredValue) for path, value in named.stored().items()}
    assert kinds == {"empty": False, "one": False, "two": True, "long": True}
