"""Clips of recordings from a store to a batch: bytes once, stretches of them by other columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("av")
torch = pytest.importorskip("torch")

from leptonstore.dataset import Dataset, Source, write_dataset  # noqa: E402
from leptonstore.errors import SourceError  # noqa: E402
from leptonstore.store import Store  # noqa: E402
from loaders import Bundle, DataLoader  # noqa: E402
from loaders.collate import pad, ragged  # noqa: E402
from loaders.transforms import DecodeAudio, DecodeVideo  # noqa: E402
from tests.unit.media_files import RATE, audio_file, numbers, sound, video_file  # noqa: E402

CLIPS = [(0.0, 0.5), (1.25, 0.25), (2.0, 1.0), (0.75, 0.5), (3.0, 0.125)]


@pytest.fixture
def ds(store: Store, source_of: Callable[..., Source]) -> Dataset:
    audio, video = audio_file("flac", "flac", sound(1)), video_file()
    kinds = {
        "id": pa.int64(),
        "audio": pa.large_binary(),
        "video": pa.large_binary(),
        "start_s": pa.float32(),
        "duration_s": pa.float64(),
        "times": pa.list_(pa.float64()),
        "label": pa.int8(),
    }
    rows = [
        {
            "id": row,
            "audio": audio,
            "video": video,
            "start_s": start,
            "duration_s": duration,
            "times": [start, start + duration],
            "label": row,
        }
        for row, (start, duration) in enumerate(CLIPS)
    ]
    return write_dataset(store, "clips", source_of(pa.Table.from_pylist(rows, pa.schema(kinds)), ("id",)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_clips_are_stretches_that_other_columns_tell(ds: Dataset, num_workers: int) -> None:
    clips = Bundle(ds, sound=("audio", "start_s", "duration_s"), scene=("video", "times"))
    loader = DataLoader(
        clips, 5, shuffle=True, num_workers=num_workers,
        transforms={
            "sound": [DecodeAudio(start="start_s", duration="duration_s", data="audio")],
            "scene": [DecodeVideo(at="times", data="video", size=(24, 32)), lambda frames: frames[:, ::2]],
        },
        collate={"sound": pad(0.0, extra="lengths")},
    )  # fmt: skip
    assert len(clips) == 5 and len(loader) == 1
    batch = next(iter(loader))
    assert list(batch) == ["id", "label", "sound", "scene"]
    assert batch["scene"].shape == (5, 2, 12, 32, 3) and batch["sound"]["values"].shape == (5, RATE)
    original = sound(1)[0]
    for place, row in enumerate(batch["label"].tolist()):
        start, duration = CLIPS[row]
        first, count = round(start * RATE), round(duration * RATE)
        assert int(batch["sound"]["lengths"][place]) == count
        part = batch["sound"]["values"][place, :count].numpy()
        np.testing.assert_allclose(part, original[first : first + count], atol=1e-4)
    assert loader.state_dict()["fingerprint"] == ds.fingerprint


def test_a_bundle_is_a_dataset_of_torch_too(ds: Dataset) -> None:
    clips = Bundle(ds, sound=("audio", "start_s"))
    rows = next(iter(torch.utils.data.DataLoader(clips, 5, collate_fn=list)))
    assert list(rows[1]) == ["id", "video", "duration_s", "times", "label", "sound"]
    assert rows[1]["sound"] == {"audio": ds[1]["audio"], "start_s": 1.25} == clips[1]["sound"]
    picked = next(iter(DataLoader(clips, 2, columns=["start_s", "sound"])))
    assert picked["start_s"].tolist() == [0.0, 1.25] == picked["sound"]["start_s"].tolist()
    seen = next(iter(DataLoader(clips, 2, columns=["sound"], transforms={"sound": [len]})))
    assert seen["sound"].tolist() == [2, 2]


def test_what_is_wrong_with_a_clip_names_its_row(ds: Dataset) -> None:
    clips = Bundle(ds, sound=("video", "start_s"))
    for data, message in (("audio", "no field 'audio'"), ("video", "no audio stream")):
        loader = DataLoader(clips, 2, columns=["sound"], transforms={"sound": [DecodeAudio(data=data)]})
        with pytest.raises(SourceError, match=message) as caught:
            next(iter(loader))
        assert any("clips" in note and "row 0" in note and "'sound'" in note for note in caught.value.__notes__)


def test_bundles_that_cannot_be_are_refused(ds: Dataset) -> None:
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: Bundle([1], a=("b",)), "not of a list"),
        (lambda: Bundle(ds), "name the columns"),
        (lambda: Bundle(ds, clip=()), r"Bundle\(clip\)"),
        (lambda: DataLoader(Bundle(ds, clip=("nope",))), "no column 'nope'"),
        (lambda: DataLoader(Bundle(ds, label=("audio",))), "a column 'label' already"),
        (lambda: DataLoader(Bundle(ds, clip=("audio",)), columns=["clap"]), "no column 'clap'"),
    ]
    for make, message in refused:
        with pytest.raises(ValueError, match=message):
            make()


def test_ragged_clips(ds: Dataset) -> None:
    clips = Bundle(ds, sound=("audio", "start_s", "duration_s"))
    decode = DecodeAudio(8_000, start="start_s", duration="duration_s", data="audio")
    loader = DataLoader(clips, 5, columns=["sound"], transforms={"sound": [decode]}, collate={"sound": ragged()})
    offsets = next(iter(loader))["sound"]["offsets"]
    assert offsets.diff().tolist() == [round(duration * 8_000) for _, duration in CLIPS]


def test_frames_of_a_struct_column(store: Store, source_of: Callable[..., Source]) -> None:
    kind = pa.struct([("data", pa.large_binary()), ("at", pa.list_(pa.float32()))])
    table = pa.table({"id": [0, 1], "clip": pa.array([{"data": video_file(), "at": [1.0, 7.9]}] * 2, kind)})
    ds = write_dataset(store, "videos", source_of(table, ("id",)))
    batch = next(iter(DataLoader(ds, 2, transforms={"clip": [DecodeVideo(at="at")]})))
    assert numbers(batch["clip"][1].numpy()) == [10, 79]
