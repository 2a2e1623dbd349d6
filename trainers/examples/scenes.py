"""Drives along a bent road, seen by a camera, a lidar and an IMU: a small renderer with known geometry. All is a function of (seed, drive).

    road     a curve with curvature k(s); the lane is 3.5 m wide, with a broken line on its left and a full one on its right;
             an orange post stands on both sides every POST_M metres
    ego      follows the middle of the lane at a changing speed; x is forward, y left, z up
    camera   10 a second, 96 x 64 JPEG, a pinhole without distortion
    lidar    10 a second, float32 (n, 4) of x, y, z, intensity in its own frame; n varies with what stands around
    pose     20 a second: position, unit quaternion (w, x, y, z);    imu: 100 a second: yaw rate and speed, with noise

Camera and lidar look at the same posts, so that points, moved into the camera with the calibration and the poses, must lie on posts. As
on a vehicle they do not fit together at first: every sensor stamps with a clock of its own (the lidar's is off by up to 0.2 s, by
something else in each drive), messages arrive a latency later, and some are lost: single frames and sweeps, and 0.4 s of frames at a
stretch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.examples.jpegs import jpeg_bytes

SECOND_NS = 1_000_000_000
WIDTH, HEIGHT, FOCAL = 96, 64, 70.0
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, 26.0], [0, 0, 1]])
LANE_M, POST_M, POST_SIDE_M, POST_RADIUS_M, POST_HEIGHT_M = 3.5, 12.0, 3.2, 0.25, 1.4
RATES = {"camera": 10, "lidar": 10, "pose": 20, "imu": 100}
LATENCY_NS = {"camera": 8_000_000, "lidar": 5_000_000, "pose": 1_000_000, "imu": 1_000_000}  # at least; see `_stamped`
CLOCK_OFF_NS_MAX = 200_000_000
LOST = {"camera": 0.02, "lidar": 0.02, "pose": 0.0, "imu": 0.0}
ORANGE, ASPHALT, GRASS, SKY, WHITE = (245, 120, 15), (95, 95, 100), (70, 120, 60), (150, 180, 215), (235, 235, 235)

Floats = NDArray[np.float64]


def _mount(x: float, y: float, z: float, turn: Floats) -> Floats:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = turn, (x, y, z)
    return out


_LIDAR_YAW = 0.04  # radians that it was mounted askew
MOUNTS = {  # from the sensor's frame to the vehicle's; the camera's has x to the right, y down, z forward
    "camera": _mount(1.5, 0.0, 1.4, np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])),
    "lidar": _mount(
        0.8,
        0.0,
        1.9,
        np.array(
            [[np.cos(_LIDAR_YAW), -np.sin(_LIDAR_YAW), 0], [np.sin(_LIDAR_YAW), np.cos(_LIDAR_YAW), 0], [0, 0, 1.0]]
        ),
    ),
    "pose": np.eye(4),
    "imu": np.eye(4),
}


@dataclass(frozen=True)
class Drive:
    """Messages of each sensor in the order of their arrival: columns by name; and by how much the lidar's clock is ahead, in ns."""

    name: str
    messages: dict[str, dict[str, list[Any]]]
    lidar_ahead_ns: int


class Road:
    """The middle of the lane at every 0.1 m of `length_m`: position, heading, curvature; and the posts beside it."""

    STEP_M = 0.1

    def __init__(self, length_m: float, rng: np.random.Generator) -> None:
        self.s = np.arange(0, length_m, self.STEP_M)
        waves = zip(rng.uniform(50, 140, 3), rng.uniform(0, 2 * np.pi, 3), strict=True)
        self.curvature = sum(
            (0.009 * np.sin(2 * np.pi * self.s / long + phase) for long, phase in waves), np.zeros(len(self.s))
        )
        self.heading = np.cumsum(self.curvature) * self.STEP_M
        self.xy = np.stack([np.cos(self.heading), np.sin(self.heading)], 1).cumsum(0) * self.STEP_M
        at = np.searchsorted(self.s, np.arange(5, length_m, POST_M)).clip(max=len(self.s) - 1)
        left = np.stack([-np.sin(self.heading[at]), np.cos(self.heading[at])], 1)
        self.posts = np.concatenate([self.xy[at] + POST_SIDE_M * left, self.xy[at] - POST_SIDE_M * left])

    def at(self, s: Floats | float, values: Floats) -> Floats:
        """Values along the road at some places."""
        return np.asarray(np.interp(s, self.s, values))

    def pose(self, s: float) -> tuple[Floats, float]:
        """(x, y), heading."""
        return np.array([self.at(s, self.xy[:, 0]), self.at(s, self.xy[:, 1])]), float(self.at(s, self.heading))

    def posts_from(self, s: float) -> Floats:
        """The posts in the vehicle's frame, (n, 2)."""
        xy, heading = self.pose(s)
        turn = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        seen: Floats = (self.posts - xy) @ turn.T
        return seen


