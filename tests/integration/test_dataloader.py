"""The loader over LeptonStore datasets: what is in a batch, which rows come when, how it fails."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from loader_data import ROWS, ids, joined, make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import SchemaError
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError, Order  # noqa: E402

Make = Callable[..., Source]
COLD = {"arena_bytes_max": 0}  # nothing decoded ahead: every batch is read from pages


@pytest.fixture
def table() -> pa.Table:
    return make_table(ROWS)


@pytest.fixture
def ds(store: Store, source_of: Make, table: pa.Table) -> Dataset:
    return write_dataset(store, "samples", source_of(table, ("id",)))


# -- what is in a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, COLD, {**COLD, "num_workers": 2}, {"arena_bytes_max": ROWS * 20}])
def test_every_value_stands_in_its_batch(ds: Dataset, table: pa.Table, options: dict[str, Any]) -> None:
    images = table["image"].combine_chunks().to_numpy_ndarray()
    scores = np.array([np.nan if score is None else score for score in table["score"].to_pylist()], np.float32)
    texts, blobs = table["text"].to_pylist(), table["blob"].to_pylist()
    loader = DataLoader(ds, 100, shuffle=True, **options)
    rows = 0
    for batch in loader:
        assert list(batch) == table.column_names
        at = batch["id"].numpy()
        rows += len(at)
        assert batch["image"].dtype == torch.uint8 and batch["label"].dtype == torch.int64
        np.testing.assert_array_equal(batch["image"], images[at])
        np.testing.assert_array_equal(batch["label"], at % 7)
        np.testing.assert_array_equal(batch["score"], scores[at])
        np.testing.assert_array_equal(batch["flag"], at % 3 == 0)
        np.testing.assert_array_equal(batch["code"].numpy(), (at * 17 % 65_536).astype(np.uint16))
        assert batch["pair"].shape == (len(at), 2)
        assert batch["text"] == [texts[row] for row in at] and batch["blob"] == [blobs[row] for row in at]
    assert rows == ROWS == loader.stats["rows"]
    assert loader.stats["batches"] == len(loader) == 27 and loader.stats["wait_s"] > 0


def test_columns_and_tuples(ds: Dataset) -> None:
    batch = next(iter(DataLoader(ds, 4, columns=["label", "id"])))
    assert list(batch) == ["label", "id"]
    image, label = next(iter(DataLoader(ds, 4, as_tuple=("image", "label"))))
    assert image.shape == (4, 3, 4) and label.tolist() == [0, 1, 2, 3]
    loader = DataLoader(ds, 4, as_tuple=["id"], transform=lambda batch: batch[0] * 2)
    assert next(iter(loader)).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("options", [{}, COLD])
def test_a_batch_owns_its_memory(ds: Dataset, options: dict[str, Any]) -> None:
    loader = DataLoader(ds, 64, columns=["id", "image"], **options)
    first = [{name: tensor.clone() for name, tensor in batch.items()} for batch in loader]
    for batch in loader:
        batch["id"].zero_()
        batch["image"].fill_(7)
    for batch, expected in zip(loader, first, strict=True):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_nulls_without_a_tensor_are_named(store: Store, source_of: Make) -> None:
    table = pa.table({"id": pa.array([1, 2, 3]), "size": pa.array([1, None, 3])})
    ds = write_dataset(store, "holes", source_of(table, ("id",)))
    for options in ({}, COLD):
        loader = DataLoader(ds, 2, **options)
        with pytest.raises(SchemaError, match="column 'size' has nulls"):
            next(iter(loader))
        assert loader.state_dict()["epoch"] == 0  # nothing was consumed
    assert ids(DataLoader(ds, 2, columns=["id"])) == [[1, 2], [3]]


@pytest.mark.parametrize("options", [{}, COLD])
def test_a_view_is_read_in_its_own_order(ds: Dataset, options: dict[str, Any]) -> None:
    chosen = np.random.default_rng(1).permutation(ROWS)[:700]
    view = ds.select(chosen)
    loader = DataLoader(view, 64, shuffle=True, seed=3, columns=["id", "label"], **options)
    assert len(loader) == 11
    expected = chosen[Order(700, 3, 0).rows_at(0, 700)]
    np.testing.assert_array_equal(torch.cat([batch["id"] for batch in loader]), expected)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dataset_without_rows(store: Store, source_of: Make, shuffle: bool) -> None:
    ds = write_dataset(store, "nothing", source_of(make_table(0), ("id",)))
    loader = DataLoader(ds, 8, shuffle=shuffle)
    assert len(loader) == 0 and list(loader) == list(loader) == []
    assert loader.state_dict()["epoch"] == 2


# -- which rows come when --------------------------------------------------------------------------------------------


def test_without_shuffle_rows_come_in_order(ds: Dataset) -> None:
    assert joined(ids(DataLoader(ds, 100))) == list(range(ROWS))
    kept = ids(DataLoader(ds, 100, drop_last=True))
    assert len(kept) == 26 and {len(batch) for batch in kept} == {100}


def test_an_epoch_has_every_row_once_and_epochs_differ(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, shuffle=True, columns=["id"])
    epochs = [np.concatenate(ids(loader)) for _ in range(3)]
    for epoch, rows in enumerate(epochs):
        np.testing.assert_array_equal(rows, Order(ROWS, 0, epoch).rows_at(0, ROWS))
        np.testing.assert_array_equal(np.sort(rows), np.arange(ROWS))
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("path", ["gather", "threads", "rows"])
def test_global_batches_are_equal_for_every_world_size(ds: Dataset, path: str) -> None:
    options: dict[str, Any] = {"columns": ["id"]}
    if path == "threads":
        options |= {**COLD, "num_workers": 2}
    if path == "rows":
        options = {"collate_fn": lambda rows: {"id": torch.tensor([row["id"] for row in rows], dtype=torch.int64)}}
    common = {"shuffle": True, "seed": 5, "global_batch_size": 200, **options}
    alone = ids(DataLoader(ds, **common))
    assert len(alone) == 14 and len(alone[-1]) == 3
    for world_size in (2, 3, 5):
        loaders = [DataLoader(ds, rank=rank, world_size=world_size, **common) for rank in range(world_size)]
        assert {len(loader) for loader in loaders} == {14}
        ranks = [ids(loader) for loader in loaders]
        together = [[row for batches in ranks for row in batches[step]] for step in range(14)]
        assert together == alone
        assert loaders[0].batch_size == -(-200 // world_size)


def test_batch_size_is_per_rank(ds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        loader = DataLoader(ds, 50, columns=["id"])
        assert loader.state_dict()["global_batch"] == 100 and len(loader) == 27
        ranks.append(ids(loader))
    assert ranks[0][0] == list(range(50)) and ranks[1][0] == list(range(50, 100))
    assert sorted(joined(chain(*ranks))) == list(range(ROWS))
    assert len(ids(DataLoader(ds, 50, columns=["id"], rank=0, world_size=1))) == 53


def test_leaving_an_epoch_closes_it(ds: Dataset) -> None:
    loader = DataLoader(ds, 100, shuffle=True, columns=["id"])
    for _ in loader:
        break
    assert next(iter(loader))["id"].tolist() == Order(ROWS, 0, 1).rows_at(0, 100).tolist()
    loader.set_epoch(7)
    assert next(iter(loader))["id"].tolist() == Order(ROWS, 0, 7).rows_at(0, 100).tolist()
    assert next(iter(loader))["id"].tolist() == Order(ROWS, 0, 8).rows_at(0, 100).tolist()


# -- threads, workers, errors ----------------------------------------------------------------------------------------


def boom(batch: Any) -> Any:
    if 250 in batch["id"]:
        raise KeyError("row 250")
    return batch


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_comes_at_its_batch(ds: Dataset, num_workers: int) -> None:
    loader = DataLoader(ds, 100, columns=["id"], transform=boom, num_workers=num_workers)
    batches = iter(loader)
    assert [next(batches)["id"][0].item() for _ in range(2)] == [0, 100]
    with pytest.raises(KeyError, match="row 250"):
        next(batches)
    assert loader.state_dict()["consumed"] == 200


def test_break_ends_the_threads(ds: Dataset) -> None:
    loader = DataLoader(ds, 10, num_workers=2)
    for _ in loader:
        assert any(thread.name.startswith("lepton-loader") for thread in threading.enumerate())
        break
    gc.collect()
    assert not any(thread.name.startswith("lepton-loader") for thread in threading.enumerate())


def test_hot_columns_need_no_threads(ds: Dataset) -> None:
    for _ in DataLoader(ds, 100, num_workers=2, columns=["id", "image"]):
        assert not any(thread.name.startswith("lepton-loader") for thread in threading.enumerate())


def lengths(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ids = torch.tensor([row["id"] for row in rows], dtype=torch.int64)
    return {"id": ids, "bytes": sum(len(row["blob"]) for row in rows), "worker": torch.utils.data.get_worker_info()}


@pytest.mark.parametrize("persistent", [False, True])
def test_collate_fn_runs_in_worker_processes_in_our_order(ds: Dataset, persistent: bool) -> None:
    loader = DataLoader(
        ds, 500, shuffle=True, num_workers=2, collate_fn=lengths, persistent_workers=persistent,
        multiprocessing_context="fork",
    )  # fmt: skip
    for epoch in range(2):
        batches = list(loader)
        assert joined(ids(batches)) == Order(ROWS, 0, epoch).rows_at(0, ROWS).tolist()
        assert {batch["worker"].id for batch in batches} == {0, 1}
    assert loader.state_dict()["epoch"] == 2 and loader.stats["rows"] == 2 * ROWS


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_are_pinned(ds: Dataset) -> None:
    batch = next(iter(DataLoader(ds, 4, pin_memory=True)))
    assert all(values.is_pinned() for values in batch.values() if isinstance(values, torch.Tensor))


# -- arguments -------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_named(ds: Dataset) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"columns": ["nope"]}, "no column 'nope'; it has id, image"),
        ({"columns": ["id", "id"], "as_tuple": ["label"]}, "as_tuple names 'label'"),
        ({"batch_size": 4, "global_batch_size": 8}, "exclude each other"),
        ({"global_batch_size": 0}, "positive"),
        ({"batch_size": 0}, "batch_size should be a positive integer"),
        ({"seed": -1}, "seed of an order"),
        ({"num_workers": -1}, "num_workers option should be non-negative"),
        ({"collate_fn": list, "as_tuple": ["id"]}, "as_tuple and collate_fn exclude each other"),
        ({"sampler": [1, 2], "seed": 1}, "seed: only for a LeptonStore dataset without sampler"),
        ({"sampler": [1, 2], "columns": ["id"], "collate_fn": list}, "columns: only for"),
        ({"batch_size": None, "seed": 3}, "seed: only for"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            DataLoader(ds, **arguments)


def test_torchs_attributes_are_there_and_frozen(ds: Dataset) -> None:
    loader = DataLoader(ds, 32, shuffle=True, num_workers=1, drop_last=True)
    assert loader.dataset is ds and (loader.batch_size, loader.num_workers, loader.drop_last) == (32, 1, True)
    assert isinstance(loader, torch.utils.data.DataLoader)
    assert isinstance(loader.sampler, torch.utils.data.RandomSampler)
    with pytest.raises(ValueError, match="batch_size attribute should not be set after"):
        loader.batch_size = 3


def test_a_given_sampler_is_torchs_own_path(ds: Dataset) -> None:
    loader = DataLoader(ds, 2, sampler=[5, 3, 8], collate_fn=lambda rows: [row["id"] for row in rows])
    assert list(loader) == [[5, 3], [8]] and len(loader) == 2
    next(iter(loader))
    again = DataLoader(ds, 2, sampler=[5, 3, 8], collate_fn=len)
    again.load_state_dict(loader.state_dict())
    assert list(again) == [1]
    for other in (DataLoader(ds.select([1, 3, 5]), 2, sampler=[2, 1, 0]), DataLoader(ds, 2)):
        with pytest.raises(LoaderStateError):
            other.load_state_dict(loader.state_dict())


# -- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {**COLD, "num_workers": 2}, {"collate_fn": lambda rows: {"id": torch.tensor([row["id"] for row in rows])}}],
)
def test_batches_lie_on_the_device_asked_for(ds: Dataset, options: dict[str, Any]) -> None:
    """ "meta" stands for a device; the position counts what was handed out, not what was copied ahead."""
    loader = DataLoader(ds, 100, device="meta", **options)
    batches = iter(loader)
    assert next(batches)["id"].device.type == "meta"
    assert loader.state_dict()["consumed"] == 100
    assert 1 + len(list(batches)) == 27
    assert joined(ids(DataLoader(ds, 100, device="cpu", **options))) == list(range(ROWS))


def test_an_iterator_that_nobody_draws_from_leaves_no_threads(ds: Dataset) -> None:
    """A generator that never began is closed without a word to what it would have closed."""
    for device in (None, "meta"):
        iter(DataLoader(ds, 100, device=device, num_workers=2, **COLD))
        gc.collect()
        assert not any(thread.name.startswith("lepton-loader") for thread in threading.enumerate())


@pytest.mark.requires_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_cuda_are_those_of_the_host(ds: Dataset) -> None:
    for here, there in zip(DataLoader(ds, 100), DataLoader(ds, 100, device="cuda"), strict=True):
        assert there["image"].is_cuda and torch.equal(there["image"].cpu(), here["image"])
        assert there["text"] == here["text"]
