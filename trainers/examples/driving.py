"""Drives of a car: several sensors, one store, aligned windows, training, checks. `python -m trainers.examples.driving --help`

Four sensors and their calibration are five datasets of one store (`frames`, `sweeps`, `poses`, `imu`, `rig`), each with a line of commits
of its own, and a tag for what belongs together: JPEGs, clouds of varying size, numbers at 20 and 100 a second, matrices.
(trainers.examples.scenes draws them.)

    clocks     a column `time_ns`: the sensor's own time, corrected by how much its clock is off. The smallest (arrival - own time) of a
               drive is the least latency, which the calibration knows, less the offset.
    aligned    loaders.Timeline: a frame, the sweep next to it, pose and IMU in between, per drive
    windows    loaders.RowWindows: WINDOW frames in a row, never across a drive or a lost frame
    model      the curvature that is driven, from frames and points; it sees no pose and no IMU
    checked    on drives that training never saw, beside the mean curvature of training; and points, moved by calibration and poses into
               the camera, must lie on the posts that they came from: with the clocks put right they do, with the raw ones they do not
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainers.examples.common import better, options, step, store_in
from trainers.examples.scenes import HEIGHT, INTRINSICS, LATENCY_NS, MOUNTS, RATES, WIDTH, Drive, drive
from trainers.examples.steering import Joined, steering_model

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset
    from leptonstore.store import Store
    from loaders import RowWindows, Timeline

MS = 1_000_000
DATASETS = {"camera": "frames", "lidar": "sweeps", "pose": "poses", "imu": "imu"}
WINDOW, GAP_MAX = 3, 150 * MS  # frames of a sample; neighbours further apart have lost one between them
POINTS = pa.list_(pa.list_(pa.float32(), 4))
ON_POSTS_MIN = 0.8  # of the points of posts; what lies beside is the edge of a pixel
HELD_OUT = 4  # every fourth drive is for validation


@click.command()
@options("driving")
def main(workdir: Path, place: Path | None, quick: bool) -> None:
    """Predict the steering of a car from camera and lidar, aligned by their timestamps."""
    with store_in(workdir, place) as store:
        found = run(store, quick)
    for line in found["lines"]:
        click.echo(line)


def run(store: Store, quick: bool = False) -> dict[str, Any]:
    """The whole road. Returns scores and counts. Raises ClickException when a check does not hold."""
    suffix = "-quick" if quick else ""
    drives = step(
        "render",
        lambda: [drive(number, 8.0 if quick else 20.0) for number in range(4 if quick else 8)],
        lambda made: f"{len(made)} drives, {sum(len(one.messages['camera']['image']) for one in made):,} frames",
    )
    raw = step(
        "store",
        lambda: write_drives(store, drives, suffix),
        lambda made: ", ".join(f"{len(ds):,} {ds.name}" for ds in made.values()),
    )
    offsets = step(
        "clocks",
        lambda: {sensor: clock_offsets(raw[sensor], raw["rig"], sensor) for sensor in DATASETS},
        lambda found: f"lidar ahead by {shown_ms(found['lidar'])} ms",
    )
    data = {sensor: timed(raw[sensor], offsets[sensor], sensor) for sensor in DATASETS} | {"rig": raw["rig"]}
    on_posts = step(
        "project",
        lambda: points_on_posts(data["camera"], posed(data["lidar"], data["pose"]), data["pose"]),
        lambda share: f"{share:.1%} of the points of posts lie on posts",
    )
    # On a branch, the same sweeps as if their clocks were right: a commit that shares all points.
    naive = timed(raw["lidar"], dict.fromkeys(offsets["lidar"], 0), "lidar", branch="raw-clocks")
    off_posts = points_on_posts(data["camera"], posed(naive, data["pose"]), data["pose"])
    parts = {split: windows(aligned(data, split)) for split in ("train", "val")}
    lines = [
        *missing(drives, data, parts),
        f"points on posts {on_posts:.1%}, with the clocks as they were {off_posts:.1%}",
    ]
    if on_posts < ON_POSTS_MIN or off_posts > on_posts - 0.2:
        raise click.ClickException(f"camera and lidar do not fit: {lines[-1]}")
    off = max(abs(offsets["lidar"][one.name] - one.lidar_ahead_ns) for one in drives)
    lines.append(f"clocks of the lidar found to {off / MS:.2f} ms")
    model = step("train", lambda: trained(parts["train"], data["rig"], 10 if quick else 6), lambda _: "steering")
    error, baseline = errors(model, parts, data["rig"])
    lines.append(better("error of curvature, 1/km:", error, baseline, "the mean of the training drives", lower=True))
    return {
        "lines": lines,
        "error": error,
        "baseline": baseline,
        "on_posts": on_posts,
        "off_posts": off_posts,
        "clock_error_ms": off / MS,
        "windows": {name: len(one) for name, one in parts.items()},
    }


# -- the store -----------------------------------------------------------------------------------------------------------


def write_drives(store: Store, drives: list[Drive], suffix: str = "") -> dict[str, Dataset]:
    """A dataset for each sensor, and `rig`, the calibration; all tagged "raw". What is there already is opened."""
    from leptonstore.dataset import Dataset, list_refs

    made: dict[str, Dataset] = {}
    tables = {sensor: _table(sensor, drives) for sensor in DATASETS} | {"rig": _rig(drives)}
    for sensor, table in tables.items():
        name = f"{DATASETS.get(sensor, sensor)}{suffix}"
        if not any(info.branch == "raw" for info in list_refs(store, "dataset", name)):
            key = ("drive", "sensor") if sensor == "rig" else ("drive", "number")
            Dataset.create(store, name, table, key, f"{len(drives)} drives").tag("raw")
        made[sensor] = Dataset.open(store, f"{name}@raw")
    return made


def _table(sensor: str, drives: list[Drive]) -> pa.Table:
    from leptonstore.dataset.schema import class_label_field, image_field

    own = {
        "camera": [image_field("image", "jpeg")],
        "lidar": [pa.field("points", POINTS, nullable=False)],
        "pose": [
            pa.field(name, pa.list_(pa.float64(), size), nullable=False) for name, size in (("xyz", 3), ("rotation", 4))
        ],
        "imu": [pa.field(name, pa.float32(), nullable=False) for name in ("yaw_rate", "speed")],
    }[sensor]
    split = class_label_field("split", ["train", "val"])
    numbers = [pa.field(name, pa.int64(), nullable=False) for name in ("number", "device_ns", "arrival_ns")]
    schema = pa.schema([pa.field("drive", pa.string(), nullable=False), split, *numbers, *own])
    parts = []
    for at, one in enumerate(drives):
        messages = one.messages[sensor]
        count = len(messages["number"])
        named: dict[str, list[Any]] = {
            "drive": [one.name] * count,
            "split": [int(at % HELD_OUT == HELD_OUT - 1)] * count,
        }
        columns = named | messages
        parts.append(pa.table([_array(columns[field.name], field.type) for field in schema], schema=schema))
    return pa.concat_tables(parts)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind != POINTS:
        return pa.array(values, kind)
    offsets = np.cumsum([0, *map(len, values)])
    inner = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(values).ravel()), 4)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner).cast(kind)


def _rig(drives: list[Drive]) -> pa.Table:
    """What is known of each sensor: where it is mounted, its lens, its rate, its least latency."""
    from leptonstore.dataset.schema import tensor_field

    rows = [(one.name, sensor) for one in drives for sensor in DATASETS]
    mount, lens = tensor_field("mount", pa.float64(), (4, 4)), tensor_field("intrinsics", pa.float64(), (3, 3))
    named = [pa.field(name, pa.string(), nullable=False) for name in ("drive", "sensor")]
    schema = pa.schema([*named, mount, lens, pa.field("rate_hz", pa.int32()), pa.field("latency_ns", pa.int64())])

    def tensors(field: pa.Field, values: list[NDArray[np.float64]]) -> pa.Array:
        flat = pa.array(np.concatenate([one.ravel() for one in values]))
        return pa.ExtensionArray.from_storage(field.type, pa.FixedSizeListArray.from_arrays(flat, values[0].size))

    columns = [
        [name for name, _ in rows],
        [sensor for _, sensor in rows],
        tensors(mount, [MOUNTS[sensor] for _, sensor in rows]),
        tensors(lens, [INTRINSICS if sensor == "camera" else np.zeros((3, 3)) for _, sensor in rows]),
        [RATES[sensor] for _, sensor in rows],
        [LATENCY_NS[sensor] for _, sensor in rows],
    ]
    return pa.table([pa.array(column) if isinstance(column, list) else column for column in columns], schema=schema)


# -- clocks --------------------------------------------------------------------------------------------------------------


def clock_offsets(messages: Dataset, rig: Dataset, sensor: str) -> dict[str, int]:
    """Drive -> by how many ns the sensor's clock is ahead of the vehicle's. The fastest message of a drive took its least latency."""
    latency = {
        row["drive"]: row["latency_ns"]
        for row in rig.filter(f"sensor = '{sensor}'").to_arrow(["drive", "latency_ns"]).to_pylist()
    }
    table = messages.to_arrow(["drive", "device_ns", "arrival_ns"])
    fastest = pa.table({"drive": table["drive"], "took": pc.subtract(table["arrival_ns"], table["device_ns"])})
    least = fastest.group_by("drive").aggregate([("took", "min")]).to_pylist()
    return {row["drive"]: latency[row["drive"]] - row["took_min"] for row in least}


def timed(messages: Dataset, offsets: dict[str, int], sensor: str, branch: str = "timed") -> Dataset:
    """A version with the column `time_ns`, by the vehicle's clock, on a branch of its own. What is there already is opened."""
    from leptonstore.dataset import Dataset, list_refs

    if any(info.branch == branch for info in list_refs(messages.store, "dataset", messages.name)):
        return Dataset.open(messages.store, f"{messages.name}@{branch}")

    def on_vehicle(batch: pa.RecordBatch) -> pa.Array:
        ahead = np.array([offsets[name] for name in batch["drive"].to_pylist()], np.int64)
        return pa.array(batch["device_ns"].to_numpy() - ahead)

    field = pa.field("time_ns", pa.int64(), nullable=False)
    told = f"clock of the {sensor} put right" if any(offsets.values()) else f"clock of the {sensor} as it was"
    return messages.branch(branch).add_column(field, on_vehicle, ["drive", "device_ns"], message=told)


