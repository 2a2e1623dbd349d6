"""A dataset that grows during a run: each epoch reads the newest version, a state finishes its epoch on its own."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from loader_data import make_table
from PIL import Image

from leptonstore.dataset import Dataset, Source, delete_ref, write_dataset
from leptonstore.dataset.erase import erase
from leptonstore.dataset.following import descends, kept_rows
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.schema import class_label_field, image_field
from leptonstore.errors import BadInput, NotFound, SchemaError
from leptonstore.store import RefUpdate, Store
from leptonstore.store.gc import collect

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError, Mixture, NumpyLoader, Order  # noqa: E402
from loaders.transforms import DecodeImage  # noqa: E402

Make = Callable[..., Source]
ROWS = 5_000
OPTIONS: dict[str, Any] = {"shuffle": True, "seed": 3, "columns": ["id", "label"]}


def more(first: int, rows: int) -> pa.Table:
    table = make_table(rows, first)
    return table.set_column(0, table.schema.field("id"), pa.array(np.arange(first, first + rows)))


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


def rows(batches: Any) -> list[int]:
    return [int(row) for batch in batches for row in batch["id"]]


def epoch_of(count: int, epoch: int) -> list[int]:
    return [int(row) for row in Order(count, 3, epoch).rows_at(0, count)]


# -- what each epoch reads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["gather", "threads", "rows", "processes", "slabs", "numpy"])
def test_an_append_is_seen_by_the_next_epoch(ds: Dataset, path: str) -> None:
    kind, options = DataLoader, dict(OPTIONS)
    if path == "threads":
        options |= {"num_workers": 2, "arena_bytes_max": 0}
    if path in ("rows", "processes"):
        options |= {"columns": None, "collate_fn": lambda rows: {"id": [row["id"] for row in rows]}}
    if path == "processes":
        options |= {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
    if path == "slabs":
        options |= {"num_workers": 1, "worker_mode": "process", "persistent_workers": True}
        options |= {"arena_bytes_max": 0, "multiprocessing_context": "fork"}
    if path == "numpy":
        kind = NumpyLoader  # type: ignore[assignment]
    loader = kind(ds, 500, follow=True, **options)
    assert rows(loader) == epoch_of(ROWS, 0)
    running = iter(loader)
    begun = rows([next(running)])
    grown = ds.append(more(ROWS, 700))
    assert begun + rows(running) == epoch_of(ROWS, 1)  # the epoch that is open does not change
    assert loader.state_dict()["commit"] == ds.commit and loader.newest() == grown.commit
    assert rows(loader) == epoch_of(ROWS + 700, 2)
    assert loader.state_dict()["commit"] == grown.commit and loader.dataset.commit == grown.commit
    assert len(loader) == 12 and rows(loader) == epoch_of(ROWS + 700, 3)


def test_the_receipt_says_which_version_each_epoch_read(ds: Dataset) -> None:
    loader = DataLoader(ds, 500, follow=True, **OPTIONS)
    rows(loader)
    grown = ds.append(more(ROWS, 700))
    rows(loader)
    segments = loader.receipt().segments
    assert [(segment.epoch, segment.origin.commit, segment.stop) for segment in segments] == [
        (0, ds.commit, ROWS), (1, grown.commit, ROWS + 700),
    ]  # fmt: skip


def test_without_follow_a_loader_keeps_its_version(ds: Dataset) -> None:
    loader = DataLoader(ds, 500, **OPTIONS)
    ds.append(more(ROWS, 700))
    assert rows(loader) == epoch_of(ROWS, 0) and rows(loader) == epoch_of(ROWS, 1)
    for ask in (loader.newest, lambda: loader.follow_to("0" * 64)):
        with pytest.raises(ValueError, match="make it with follow=True"):
            ask()


def test_another_branch_can_be_followed(ds: Dataset) -> None:
    branch = ds.branch("nightly")
    loader = DataLoader(ds, 500, follow="nightly", **OPTIONS)
    ds.append(more(ROWS, 10))
    assert len(rows(loader)) == ROWS
    branch.append(more(ROWS, 300))
    assert rows(loader) == epoch_of(ROWS + 300, 1)


def test_the_arena_takes_what_did_not_change(ds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = ds.append(more(ROWS, 20_000))
    loader = DataLoader(ds, 5_000, seed=3, follow=True)
    assert len(rows(loader)) == 25_000
    grown = ds.delete(rows=[11_000]).append(more(25_000, 500))
    read: list[int] = []
    batches = Dataset.iter_batches

    def counted(self: Dataset, *arguments: Any, **options: Any) -> Any:
        for first, batch in batches(self, *arguments, **options):
            read.append(len(batch))
            yield first, batch

    monkeypatch.setattr(Dataset, "iter_batches", counted)
    found: dict[str, list[Any]] = {name: [] for name in ("id", "image", "label", "score")}
    for batch in loader:
        for name, values in found.items():
            values.append(batch[name].numpy())
    kept = sum(count for _, _, count in kept_rows(ds, grown))
    assert kept > 8_000 and sum(read) == len(grown) - kept
    fresh = next(iter(DataLoader(grown, len(grown))))
    for name, values in found.items():
        np.testing.assert_array_equal(np.concatenate(values), fresh[name])


def test_through_the_hot_cache(ds: Dataset, tmp_path: Path) -> None:
    loader = DataLoader(ds.cached(tmp_path / "cache", 64 << 20), 500, follow=True, **OPTIONS)
    assert rows(loader) == epoch_of(ROWS, 0)
    ds.append(more(ROWS, 100))
    assert rows(loader) == epoch_of(ROWS + 100, 1) and loader.dataset.cache is not None


def test_decoded_values_are_those_of_the_version_that_is_read(store: Store, source_of: Make, tmp_path: Path) -> None:
    def pictures(first: int, count: int) -> pa.Table:
        images = []
        for at in range(first, first + count):
            out = io.BytesIO()
            Image.fromarray(np.full((20, 20, 3), at, np.uint8)).save(out, "PNG")
            images.append(out.getvalue())
        schema = pa.schema([pa.field("id", pa.int64()), image_field("image")])
        return pa.table([np.arange(first, first + count), pa.array(images, pa.large_binary())], schema=schema)

    ds = write_dataset(store, "pictures", source_of(pictures(0, 40), ("id",)))
    loader = DataLoader(
        ds.cached(tmp_path / "cache", 64 << 20), 8, shuffle=True, follow=True, decoded_cache=True,
        transforms={"image": [DecodeImage()]}, num_workers=2,
    )  # fmt: skip
    for count in (40, 60):
        seen = [
            (row, image[..., 0, 0].flatten()) for batch in loader for row, image in zip(*batch.values(), strict=True)
        ]
        assert sorted(int(row) for row, _ in seen) == list(range(count))
        assert all(bool((image == row).all()) for row, image in seen)
        ds.append(pictures(40, 20)) if count == 40 else None


# -- states ----------------------------------------------------------------------------------------------------------


def test_a_state_finishes_its_epoch_on_its_own_version_and_then_follows(ds: Dataset) -> None:
    loader = DataLoader(ds, 500, follow=True, **OPTIONS)
    running = iter(loader)
    seen = rows([next(running), next(running)])
    state = json.loads(json.dumps(loader.state_dict()))
    ds.append(more(ROWS, 100))
    grown = ds.append(more(ROWS + 100, 100))
    for opened in (grown, ds):
        restored = DataLoader(opened, 500, follow=True, **OPTIONS)
        restored.load_state_dict(state)
        assert restored.state_dict() == state and len(restored) == 10
        assert seen + rows(restored) == epoch_of(ROWS, 0)
        assert rows(restored) == epoch_of(ROWS + 200, 1)
        assert restored.state_dict()["commit"] == grown.commit


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_newest(ds: Dataset) -> None:
    loader = DataLoader(ds, 500, follow=True, **OPTIONS)
    rows(loader)
    state = loader.state_dict()
    grown = ds.append(more(ROWS, 100))
    restored = DataLoader(grown, 500, follow=True, **OPTIONS)
    restored.load_state_dict(state)
    assert restored.state_dict() == state and rows(restored) == epoch_of(ROWS + 100, 1)


def test_a_loader_that_follows_pickles(ds: Dataset) -> None:
    loader = DataLoader(ds, 500, follow=True, **OPTIONS)
    rows(loader)
    ds.append(more(ROWS, 100))
    twin = pickle.loads(pickle.dumps(loader))  # noqa: S301
    assert rows(twin) == epoch_of(ROWS + 100, 1) and len(pickle.dumps(twin)) < 40_000


# -- what is refused -------------------------------------------------------------------------------------------------


def test_states_of_another_line_are_refused_by_name(ds: Dataset, store: Store, source_of: Make) -> None:
    side = ds.branch("side").append(more(ROWS, 50))
    other = write_dataset(store, "others", source_of(make_table(100), ("id",)))
    loader = DataLoader(ds, 500, follow=True, **OPTIONS)
    before = loader.state_dict()
    refused = [
        (DataLoader(side, 500, **OPTIONS).state_dict(), "samples@main is at version .* does not go on from"),
        (DataLoader(other, 50, **OPTIONS).state_dict(), "of dataset 'others'.* reads dataset 'samples'"),
        (
            {**before, "commit": "ab" * 32, "fingerprint": "ab" * 32},
            "version abababababab is not in .*forgotten, or never",
        ),
        ({**before, "commit": other.commit, "fingerprint": other.commit}, "does not go on from"),
        ({**before, "commit": "no digest", "fingerprint": "x"}, "a digest has 64 hex digits"),
    ]
    for state, message in refused:
        with pytest.raises(LoaderStateError, match=message):
            loader.load_state_dict(state)
        assert loader.state_dict() == before and loader.dataset.commit == ds.commit


@pytest.mark.parametrize("follow", [False, True])
def test_a_state_of_a_version_that_was_forgotten_and_collected_says_so(ds: Dataset, store: Store, follow: bool) -> None:
    loader = DataLoader(ds, 500, follow=follow, **OPTIONS)
    next(iter(loader))
    state = loader.state_dict()
    ds.append(more(ROWS, 10)).append(more(ROWS + 10, 10))
    grown = Dataset.open(store, "samples")
    forget_all_but(store, "dataset", "samples", 1)
    collect(store)
    later = DataLoader(grown, 500, follow=follow, **OPTIONS)
    with pytest.raises(
        LoaderStateError, match=r"of dataset 'samples'.* is not in .*forgotten.*lepton tag.*lepton pull"
    ):
        later.load_state_dict(state)
    assert len(rows(later)) == ROWS + 20


def test_forgetting_what_was_read_does_not_end_a_run_while_its_children_are_there(ds: Dataset, store: Store) -> None:
    loader = DataLoader(ds, 500, follow=True, **OPTIONS)
    rows(loader)
    grown = ds.append(more(ROWS, 10))
    forget_all_but(store, "dataset", "samples", 1)
    assert rows(loader) == epoch_of(ROWS + 10, 1) and descends(store, ds.commit, grown.commit)
    again = grown.append(more(ROWS + 10, 10))
    forget_all_but(store, "dataset", "samples", 1)
    collect(store)
    assert again.commit == loader.newest() and len(rows(loader)) == ROWS + 20


def test_a_branch_that_was_set_to_another_line_ends_the_run_by_name(ds: Dataset, store: Store) -> None:
    loader = DataLoader(ds.append(more(ROWS, 10)), 500, follow=True, **OPTIONS)
    next(iter(loader))
    before = loader.state_dict()
    head = store.state.refs["dataset/samples/main"].commit
    store.publish("reset", lambda state: (RefUpdate("dataset/samples/main", head, ds.commit),))
    with pytest.raises(BadInput, match=r"samples@main is at version .* does not go on from .*begin a new run"):
        iter(loader)
    delete_ref(store, "dataset", "samples", "main")
    with pytest.raises(NotFound, match="samples@main is gone, which was followed"):
        iter(loader)
    assert loader.state_dict() == before


def test_a_version_that_was_erased_is_refused(ds: Dataset, store: Store) -> None:
    loader = DataLoader(ds, 500, follow=True, **OPTIONS)
    next(iter(loader))
    state = loader.state_dict()
    ds.append(more(ROWS, 10))
    del loader
    erase(store, "samples", where="id = 7")
    later = DataLoader(Dataset.open(store, "samples"), 500, follow=True, **OPTIONS)
    with pytest.raises(LoaderStateError, match=r"was erased; [0-9a-f]{12} stands for it"):
        later.load_state_dict(state)
    assert len(rows(later)) == ROWS + 9


def test_what_never_grows_is_refused(ds: Dataset, store: Store) -> None:
    refused: list[tuple[Any, Any, str]] = [
        (ds.select(np.arange(10)), True, "this is a view of 10 rows of 'samples', which stay the same ones"),
        (Mixture({"a": (ds, 1)}), True, "a Mixture has fixed versions"),
        (ds.tag("v1"), True, "samples@v1 is no branch, so it never grows; branches of 'samples': main"),
        (Dataset.open(store, f"samples@{ds.commit}"), True, "is no branch"),
        (ds, "nightly", "samples@nightly is no branch"),
    ]
    for dataset, follow, message in refused:
        with pytest.raises((ValueError, BadInput), match=message):
            DataLoader(dataset, 500, follow=follow)
    with pytest.raises(ValueError, match="follow: only for a LeptonStore dataset"):
        DataLoader([1, 2, 3], follow=True)


def test_columns_that_change_are_refused_by_name(ds: Dataset) -> None:
    loader = DataLoader(ds, 500, follow=True)
    assert len(rows(loader)) == ROWS
    wider = ds.add_column("extra", pa.array(np.zeros(ROWS)))
    assert "extra" not in next(iter(loader))  # it began without
    without = wider.drop_columns(["label"])
    with pytest.raises(ValueError, match="dataset 'samples' has no column 'label'"):
        iter(loader)
    other = without.add_column("label", pa.array(np.zeros(ROWS, np.float32)))
    with pytest.raises(SchemaError, match=f"'label' is float32 .* in version {other.commit[:12]} of 'samples'"):
        iter(loader)
    named = class_label_field("label", [f"kind {at}" for at in range(7)])
    other.drop_columns(["label"]).add_column(named, pa.array(np.zeros(ROWS, np.uint8)))
    with pytest.raises(SchemaError, match="'label' names its classes otherwise"):
        iter(loader)


# -- several ranks ---------------------------------------------------------------------------------------------------


def test_ranks_without_torch_distributed_have_to_be_told(ds: Dataset) -> None:
    loaders = [DataLoader(ds, 500, follow=True, rank=rank, world_size=2, **OPTIONS) for rank in range(2)]
    with pytest.raises(ValueError, match=r"call follow_to\(commit\) on every rank"):
        iter(loaders[0])
    for epoch, count in enumerate((ROWS, ROWS + 200)):
        commit = loaders[0].newest()
        for loader in loaders:
            loader.follow_to(commit)
        steps = zip(*loaders, strict=True)
        assert rows(batch for step in steps for batch in step) == epoch_of(count, epoch)
        ds.append(more(ROWS, 200)) if not epoch else None
    for loader in loaders:
        loader.follow_to(ds.commit)  # back: no
        with pytest.raises(BadInput, match=r"is to be at version .* does not go on"):
            iter(loader)
