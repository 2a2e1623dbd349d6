"""Peer: WebDataset, 64 tar shards, shuffled by shard and in a buffer of 1,000. usage: bench/peers/peer.py"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import webdataset as wds
from peer import BATCH, WORKERS, answer, arrays, best


def main() -> None:
    """The mnist workload."""
    _, data, folder = sys.argv[1:4]
    found = arrays(data)
    rows = len(found["labels"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    with wds.ShardWriter(f"{folder}/%06d.tar", maxcount=-(-rows // 64), verbose=0) as out:
        for number, (image, label) in enumerate(zip(found["images"], found["labels"].tolist(), strict=True)):
            out.write({"__key__": f"{number:08d}", "image.bin": image.tobytes(), "cls": label})
    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))

    def decode(sample: tuple[bytes, bytes]) -> tuple[np.ndarray, int]:
        return np.frombuffer(sample[0], np.uint8).reshape(28, 28), int(sample[1])

    dataset = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1_000).to_tuple("image.bin", "cls")
    loader = wds.WebLoader(dataset.map(decode).batched(BATCH), batch_size=None, num_workers=WORKERS)
    answer(best(lambda: loader, lambda batch: len(batch[1]), rows))


if __name__ == "__main__":
    main()