def shown_ms(offsets: dict[str, int]) -> str:
    """Offsets of the drives, for people."""
    return ", ".join(f"{offset / MS:+.1f}" for offset in offsets.values())


# -- alignment -----------------------------------------------------------------------------------------------------------


def aligned(data: dict[str, Dataset], split: str) -> Timeline:
    """Moments of the camera, in the drives of a split, with what the others saw then."""
    from loaders import Timeline, Track

    return Timeline(
        {
            "camera": Track(data["camera"].split(split), "time_ns", columns=["drive", "time_ns", "image"]),
            "lidar": Track(data["lidar"], "time_ns", tolerance=60 * MS, columns=["time_ns", "points"]),
            "pose": Track(data["pose"], "time_ns", "linear", 60 * MS, ["xyz", "rotation"], ("rotation",)),
            "imu": Track(data["imu"], "time_ns", "linear", 20 * MS, ["yaw_rate", "speed"]),
        },
        reference="camera",
        group="drive",
    )


def windows(moments: Timeline) -> RowWindows:
    """WINDOW moments in a row."""
    from loaders import RowWindows

    return RowWindows(moments, length=WINDOW, time="camera.time_ns", group="camera.drive", gap_max=GAP_MAX)


def missing(drives: list[Drive], data: dict[str, Dataset], parts: dict[str, RowWindows]) -> Iterator[str]:
    """What was lost, and what it costs, in lines."""
    numbers = (
        data["camera"]
        .to_arrow(["drive", "number"])
        .group_by("drive")
        .aggregate([("number", "max"), ("number", "count")])
    )
    lost = sum(row["number_max"] + 1 - row["number_count"] for row in numbers.to_pylist())
    yield f"{len(drives)} drives; {lost} frames lost of {lost + len(data['camera']):,}"
    for name, one in parts.items():
        yield (
            f"{name:<5} {len(one):,} windows of {WINDOW} frames; {one.dataset.dropped} frames had no sweep, pose or IMU within "
            f"tolerance, {one.dropped} windows would have had a gap"
        )


