"""One training of MNIST for bench.train, in a process of its own; imports are done before the clock starts.

ours    `trainers.Trainer` on the dataset in its store. The clock runs from opening the store until an evaluation is done:
        building the model, decoding, whatever is done once, and between epochs the checkpoint and the log are in it
torch   the same model, optimizer and size of batches in a bare loop over tensors in memory, evaluation after each epoch

Prints {"evaluations": [{"epoch", "seconds", "accuracy"}], …}, as bench/peers/keras_mnist.py does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from trainers.openmp import spin_briefly

spin_briefly()  # as `lepton train` does, before torch is imported

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402  (imports are not what is timed: torch makes this one with its first optimizer,
from torch.nn import functional  # noqa: E402

import trainers.loop  # noqa: E402
from leptonstore.dataset import Dataset, write_dataset  # noqa: E402
from leptonstore.dataset.importers import open_source  # noqa: E402
from leptonstore.store import Store  # noqa: E402
from trainers.config import ModelConfig, TrainConfig, with_values  # noqa: E402
from trainers.models import build_model  # noqa: E402
from trainers.recipe import default_config  # noqa: E402
from trainers.result import EvaluateEvent  # noqa: E402

pa.array([0])  # and pyarrow that of pandas with its first array, where it is installed: 1.2 and 0.5 s)
DATASET = "mnist"
# The default's batch is for five epochs. Smaller ones are as quick per row here, and learn more in two.
FAST_BATCH = 64
BATCH, EVALUATE_ROWS = 32, 250
# What Keras does by itself: fit's batch size, Adam's learning rate.
EQUAL = {
    "data.global_batch_size": BATCH,
    "optimizer.name": "adam",
    "optimizer.lr": 1e-3,
    "schedule.name": "constant",
    "precision": "float32",
}


def store_mnist(place: Path, data: Path, arrays: Path) -> None:
    """A store with dataset `mnist`, splits train and test, and the same as arrays in a file for the bare loop."""
    with Store.create(place) as store:
        written = write_dataset(store, DATASET, open_source(str(data)))
        found = {}
        for split in ("train", "test"):
            table = written.split(split).to_arrow(["image", "label"])
            found[f"{split}_images"] = table["image"].combine_chunks().storage.flatten().to_numpy().reshape(-1, 28, 28)
            found[f"{split}_labels"] = table["label"].to_numpy().astype(np.int64)
    np.savez(arrays, **found)


def recipe(name: str, rows: int, epochs: int, seed: int) -> TrainConfig:
    """ "fast": the default in fewer epochs and smaller batches, evaluated twice in each epoch. "equal": what Keras does."""
    config = default_config(rows, epochs, FAST_BATCH, seed)
    half = -(-rows // FAST_BATCH) // 2
    return with_values(config, EQUAL if name == "equal" else {"evaluate_every_steps": half})


def ours(place: str, name: str, epochs: int, seed: int) -> dict[str, Any]:
    """The trainer, with its log, receipts and checkpoints."""
    found: list[dict[str, float]] = []
    began = time.perf_counter()

    def note(event: EvaluateEvent) -> None:
        seconds, accuracy = time.perf_counter() - began, event.metrics["val_accuracy"]
        found.append({"epoch": event.step / steps, "seconds": seconds, "accuracy": accuracy})

    with Store.open(place) as store:
        ds = Dataset.open(store, DATASET)
        rows = len(ds.split("train"))
        config = recipe(name, rows, epochs, seed)
        steps = -(-rows // config.data.global_batch_size)
        trainer = trainers.loop.Trainer(
            config,
            store,
            ds,
            run=f"{name}-{seed}",
            metrics=Path(place).with_name(f"{name}-{seed}.jsonl"),
            on_evaluate=[note],
        )
        result = trainer.fit()
    return {"evaluations": found, "data_wait": result.data_wait_fraction, "us_per_sample": result.us_per_sample}


def bare(arrays: str, epochs: int, seed: int) -> dict[str, Any]:
    """What one writes without a trainer: no log, no state, no checkpoint."""
    data = {name: torch.from_numpy(values) for name, values in np.load(arrays).items()}
    images, labels = data["train_images"], data["train_labels"]
    found: list[dict[str, float]] = []
    began = time.perf_counter()
    torch.manual_seed(seed)
    model = build_model(ModelConfig(), (28, 28), 10, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for epoch in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):
            loss = functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            parts = zip(data["test_images"].split(EVALUATE_ROWS), data["test_labels"].split(EVALUATE_ROWS), strict=True)
            right = sum(int((model(part).argmax(1) == truth).sum()) for part, truth in parts)
        seconds, accuracy = time.perf_counter() - began, right / len(data["test_labels"])
        found.append({"epoch": epoch + 1, "seconds": seconds, "accuracy": accuracy})
    return {"evaluations": found}


def main() -> None:
    """store STORE MNIST_DIR ARRAYS | ours STORE RECIPE EPOCHS SEED | torch ARRAYS EPOCHS SEED"""
    role, place, *rest = sys.argv[1:]
    if role == "store":
        store_mnist(Path(place), Path(rest[0]), Path(rest[1]))
        print("{}")
    elif role == "ours":
        print(json.dumps(ours(place, rest[0], int(rest[1]), int(rest[2]))))
    else:
        print(json.dumps(bare(place, int(rest[0]), int(rest[1]))))


if __name__ == "__main__":
    main()
