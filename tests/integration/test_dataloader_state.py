"""Where a loader stands: a restore at any step gives exactly the rest, and states of others are refused by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from loader_data import ROWS, ids, joined, make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError, Order  # noqa: E402

Make = Callable[..., Source]
COLD = {"arena_bytes_max": 0}


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


@pytest.mark.parametrize("path", ["gather", "threads", "rows"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_restore_at_every_step_gives_the_rest(ds: Dataset, path: str, drop_last: bool) -> None:
    options: dict[str, Any] = {"columns": ["id"]}
    if path == "threads":
        options |= {**COLD, "num_workers": 2}
    if path == "rows":
        options = {"collate_fn": lambda rows: {"id": torch.tensor([row["id"] for row in rows], dtype=torch.int64)}}

    def make() -> Any:
        return DataLoader(ds, 300, shuffle=True, seed=2, drop_last=drop_last, **options)

    loader = make()
    loader.set_epoch(4)
    states, batches = [loader.state_dict()], []
    for batch in loader:
        batches.append(batch["id"].tolist())
        states.append(loader.state_dict())
    following = ids(loader)
    assert len(batches) == (8 if drop_last else 9)
    assert (states[-1]["epoch"], states[-1]["consumed"]) == (5, 0)  # the last batch ends the epoch
    for step, state in enumerate(states):
        restored = make()
        restored.load_state_dict(json.loads(json.dumps(state)))
        assert restored.state_dict() == state
        rest = ids(restored)
        assert rest == (batches[step:] or following)
        if step < len(batches):
            assert ids(restored) == following


def test_a_restore_at_another_world_size_misses_and_repeats_nothing(ds: Dataset) -> None:
    def ranks(world_size: int, global_batch: int) -> list[Any]:
        common = {"shuffle": True, "columns": ["id"], "global_batch_size": global_batch, "world_size": world_size}
        return [DataLoader(ds, rank=rank, **common) for rank in range(world_size)]

    seen: list[int] = []
    state: Any = None
    for world_size, global_batch, steps in ((4, 96, 7), (3, 96, 5), (8, 50, None)):  # at last the rest, cut anew
        loaders = ranks(world_size, global_batch)
        for loader in loaders if state else []:
            loader.load_state_dict(state)
        for batches in islice(zip(*loaders, strict=True), steps):
            seen += joined(ids(batches))
        state = loaders[0].state_dict()
        assert all(loader.state_dict() == state for loader in loaders)
    assert seen == Order(ROWS, 0, 0).rows_at(0, ROWS).tolist()
    assert (state["epoch"], state["consumed"]) == (1, 0)


def test_set_epoch_of_the_restored_epoch_keeps_the_position(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, shuffle=True, columns=["id"])
    running = iter(loader)
    next(running), next(running)
    state = loader.state_dict()
    again = DataLoader(ds, 100, shuffle=True, columns=["id"])
    again.load_state_dict(state)
    again.set_epoch(0)
    assert next(iter(again))["id"].tolist() == Order(ROWS, 0, 0).rows_at(200, 300).tolist()
    again.load_state_dict(state)
    again.set_epoch(1)
    assert next(iter(again))["id"].tolist() == Order(ROWS, 0, 1).rows_at(0, 100).tolist()


def test_only_the_newest_pass_moves_the_state(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, columns=["id"])
    old = iter(loader)
    next(old)
    new = iter(loader)
    next(new)
    next(old)
    assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"]) == (1, 100)
    del old, new
    assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"]) == (1, 100)  # what was left, for a restart


def test_a_pass_that_runs_on_does_not_undo_a_restore(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, columns=["id"])
    running = iter(loader)
    next(running)
    state = loader.state_dict()
    next(running)
    loader.load_state_dict(state)
    next(running)
    assert loader.state_dict() == state


def test_states_of_others_are_refused_and_change_nothing(ds: Dataset, store: Store, source_of: Make) -> None:
    other = write_dataset(store, "others", source_of(make_table(100, seed=1), ("id",)))
    loader = DataLoader(ds, 100, shuffle=True)
    before = loader.state_dict()
    foreign = [
        (DataLoader(other, 100, shuffle=True).state_dict(), "of dataset 'others'.* reads dataset 'samples'"),
        (DataLoader(ds.select(np.arange(9)), 1, shuffle=True).state_dict(), "same rows"),
        (DataLoader(ds, 100, shuffle=True, seed=1).state_dict(), "seed=1 and this loader has seed=0"),
        (DataLoader(ds, 100).state_dict(), "order=.*sequential.* and this loader has order=.*shuffle"),
        (DataLoader(ds, 100, shuffle=True, drop_last=True).state_dict(), "drop_last=True"),
        ({**before, "version": 9}, "version 9"),
        ({"_sampler_iter_yielded": 3}, "no state of a LeptonStore loader"),
    ]
    for state, message in foreign:
        with pytest.raises(LoaderStateError, match=message):
            loader.load_state_dict(state)
        assert loader.state_dict() == before


def test_a_loader_pickles_with_its_position(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, shuffle=True, seed=9, columns=["id"])
    assert len(pickle.dumps(loader)) < 20_000
    next(iter(loader))
    assert len(pickle.dumps(loader)) < 20_000  # without the arena
    twin = pickle.loads(pickle.dumps(loader))  # noqa: S301
    assert twin.state_dict() == loader.state_dict()
    twin.set_epoch(1)
    assert ids(twin) == ids(loader)
