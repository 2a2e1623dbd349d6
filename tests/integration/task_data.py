"""Small datasets of every kind of task that can be learnt quickly: text as bytes, JPEGs, numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.importers.arrays import label_column, tensor_column
from leptonstore.dataset.schema import class_label_field, image_field, path_field, tensor_field, tokens_field
from leptonstore.dataset.source import Source
from leptonstore.store import Store
from trainers.config import DataConfig, TrainConfig, with_values

COLOURS = ["red", "green", "blue"]
STATISTICS = {"mean": [0.5, 0.4, 0.6], "std": [0.2, 0.25, 0.3]}


def write_table(store: Store, name: str, schema: pa.Schema, columns: Sequence[pa.Array], identity: str) -> Dataset:
    """One batch as a dataset."""

    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_arrays(list(columns), schema=schema)

    return write_dataset(store, name, Source(schema, (identity,), batches, len(columns[0])))


def texts(rows: int, seed: int = 0) -> list[bytes]:
    """Documents of different lengths in a tiny language: what comes next can be learnt."""
    rng = np.random.default_rng(seed)
    words = [b"alpha ", b"beta ", b"gamma ", b"delta.\n"]
    return [b"".join(words[at % 4] for at in range(int(rng.integers(3, 30)))) for _ in range(rows)]


def write_texts(store: Store, name: str = "texts", rows: int = 60, kind: pa.DataType | None = None) -> Dataset:
    """path, tokens (bytes as uint8 unless told otherwise); no split."""
    documents = texts(rows)
    kind = kind or pa.uint8()
    schema = pa.schema([path_field("path"), tokens_field("tokens", kind)])
    tokens = pa.array([list(document) for document in documents], schema.field("tokens").type)
    return write_table(store, name, schema, [pa.array([f"{row:04}.txt" for row in range(rows)]), tokens], "path")


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    """Encoded pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def colours(rows: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Noisy images of different sizes whose strongest channel says the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % len(COLOURS)
    images = []
    for label in labels.tolist():
        height, width = (int(edge) for edge in rng.integers(20, 40, 2))
        image = rng.integers(0, 120, (height, width, 3))
        image[..., label] += 100
        images.append(image.astype(np.uint8))
    return images, labels


def write_jpegs(store: Store, name: str = "jpegs", train: int = 60, val: int = 24) -> Dataset:
    """path, image (JPEG), label, split."""
    images, labels = colours(train + val)
    schema = pa.schema(
        [
            path_field("path"),
            image_field("image", "jpeg"),
            class_label_field("label", COLOURS),
            class_label_field("split", ["train", "val"]),
        ]
    )
    rows = train + val
    return write_table(
        store,
        name,
        schema,
        [
            pa.array([f"{row:04}.jpg" for row in range(rows)]),
            pa.array([jpeg(image) for image in images], pa.large_binary()),
            label_column(schema.field("label"), labels),
            label_column(schema.field("split"), np.arange(rows) >= train),
        ],
        "path",
    )


def write_numbers(store: Store, name: str = "numbers", rows: int = 200) -> Dataset:
    """features (5 float32), value (float32): a linear function of them."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows, 5)).astype(np.float32)
    values = (features @ np.array([1, -2, 0.5, 3, 0], np.float32) + 1).astype(np.float32)
    schema = pa.schema([tensor_field("features", pa.float32(), (5,)), pa.field("value", pa.float32(), False)])
    columns = [tensor_column(schema.field("features"), features), pa.array(values)]
    return write_table(store, name, schema, columns, "features")


def chain(*steps: str, **params: object) -> list[dict[str, object]]:
    """Transforms of loaders.transforms by name; `RandomCrop=8` gives its first parameter."""
    made: list[dict[str, object]] = [{"reference": f"loaders.transforms:{step}"} for step in steps]
    made += [{"reference": f"loaders.transforms:{step}", "params": value} for step, value in params.items()]
    return made


def image_data(**values: object) -> DataConfig:
    """Of `write_jpegs`: crops of 16 pixels, normalised."""
    steps = chain("DecodeImage", RandomResizedCrop={"size": 16}, RandomHorizontalFlip={}, Normalize=STATISTICS)
    return with_values(TrainConfig(), {"data": {"transforms": {"image": steps}, **values}}).data


def text_data(**values: object) -> DataConfig:
    """Of `write_texts`: windows of 32."""
    return with_values(TrainConfig(), {"data": {"sequence_length": 32, **values}}).data