def drive(number: int, seconds: float, seed: int = 0) -> Drive:
    """A drive of so many seconds; poses and IMU begin half a second earlier and end as much later."""
    rng = np.random.default_rng([seed, number])
    base, swing, phase = rng.uniform(9, 14), rng.uniform(1, 3), rng.uniform(0, 2 * np.pi)
    clock = np.arange(-0.5, seconds + 0.5, 0.001)
    speeds = base + swing * np.sin(2 * np.pi * clock / 9 + phase)
    travelled = np.cumsum(speeds) * 0.001
    road = Road(travelled[-1] + 90, rng)
    ahead = int(rng.integers(-CLOCK_OFF_NS_MAX, CLOCK_OFF_NS_MAX))
    began = int(1_800_000_000 + 10_000 * number) * SECOND_NS
    messages: dict[str, dict[str, list[Any]]] = {}
    for sensor, rate in RATES.items():
        margin = 0.45 if sensor in ("pose", "imu") else 0.0
        times = np.arange(-margin, seconds + margin, 1 / rate)
        if sensor in ("camera", "lidar"):
            times += rng.uniform(0, 0.04) + rng.uniform(0, 0.003, len(times))
        places = np.interp(times, clock, travelled)
        values = _values(sensor, road, places, np.interp(times, clock, speeds), rng)
        kept = rng.random(len(times)) >= LOST[sensor]
        if sensor == "camera":
            hole = rng.integers(rate, len(times) - rate)
            kept[hole : hole + 4] = False
        off = ahead if sensor == "lidar" else 0
        messages[sensor] = _stamped(sensor, times, kept, off, began, values, rng)
    return Drive(f"drive-{number}", messages, ahead)


def _stamped(
    sensor: str, times: Floats, kept: NDArray[np.bool_], off: int, began: int, values: dict[str, list[Any]], rng: Any
) -> dict[str, list[Any]]:
    """Messages with their number, the sensor's own time, and when they arrived by the vehicle's clock: a latency later that is never
    less than LATENCY_NS, and mostly little more."""
    true = began + np.round(times * SECOND_NS).astype(np.int64)
    arrival = true + LATENCY_NS[sensor] + rng.exponential(2e6, len(times)).astype(np.int64)
    columns = {"number": np.arange(len(times)), "device_ns": true + off, "arrival_ns": arrival}
    chosen = np.flatnonzero(kept).tolist()
    return {name: column[kept].tolist() for name, column in columns.items()} | {
        name: [column[at] for at in chosen] for name, column in values.items()
    }


def _values(sensor: str, road: Road, places: Floats, speeds: Floats, rng: np.random.Generator) -> dict[str, list[Any]]:
    if sensor == "camera":
        return {"image": [jpeg_bytes(frame(road, float(s), rng)) for s in places]}
    if sensor == "lidar":
        return {"points": [sweep(road, float(s), rng) for s in places]}
    if sensor == "pose":
        poses = [road.pose(float(s)) for s in places]
        turns = [[float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))] for _, yaw in poses]
        return {"xyz": [[*xy.tolist(), 0.0] for xy, _ in poses], "rotation": turns}
    yaw_rates = road.at(places, road.curvature) * speeds + rng.normal(0, 0.01, len(places))
    return {"yaw_rate": yaw_rates.tolist(), "speed": (speeds + rng.normal(0, 0.05, len(places))).tolist()}


