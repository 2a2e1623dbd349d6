"""Peer: Grain over ArrayRecord, one process (its workers made it slower here). usage: bench/peers/peer.py"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from peer import BATCH, answer, arrays, best


class _Decode(grain.MapTransform):
    def map(self, element: bytes) -> dict[str, Any]:
        return {"image": np.frombuffer(element, np.uint8, 784).reshape(28, 28), "label": element[784]}


def main() -> None:
    """The mnist workload."""
    _, data, folder = sys.argv[1:4]
    found = arrays(data)
    rows = len(found["labels"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(f"{folder}/data.array_record", "group_size:1")
    for image, label in zip(found["images"], found["labels"].tolist(), strict=True):
        writer.write(image.tobytes() + bytes([label]))
    writer.close()
    source = grain.ArrayRecordDataSource(f"{folder}/data.array_record")

    def batches() -> Iterator[dict[str, Any]]:
        sampler = grain.IndexSampler(rows, grain.NoSharding(), shuffle=True, num_epochs=1, seed=0)
        operations = [_Decode(), grain.Batch(BATCH, drop_remainder=False)]
        return iter(grain.DataLoader(data_source=source, sampler=sampler, operations=operations, worker_count=0))

    answer(best(batches, lambda batch: len(batch["label"]), rows, epochs=2))


if __name__ == "__main__":
    main()
