"""Sensors aligned on their timestamps: a camera, a lidar whose clouds vary in size, and poses; from stores to a batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import tensor_field
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, LoaderStateError, Timeline, Track  # noqa: E402
from loaders.collate import ragged  # noqa: E402
from loaders.matching import Match, Stamps, pairs_of  # noqa: E402

Make = Callable[..., Source]
MS = 1_000_000
FRAMES, SWEEPS = 40, 15
CLOUD = pa.list_(pa.list_(pa.float32(), 4))


def cloud(sweep: int) -> np.ndarray:
    return np.random.default_rng(sweep).normal(size=(3 + sweep * 7 % 11, 4)).astype(np.float32)


def turn(angle: float) -> list[float]:
    """The quaternion of a turn about z."""
    return [float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))]


@pytest.fixture
def tracks(store: Store, source_of: Make) -> dict[str, Dataset]:
    """A camera at 30 Hz, a lidar at 10 Hz that begins 40 ms later, poses at 100 Hz; in two drives, whose times overlap."""
    frames, sweeps, poses = [], [], []
    for drive in ("one", "two"):
        shift = 0 if drive == "one" else 7 * MS
        frames += [(drive, shift + number * 100 * MS // 3, number) for number in range(FRAMES)]
        sweeps += [(drive, shift + 40 * MS + number * 100 * MS, number) for number in range(SWEEPS)]
        poses += [(drive, shift + number * 10 * MS, number) for number in range(150)]
    rng = np.random.default_rng(0)
    for rows in (frames, sweeps, poses):
        rng.shuffle(rows)  # type: ignore[arg-type]

    def written(name: str, rows: list[Any], extra: dict[str, pa.Array], fields: list[pa.Field]) -> Dataset:
        columns = [pa.array([str(row[0]) for row in rows]), pa.array([int(row[1]) for row in rows]), *extra.values()]
        schema = pa.schema([pa.field("drive", pa.string()), pa.field("t", pa.int64()), *fields])
        return write_dataset(store, name, source_of(pa.table(columns, schema=schema), ("drive", "t")))

    pixels = pa.array(np.repeat(np.array([int(row[2]) for row in frames], np.uint8), 12))
    image = tensor_field("image", pa.uint8(), (2, 2, 3), "image")
    images = pa.ExtensionArray.from_storage(image.type, pa.FixedSizeListArray.from_arrays(pixels, 12))
    clouds = pa.array([cloud(int(row[2])).tolist() for row in sweeps], CLOUD)
    xyz = pa.array([[int(row[2]), 0.0, -int(row[2])] for row in poses], pa.list_(pa.float32(), 3))
    turns = pa.array([turn(int(row[2]) / 100) for row in poses], pa.list_(pa.float64(), 4))
    return {
        "camera": written("camera", frames, {"image": images}, [image]),
        "lidar": written("lidar", sweeps, {"points": clouds}, [pa.field("points", CLOUD)]),
        "pose": written(
            "pose", poses, {"xyz": xyz, "turn": turns}, [pa.field("xyz", xyz.type), pa.field("turn", turns.type)]
        ),
    }


def timeline(tracks: dict[str, Dataset], **options: Any) -> Timeline:
    return Timeline(
        {
            "camera": Track(tracks["camera"], "t"),
            "lidar": Track(tracks["lidar"], "t", tolerance=50 * MS),
            "pose": Track(tracks["pose"], "t", match="linear", columns=["t", "xyz", "turn"], rotations=("turn",)),
        },
        reference="camera",
        group="drive",
        **options,
    )


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"arena_bytes_max": 0}])
def test_a_moment_is_a_frame_with_the_cloud_and_the_pose_of_its_time(
    tracks: dict[str, Dataset], options: dict[str, Any]
) -> None:
    drive = timeline(tracks)
    loader = DataLoader(drive, 16, shuffle=True, collate={"lidar.points": ragged()}, **options)
    seen = 0
    for batch in loader:
        bounds = batch["lidar.points"]["offsets"].tolist()
        for place, (name, time) in enumerate(zip(batch["camera.drive"], batch["camera.t"].tolist(), strict=True)):
            since = time - (0 if name == "one" else 7 * MS)
            frame = round(since * 3 / (100 * MS))
            assert batch["camera.image"][place].unique().tolist() == [frame]
            assert batch["lidar.drive"][place] == name
            sweep = int(np.argmin([abs(since - 40 * MS - number * 100 * MS) for number in range(SWEEPS)]))
            points = batch["lidar.points"]["values"][bounds[place] : bounds[place + 1]]
            np.testing.assert_array_equal(points, cloud(sweep))
            assert abs(int(batch["lidar.t"][place]) - time) <= 50 * MS
            at = since / (10 * MS)
            np.testing.assert_allclose(batch["pose.xyz"][place], [at, 0, -at], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(batch["pose.turn"][place], turn(at / 100), atol=1e-12)
            assert batch["pose.turn"].dtype == torch.float64 and batch["pose.xyz"].dtype == torch.float32
            seen += 1
    assert seen == len(drive) and seen + drive.dropped == 2 * FRAMES
    assert drive.dropped == 0 or all(
        abs(row["lidar.t"] - row["camera.t"]) <= 50 * MS for row in (drive[at] for at in range(len(drive)))
    )


def test_moments_without_a_match_are_left_out_or_refused(tracks: dict[str, Dataset]) -> None:
    def close(tolerance: int, **options: Any) -> Timeline:
        lidar = Track(tracks["lidar"], "t", tolerance=tolerance, columns=["t"])
        return Timeline(
            {"camera": Track(tracks["camera"], "t"), "lidar": lidar}, reference="camera", group="drive", **options
        )

    drive = close(7 * MS)
    expected = sum(
        min(abs(frame * 100 * MS // 3 - 40 * MS - sweep * 100 * MS) for sweep in range(SWEEPS)) <= 7 * MS
        for frame in range(FRAMES)
    )
    assert 0 < len(drive) == 2 * expected and drive.dropped == 2 * (FRAMES - expected)
    for row in (drive[0], drive[-1]):
        assert abs(row["lidar.t"] - row["camera.t"]) <= 7 * MS
    with pytest.raises(ValueError, match=r"moments of track 'camera' have no match.*larger tolerance"):
        len(close(7 * MS, missing="raise"))
    assert len(close(0)) == 0 and list(DataLoader(close(0), 4)) == []


def test_a_timeline_resumes_and_is_told_from_others(tracks: dict[str, Dataset]) -> None:
    loader = DataLoader(timeline(tracks), 10, shuffle=True, seed=2, columns=["camera.t"])
    batches = [batch["camera.t"].tolist() for batch in loader]
    first = DataLoader(timeline(tracks), 10, shuffle=True, seed=2, columns=["camera.t"])
    iterator = iter(first)
    assert [next(iterator)["camera.t"].tolist() for _ in range(3)] == batches[:3]
    again = DataLoader(pickle.loads(pickle.dumps(timeline(tracks))), 10, shuffle=True, seed=2, columns=["camera.t"])  # noqa: S301
    again.load_state_dict(first.state_dict())
    assert [batch["camera.t"].tolist() for batch in again] == batches[3:]
    other = Timeline({"camera": Track(tracks["camera"], "t")}, reference="camera")
    with pytest.raises(LoaderStateError):
        DataLoader(other, 10, shuffle=True, seed=2, columns=["camera.t"]).load_state_dict(first.state_dict())


def test_a_timeline_is_a_dataset_of_torch_too(tracks: dict[str, Dataset]) -> None:
    drive = timeline(tracks)
    rows = next(iter(torch.utils.data.DataLoader(drive, 5, collate_fn=list)))
    batch = next(iter(DataLoader(drive, 5)))
    assert [row["camera.t"] for row in rows] == batch["camera.t"].tolist()
    assert [row["lidar.points"].tolist() for row in rows] == [points.tolist() for points in batch["lidar.points"]]


def test_tracks_that_do_not_fit_are_named(tracks: dict[str, Dataset], store: Store, source_of: Make) -> None:
    table = pa.table({"t": pa.array([1.0, None]), "s": pa.array([0, 1], pa.timestamp("ns")), "drive": ["one", "one"]})
    odd = write_dataset(store, "odd", source_of(table, ("drive",)))
    camera = Track(tracks["camera"], "t")

    def pair(track: Track, **options: Any) -> Callable[[], Any]:
        return lambda: len(Timeline({"camera": camera, "x": track}, reference="camera", **options))

    lidar = tracks["lidar"]
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: Timeline({"camera": camera}, reference="lidar"), "no column 'lidar'|have no .*'lidar'"),
        (pair(Track(lidar, "time")), "rows of track 'x' have no column 'time'; they have drive, t, points"),
        (pair(Track(lidar, "t"), group="car"), "no column 'car'"),
        (pair(Track(lidar, "drive")), "has type string, and times are"),
        (pair(Track(odd, "t")), "nulls or NaN"),
        (pair(Track(odd, "s")), r"times of track 'x' are timestamp\[ns\] and those of 'camera' integers"),
        (pair(Track(lidar, "t", match="closest")), "match='closest' is none of"),  # type: ignore[arg-type]
        (pair(Track(lidar, "t", tolerance=-1)), "tolerance=-1"),
        (pair(Track(lidar, "t", rotations=("points",))), "rotations= are for"),
        (pair(Track(lidar, "t"), missing="keep"), "missing='keep'"),
    ]
    for make, message in refused:
        with pytest.raises(ValueError, match=message):
            make()
    linear = Timeline({"camera": camera, "lidar": Track(lidar, "t", match="linear")}, reference="camera", group="drive")
    with pytest.raises(ValueError, match=r"'drive' has no floats: name the columns"):
        DataLoader(linear, 4)
    with pytest.raises(ValueError, match=r"no column 'camera.x'"):
        DataLoader(linear, 4, columns=["camera.x"])


# -- finding rows, against the simplest thing that says the same ---------------------------------------------------------

MOMENTS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab")), max_size=12)


def keys(rows: list[tuple[int, str]], grouped: bool) -> Stamps:
    times = np.array([time for time, _ in rows], np.int64)
    groups = pa.chunked_array([[group for _, group in rows]], pa.string())
    return Stamps(times, groups if grouped else None, "integers")


@given(MOMENTS, MOMENTS, st.booleans(), st.sampled_from(["nearest", "previous", "next", "linear"]))
def test_matches_are_those_of_a_search_through_all_rows(
    here: list[tuple[int, str]], there: list[tuple[int, str]], grouped: bool, match: Match
) -> None:
    pairs = pairs_of(keys(here, grouped), keys(there, grouped), match)
    for moment, (time, group) in enumerate(here):
        rows = [row for row, (_, other) in enumerate(there) if other == group or not grouped]
        times = [there[row][0] for row in rows]
        earlier, later = [t for t in times if t <= time], [t for t in times if t >= time]
        found = int(pairs.before[moment])
        if match == "nearest":
            wanted = min(times, key=lambda t: (abs(t - time), t), default=None)
        elif match == "previous":
            wanted = max(earlier, default=None)
        elif match == "next":
            wanted = min(later, default=None)
        else:
            wanted = max(earlier, default=None) if earlier and later else None
            if wanted is not None:
                after = there[int(pairs.after[moment])][0]
                assert after == min(later) and pairs.weights is not None
                weight = (time - wanted) / (after - wanted) if after > wanted else 0
                assert pairs.weights[moment] == pytest.approx(weight)
        assert (found < 0) == (wanted is None)
        if wanted is not None:
            assert found in rows and there[found][0] == wanted