# -- the camera ----------------------------------------------------------------------------------------------------------


def frame(road: Road, s: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the camera sees from place `s`: uint8 (HEIGHT, WIDTH, 3)."""
    out = np.empty((HEIGHT, WIDTH, 3), np.float64)
    out[:] = SKY
    xy, heading = road.pose(s)
    along = np.linspace(s, s + 80, 161)
    offset = np.stack([road.at(along, road.xy[:, 0]), road.at(along, road.xy[:, 1])], 1) - xy
    forward = offset @ [np.cos(heading), np.sin(heading)]
    left = offset @ [-np.sin(heading), np.cos(heading)]
    slope = np.cos(road.at(along, road.heading) - heading)
    x, y = _GROUND
    lateral = (y - np.interp(x, forward, left)) * np.interp(x, forward, slope)
    place = np.interp(x, forward, along)
    ground = np.where((np.abs(lateral) < LANE_M / 2 + 0.6)[..., None], ASPHALT, GRASS).astype(np.float64)
    line = np.abs(np.abs(lateral) - LANE_M / 2) < 0.13
    ground[line & ((lateral < 0) | (place % 6 < 3)) & (x < 60)] = WHITE
    out[HEIGHT - len(x) :] = ground
    camera = MOUNTS["camera"][:3, 3]
    posts = road.posts_from(s) - camera[:2]
    for depth, side in posts[np.argsort(-posts[:, 0])].tolist():
        if 1.0 < depth < 45:
            half = FOCAL * POST_RADIUS_M / depth
            u = INTRINSICS[0, 2] - FOCAL * side / depth
            top, bottom = (INTRINSICS[1, 2] + FOCAL * (camera[2] - z) / depth for z in (POST_HEIGHT_M, 0.0))
            columns = slice(max(int(np.floor(u - half)), 0), max(int(np.ceil(u + half)), 0))
            out[max(int(np.floor(top)), 0) : max(int(np.ceil(bottom)), 0), columns] = ORANGE
    return (out + rng.normal(0, 3, out.shape)).clip(0, 255).astype(np.uint8)


def _ground_of_pixels() -> tuple[Floats, Floats]:
    """Where the rays of the pixels below the horizon meet the road: forward and left, (rows, WIDTH)."""
    horizon = int(INTRINSICS[1, 2]) + 1
    v, u = np.mgrid[horizon:HEIGHT, 0:WIDTH] + 0.5
    depth = MOUNTS["camera"][2, 3] * FOCAL / (v - INTRINSICS[1, 2])
    return depth + MOUNTS["camera"][0, 3], -depth * (u - INTRINSICS[0, 2]) / FOCAL


_GROUND = _ground_of_pixels()


# -- the lidar -----------------------------------------------------------------------------------------------------------


def sweep(road: Road, s: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """What the lidar sees from place `s`, in its own frame: float32 (n, 4), of posts (intensity 0.9) and ground (0.2)."""
    mount = MOUNTS["lidar"]
    found = []
    posts = road.posts_from(s)
    distance = np.hypot(*(posts - mount[:2, 3]).T)
    for (x, y), far in zip(posts[distance < 35].tolist(), distance[distance < 35].tolist(), strict=True):
        count = min(40, int(250 / max(far, 1.0)))
        facing = np.arctan2(mount[1, 3] - y, mount[0, 3] - x) + rng.uniform(-1, 1, count)
        z = rng.uniform(0.05, POST_HEIGHT_M, count)
        surface = np.stack([x + POST_RADIUS_M * np.cos(facing), y + POST_RADIUS_M * np.sin(facing), z], 1)
        found.append(np.concatenate([surface, np.full((count, 1), 0.9)], 1))
    radius, angle = np.repeat([4.0, 7.0, 11.0, 16.0], 30), rng.uniform(-1.2, 1.2, 120)
    ground = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(120), np.full(120, 0.2)], 1)
    points = np.concatenate([*found, ground])
    points = points[rng.random(len(points)) > 0.1]
    points[:, :3] += rng.normal(0, 0.01, (len(points), 3))
    points[:, :3] = (points[:, :3] - mount[:3, 3]) @ mount[:3, :3]
    return points.astype(np.float32)
