"""Peer: the article's CNN on MNIST in Keras, TensorFlow backend, as a Keras user writes it: numpy arrays in memory.

    keras_mnist.py MNIST_DIR SEED TARGET EPOCHS_MIN EPOCHS_MAX

`fit` of one epoch at a time with `evaluate` after each, until the validation accuracy is TARGET and EPOCHS_MIN are done.
Prints {"evaluations": [{"epoch", "seconds", "accuracy"}]}: seconds since the first `fit` began, compilation included.
"""

import gzip
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers


def read(path: Path, header: int) -> np.ndarray:
    """The body of a gzipped IDX file."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def images(path: Path) -> np.ndarray:
    """float32 (n, 28, 28, 1) in 0..1."""
    return read(path, 16).reshape(-1, 28, 28, 1).astype("float32") / 255


def main() -> None:
    folder, seed, target = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    epochs_min, epochs_max = int(sys.argv[4]), int(sys.argv[5])
    x_train, y_train = images(folder / "train-images-idx3-ubyte.gz"), read(folder / "train-labels-idx1-ubyte.gz", 8)
    x_test, y_test = images(folder / "t10k-images-idx3-ubyte.gz"), read(folder / "t10k-labels-idx1-ubyte.gz", 8)

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])  # Adam 1e-3
    found: list[dict[str, float]] = []
    began = time.perf_counter()
    for epoch in range(1, epochs_max + 1):
        model.fit(x_train, y_train, batch_size=32, epochs=1, verbose=0)
        _, accuracy = model.evaluate(x_test, y_test, verbose=0)
        found.append({"epoch": epoch, "seconds": time.perf_counter() - began, "accuracy": accuracy})
        if accuracy >= target and epoch >= epochs_min:
            break
    print(json.dumps({"evaluations": found}))


main()
