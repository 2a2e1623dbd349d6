"""One loader of workload cluster, in a process of its own: a fully shuffled epoch of a served store.

python -m bench.daemon_cluster_loader URL SEED BATCH  ->  "step N" now and then, and in the end one line of JSON:
rows, seconds, order (the digest of all rows in the order in which they came: labels and bytes), receipt (the head of its chain)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from leptonstore.dataset import Dataset
from leptonstore.digest import digest_of, digest_of_parts
from leptonstore.store import Store

TELL_STEPS = 2


def epoch(url: str, seed: int, batch_rows: int, workers: int, tell: Callable[[int], None]) -> dict[str, object]:
    """The first epoch under `seed`. tell(step): each batch that came."""
    from loaders import DataLoader

    began, rows, parts = time.perf_counter(), 0, list[bytes]()
    with Store.open(url) as store:
        loader = DataLoader(Dataset.open(store, "values"), batch_rows, shuffle=True, seed=seed, num_workers=workers)
        for step, batch in enumerate(loader):
            rows += len(batch["label"])
            parts += [digest_of(batch["label"].numpy().tobytes()), *map(digest_of, batch["value"])]
            tell(step)
        receipt = loader.receipt().head.hex()
    return {
        "rows": rows,
        "seconds": time.perf_counter() - began,
        "order": digest_of_parts(parts).hex(),
        "receipt": receipt,
    }


def _tell(step: int) -> None:
    if step % TELL_STEPS == 0:
        sys.stdout.write(f"step {step}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    found = epoch(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 2, _tell)
    sys.stdout.write(json.dumps(found) + "\n")
