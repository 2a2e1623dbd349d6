"""Peer: mosaicml-streaming (MDS). usage: bench/peers/peer.py

The packages `streaming` and `streaming.base` import vision, text and clouds that need not be installed here, so what reads
and writes MDS is imported from below them, as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

import numpy as np
from peer import BATCH, REMOTE_BATCH, TOKEN_LENGTH, TOKEN_WINDOWS, WORKERS, answer, arrays, best, timed
from torch.utils.data import DataLoader


def library(module: str) -> Any:
    """A module of streaming, without what its packages import."""
    if "streaming" not in sys.modules:
        spec = importlib.util.find_spec("streaming")
        assert spec is not None and spec.submodule_search_locations is not None
        for name, place in (("streaming", ""), ("streaming.base", "/base")):
            package = sys.modules[name] = types.ModuleType(name)
            package.__path__ = [f"{root}{place}" for root in spec.submodule_search_locations]
    return importlib.import_module(module)


def write(columns: dict[str, str], rows: Any, folder: str) -> None:
    """Rows into shards of 64 MiB."""
    writer = library("streaming.base.format.mds.writer").MDSWriter
    with writer(out=folder, columns=columns, size_limit=1 << 26) as out:
        for row in rows:
            out.write(row)


def main() -> None:
    """One workload."""
    what, data, folder = sys.argv[1:4]
    dataset_of = library("streaming.base.dataset").StreamingDataset
    if what == "mnist":
        found = arrays(data)
        rows = (
            {"image": image, "label": label}
            for image, label in zip(found["images"], found["labels"].tolist(), strict=True)
        )
        write({"image": "ndarray:uint8:28,28", "label": "int"}, rows, folder)
        dataset = dataset_of(local=folder, shuffle=True, batch_size=BATCH)
        loader = DataLoader(dataset, BATCH, num_workers=WORKERS, persistent_workers=True)
        answer(best(lambda: loader, lambda batch: len(batch["label"]), len(found["labels"])))
    elif what == "tokens":
        tokens = np.memmap(data, np.uint16, "r")[: TOKEN_WINDOWS * TOKEN_LENGTH].reshape(-1, TOKEN_LENGTH)
        write({"tokens": f"ndarray:uint16:{TOKEN_LENGTH}"}, ({"tokens": np.array(window)} for window in tokens), folder)
        dataset = dataset_of(local=folder, shuffle=True, batch_size=REMOTE_BATCH)
        loader = DataLoader(dataset, REMOTE_BATCH, num_workers=WORKERS, persistent_workers=True)
        answer(best(lambda: loader, lambda batch: len(batch["tokens"]), len(tokens)))
    elif what == "write":
        found = arrays(data)
        rows = (
            {"value": value.tobytes(), "label": label}
            for value, label in zip(found["values"], found["labels"].tolist(), strict=True)
        )
        write({"value": "bytes", "label": "int"}, rows, folder)
        answer({"rows": len(found["labels"])})
    else:
        os.environ["S3_ENDPOINT_URL"] = sys.argv[4]
        window = int(sys.argv[5])
        library("streaming.base.util").clean_stale_shared_memory()
        dataset = dataset_of(
            remote=data, local=folder, shuffle=True, shuffle_algo="py1e", shuffle_block_size=window,
            batch_size=REMOTE_BATCH, cache_limit=int(sys.argv[6]),
        )  # fmt: skip
        loader = DataLoader(dataset, REMOTE_BATCH, num_workers=WORKERS, collate_fn=list)
        rows, seconds = timed(loader, len)
        answer({"rows": rows, "samples_per_s": rows / seconds})


if __name__ == "__main__":
    main()
