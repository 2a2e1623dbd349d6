"""Images through DataLoader: pixels hang on (seed, epoch, position) alone, with and without the decoded-column cache."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from leptonstore.dataset import Dataset, Source, write_dataset  # noqa: E402
from leptonstore.errors import SourceError  # noqa: E402
from leptonstore.store import Store  # noqa: E402
from loaders import DataLoader  # noqa: E402
from loaders.decoded import DecodedColumns  # noqa: E402
from loaders.source import ColumnSource  # noqa: E402
from loaders.transforms import (  # noqa: E402
    DecodeImage,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    decode,
)
from tests.integration.test_decoded_cache import BUDGET, ROWS, table  # noqa: E402

CHAIN: list[Any] = [
    DecodeImage(),
    Resize(40),
    RandomResizedCrop(24),
    RandomHorizontalFlip(),
    Normalize([0.5] * 3, [0.2] * 3),
]
Make = Callable[..., Source]
COMMON: dict[str, Any] = {"shuffle": True, "seed": 3, "columns": ["id", "image"], "transforms": {"image": CHAIN}}


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "pictures", source_of(table(), ("id",)))


def epoch_of(loaders: list[Any]) -> dict[int, bytes]:
    """id -> pixels, over all ranks."""
    found: dict[int, bytes] = {}
    for batch in chain.from_iterable(loaders):
        assert batch["image"].dtype == torch.float32 and batch["image"].shape[1:] == (3, 24, 24)
        for row, image in zip(batch["id"].tolist(), batch["image"], strict=True):
            assert row not in found
            found[row] = image.numpy().tobytes()
    assert len(found) == ROWS
    return found


def test_pixels_are_the_same_for_any_workers_batches_and_ranks(ds: Dataset) -> None:
    first = DataLoader(ds, 8, **COMMON)
    expected = [epoch_of([first]) for _ in range(2)]
    assert expected[0] != expected[1], "another epoch is augmented anew"
    for workers, batch, world_size in ((2, 8, 1), (2, 1, 1), (1, 20, 1), (0, 12, 3), (2, 10, 2)):
        ranks = [
            DataLoader(ds, global_batch_size=batch, num_workers=workers, rank=rank, world_size=world_size, **COMMON)
            for rank in range(world_size)
        ]
        for epoch in range(2):
            assert epoch_of(ranks) == expected[epoch], (workers, batch, world_size, epoch)


def test_a_restored_loader_augments_as_the_first(ds: Dataset) -> None:
    batches = list(DataLoader(ds, 16, **COMMON))
    half = DataLoader(ds, 16, **COMMON)
    iterator = iter(half)
    next(iterator), next(iterator)
    other = DataLoader(ds, 16, num_workers=2, **COMMON)
    other.load_state_dict(half.state_dict())
    for one, two in zip(other, batches[2:], strict=True):
        assert torch.equal(one["id"], two["id"]) and torch.equal(one["image"], two["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_decoded_cache_changes_no_pixel_and_spares_all_decoding(
    ds: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    plain = DataLoader(ds, 8, **COMMON)
    cached = ds.cached(tmp_path / "cache", BUDGET)
    loader = DataLoader(cached, 8, num_workers=workers, decoded_cache=True, **COMMON)
    decoded: list[int] = []
    real = decode.decode
    monkeypatch.setattr(decode, "decode", lambda *given: (decoded.append(1), real(*given))[1])
    counts = []
    for _ in range(3):
        expected = epoch_of([plain])
        decoded.clear()
        assert epoch_of([loader]) == expected
        counts.append(len(decoded))
    assert counts == [ROWS, 0, 0]


def test_the_cache_may_come_and_go_in_a_run(ds: Dataset, tmp_path: Path) -> None:
    """It is no part of the state: what began without it goes on with it."""
    first = DataLoader(ds, 16, **COMMON)
    expected = list(first)
    first.set_epoch(0)
    iterator = iter(first)
    next(iterator)
    cached = ds.cached(tmp_path / "cache", BUDGET)
    other = DataLoader(cached, 16, num_workers=2, decoded_cache=True, **COMMON)
    other.load_state_dict(first.state_dict())
    assert all(torch.equal(one["image"], two["image"]) for one, two in zip(other, expected[1:], strict=True))


def test_a_corrupt_image_is_named(store: Store, source_of: Make) -> None:
    made = table(12)
    images = made["image"].to_pylist()
    images[7] = images[7][:700]

    bad = made.set_column(1, made.schema.field("image"), pa.array(images, pa.large_binary()))
    ds = write_dataset(store, "bad", source_of(bad, ("id",)))
    options = {**COMMON, "shuffle": False}
    with pytest.raises(SourceError, match="the image is damaged") as caught:
        list(DataLoader(ds, 4, **options))
    told = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "row 7" in told and "'image'" in told and "bad" in told
    seen = _faults(ds, {**options, "policy": "skip"})
    assert [(fault[1], fault[2], fault[3]) for fault in seen] == [(7, "image", "skip")]


def _faults(ds: Dataset, options: dict[str, Any]) -> list[tuple[Any, ...]]:
    faults: list[tuple[Any, ...]] = []
    list(DataLoader(ds, 4, on_fault=lambda *fault: faults.append(fault), **options))
    return faults


def test_decoded_cache_without_a_cache_is_refused(ds: Dataset) -> None:
    with pytest.raises(ValueError, match=r"not read through a hot cache: use dataset\.cached"):
        DataLoader(ds, 8, decoded_cache=True, **COMMON)
    with pytest.raises(ValueError, match="decoded_cache and collate_fn exclude each other"):
        DataLoader(ds, 8, decoded_cache=True, collate_fn=list)


def test_without_transforms_there_is_nothing_to_keep(ds: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decoded_cache keeps what"):
        DataLoader(ds.cached(tmp_path / "cache", BUDGET), 8, decoded_cache=True)
    assert np.asarray(next(iter(DataLoader(ds, 2, columns=["id"])))["id"]).tolist() == [0, 1]


def test_worker_processes_make_the_same_pixels_and_share_the_cache(ds: Dataset, tmp_path: Path) -> None:
    plain = DataLoader(ds, 8, **COMMON)
    expected = [epoch_of([plain]) for _ in range(2)]
    cached = ds.cached(tmp_path / "cache", BUDGET)
    options: dict[str, Any] = {"num_workers": 2, "worker_mode": "process", **COMMON}
    for loader in (DataLoader(ds, 16, **options), DataLoader(cached, 16, decoded_cache=True, **options)):
        assert [epoch_of([loader]) for _ in range(2)] == expected
    source = ColumnSource(cached, ["image"])
    found = DecodedColumns(source, {"image": CHAIN}, {}).of(source).gather(np.arange(ROWS))["image"]
    assert all(isinstance(value, np.ndarray) for value in found), "what the workers decoded lies in the cache"