def posed(sweeps: Dataset, poses: Dataset) -> list[dict[str, Any]]:
    """Every sweep with the pose of its own time."""
    from loaders import Timeline, Track

    tracks = {
        "lidar": Track(sweeps, "time_ns", columns=["drive", "time_ns", "points"]),
        "pose": Track(poses, "time_ns", "linear", 60 * MS, ["xyz", "rotation"], ("rotation",)),
    }
    swept = Timeline(tracks, reference="lidar", group="drive")
    return swept.__getitems__(range(len(swept)))


def points_on_posts(frames: Dataset, sweeps: list[dict[str, Any]], poses: Dataset) -> float:
    """The share of points of posts, up to 14 m away, that lie on orange pixels of the frame next to their sweep.

    lidar -> vehicle at the sweep's time -> world -> vehicle at the frame's time -> camera -> pixel.
    """
    from loaders import Timeline, Track
    from loaders.transforms import DecodeImage

    tracks = {
        "camera": Track(frames, "time_ns", columns=["drive", "time_ns", "image"]),
        "pose": Track(poses, "time_ns", "linear", 60 * MS, ["xyz", "rotation"], ("rotation",)),
    }
    seen = Timeline(tracks, reference="camera", group="drive")
    times = {
        name: np.array([row["lidar.time_ns"] for row in sweeps if row["lidar.drive"] == name])
        for name in {row["lidar.drive"] for row in sweeps}
    }
    by_drive = {name: [row for row in sweeps if row["lidar.drive"] == name] for name in times}
    decode, on, all_points = DecodeImage(), 0, 0
    for shot in seen.__getitems__(range(0, len(seen), 3)):
        name, now = shot["camera.drive"], int(shot["camera.time_ns"])
        other = by_drive[name][int(np.argmin(np.abs(times[name] - now)))]
        to_camera = np.linalg.inv(_pose(shot) @ MOUNTS["camera"]) @ _pose(other) @ MOUNTS["lidar"]
        points = other["lidar.points"]
        points = points[points[:, 3] > 0.5].astype(np.float64)
        placed = np.concatenate([points[:, :3], np.ones((len(points), 1))], 1) @ to_camera.T
        placed = placed[(placed[:, 2] > 3) & (placed[:, 2] < 14)]
        pixels = placed[:, :3] @ INTRINSICS.T
        u, v = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int).T
        inside = (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
        colours = decode(shot["camera.image"])[v[inside], u[inside]].astype(int)
        on += int(((colours[:, 0] > colours[:, 2] + 60) & (colours[:, 0] > colours[:, 1] + 30)).sum())
        all_points += int(inside.sum())
    return on / max(all_points, 1)


def _pose(row: dict[str, Any]) -> NDArray[np.float64]:
    """From the vehicle's frame to the world's."""
    w, x, y, z = row["pose.rotation"]
    out = np.eye(4)
    out[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    out[:3, 3] = row["pose.xyz"]
    return out


# -- the model -----------------------------------------------------------------------------------------------------------


def loader_of(some: RowWindows, rig: Dataset, **options: Any) -> Any:
    """Batches: camera.image (b, WINDOW, h, w, 3) uint8, lidar.points {"values" (b, n, 5), "mask" (b, n)}, imu.*: (b, WINDOW)."""
    from loaders import DataLoader
    from loaders.collate import pad
    from loaders.transforms import DecodeImage, Each

    mount = rig.filter("sensor = 'lidar'")[0]["mount"].reshape(4, 4)
    return DataLoader(
        some,
        32,
        columns=["camera.time_ns", "camera.drive", "camera.image", "lidar.points", "imu.yaw_rate", "imu.speed"],
        transforms={"camera.image": [Each(DecodeImage())], "lidar.points": [Joined(mount)]},
        collate={"lidar.points": pad(0.0, extra="mask")},
        num_workers=2,
        **options,
    )


def curvature(batch: dict[str, Any]) -> Any:
    """What is to be predicted: of the last moment of each window, in 1/km."""
    return batch["imu.yaw_rate"][:, -1] / batch["imu.speed"][:, -1] * 1000


def trained(some: RowWindows, rig: Dataset, epochs: int, seed: int = 0) -> Any:
    """The model after so many epochs of Adam."""
    import torch

    torch.manual_seed(seed)
    model = steering_model(WINDOW)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loader = loader_of(some, rig, shuffle=True, seed=seed)
    for _ in range(epochs):
        for batch in loader:
            loss = torch.nn.functional.smooth_l1_loss(model(batch), curvature(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def errors(model: Any, parts: dict[str, RowWindows], rig: Dataset) -> tuple[float, float]:
    """(mean absolute error of the model, of the mean of training) on the drives held out, in 1/km."""
    import torch

    known = torch.cat([curvature(batch) for batch in loader_of(parts["train"], rig)])
    found, asked = [], []
    with torch.inference_mode():
        for batch in loader_of(parts["val"], rig):
            found.append(model(batch))
            asked.append(curvature(batch))
    truth = torch.cat(asked)
    return float((torch.cat(found) - truth).abs().mean()), float((known.mean() - truth).abs().mean())


if __name__ == "__main__":
    main()
