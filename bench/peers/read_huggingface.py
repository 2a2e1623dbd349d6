"""Peer: Hugging Face datasets in torch's format, through torch's DataLoader. usage: bench/peers/peer.py"""

from __future__ import annotations

import sys

import datasets
from peer import BATCH, answer, arrays, best
from torch.utils.data import DataLoader


def main() -> None:
    """The mnist workload."""
    _, data, folder = sys.argv[1:4]
    found = arrays(data)
    rows = len(found["labels"])
    features = datasets.Features({"image": datasets.Array2D((28, 28), "uint8"), "label": datasets.Value("int64")})
    made = datasets.Dataset.from_dict({"image": found["images"], "label": found["labels"]}, features=features)
    made.save_to_disk(folder)
    dataset = datasets.load_from_disk(folder).with_format("torch")
    loader = DataLoader(dataset, BATCH, shuffle=True)
    answer(best(lambda: loader, lambda batch: len(batch["label"]), rows, epochs=2))


if __name__ == "__main__":
    main()
