"""Rows that follow one another in time, as one sample: no window crosses a recording or a lost frame."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from loaders import DataLoader, LoaderStateError, RowWindows, Timeline, Track  # noqa: E402
from loaders.transforms import DecodeImage, Each, RandomCrop  # noqa: E402

Make = Callable[..., Source]
FRAMES = 30
LOST = {("one", 7), ("one", 8), ("two", 20)}


def png(number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = number, np.arange(8)[:, None], np.arange(8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def frames(store: Store, source_of: Make) -> Dataset:
    """Two drives whose times overlap, shuffled, some frames lost."""
    rows = [(drive, n * 100, n) for drive in ("one", "two") for n in range(FRAMES) if (drive, n) not in LOST]
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    rows = [(str(drive), int(t), int(n)) for drive, t, n in rows]
    table = pa.table(
        {
            "drive": [row[0] for row in rows],
            "t": [row[1] for row in rows],
            "image": pa.array([png(row[2]) for row in rows], pa.large_binary()),
            "speed": pa.array([[row[2], 0.5] for row in rows], pa.list_(pa.float32(), 2)),
        }
    )
    return write_dataset(store, "frames", source_of(table, ("drive", "t")))


def clips(frames: Dataset, **options: Any) -> RowWindows:
    return RowWindows(frames, **{"length": 4, "time": "t", "group": "drive", "gap_max": 150, **options})


def test_windows_are_neighbours_of_one_drive(frames: Dataset) -> None:
    some = clips(frames)
    batches = list(DataLoader(some, 8, shuffle=True, transforms={"image": [Each(DecodeImage())]}, num_workers=2))
    found = set()
    for batch in batches:
        for place, drives in enumerate(batch["drive"]):
            times = batch["t"][place].tolist()
            assert len(set(drives)) == 1 and np.diff(times).tolist() == [100, 100, 100]
            assert batch["image"].shape[1:] == (4, 8, 8, 3) and batch["image"].dtype == torch.uint8
            assert batch["image"][place, :, 0, 0, 0].tolist() == [t // 100 for t in times]
            assert batch["speed"][place].tolist() == [[t / 100, 0.5] for t in times]
            found.add((drives[0], times[0] // 100))
    whole = {(drive, n) for drive in ("one", "two") for n in range(FRAMES - 3)}
    wanted = {(drive, n) for drive, n in whole if not LOST & {(drive, n + k) for k in range(4)}}
    assert found == wanted and len(some) == len(wanted) == sum(len(batch["t"]) for batch in batches)
    # Without the limit a window would stretch over the hole; that is what the gaps cost.
    assert some.dropped == len(clips(frames, gap_max=None)) - len(some) > 0


def test_the_position_is_kept_and_other_windows_are_told_apart(frames: Dataset) -> None:
    loader = DataLoader(clips(frames), 5, shuffle=True, columns=["t"])
    batches = [batch["t"].tolist() for batch in loader]
    first = DataLoader(clips(frames), 5, shuffle=True, columns=["t"])
    iterator = iter(first)
    for _ in range(2):
        next(iterator)
    again = DataLoader(pickle.loads(pickle.dumps(clips(frames))), 5, shuffle=True, columns=["t"])  # noqa: S301
    again.load_state_dict(first.state_dict())
    assert [batch["t"].tolist() for batch in again] == batches[2:]
    with pytest.raises(LoaderStateError):
        DataLoader(clips(frames, stride=2), 5, shuffle=True, columns=["t"]).load_state_dict(first.state_dict())


def test_windows_of_a_timeline_and_of_a_view(frames: Dataset) -> None:
    moments = Timeline({"camera": Track(frames, "t", columns=["drive", "t"])}, reference="camera", group="drive")
    some = RowWindows(moments, length=3, time="camera.t", group="camera.drive", gap_max=150, stride=3)
    starts = [(row["camera.drive"][0], row["camera.t"][0].item()) for row in (some[at] for at in range(len(some)))]
    assert ("one", 0) in starts and ("one", 900) in starts and ("one", 300) in starts and ("one", 600) not in starts
    view = frames.filter("t < 300")
    assert (
        len(clips(view, length=3)) == 2 and len(clips(view, length=4)) == 0 and list(DataLoader(clips(view), 2)) == []
    )


def test_random_steps_draw_alike_for_all_values_of_a_window(frames: Dataset) -> None:
    crop = Each(DecodeImage(), RandomCrop(4))
    seen = set()
    for batch in DataLoader(clips(frames), 8, transforms={"image": [crop]}):
        corners = batch["image"][:, :, 0, 0, 1:]
        assert (corners == corners[:, :1]).all()
        seen |= {tuple(corner) for corner in corners[:, 0].tolist()}
    assert len(seen) > 5
    assert not crop.deterministic and Each(DecodeImage()).deterministic and Each(DecodeImage()).threads
    assert Each(len)(["a", "bc"]) == [1, 2]


def test_what_does_not_fit_is_named(frames: Dataset) -> None:
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: clips(frames, length=0), "length of windows"),
        (lambda: clips(frames, stride=0), "stride of windows"),
        (lambda: RowWindows([1, 2], length=2, time="t"), "not of a list"),
        (lambda: len(clips(frames, time="drive")), "no single number in each row"),
        (lambda: len(clips(frames, group="car")), "no column 'car'"),
        (lambda: DataLoader(clips(frames), 2, columns=["x"]), "no column 'x'"),
    ]
    for make, message in refused:
        with pytest.raises(ValueError, match=message):
            make()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20)), max_size=20),
    st.integers(1, 4),
    st.integers(1, 3),
    st.none() | st.integers(0, 5),
)
def test_windows_are_those_of_a_walk_through_the_sorted_rows(
    store: Store, source_of: Make, rows: list[tuple[str, int]], length: int, stride: int, gap: int | None
) -> None:
    table = pa.table(
        {"g": pa.array([g for g, _ in rows], pa.string()), "t": pa.array([t for _, t in rows], pa.int64())}
    )
    ds = write_dataset(store, "walked", source_of(table, ("g", "t")))
    runs: list[list[int]] = []
    for group in "ab":
        before: int | None = None
        for row in sorted((n for n in range(len(rows)) if rows[n][0] == group), key=lambda n: rows[n][1]):
            t = rows[row][1]
            if before is None or (gap is not None and t - before > gap):
                runs.append([])
            runs[-1].append(row)
            before = t
    wanted = [run[at : at + length] for run in runs for at in range(0, len(run) - length + 1, stride)]
    some = RowWindows(ds, length=length, time="t", group="g", stride=stride, gap_max=gap)
    assert sorted(some.rows_of(np.arange(len(some))).tolist()) == sorted(wanted)
