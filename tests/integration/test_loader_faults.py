"""Bad samples, data that goes away, a world that changes: what a loader over a real store does, in threads and in processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from loader_data import ids, joined

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import BadInput, ChunkCorrupt, Damaged
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError, Order  # noqa: E402
from loaders.faults import TooManyFaults  # noqa: E402
from loaders.share import WorldChanged  # noqa: E402

ROWS, BAD = 120, (17, 63, 64)
Make = Callable[..., Source]
WAYS: list[dict[str, Any]] = [
    {},
    {"num_workers": 2},
    {"num_workers": 2, "worker_mode": "process", "multiprocessing_context": "fork"},
]


def values() -> list[bytes]:
    """Of their own chunks, and stored as they are."""
    rng = np.random.default_rng(0)
    return [rng.bytes(17_000) for _ in range(ROWS)]


def packs(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.stat().st_size > 100_000]


@pytest.fixture
def ds(tmp_path: Path, store: Store, source_of: Make) -> Dataset:
    """Three of its values are damaged on the disk."""
    table = pa.table({"id": np.arange(ROWS), "value": pa.array(values(), pa.binary())})
    write_dataset(store, "blobs", source_of(table, ("id",)))
    for path in packs(tmp_path / "store"):
        data = bytearray(path.read_bytes())
        for row in BAD:
            at = data.find(values()[row][:64])
            if at >= 0:
                data[at + 5_000] ^= 0xFF
        path.write_bytes(data)
    return Dataset.open(store, "blobs")


def size(value: bytes) -> int:
    return len(value)


@pytest.mark.parametrize("way", WAYS, ids=["here", "threads", "processes"])
def test_a_corrupt_sample_is_an_error_that_names_it(ds: Dataset, way: dict[str, Any]) -> None:
    loader = DataLoader(ds, 10, transforms={"value": [size]}, **way)
    batches = iter(loader)
    assert next(batches)["id"].tolist() == list(range(10))
    with pytest.raises(ChunkCorrupt, match=r"blobs@main row 17 column 'value'") as caught:
        next(batches)
    assert len(caught.value.digest) == 64 and loader.state_dict()["consumed"] == 10


@pytest.mark.parametrize("transforms", [None, {"value": [size]}], ids=["values", "transforms"])
@pytest.mark.parametrize("way", WAYS, ids=["here", "threads", "processes"])
def test_corrupt_samples_are_skipped(ds: Dataset, way: dict[str, Any], transforms: Any) -> None:
    told: list[tuple[Any, ...]] = []
    loader = DataLoader(
        ds, 10, shuffle=True, transforms=transforms, policy="skip", on_fault=lambda *fault: told.append(fault), **way
    )
    rows = Order(ROWS, 0, 0).rows_at(0, ROWS)
    expected = values()
    for number, batch in enumerate(loader):
        asked = rows[10 * number : 10 * number + 10]
        valid = ~np.isin(asked, BAD)
        assert batch["_valid"].tolist() == valid.tolist()
        assert batch["id"].tolist() == (asked * valid).tolist()
        for row, found in zip(
            asked[valid], [v for v, ok in zip(batch["value"], valid, strict=True) if ok], strict=True
        ):
            assert found == (expected[row] if transforms is None else 17_000)
    positions = np.flatnonzero(np.isin(rows, BAD)).tolist()
    assert [fault[:4] for fault in told] == [(at, rows[at], "value", "skip") for at in positions]
    assert all(fault[4].startswith("ChunkCorrupt: ") for fault in told) and loader.stats["faults"] == 3
    assert [(note.position, note.row, note.action) for note in loader.receipt().notes] == [
        (at, rows[at], "skip") for at in positions
    ]


def test_substitutes_are_equal_whoever_makes_them_and_stand_in_the_receipt(ds: Dataset) -> None:
    found, receipts = [], []
    for way in WAYS:
        loader = DataLoader(ds, 10, shuffle=True, policy="substitute", transforms={"value": [size]}, **way)
        found.append(joined(ids(loader)))
        receipts.append(loader.receipt())
    for world_size in (2, 3):
        ranks = [
            ids(DataLoader(ds, global_batch_size=10, shuffle=True, policy="substitute", rank=at, world_size=world_size))
            for at in range(world_size)
        ]
        found.append([row for batches in zip(*ranks, strict=True) for batch in batches for row in batch])
    assert all(rows == found[0] for rows in found) and not set(found[0]) & set(BAD)
    order = Order(ROWS, 0, 0).rows_at(0, ROWS)
    notes = {note.position: note.action for note in receipts[0].notes}
    assert notes == {at: f"substitute:{found[0][at]}" for at in np.flatnonzero(order != found[0])}
    assert len(notes) == 3 and receipts[1] == receipts[0] == receipts[2]


@pytest.mark.parametrize("way", WAYS, ids=["here", "threads", "processes"])
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_version_that_disappears_is_an_error_under_every_policy(
    ds: Dataset, tmp_path: Path, way: dict[str, Any], policy: Any
) -> None:
    whole = ds.select(np.setdiff1d(np.arange(ROWS), BAD))
    loader = DataLoader(whole, 10, policy=policy, columns=["id", "value"], **way)
    batches = iter(loader)
    next(batches)
    for path in packs(tmp_path / "store"):
        os.truncate(path, 1_000)
    with pytest.raises(
        Damaged if policy == "raise" else TooManyFaults, match=r"pack|samples of this pass cannot be made"
    ):
        list(batches)
    assert 10 <= loader.stats["rows"] < len(whole)


def ragged(value: bytes) -> np.ndarray:
    return np.zeros(3 if value[0] % 5 else 4, np.float32)


@pytest.mark.parametrize("way", WAYS, ids=["here", "threads", "processes"])
def test_ragged_tensors_are_named(ds: Dataset, way: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"column 'value'"):
        list(DataLoader(ds.select(np.arange(15)), 15, transforms={"value": [ragged]}, **way))


def test_out_of_order_there_is_no_state_in_mid_epoch(ds: Dataset) -> None:
    loader = DataLoader(ds, 10, columns=["id"], arena_bytes_max=0, num_workers=2, in_order=False)
    before = loader.state_dict()
    batches = iter(loader)
    assert loader.state_dict() == before
    found = [next(batches)["id"].tolist()]
    with pytest.raises(LoaderStateError, match="in_order=False"):
        loader.state_dict()
    found += ids(batches)
    assert sorted(joined(found)) == list(range(ROWS))
    assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"]) == (1, 0)


@pytest.mark.parametrize("way", WAYS, ids=["here", "threads", "processes"])
def test_a_world_that_changes_in_mid_epoch_is_refused_at_the_next_step(
    ds: Dataset, tmp_path: Path, way: dict[str, Any]
) -> None:
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/world", rank=0, world_size=1)
    try:
        loader = DataLoader(ds, 10, columns=["id"], **way)
        batches = iter(loader)
        next(batches)
    finally:
        dist.destroy_process_group()
    state = loader.state_dict()
    with pytest.raises(WorldChanged, match="from rank 0 of 1 to no process group"):
        next(batches)
    assert loader.state_dict() == state and state["consumed"] == 10
    loader.load_state_dict(state)
    assert joined(ids(loader)) == list(range(10, ROWS))
