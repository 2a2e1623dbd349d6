"""Receipts of loaders: the same whatever ranks, workers and restarts a run had, moved by what was handed out and by nothing else."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from loader_data import ROWS, ids, joined, make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import BadInput
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError, Mixture, Order  # noqa: E402
from loaders.numpy import NumpyLoader  # noqa: E402
from loaders.order import FullOrder  # noqa: E402
from loaders.orders import BlockShuffle, Bucketed, ClassBalanced, Curriculum, Subset, Weighted  # noqa: E402
from loaders.receipt import Receipt, merged  # noqa: E402
from loaders.source import ColumnSource  # noqa: E402
from loaders.strategies import strategy_of  # noqa: E402
from loaders.verify import Checked, ReceiptDiffers, Replay, replay_of  # noqa: E402

Make = Callable[..., Source]
COLD = {"arena_bytes_max": 0}
COMMON: dict[str, Any] = {"shuffle": True, "seed": 5, "columns": ["id"]}


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


def with_order(receipt: Receipt, spec: dict[str, Any]) -> Receipt:
    """The same receipt, said to be in another order."""
    return replace(receipt, segments=tuple(
        replace(segment, origin=replace(segment.origin, order=spec)) for segment in receipt.segments
    ))  # fmt: skip


def two_epochs(loader: Any) -> Receipt:
    for _ in range(2):
        for _ in loader:
            pass
    receipt: Receipt = loader.receipt()
    return receipt


def replay(receipt: Receipt, dataset: Dataset) -> Replay:
    return Replay(receipt, lambda origin: ColumnSource(dataset))


def test_equal_for_every_world_size_and_worker_count(ds: Dataset) -> None:
    common = {**COMMON, "global_batch_size": 200}
    alone = two_epochs(DataLoader(ds, **common))
    assert alone.steps == 28 and len(alone.segments) == 2
    for world_size in (2, 3, 5, 7):
        ranks = [
            two_epochs(DataLoader(ds, rank=rank, world_size=world_size, **common)) for rank in range(min(world_size, 3))
        ]
        assert ranks == [alone] * len(ranks)
    assert two_epochs(DataLoader(ds, **common, **COLD, num_workers=2, prefetch_factor=3)) == alone
    processes = DataLoader(ds, **common, **COLD, num_workers=2, worker_mode="process", multiprocessing_context="fork")
    assert two_epochs(processes) == alone
    assert two_epochs(NumpyLoader(ds, **common)) == alone
    assert two_epochs(DataLoader(ds, **common, pad=True, rank=2, world_size=3)) == alone
    rows = {"collate_fn": lambda rows: [row["id"] for row in rows], "global_batch_size": 200, "shuffle": True}
    assert two_epochs(DataLoader(ds, seed=5, **rows)) == alone
    assert two_epochs(DataLoader(ds, seed=5, **rows, num_workers=2, multiprocessing_context="fork")) == alone


@pytest.mark.parametrize("change", [{"seed": 6}, {"shuffle": False}, {"global_batch_size": 201}, {"drop_last": True}])
def test_other_rows_are_another_receipt(ds: Dataset, change: dict[str, Any]) -> None:
    common = {**COMMON, "global_batch_size": 200}
    assert two_epochs(DataLoader(ds, **{**common, **change})).head != two_epochs(DataLoader(ds, **common)).head


def test_batches_made_ahead_and_dropped_are_in_no_receipt(ds: Dataset) -> None:
    receipts = []
    for workers in (0, 2):
        loader = DataLoader(ds, 100, **COMMON, **COLD, num_workers=workers, prefetch_factor=8 if workers else None)
        list(islice(loader, 3))
        for _ in loader:
            pass
        receipts.append(loader.receipt())
    assert receipts[0] == receipts[1]
    left, whole = receipts[0].segments
    assert (left.epoch, left.start, left.stop, left.steps) == (0, 0, 300, 3)
    assert (whole.epoch, whole.stop, whole.steps) == (1, ROWS, 27)


@pytest.mark.parametrize("stopped_at", [1, 13, 14, 20])
def test_a_restored_run_ends_with_the_head_of_one_that_was_never_stopped(ds: Dataset, stopped_at: int) -> None:
    common = {**COMMON, "global_batch_size": 200}
    whole = two_epochs(DataLoader(ds, **common))

    def run(loader: Any, steps: int) -> None:
        while steps:
            steps -= sum(1 for _ in islice(iter(loader), steps))

    first = DataLoader(ds, rank=1, world_size=4, **common)
    run(first, stopped_at)
    state = json.loads(json.dumps(first.state_dict()))
    ranks = [DataLoader(ds, rank=rank, world_size=3, **common) for rank in range(3)]
    for loader in ranks:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        run(loader, 28 - stopped_at)
    later = merged([loader.receipt() for loader in ranks])
    assert (later.head, later.steps) == (whole.head, whole.steps)
    assert later.base_steps == stopped_at
    one = first.receipt().then(later)
    assert [replace(segment, marks=()) for segment in one.segments] == [
        replace(segment, marks=()) for segment in whole.segments
    ]
    assert replay(one, ds).verify() == replay(whole, ds).verify() == Checked(28, 2 * ROWS)
    assert replay(later, ds).verify().steps == 28 - stopped_at


def test_another_global_batch_is_recorded_as_such(ds: Dataset) -> None:
    first = DataLoader(ds, **COMMON, global_batch_size=200)
    list(islice(first, 4))
    second = DataLoader(ds, **COMMON, global_batch_size=50)
    second.load_state_dict(first.state_dict())
    list(second)
    receipt = first.receipt().then(second.receipt())
    assert [(s.start, s.stop, s.global_batch, s.steps) for s in receipt.segments] == [
        (0, 800, 200, 4),
        (800, ROWS, 50, 37),
    ]
    assert replay(receipt, ds).verify() == Checked(41, ROWS)


def test_an_epoch_of_a_dataset_that_grew_names_its_version(ds: Dataset) -> None:
    loader = DataLoader(ds, 200, **COMMON, follow=True)
    list(loader)
    grown = ds.append(make_table(ROWS + 100).slice(ROWS))
    list(loader)
    receipt = loader.receipt()
    assert [(s.origin.commit, s.length) for s in receipt.segments] == [(ds.commit, ROWS), (grown.commit, ROWS + 100)]
    versions = {ds.commit: ds, grown.commit: grown}
    held = Replay(receipt, lambda origin: ColumnSource(versions[origin.commit]))
    assert held.verify() == Checked(28, 2 * ROWS + 100)


def test_weights_that_change_in_mid_run_are_in_the_receipt(ds: Dataset, store: Store, source_of: Make) -> None:
    other = write_dataset(store, "others", source_of(make_table(300, 1), ("id",)))

    def mixed() -> Mixture:
        return Mixture({"samples": (ds, 0.8), "others": (other, 0.2)})

    def run(rank: int, world_size: int, stop: int) -> Any:
        loader = DataLoader(mixed(), global_batch_size=90, seed=2, columns=["id"], rank=rank, world_size=world_size)
        batches = iter(loader)
        for step in range(stop):
            if step in (4, 9):
                loader.set_weights({"samples": 0.5, "others": 0.5 + step})
            next(batches)
        return loader

    whole = run(0, 1, 20)
    assert merged([run(rank, 3, 20).receipt() for rank in range(3)]) == whole.receipt()
    starts = [(segment.start, segment.steps) for segment in whole.receipt().segments]
    assert starts == [(0, 4), (360, 5), (810, 11)]
    restored = DataLoader(mixed(), global_batch_size=90, seed=2, columns=["id"])
    stopped = run(0, 1, 12)
    restored.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    list(islice(restored, 8))
    one = stopped.receipt().then(restored.receipt())
    assert (one.head, one.steps) == (whole.receipt().head, 20)
    assert replay_of(one, mixed()).verify() == Checked(20, 1_800)
    with pytest.raises(BadInput, match="weights"):
        replay_of(one, Mixture({"samples": (ds, 0.7), "others": (other, 0.3)})).verify()


def test_a_difference_is_named_by_its_steps(ds: Dataset) -> None:
    loader = DataLoader(ds, 10, **COMMON)
    list(loader)
    receipt = loader.receipt()
    assert replay(receipt, ds).verify() == Checked(261, ROWS)

    class Wrong:
        """Rows 0 and 1 change places, where they are: as a fault in the order would do."""

        def bind(self, source: Any) -> Any:
            return self

        def spec(self) -> dict[str, Any]:
            return {"name": "wrong"}

        length = ROWS

        def epoch(self, seed: int, epoch: int) -> Any:
            self.order = Order(ROWS, seed, epoch)
            return self

        def rows_at(self, start: int, stop: int) -> Any:
            rows = self.order.rows_at(start, stop)
            return np.where(rows < 2, 1 - rows, rows)

    where = np.flatnonzero(Order(ROWS, 5, 0).rows_at(0, ROWS) < 2).min() // 10
    with pytest.raises(
        ReceiptDiffers, match=r"segment 0, epoch 0, steps? .*it was changed, or is of another run"
    ) as caught:
        replay_of(with_order(receipt, {"name": "wrong"}), ds, Wrong()).verify()
    assert caught.value.first <= where <= caught.value.last < caught.value.first + 16
    with pytest.raises(ReceiptDiffers):
        replay_of(with_order(receipt, FullOrder(False).spec()), ds).verify()


def test_any_step_is_given_again(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, **COMMON)
    seen = [ids(loader), ids(loader)]
    held = replay(loader.receipt(), ds)
    for epoch, step in ((0, 0), (0, 26), (1, 13)):
        assert held.step(epoch, step)[1].rows.tolist() == seen[epoch][step]
    with pytest.raises(BadInput, match="step 27 of epoch 1 is not in the receipt, which has steps 0-26"):
        held.step(1, 27)
    with pytest.raises(BadInput, match="epoch 2 is not in the receipt, which has epochs 0-1"):
        held.step(2, 0)


STRATEGIES = [
    BlockShuffle(64, 3),
    Weighted("code"),
    Weighted("label", replacement=False),
    ClassBalanced("label", per_class=40),
    Subset(range(100, 900, 3)),
    Subset("label = 3", inner=BlockShuffle(16, 2)),
    Curriculum("id", epochs=2),
    Bucketed("blob", 100, inner=Subset(range(1_000))),
]


@pytest.mark.parametrize("order", STRATEGIES, ids=[strategy.spec()["name"] for strategy in STRATEGIES])
@pytest.mark.parametrize("limits", [{}, {"limit_batches": 3}, {"overfit_batches": 2}])
def test_every_order_is_verified_from_its_spec_alone(ds: Dataset, order: Any, limits: dict[str, Any]) -> None:
    loader = DataLoader(ds, 50, order=order, seed=4, columns=["id"], **limits)
    receipt = Receipt.from_dict(json.loads(two_epochs(loader).to_json()))
    assert replay(receipt, ds).verify().steps == receipt.steps == loader.stats["batches"]
    with pytest.raises(ReceiptDiffers):
        replay_of(with_order(receipt, FullOrder(True).spec()), ds).verify()


def test_an_order_over_an_array_is_checked_by_who_has_it(ds: Dataset) -> None:
    order = Weighted(np.arange(ROWS))
    receipt = two_epochs(DataLoader(ds, 50, order=order, columns=["id"]))
    with pytest.raises(BadInput, match=r"an order cannot be made of the spec .*weighted.* alone: check it from Python"):
        replay(receipt, ds).verify()
    assert replay_of(receipt, ds, order).verify().steps == receipt.steps
    with pytest.raises(BadInput, match="and of the one that is given"):
        replay_of(receipt, ds, Weighted(np.ones(ROWS))).verify()
    overfit = two_epochs(DataLoader(ds, 50, order=order, columns=["id"], overfit_batches=2))
    assert replay_of(overfit, ds, order).verify().steps == 4


def nested(depth: int) -> dict[str, Any]:
    spec: dict[str, Any] = {"name": "shuffle", "version": 1}
    for _ in range(depth):
        spec = {"name": "overfit", "version": 1, "batches": 1, "inner": spec}
    return spec


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"name": ["weighted"]},
        {"name": "weighted", "version": 1},
        {"name": "weighted", "version": 2, "weights": "code", "replacement": True, "samples": None},
        {"name": "subset", "version": 1, "rows": [0, 1, 0], "inner": {"name": "shuffle", "version": 1}},
        {"name": "subset", "version": 1, "rows": [1, 2, 3, 4], "inner": {"name": "shuffle", "version": 1}},
        {"name": "subset", "version": 1, "rows": ["a"], "inner": 3},
        {"name": "block-shuffle", "version": 1, "block_rows": -1, "window_blocks": 10**30},
        {"name": "block-shuffle", "version": 1, "block_rows": 4, "window_blocks": 4, "__class__": 1},
        nested(900),
    ],
)
def test_specs_that_somebody_made_up_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="an order cannot be made of"):
        strategy_of(spec)


# -- steps that are left out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {**COLD, "num_workers": 2}])
def test_skipped_steps_are_left_out_and_nothing_else(ds: Dataset, options: dict[str, Any]) -> None:
    whole = ids(DataLoader(ds, 100, **COMMON))
    loader = DataLoader(ds, 100, **COMMON, **options)
    loader.skip(0, 0, 2)
    loader.skip(0, 5, 8)
    loader.skip(0, 26, 27)
    assert len(loader) == 21
    states, batches = [], []
    for batch in loader:
        batches.append(batch["id"].tolist())
        states.append(loader.state_dict())
    assert batches == whole[2:5] + whole[8:26]
    assert loader.stats["batches"] == 21 and loader.stats["rows"] == len(joined(batches))
    assert (states[-1]["epoch"], states[-1]["consumed"]) == (1, 0)
    for step, state in enumerate(states[:-1]):
        restored = DataLoader(ds, 100, **COMMON, **options)
        restored.load_state_dict(json.loads(json.dumps(state)))
        assert ids(restored) == batches[step + 1 :]
        assert restored._ledger.head == loader._ledger.head
    receipt = loader.receipt()
    assert receipt.skips == ((0, 0, 200), (0, 500, 800), (0, 2_600, 2_700))
    assert [(s.start, s.stop) for s in receipt.segments] == [(200, 500), (800, 2_600)]
    assert replay(receipt, ds).verify() == Checked(21, 2_100)
    assert loader.state_dict()["skips"] == []  # of epochs that are over nothing is kept
    assert len(loader) == 27 and len(ids(loader)) == 27


def test_skips_mean_the_same_rows_at_any_world_size(ds: Dataset) -> None:
    heads = set()
    for world_size in (1, 3):
        for rank in range(world_size):
            loader = DataLoader(ds, **COMMON, global_batch_size=90, rank=rank, world_size=world_size)
            loader.skip(0, 3, 5)
            list(loader)
            heads.add(loader.receipt().head)
    assert len(heads) == 1


def test_an_epoch_of_which_all_is_skipped_is_over(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, **COMMON)
    loader.skip(0, 0, 1_000)
    assert len(loader) == 0 and list(loader) == []
    assert loader.state_dict()["epoch"] == 1 and loader.receipt().steps == 0


def test_a_state_brings_its_skips_along(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, **COMMON)
    loader.skip(1, 4, 6)
    list(loader)
    restored = DataLoader(ds, 100, **COMMON)
    restored.skip(1, 6, 7)  # the restart leaves out more
    restored.load_state_dict(loader.state_dict())
    assert len(ids(restored)) == 24
    assert restored.receipt().skips == ((1, 400, 700),)


# -- with and without --------------------------------------------------------------------------------------------------


def test_notes_stand_in_the_receipt_once_their_batch_is_handed_out(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, **COMMON)
    batches = iter(loader)
    entries = batches.entries
    next(batches)
    entries.note(150, 7, "image", "skip", "ChunkCorrupt: why " + "x" * 1_000)
    entries.note(301, 8, "image", "substitute:9", "made ahead, for a device")
    assert loader.receipt().notes == ()
    next(batches)
    (note,) = loader.receipt().notes
    assert (note.epoch, note.position, note.row, note.action, len(note.reason)) == (0, 150, 7, "skip", 200)
    next(batches)
    assert len(loader.receipt().notes) == 1
    next(batches)
    assert [note.position for note in loader.receipt().notes] == [150, 301]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("called", [1, 3, 5])
def test_counting_that_is_interrupted_loses_no_step(
    ds: Dataset, monkeypatch: pytest.MonkeyPatch, world_size: int, called: int
) -> None:
    """Steps are counted a few at a time: what waited was gone, and with several ranks every later receipt an error."""
    import loaders.ledger as module

    loaders = [NumpyLoader(ds, 90, seed=3, shuffle=True, rank=world_size - 1, world_size=world_size) for _ in range(2)]
    (batches, others), real = [iter(loader) for loader in loaders], module.next_head
    for _ in range(5):
        next(batches), next(others)
    calls = iter(range(1, 100))

    def interrupted(*arguments: Any) -> bytes:
        if next(calls) == called:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "next_head", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loaders[0].receipt()
    monkeypatch.undo()
    rest, wanted = list(batches), list(others)
    assert len(rest) == len(wanted) and loaders[0].receipt() == loaders[1].receipt()
    assert replay_of(loaders[0].receipt(), ds).verify()


def test_a_pass_that_was_replaced_moves_nothing(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, **COMMON)
    old = iter(loader)
    next(old)
    new = iter(loader)
    next(new)
    before = loader.receipt()
    next(old)
    assert loader.receipt() == before and [s.epoch for s in before.segments] == [0, 1]


def test_without_receipts_a_loader_says_so(ds: Dataset) -> None:
    for loader in (
        DataLoader(ds, 100, receipts=False),
        DataLoader(ds, 100, in_order=False),
        DataLoader([1, 2, 3]),
    ):
        with pytest.raises(LoaderStateError, match="this loader keeps no receipt"):
            loader.receipt()
    loader = DataLoader(ds, 100, receipts=False)
    next(iter(loader))
    assert loader.state_dict()["receipt"] == {}
    other = DataLoader(ds, 100)
    other.load_state_dict(loader.state_dict())  # a chain begins where none was
    list(other)
    assert other.receipt().segments[0].start == 100 and other.receipt().base_steps == 0


def test_a_receipt_of_another_version_or_view_is_refused(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, **COMMON)
    next(iter(loader))
    with pytest.raises(BadInput, match="give the same version, and take the same rows of it"):
        replay(loader.receipt(), ds.select(np.arange(50))).verify()


def test_a_loader_pickles_with_its_receipt(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, **COMMON)
    running = iter(loader)
    next(running)
    twin = pickle.loads(pickle.dumps(loader))  # noqa: S301
    assert twin.receipt() == loader.receipt() and twin.receipt().steps == 1


def test_bytes_and_waits_are_counted(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, columns=["id", "image"], transform=lambda batch: batch, num_workers=2)
    list(loader)
    stats = loader.stats
    assert stats["bytes"] == ROWS * (8 + 12) and sum(stats.waits) == stats["batches"] == 27
    assert {"order", "gather", "transform"} <= set(stats.stages)
    assert 0 < stats["open_s"] <= stats["wait_s"]
    assert "27 batches" in stats.report() and json.dumps(stats.to_dict())
