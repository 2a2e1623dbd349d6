"""The article's Keras program on a LeptonStore loader, run small: Keras on torch here, on TensorFlow in an environment of its own."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.harness import ROOT, peer_place
from leptonstore.dataset import Dataset
from leptonstore.store import Store
from trainers.examples.keras_cnn import DATASET

EPOCHS = 3
SPLITS = {"train": 320, "t10k": 32}  # files of MNIST, and how many images a test puts into them
# As in test_tf_peer.py, which makes it; found before a test gets a cache of its own.
PEER_PYTHON = peer_place("tf_feed") / "bin" / "python"
needs_peer = pytest.mark.skipif(
    not (PEER_PYTHON.parent.parent / "ready").exists(),
    reason="TensorFlow has no environment yet: python -m tests.integration.test_tf_peer",
)
needs_keras = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed")


def run(python: str | Path, backend: str, workdir: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"KERAS_HOME": os.devnull, "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "trainers.examples.keras_cnn", "--workdir", workdir, "--epochs", str(EPOCHS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_it_learnt_every_row(found: dict[str, Any], workdir: Path) -> None:
    """A tenth of the digits would be right by chance; and the loader stands after as many whole epochs as were asked for."""
    with Store.open(workdir / "store") as store:
        rows = len(Dataset.open(store, DATASET))
    assert 0 < found["rows"] < rows
    assert found["accuracy"] > 0.85
    assert (found["loader"]["epoch"], found["loader"]["consumed"]) == (EPOCHS, 0)


@needs_keras
def test_the_article_program_trains_from_a_store(tmp_path: Path) -> None:
    found = run(sys.executable, "torch", tmp_path)
    assert found["backend"] == "torch"
    assert_it_learnt_every_row(found, tmp_path)


@needs_peer
def test_it_does_on_tensorflow_too(tmp_path: Path) -> None:
    found = run(PEER_PYTHON, "tensorflow", tmp_path)
    assert found["backend"] == "tensorflow"
    assert_it_learnt_every_row(found, tmp_path)


@needs_peer
def test_the_peer_of_bench_train_says_when_it_was_how_good(tmp_path: Path) -> None:
    """On made-up images of two classes that one pixel tells apart."""
    for name, rows in SPLITS.items():
        labels = (np.arange(rows) % 2).astype(np.uint8)
        images = np.zeros((rows, 28, 28), np.uint8)
        images[:, 4:24, 4:24] = labels[:, None, None] * 255
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">4i", 2051, rows, 28, 28) + images.tobytes())
        )
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">2i", 2049, rows) + labels.tobytes())
        )
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    command = [PEER_PYTHON, ROOT / "bench/peers/keras_mnist.py", tmp_path, "0", "0.99", "2", "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["evaluations"]
    assert [one["epoch"] for one in found] == list(range(1, len(found) + 1)) and len(found) >= 2
    assert found[-1]["accuracy"] >= 0.99 and all(one["accuracy"] < 0.99 for one in found[1:-1])
    assert sorted(one["seconds"] for one in found) == [one["seconds"] for one in found]
