"""Workload clean: faults that need no picture to be looked at, of MNIST with planted ones (bench/planted_mnist.py).

duplicates   500 exact copies, and 100 constant images, by a pipeline that only looks; floor: digests of the arrays in memory, in a dict
labels       100 wrong labels: how many of them are among the 200 most suspicious; the first time, and again with all features known
find         the usual faults in one pass in this process (clean.find), as `lepton demo` has it

Contract: all copies and constant images, no false alarm; >= 60 wrong labels (issue 8, "It holds when", line 2).
--quick: 6,000 digits and as many fewer faults.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from blake3 import blake3

from bench.harness import Figure, find_mnist
from bench.planted_mnist import Truth, planted_mnist
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.process.checks.constant import Constant
from leptonstore.process.checks.duplicates import Duplicates
from leptonstore.process.checks.label_errors import LabelErrors
from leptonstore.process.clean import find
from leptonstore.process.findings import worst
from leptonstore.process.pipeline import Pipeline, Result
from leptonstore.store import Store

QUICK = {"digits": 6_000, "exact": 60, "near": 60, "constant": 30, "wrong": 40}
T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """(what it gives, seconds, seconds of the processor)."""
    begin, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - begin, time.process_time() - cpu


def floor(images: np.ndarray) -> int:
    """Copies by a dict of digests: nothing that looks at every image is much quicker."""
    seen: set[bytes] = set()
    for image in images.reshape(len(images), -1):
        seen.add(blake3(image.data).digest())
    return len(images) - len(seen)


def copies(result: Result, truth: Truth) -> list[Figure]:
    """What was found and what was not there, of copies and of constant images."""
    rows = result.findings.to_pylist()
    pairs = {tuple(sorted((one["row"], one["other"]))) for one in rows if one["check"] == "duplicates"}
    planted = {tuple(sorted(pair)) for pair in truth.exact.tolist()}
    grey = {one["row"] for one in rows if one["check"] == "constant"}
    constant = set(truth.constant.tolist())
    return [
        Figure("duplicates_found", len(pairs & planted) / len(planted), "share", ">= 1"),
        Figure("duplicates_false", len(pairs - planted), "rows", "<= 0"),
        Figure("constant_found", len(grey & constant) / len(constant), "share", ">= 1"),
        Figure("constant_false", len(grey - constant), "rows", "<= 0"),
    ]


def labels(ds: Dataset, truth: Truth) -> list[Figure]:
    """How many of the wrong ones are among twice as many, and how long it takes."""
    pipeline = Pipeline(ds.label, [LabelErrors()])
    first, first_s, first_cpu_s = timed(lambda: pipeline.look(ds.store))
    again, again_s, _ = timed(lambda: pipeline.look(ds.store))
    assert again.findings.equals(first.findings)
    wrong = len(truth.wrong)
    hits = np.isin(truth.wrong, worst(first.findings, "label_errors", 2 * wrong)["row"].to_numpy()).sum()
    return [
        Figure("wrong_labels_found", int(hits) / wrong, "share", ">= 0.6"),
        Figure("labels_first_s", first_s, "s"),
        Figure("labels_first_cpu_s", first_cpu_s, "s"),
        Figure("labels_again_s", again_s, "s"),
    ]


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """See the module."""
    data = find_mnist(getattr(arguments, "data", None))
    if data is None:
        raise SystemExit("bench.process: MNIST's IDX files are not beside the project: --data DIR says where they are")
    table, truth = planted_mnist(data, **(QUICK if arguments.quick else {}))
    images = table["image"].combine_chunks().to_numpy_ndarray()
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store") as store:
        source = Source(table.schema, ("id",), lambda: iter(table.combine_chunks().to_batches()), len(table))
        ds = write_dataset(store, "planted", source)
        Pipeline(ds.label, [Duplicates()]).look(store, memo=False)  # imports
        _, floor_s, _ = timed(lambda: floor(images))
        alone, alone_s, _ = timed(lambda: Pipeline(ds.label, [Duplicates()]).look(store))
        both = Pipeline(ds.label, [Constant(), Duplicates()]).look(store)
        assert alone.counts[0]["in"] == len(ds)
        report, find_s, _ = timed(lambda: find(ds))
        assert len(report.findings) == len(both.findings)
        return [
            *copies(both, truth),
            Figure("duplicates_s", alone_s, "s", peer="digests in a dict", peer_value=floor_s),
            Figure("find_s", find_s, "s"),
            *labels(ds, truth),
        ]
