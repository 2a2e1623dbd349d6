"""Peer: litdata. usage: bench/peers/peer.py"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import Cache, downloader
from peer import BATCH, REMOTE_BATCH, WORKERS, answer, arrays, best, timed


def write(rows: Iterable[Any], folder: str) -> None:
    """Rows into chunks of 64 MiB."""
    cache = Cache(folder, chunk_bytes=1 << 26)
    for number, row in enumerate(rows):
        cache[number] = row
    cache.done()
    cache.merge()


def owned(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A batch that a worker can send: values come as views of a chunk."""
    return [{**sample, "value": bytes(sample["value"])} for sample in samples]


def main() -> None:
    """One workload."""
    what, data, folder = sys.argv[1:4]
    if what == "mnist":
        found = arrays(data)
        rows = zip(found["images"], found["labels"].tolist(), strict=True)
        write(({"image": image, "label": label} for image, label in rows), folder)
        dataset = StreamingDataset(folder, shuffle=True)
        loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
        answer(best(lambda: loader, lambda batch: len(batch["label"]), len(found["labels"])))
    elif what == "write":
        found = arrays(data)
        rows = zip(found["values"], found["labels"].tolist(), strict=True)
        write(({"value": value.tobytes(), "label": label} for value, label in rows), folder)
        answer({"rows": len(found["labels"])})
    else:
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the server is on loopback, and has no TLS
        window, cache_bytes = int(sys.argv[5]), int(sys.argv[6])
        dataset = StreamingDataset(
            data, cache_dir=folder, shuffle=True, max_cache_size=cache_bytes, item_shuffle_window=window,
            storage_options={"endpoint_url": sys.argv[4]},
        )  # fmt: skip
        loader = StreamingDataLoader(dataset, batch_size=REMOTE_BATCH, num_workers=WORKERS, collate_fn=owned)
        seen, seconds = timed(loader, len)
        answer({"rows": seen, "samples_per_s": seen / seconds})


if __name__ == "__main__":
    main()
