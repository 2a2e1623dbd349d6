"""docs/sequences.md: documents of tokens with clouds and boxes, recordings, the three tracks of a drive, and trades that are corrected."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import tensor_field
from tests.integration.docs_blocks import Place
from tests.unit.media_files import audio_file, sound, video_file

EXTRAS = ("av",)
MS = 1_000_000
CLOUD = pa.list_(pa.list_(pa.float32(), 4))
ROWS = 200


def documents(rng: np.random.Generator) -> pa.Table:
    """200 of them, 300 to 1,200 tokens each; a few points, boxes and a name; stretches of one sound and one film."""
    tokens = [rng.integers(0, 255, int(size)).astype(np.int32) for size in rng.integers(300, 1_200, ROWS)]
    clouds = [rng.normal(size=(1 + row % 4, 4)).astype(np.float32).tolist() for row in range(ROWS)]
    objects = [{"boxes": [[0.0, 0.0, 1.0, 2.0]] * (row % 3), "name": f"o{row}"} for row in range(ROWS)]
    boxes = pa.struct([("boxes", CLOUD), ("name", pa.string())])
    return pa.table(
        {
            "id": np.arange(ROWS),
            "tokens": pa.array([one.tolist() for one in tokens], pa.list_(pa.int32())),
            "points": pa.array(clouds, CLOUD),
            "objects": pa.array(objects, boxes),
            "audio": pa.array([audio_file("wav", "pcm_s16le", sound())] * ROWS, pa.large_binary()),
            "start_s": rng.random(ROWS),
            "duration_s": 0.1 + rng.random(ROWS) / 2,
            "video": pa.array([video_file()] * ROWS, pa.large_binary()),
            "times": pa.array([[0.5, 1.0]] * ROWS, pa.list_(pa.float64())),
        }
    )


def tracks(place: Place, rng: np.random.Generator) -> None:
    """A camera at 10 Hz, a lidar 20 ms later, poses at 100 Hz."""
    image = tensor_field("image", pa.uint8(), (2, 2, 3), "image")
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(rng.integers(0, 256, (40, 2, 2, 3), np.uint8))
    vectors = {
        name: pa.FixedShapeTensorArray.from_numpy_ndarray(values.astype(np.float32))
        for name, values in (("xyz", rng.normal(size=(400, 3))), ("quaternion", np.tile([1.0, 0, 0, 0], (400, 1))))
    }
    shown: dict[str, tuple[int, int, int, dict[pa.Field, pa.Array]]] = {
        "frames": (40, 100 * MS, 0, {image: pixels}),
        "sweeps": (
            40,
            100 * MS,
            20 * MS,
            {pa.field("points", CLOUD): pa.array([[[1.0, 2.0, 3.0, 4.0]] * (1 + at % 3) for at in range(40)], CLOUD)},
        ),
        "poses": (
            400,
            10 * MS,
            0,
            {tensor_field(name, pa.float32(), (one.type.shape[0],)): one for name, one in vectors.items()},
        ),
    }
    for name, (rows, step, first, columns) in shown.items():
        schema = pa.schema([pa.field("recording", pa.string()), pa.field("time_ns", pa.int64()), *columns])
        arrays = [pa.array(["one"] * rows), pa.array(first + np.arange(rows) * step), *columns.values()]
        place.names[name] = place.write(name, pa.Table.from_arrays(arrays, schema=schema), "recording", "time_ns")


def ticks(place: Place) -> None:
    """A trade a second, every fifth corrected ten seconds later; a moment every two seconds, settled five seconds later."""
    rows = [(number, number * 1000 * MS, number * 1000 * MS + 5 * MS, float(number)) for number in range(300)]
    rows += [(number, t, t + 10_000 * MS, -price) for number, t, _, price in rows if number % 5 == 0]
    columns = dict(
        zip(("id", "time_ns", "known_ns", "price"), (list(one) for one in zip(*rows, strict=True)), strict=True)
    )
    named = {"instrument": ["one"] * len(rows), "withdrawn": [False] * len(rows)}
    place.names["trades"] = place.write("trades", pa.table(columns | named), "instrument", "id")
    times = np.arange(60, 290, 2) * 1000 * MS
    asked = {"instrument": ["one"] * len(times), "time_ns": times, "ends_ns": times + 5_000 * MS, "label": times % 3}
    place.names["moments"] = place.write("moments", pa.table(asked), "instrument", "time_ns")


def setting(place: Place) -> Iterator[None]:
    rng = np.random.default_rng(0)
    place.names["ds"] = place.write("samples", documents(rng))
    tracks(place, rng)
    ticks(place)
    yield
    assert place.names["inputs"].shape[1] == 2048
    window = next(iter(place.names["loader"]))
    assert window["camera.image"].shape == (8, 4, 2, 2, 3) and window["pose.xyz"].shape == (8, 4, 3)
    assert [len(clouds) for clouds in window["lidar.points"]] == [4] * 8
    batch = place.names["batch"]
    assert batch["trade.price"].shape == (4, 8) and (batch["trade.known_ns"] <= batch["time_ns"][:, None]).all()
    assert 0 < len(place.names["fit_on"]) < len(place.names["known"])
