"""`python -m bench.process [--workload NAME]`: pipelines, checks and statistics, beside what they must not be slower than, in one run.

pipeline     a pipeline again, after 1 % of the rows changed            bench/process_pipeline.py
operations   what transforming operations cost                           bench/process_operations.py
clean        copies, constant images, wrong labels                      bench/process_clean.py
images       faults in images                                           bench/process_images.py
texts        near duplicates of texts                                   bench/process_texts.py
statistics   statistics of a large table                                bench/process_statistics.py
report       pages about datasets, in a browser                          bench/process_report.py

Each module states its contract.
"""

from __future__ import annotations

import argparse
import importlib

from bench import harness
from bench.harness import Figure

WORKLOADS = ("pipeline", "operations", "clean", "images", "texts", "statistics", "report")


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures of the workloads that were asked for."""
    figures: list[Figure] = []
    for name in [arguments.workload] if arguments.workload else WORKLOADS:
        figures += importlib.import_module(f"bench.process_{name}").measure(arguments)
    return figures


def main() -> None:
    """Parse the arguments and run."""
    parser = harness.parser("process", __doc__.split("\n")[0])
    parser.add_argument("--workload", choices=WORKLOADS, help="one of them; default: all, one after another")
    parser.add_argument("--data", metavar="DIR", help="MNIST's IDX files")
    harness.main("process", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
