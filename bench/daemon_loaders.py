"""Workloads mnist and jpeg: a DataLoader's shuffled epochs over a daemon, beside the same over the store's directory, in turn.

The loaders, data and batches are those of bench/loader_mnist.py and bench/loader_jpeg.py (workload `default`: two threads that decode, an
antialiased crop, floats), each in a process of its own that is given a URL instead of a path.

mnist          the best of the epochs after the first                            contract: >= 0.5x local
mnist first    the first epoch of a new process, opening the store included     no contract: local has no round trips
jpeg           the best of the epochs after the first: every value is asked for again, nothing is kept decoded     contract: >= 0.95x local

... other host    the same without the daemon's hot cache, which processes of its own host read directly: what another machine would see,
                  but for the wire, and for the cores that daemon and loader share here

Warm: the system's page cache; the daemon's hot cache from the first epoch on.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

from bench import loader_jpeg, loader_mnist
from bench.harness import Figure, in_process, median
from leptonstore.testing import daemon

ROUNDS = 3


def measure_mnist(arguments: argparse.Namespace) -> list[Figure]:
    """See the contract of the module."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        loader_mnist.store_mnist(place / "store", loader_mnist.chosen(arguments, place), place)
        return run_mnist(place, arguments.quick)


def run_mnist(place: Path, quick: bool) -> list[Figure]:
    """The figures, of a store that is there."""
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    with (
        daemon.running(place / "store", cache=str(place / "hot"), cache_bytes="1GiB") as near,
        daemon.running(place / "store", cache_bytes=0) as far,
    ):
        for _ in range(1 if quick else ROUNDS):
            for name, url in (("local", str(place / "store")), ("near", near.url), ("far", far.url)):
                runs[name].append(in_process("bench.loader_mnist", "ours", url))
    found = {name: {key: median(run[key] for run in told) for key in ("first", "later")} for name, told in runs.items()}
    local = found["local"]
    return [
        Figure("mnist", found["near"]["later"], "rows/s", ">= 0.5", "local", local["later"]),
        Figure("mnist first", found["near"]["first"], "rows/s", "", "local", local["first"]),
        Figure("mnist other host", found["far"]["later"], "rows/s", ">= 0.5", "local", local["later"]),
        Figure("mnist first other host", found["far"]["first"], "rows/s", "", "local", local["first"]),
    ]


def measure_jpeg(arguments: argparse.Namespace) -> list[Figure]:
    """See the contract of the module."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        loader_jpeg.make_data(place, loader_jpeg.ROWS_QUICK if arguments.quick else loader_jpeg.ROWS)
        return run_jpeg(place, arguments.quick)


def run_jpeg(place: Path, quick: bool) -> list[Figure]:
    """As run_mnist."""
    rates: dict[str, list[float]] = defaultdict(list)
    with (
        daemon.running(place / "store", cache=str(place / "hot"), cache_bytes="1GiB") as near,
        daemon.running(place / "store", cache_bytes=0) as far,
    ):
        for _ in range(1 if quick else ROUNDS):
            for name, url in (("local", str(place / "store")), ("near", near.url), ("far", far.url)):
                rates[name] += in_process("bench.loader_jpeg", "default", str(place), url)["later"]
    best = {name: max(found) for name, found in rates.items()}
    return [
        Figure("jpeg", best["near"], "samples/s", ">= 0.95", "local", best["local"]),
        Figure("jpeg other host", best["far"], "samples/s", "", "local", best["local"]),
    ]
