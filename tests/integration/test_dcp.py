"""torch.distributed.checkpoint over the store: its own calls, our cells, and nothing unpickled that was stored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import run_ranks
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from leptonstore.dataset import FileTable, list_refs, write_files
from leptonstore.errors import BadInput
from leptonstore.store import Store
from trainers.checkpoint import Checkpointer, Retention, branch_of, load
from trainers.checkpoint.dcp import StoreReader, StoreWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        yield store


def trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 300), nn.BatchNorm1d(300), nn.Linear(300, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01 * (1 + seed), betas=(0.8, 0.99))
    for _ in range(2):
        model(torch.randn(8, 40)).sum().backward()
        optimizer.step()
    return model, optimizer


def state_of(seed: int) -> dict[str, Any]:
    model, optimizer = trained(seed)
    extra = {"step": seed, "best": float("inf"), "name": "a", "pair": (1, 2.5), "none": None, "list": [1, "x"]}
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "extra": extra,
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_dcp_saves_it_loads(store: Store, asynchronous: bool) -> None:
    writer = StoreWriter(store, "run", manifest={"note": "mine"})
    state = state_of(1)
    if asynchronous:
        dcp.async_save(state, checkpoint_id="1000", storage_writer=writer, no_dist=True).result()
    else:
        dcp.save(state, checkpoint_id="1000", storage_writer=writer)
    assert writer.commit == load(store, "run", 1_000).commit
    assert load(store, "run").manifest["note"] == "mine"
    other = state_of(2)
    assert not same(state, other)
    dcp.load(other, storage_reader=StoreReader(store, "run"))
    assert same(state, other)


def test_the_same_tensors_are_the_same_cells_whoever_saves_them(store: Store) -> None:
    state = {"weight": torch.randn(700, 1_024), "bias": torch.randn(5)}
    with Checkpointer(store, "ours") as checkpointer:
        checkpointer.save(1, state, {})
    dcp.save(state, storage_writer=StoreWriter(store, "theirs", 1))
    ours, theirs = load(store, "ours"), load(store, "theirs")
    assert ours.paths == theirs.paths and all(ours.cells(path) == theirs.cells(path) for path in ours.paths)
    into = {"weight": torch.zeros(700, 1_024, dtype=torch.float64), "bias": torch.zeros(5)}
    dcp.load(into, storage_reader=StoreReader(store, "ours"))  # and DCP converts where the target is of another type
    assert torch.equal(into["weight"], state["weight"].double())


def test_dcp_can_rebuild_a_state_that_it_was_not_given(store: Store) -> None:
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state = state_of(1)
    dcp.save(state, storage_writer=StoreWriter(store, "run", 1))
    made: dict[str, Any] = {}
    _load_state_dict(made, StoreReader(store, "run"), no_dist=True, planner=_EmptyStateDictLoadPlanner())
    assert same(made["model"], state["model"]) and same(made["extra"], state["extra"])


def test_steps_come_from_the_id_and_retention_is_applied(store: Store) -> None:
    writer = StoreWriter(store, "run", retention=Retention(keep_last=2))
    for step in ("1", "step-000000002", "3"):
        dcp.save({"w": torch.ones(3)}, checkpoint_id=step, storage_writer=writer)
    assert [ref.branch for ref in list_refs(store, "checkpoint", "run")] == [branch_of(2), branch_of(3)]
    with pytest.raises(BadInput, match="'latest' names no step"):
        dcp.save({"w": torch.ones(3)}, checkpoint_id="latest", storage_writer=writer)
    with pytest.raises(CheckpointException, match="which step"):
        dcp.save({"w": torch.ones(3)}, storage_writer=StoreWriter(store, "run"))


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_an_object_is_refused_and_not_pickled(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match=r"'extra\.x' of the state is a .*test_dcp\.Bomb"):
        dcp.save({"extra": {"x": Bomb(tmp_path / "marker")}}, storage_writer=StoreWriter(store, "run", 1))
    assert not list_refs(store, "checkpoint") and not (tmp_path / "marker").exists()


def test_a_pickle_that_somebody_stored_is_text_for_the_planner(store: Store, tmp_path: Path) -> None:
    """DCP's own planner unpickles what a reader hands it, with weights_only=False: it gets what we made from JSON."""
    dcp.save({"x": 1, "w": torch.ones(3)}, storage_writer=StoreWriter(store, "run", 1))
    table = FileTable.open(store, "checkpoint", f"run@{branch_of(1)}")
    marker = tmp_path / "marker"
    bomb = f"cposix\nsystem\n(S'touch {marker}'\ntR."
    files = [(path, table.read(path)) for path in table.paths()]
    lineage = {**table.lineage, "scalars": {"x": bomb}}
    write_files(store, "checkpoint", "run", files, lineage, branch=branch_of(1), apart=True)
    into = {"x": 0, "w": torch.zeros(3)}
    dcp.load(into, storage_reader=StoreReader(store, "run"))
    assert into["x"] == bomb and not marker.exists()


def test_ranks_save_and_load_in_different_shardings(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", cache_dir=tmp_path / "cache").close()
    told = run_ranks("checkpoint_run.py", tmp_path, 2, "2", "dcp")
    assert all(one["right"] for one in told)
    assert told[0]["added"][0] > 0 and not any(told[0]["added"][1:])
