"""Peer: the main job's CNN on MNIST in plain torch, data in memory. usage: torch_mnist.py MNIST_DIR"""

import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH, EPOCHS = 128, 2


def read(path: Path, header: int) -> np.ndarray:
    """The body of a gzipped IDX file."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy()


def main() -> None:
    """Train two epochs and print microseconds per sample of the second."""
    folder = Path(sys.argv[1])
    images = torch.from_numpy(read(folder / "train-images-idx3-ubyte.gz", 16)).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(read(folder / "train-labels-idx1-ubyte.gz", 8)).long()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(5408, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True)
    seconds = 0.0
    for _ in range(EPOCHS):
        begin = time.perf_counter()
        for batch, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.float() / 255), target).backward()
            optimizer.step()
        seconds = time.perf_counter() - begin
    print(json.dumps({"us_per_sample": seconds * 1e6 / len(labels)}))


main()
