"""`python -m bench.daemon [--workload NAME]`: what it costs that a daemon stands between a store and those who read it.

bulk      all rows of a dataset through a client, beside a bare Arrow Flight stream of the same bytes     bench/daemon_bulk.py
chunks    64 clients at random chunks of 256 KiB: errors, and how even the waits are                      bench/daemon_chunks.py
mnist     a DataLoader's shuffled epochs, remote beside local                                             bench/daemon_loaders.py
jpeg      the same of JPEGs that are decoded and cropped                                                  bench/daemon_loaders.py
cluster   four daemons and four loaders over one bucket (not part of a run without --workload)            bench/daemon_cluster.py
soak      mixed clients, gc and tier moves for ten minutes (likewise)                                     bench/daemon_soak.py

Each module states its contract, and what is warm. The daemon is a process of its own, on loopback, started by `lepton serve` as users do
it, with tokens and without TLS. It shares the machine's cores with its clients: `machine` says how many there are.
"""

from __future__ import annotations

import argparse
import importlib

from bench import harness
from bench.harness import Figure

WORKLOADS = {
    "bulk": "bench.daemon_bulk",
    "chunks": "bench.daemon_chunks",
    "mnist": "bench.daemon_loaders",
    "jpeg": "bench.daemon_loaders",
    "cluster": "bench.daemon_cluster",
    "soak": "bench.daemon_soak",
}
USUAL = ("bulk", "chunks", "mnist", "jpeg")


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures of the workloads that were asked for."""
    figures: list[Figure] = []
    for name in [arguments.workload] if arguments.workload else USUAL:
        module = importlib.import_module(WORKLOADS[name])
        run = module.measure_jpeg if name == "jpeg" else module.measure_mnist if name == "mnist" else module.measure
        figures += run(arguments)
    return figures


def main() -> None:
    """Parse the arguments and run."""
    parser = harness.parser("daemon", __doc__.split("\n")[0])
    parser.add_argument("--workload", choices=WORKLOADS, help="one of them; default: the first four, one after another")
    parser.add_argument("--data", metavar="DIR", help="MNIST's IDX files")
    harness.main("daemon", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
