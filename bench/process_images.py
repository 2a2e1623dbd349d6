"""Workload images: faults planted among images, each check on its own, out of a store.

digits   MNIST with 500 exact and 500 near copies (shifted by a pixel, or with noise), 100 constant images, 100 wrong labels among 71,100
         rows (bench/planted_mnist.py). phash is what is commonly done for near copies: 64 bits of a 32 x 32 cosine transform, pairs
         within the Hamming distance at which precision and recall are best (it is told the truth to choose it).
files    3,000 JPEGs of bench/loader_jpeg.py (500 x 375), of which 300 are near copies (compressed again, resized, cropped, brighter), 60
are
         damaged, half of them so that a lenient decoder shows them, and 30 constant. All checks of images in one pipeline, beside
         `bare`: reading and simplejpeg in as many threads as there are cores, nothing else.

Each is a process of its own; seconds are those of Pipeline.look with nothing remembered, from the store to the findings.

Contract (issue 8, "It holds when", line 2): exact and constant all found and no false alarm; near copies recall >= 0.9 at precision >=
0.9; of the wrong labels >= 60 among the 200 most suspicious.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench import harness, loader_jpeg
from bench.harness import Figure, find_mnist, in_process
from bench.planted_mnist import Truth, planted_mnist
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import image_field
from leptonstore.store import Store

DIGITS_QUICK, PLANTED_QUICK = 6_000, 60
FILES, FILES_QUICK = 3_000, 200
NEAR_SHARE, DAMAGED_SHARE, CONSTANT_SHARE = 10, 50, 100  # one of so many files
WORST = 200  # labels that a person would look at
BITS_MAX = 12  # Hamming distances that are tried for phash

Pairs = set[tuple[int, int]]


# -- digits --------------------------------------------------------------------------------------------------------------


def store_digits(folder: Path, data: Path, quick: bool) -> Truth:
    """A store with dataset `digits`, and its images as an array in a file for phash."""
    few = PLANTED_QUICK
    table, truth = planted_mnist(data, DIGITS_QUICK, few, few, few // 2, few // 2) if quick else planted_mnist(data)
    with Store.create(folder / "store", cache_dir=folder / "cache") as store:
        batches = table.combine_chunks().to_batches(max_chunksize=4_096)
        write_dataset(store, "digits", Source(table.schema, ("id",), lambda: iter(batches), len(table)))
    np.save(folder / "digits.npy", table["image"].combine_chunks().to_numpy_ndarray())
    return truth


def one_check(folder: str, dataset: str, name: str) -> dict[str, Any]:
    """Findings of one check (or of several, joined by +), in a process of its own."""
    import daft  # noqa: F401 - what an import costs is not measured

    from leptonstore.process.findings import worst
    from leptonstore.process.pipeline import Pipeline
    from leptonstore.process.registry import operation_named

    names = name.split("+")
    with Store.open(Path(folder) / "store", Path(folder) / "cache") as store:
        pipeline = Pipeline(dataset, [operation_named(f"check.{one}", {}) for one in names])
        pipeline.plan(store)  # modules are imported
        before, start, cpu = harness.peak_mib(), time.perf_counter(), time.process_time()
        found = pipeline.look(store, memo=False).findings
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if name == "label_errors":
        found = worst(found, name, WORST)
    columns = {key: found[key].to_pylist() for key in ("check", "row", "other", "detail")}
    return {"seconds": seconds, "cpu_seconds": cpu, "before_mib": before, "peak_mib": harness.peak_mib(), **columns}


def phash(file: str) -> dict[str, Any]:
    """Pairs within BITS_MAX bits and their distances: imagehash.phash with its defaults (Pillow, scipy), compared one by one."""
    from PIL import Image
    from scipy.fft import dct

    images = np.load(file)
    start = time.perf_counter()
    wide = [Image.fromarray(one).resize((32, 32), Image.Resampling.LANCZOS) for one in images]
    low = dct(dct(np.stack([np.asarray(one, np.float64) for one in wide]), axis=1), axis=2)[:, :8, :8].reshape(-1, 64)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1).view(np.uint64)[:, 0]
    pairs = []
    for at in range(len(bits)):
        apart = np.bitwise_count(bits[at + 1 :] ^ bits[at])
        near = np.flatnonzero(apart <= BITS_MAX)
        pairs.append(np.stack([np.full(len(near), at), near + at + 1, apart[near]]))
    seconds = time.perf_counter() - start
    np.save(Path(file).with_name("phash.npy"), np.concatenate(pairs, axis=1))
    return {"seconds": seconds, "peak_mib": harness.peak_mib()}


def pairs_of(found: Iterable[Iterable[int]]) -> Pairs:
    """Unordered."""
    return {(min(pair), max(pair)) for pair in map(tuple, found)}


def best_phash(
    found: NDArray[np.int64], near: Pairs, exact: Pairs, constant: NDArray[np.int64]
) -> tuple[int, float, float]:
    """(bits, recall, precision) at the distance with the best product of the two. Equal pairs and constant images do not count."""
    best = (0, 0.0, 0.0)
    count = int(found[:2].max(initial=0)) + 1
    wanted, equal = (np.array([a * count + b for a, b in pairs]) for pairs in (near, exact))
    names = found[0] * count + found[1]
    hit, differ = np.isin(names, wanted), ~(np.isin(names, equal) | np.isin(found[:2], constant).any(axis=0))
    for bits in range(BITS_MAX + 1):
        within = (found[2] <= bits) & differ
        recall, precision = hit[within].sum() / len(near), hit[within].mean() if within.any() else 0.0
        if recall * precision > best[1] * best[2]:
            best = bits, float(recall), float(precision)
    return best


def measure_digits(folder: Path, data: Path, quick: bool) -> list[Figure]:
    """Line 2 of the issue."""
    truth = store_digits(folder, data, quick)
    near, exact = pairs_of(truth.near.tolist()), pairs_of(truth.exact.tolist())
    rows = len(np.load(folder / "digits.npy", mmap_mode="r"))
    names = ("duplicates", "constant", "near_duplicate_images", "label_errors")
    runs = {name: in_process("bench.process_images", "check", str(folder), "digits", name) for name in names}
    found = {
        name: pairs_of(zip(run["row"], run["other"], strict=True))
        for name, run in runs.items()
        if run["other"][:1] != [None]
    }
    similar = found["near_duplicate_images"]
    constant, planted = set(runs["constant"]["row"]), set(truth.constant.tolist())
    labels = len(set(runs["label_errors"]["row"]) & set(truth.wrong.tolist()))
    common = in_process("bench.process_images", "phash", str(folder / "digits.npy"))
    bits, recall, precision = best_phash(np.load(folder / "phash.npy"), near, exact, truth.constant)
    hits = len(similar & near)
    figures = [
        Figure("exact found", len(found["duplicates"] & exact) / len(exact), "share", ">= 1"),
        Figure("exact false", len(found["duplicates"] - exact), "rows", "<= 0"),
        Figure("constant found", len(constant & planted) / len(planted), "share", ">= 1"),
        Figure("constant false", len(constant - planted), "rows", "<= 0"),
        Figure("near recall", hits / len(near), "share", ">= 0.9"),
        Figure("near precision", hits / max(1, len(similar)), "share", ">= 0.9"),
        Figure("phash recall", recall, f"share, at {bits} bits"),
        Figure("phash precision", precision, f"share, at {bits} bits"),
        Figure("wrong labels in 200", labels, f"of {len(truth.wrong)}", ">= 18" if quick else ">= 60"),
    ]
    for name, run in runs.items():
        figures.append(Figure(f"{name} time", run["seconds"], "s"))
        figures.append(Figure(f"{name} CPU", run["cpu_seconds"], "s of all threads"))
        figures.append(Figure(f"{name} rate", rows / run["seconds"], "images/s"))
        figures.append(Figure(f"{name} memory", run["peak_mib"] - run["before_mib"], "MiB over imports"))
    figures.append(Figure("phash time", common["seconds"], "s"))
    return figures


# -- files ---------------------------------------------------------------------------------------------------------------


def _changed(seed: int) -> bytes:
    """A near copy of picture `seed`."""
    from PIL import Image, ImageEnhance

    image = Image.fromarray(loader_jpeg.picture(seed))
    width, height = image.size
    kinds: list[Callable[[], tuple[Image.Image, int]]] = [
        lambda: (image, 50),
        lambda: (image.resize((width // 2, height // 2)), 85),
        lambda: (image.crop((width // 33, height // 33, width - width // 33, height - height // 33)), 90),
        lambda: (image.crop((width // 20, 0, width, height)), 80),
        lambda: (ImageEnhance.Brightness(image).enhance(0.85), 75),
    ]
    made, quality = kinds[seed % len(kinds)]()
    out = io.BytesIO()
    made.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _file(at: int) -> bytes:
    """Row `at`: a near copy of the row before it, damaged, constant, or a picture."""
    from PIL import Image

    if at % NEAR_SHARE == 1:
        return _changed(at - 1)
    data = loader_jpeg.jpeg(at)
    if at % DAMAGED_SHARE == 2:
        return data[: len(data) // 2] + (b"\xff\xd9" if at % (2 * DAMAGED_SHARE) == 2 else b"")
    if at % CONSTANT_SHARE == 3:
        out = io.BytesIO()
        Image.new("RGB", (loader_jpeg.WIDTH, loader_jpeg.HEIGHT), (at % 256, at // 256, 90)).save(out, "JPEG")
        return out.getvalue()
    return data


def bare(folder: str) -> dict[str, Any]:
    """Read and decode, nothing else."""
    import simplejpeg

    def decoded(value: Any) -> int:
        with suppress(ValueError):  # damaged
            return len(simplejpeg.decode_jpeg(memoryview(value.as_buffer()).cast("B")))
        return 0

    with Store.open(Path(folder) / "store", Path(folder) / "cache") as store:
        start, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _, batch in Dataset.open(store, "pictures").iter_batches(["image"]):
                whole = sum(1 for height in pool.map(decoded, batch.column(0)) if height)
                assert whole >= 0.9 * len(batch), "hardly anything is decoded"
        return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def measure_files(folder: Path, quick: bool) -> list[Figure]:
    """All checks of images over JPEGs."""
    rows = FILES_QUICK if quick else FILES
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = list(pool.map(_file, range(rows)))
    schema = pa.schema([pa.field("id", pa.int64(), False), image_field("image", "jpeg")])
    table = pa.table([pa.array(range(rows)), pa.array(files, pa.large_binary())], schema=schema)
    with Store.create(folder / "store", cache_dir=folder / "cache") as store:
        batches = table.to_batches(max_chunksize=1_000)
        write_dataset(store, "pictures", Source(schema, ("id",), lambda: iter(batches), rows))
    least = in_process("bench.process_images", "bare", str(folder))
    names = "undecodable+constant+image_size+image_quality+near_duplicate_images"
    run = in_process("bench.process_images", "check", str(folder), "pictures", names)
    checks = np.array(run["check"])
    by = {name: set(np.array(run["row"])[checks == name].tolist()) for name in names.split("+")}
    damaged = {at for at in range(rows) if at % DAMAGED_SHARE == 2}
    constant = {at for at in range(rows) if at % CONSTANT_SHARE == 3}
    at_near = np.flatnonzero(checks == "near_duplicate_images").tolist()
    similar = pairs_of((run["row"][at], run["other"][at]) for at in at_near)
    near = pairs_of((at - 1, at) for at in range(rows) if at % NEAR_SHARE == 1)
    return [
        Figure("files damaged found", len(by["undecodable"] & damaged) / len(damaged), "share", ">= 1"),
        Figure("files damaged false", len(by["undecodable"] - damaged), "rows", "<= 0"),
        Figure("files constant found", len(by["constant"] & constant) / len(constant), "share", ">= 1"),
        Figure("files constant false", len(by["constant"] - constant), "rows", "<= 0"),
        Figure("files near recall", len(similar & near) / len(near), "share", ">= 0.9"),
        Figure("files near precision", len(similar & near) / max(1, len(similar)), "share", ">= 0.9"),
        Figure("files time", run["seconds"], "s", "", "bare", least["seconds"]),
        Figure("files CPU", run["cpu_seconds"], "s of all threads", "", "bare", least["cpu_seconds"]),
        Figure("files rate", rows / run["seconds"], "images/s"),
        Figure("files memory", run["peak_mib"] - run["before_mib"], "MiB over imports"),
    ]


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Both."""
    data = find_mnist(arguments.data)
    if data is None:
        raise SystemExit("bench.process: MNIST's IDX files are not beside the project: --data DIR says where they are")
    with (
        tempfile.TemporaryDirectory(prefix="lepton-bench-") as first,
        tempfile.TemporaryDirectory(prefix="lepton-bench-") as second,
    ):
        return measure_digits(Path(first), data, arguments.quick) + measure_files(Path(second), arguments.quick)


if __name__ == "__main__":
    roles: dict[str, Callable[..., dict[str, Any]]] = {"check": one_check, "phash": phash, "bare": bare}
    print(json.dumps(roles[sys.argv[1]](*sys.argv[2:])))
