"""What one step of the trainer costs above a bare torch loop: a model of one layer, so that there is little else.

Both train `trainers.models:linear` with the same optimizer and batches of the same size, in turns, ROUNDS times; on one
thread of torch, because operators as small as these gain nothing by two. The bare loop takes its batches by index out of
tensors in memory and does nothing but forward, backward, update. The trainer reads a dataset, with its log, receipts and
state on. Both are timed from step SETTLED to their last one: it is a step that is measured, not a start.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from bench.harness import median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.importers.arrays import label_column, tensor_column
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.store import Store
from trainers.config import ModelConfig, TrainConfig, with_values
from trainers.loop import Trainer
from trainers.models import build_model

ROUNDS = 9
BATCH, STEPS, SETTLED = 32, 600, 50
SHAPE, CLASSES, LR = (28, 28), 10, 1e-3
MODEL = ModelConfig("trainers.models:linear")
CONFIG = with_values(
    TrainConfig(model=MODEL, epochs=1, device="cpu", threads=1), {"data.global_batch_size": BATCH, "optimizer.lr": LR}
)


def write_images(store: Store, images: np.ndarray, labels: np.ndarray) -> Dataset:
    """All of them to learn from but the last batch, which is to evaluate."""
    rows = len(labels)
    held_out = (np.arange(rows) >= rows - BATCH).astype(np.uint8)
    names = [str(at) for at in range(CLASSES)]
    schema = pa.schema(
        [
            tensor_field("image", pa.uint8(), SHAPE, "image"),
            class_label_field("label", names),
            class_label_field("split", ["train", "test"]),
        ]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        columns = [tensor_column(schema.field("image"), images)]
        columns += [
            label_column(schema.field(name), values) for name, values in (("label", labels), ("split", held_out))
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return write_dataset(store, "images", Source(schema, ("image",), batches, rows))


def now() -> tuple[float, float]:
    """By the clock, and of the processor (all threads of this process)."""
    return time.perf_counter(), time.process_time()


def trained(store: Store, ds: Dataset, run: str, log: Path) -> tuple[float, float]:
    """Microseconds of one step of the trainer, as `per_step` has them."""
    ends: list[tuple[float, float]] = []
    Trainer(CONFIG, store, ds, run=run, metrics=log, on_step=[lambda _: ends.append(now())]).fit()
    return per_step(ends)


def bare(images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Microseconds of one step of the bare loop, as `per_step` has them."""
    model = build_model(MODEL, SHAPE, CLASSES, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    ends: list[tuple[float, float]] = []
    for rows in torch.randperm(len(labels)).split(BATCH):
        loss = functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(now())
    return per_step(ends)


def per_step(ends: list[tuple[float, float]]) -> tuple[float, float]:
    """Microseconds of a step after the first ones, by the clock and of the processor."""
    wall, cpu = (
        (last - first) * 1e6 / (len(ends) - 1 - SETTLED) for first, last in zip(ends[SETTLED], ends[-1], strict=True)
    )
    return wall, cpu


def measure() -> dict[str, Any]:
    """Medians of the rounds; of the overhead, that of the differences."""
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store") as store:
        rows = BATCH * (STEPS + 1)
        drawn = np.random.default_rng(0).integers(0, 256, (rows, *SHAPE), np.uint8)
        classes = (np.arange(rows) % CLASSES).astype(np.uint8)
        ds = write_images(store, drawn, classes)
        images, labels = torch.from_numpy(drawn[:-BATCH]), torch.from_numpy(classes[:-BATCH].astype(np.int64))
        torch.set_num_threads(1)
        bare(images, labels)  # what is done once in a process is done
        rounds = [
            (trained(store, ds, f"run-{at}", Path(folder) / "log.jsonl"), bare(images, labels)) for at in range(ROUNDS)
        ]
    return {
        "overhead_us": median(one[0] - other[0] for one, other in rounds),
        "step_us": median(one[0] for one, _ in rounds),
        "bare_us": median(other[0] for _, other in rounds),
        "step_cpu_us": median(one[1] for one, _ in rounds),
        "bare_cpu_us": median(other[1] for _, other in rounds),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
