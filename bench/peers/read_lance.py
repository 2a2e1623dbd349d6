"""Peer: Lance, `take` of shuffled batches in one process, its quickest way. usage: bench/peers/peer.py"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from peer import BATCH, answer, arrays, best


def main() -> None:
    """The mnist workload."""
    _, data, folder = sys.argv[1:4]
    found = arrays(data)
    rows = len(found["labels"])
    images = pa.FixedSizeListArray.from_arrays(pa.array(found["images"].reshape(-1)), 784)
    lance.write_dataset(pa.table({"image": images, "label": found["labels"]}), folder, mode="overwrite")
    dataset, rng = lance.dataset(folder), np.random.default_rng(0)

    def batches() -> Iterator[dict[str, Any]]:
        order = rng.permutation(rows)
        for first in range(0, rows, BATCH):
            table = dataset.take(order[first : first + BATCH].tolist())
            pixels = table["image"].combine_chunks().flatten().to_numpy().reshape(-1, 28, 28)
            yield {"image": pixels, "label": table["label"].to_numpy()}

    answer(best(batches, lambda batch: len(batch["label"]), rows))


if __name__ == "__main__":
    main()
