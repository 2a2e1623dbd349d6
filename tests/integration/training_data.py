"""A small dataset that can be learnt, and a run that is quick: for the tests of trainers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.importers.arrays import label_column, tensor_column
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.dataset.source import Source
from leptonstore.store import Store
from trainers.config import TrainConfig, with_values

NAMES = ["flat", "left", "top"]
SHAPE = (6, 6)


def patterns(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 6 x 6 images whose bright half says the class: uint8 [rows, 6, 6], uint8 [rows]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % len(NAMES)
    images = rng.integers(0, 120, (rows, *SHAPE))
    images[labels == 1, :, :3] += 100
    images[labels == 2, :3, :] += 100
    return images.astype(np.uint8), labels.astype(np.uint8)


def write_patterns(
    store: Store, name: str = "patterns", train: int = 50, test: int = 21, split: bool = True
) -> Dataset:
    """`train` + `test` rows; with `split`, the column that tells them apart."""
    images, labels = patterns(train + test)
    fields = [tensor_field("image", pa.uint8(), SHAPE, "image"), class_label_field("label", NAMES)]
    if split:
        fields.append(class_label_field("split", ["train", "test"]))
    schema = pa.schema(fields)

    def batches() -> Iterator[pa.RecordBatch]:
        columns = [tensor_column(schema.field("image"), images), label_column(schema.field("label"), labels)]
        if split:
            columns.append(label_column(schema.field("split"), (np.arange(train + test) >= train).astype(np.uint8)))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return write_dataset(store, name, Source(schema, ("image",), batches, train + test))


def own_model(sample_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A model that is not of trainers.models."""
    return nn.Sequential(nn.Flatten(), nn.Linear(sample_shape[0] * sample_shape[1], classes))


def quick_config(**values: Any) -> TrainConfig:
    """Three epochs of five steps on one thread; dotted keys with __ for dots."""
    base = {"epochs": 3, "data.global_batch_size": 10, "threads": 1, "device": "cpu", "model.params.hidden": 16}
    return with_values(TrainConfig(), {**base, **{key.replace("__", "."): value for key, value in values.items()}})


def quick_options(config: TrainConfig) -> list[str]:
    """The command-line options that build `quick_config`."""
    options = ["--epochs", str(config.epochs), "--batch-size", str(config.data.global_batch_size), "--threads", "1"]
    options += ["--device", "cpu", "--set", "model.params.hidden=16", "--lr", repr(config.optimizer.lr)]
    return [
        *options,
        "--set",
        f"optimizer.name={config.optimizer.name}",
        "--set",
        f"schedule.name={config.schedule.name}",
    ]


def train_command(
    ranks: int,
    store: Path,
    arguments: list[str],
    environment: Mapping[str, str] | None = None,
    dataset: str = "patterns",
) -> None:
    """`python -m trainers` under torchrun with `ranks` processes; fails with its output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "trainers", dataset, "--store", str(store), *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
