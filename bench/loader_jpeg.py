"""Workload jpeg: JPEGs of 500 x 375 and about 52 KB, each epoch RandomResizedCrop(224), flip and floats, in batches of 64.

The pictures are made here: smooth colours, texture at several sizes, and noise, at quality 90. Ours reads them from a store, with 2
threads; the peer is torch's DataLoader with 2 worker processes over a folder of the same files, doing with Pillow what torchvision's
ImageFolder and transforms do (bench/peers/imagefolder.py). Rounds of all of them in turn; the best epoch after each one's first.

default    antialiased resize: the pixels of Pillow, as far as the error says
fast       antialias=False: bilinear between neighbours; its error is beside Pillow's antialiased pixels, which is what it gives up
pixels     the fast mode without the floats, beside `bare`: files read, simplejpeg, crop and the same resize in two threads, nothing else
decoded    DecodeImage, Resize(256) in the decoded-column cache, then the same crop: epochs after the first

Contract: default >= 1.3x the peer with a mean error <= 0.1 grey level, fast >= 2x, pixels >= 0.9x bare, decoded >= 4x.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import harness
from bench.harness import Figure, in_process
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import class_label_field, image_field
from leptonstore.store import Store

WIDTH, HEIGHT, QUALITY = 500, 375, 90
ROWS, ROWS_QUICK, BATCH, THREADS = 2_000, 200, 64, 2
EPOCHS, ROUNDS = 3, 3  # epochs of a round; the first is not counted
ERROR_ROWS = 64
CLASSES = 10
MODES = ("bare", "default", "fast", "pixels", "decoded")


@cache
def _layers() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Textures (of three sizes in turn) and noises, of which pictures are made."""
    from PIL import Image

    rng = np.random.default_rng(0)
    textures, noises = [], []
    for at in range(24):
        cells, contrast = ((5, 55), (20, 24), (70, 10))[at % 3]
        coarse = rng.standard_normal((3, cells, cells * WIDTH // HEIGHT), np.float32)
        planes = [Image.fromarray(plane).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for plane in coarse]
        textures.append(contrast * np.stack([np.asarray(plane) for plane in planes], -1))
    for _ in range(4):
        noises.append(3.8 * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32))
    return textures, noises


def picture(seed: int) -> np.ndarray:
    """Smooth colours, two textures, noise, each shifted by chance: uint8 (HEIGHT, WIDTH, 3)."""
    textures, noises = _layers()
    rng = np.random.default_rng(seed)
    out = 120 + 20 * rng.standard_normal(3, np.float32)
    for layers in (textures[0::3], textures[1::3], textures[2::3], noises):
        layer = layers[rng.integers(len(layers))]
        out = out + np.roll(layer, (rng.integers(HEIGHT), rng.integers(WIDTH)), (0, 1))
    return np.clip(out, 0, 255).astype(np.uint8)


def jpeg(seed: int) -> bytes:
    """A picture, encoded."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture(seed)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def make_data(folder: Path, rows: int) -> float:
    """Store `store` with dataset `pictures`, and `files`, a folder for each class; mean bytes of a JPEG."""
    with ThreadPoolExecutor(THREADS) as pool:
        images = list(pool.map(jpeg, range(rows)))
    for at, data in enumerate(images):
        place = folder / "files" / f"class {at % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{at:06}.jpg").write_bytes(data)
    fields = [image_field("image", "jpeg"), class_label_field("label", [f"class {at}" for at in range(CLASSES)])]
    schema = pa.schema([pa.field("id", pa.int64(), False), *fields])
    columns = [
        pa.array(range(rows)),
        pa.array(images, pa.large_binary()),
        pa.array(np.arange(rows) % CLASSES, pa.uint8()),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    with Store.create(folder / "store") as store:
        write_dataset(store, "pictures", Source(schema, ("id",), lambda: iter([batch]), rows, {}))
    return float(np.mean([len(data) for data in images]))


# -- ours, in processes of their own -----------------------------------------------------------------------------------


def epochs(mode: str, folder: Path, url: str = "") -> dict[str, Any]:
    """Samples/s of each epoch of a DataLoader. url: of the store, where it is not in `folder`."""
    from loaders import DataLoader
    from loaders.transforms import DecodeImage, RandomHorizontalFlip, RandomResizedCrop, Resize, ToFloat

    dataset = Dataset.open(url or folder / "store", "pictures")
    chain: list[Any] = [DecodeImage(), RandomResizedCrop(224, antialias=mode in ("default", "decoded"))]
    chain += [RandomHorizontalFlip()] if mode == "pixels" else [RandomHorizontalFlip(), ToFloat()]
    if mode == "decoded":
        chain.insert(1, Resize(256))
        place = tempfile.TemporaryDirectory(dir="/dev/shm")
        dataset = dataset.cached(place.name, len(dataset) * 400_000)
    loader = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        num_workers=THREADS,
        columns=["image", "label"],
        transforms={"image": chain},
        decoded_cache=mode == "decoded",
    )
    rates = []
    for _ in range(EPOCHS):
        began, rows = time.perf_counter(), 0
        for batch in loader:
            rows += len(batch["label"])
        rates.append(rows / (time.perf_counter() - began))
        assert rows == len(dataset)
    result: dict[str, Any] = {"first": rates[0], "later": rates[1:]}
    if mode == "decoded":
        stats = dataset.chunks.cache.stats()  # type: ignore[attr-defined]
        result["bytes_per_image"] = stats["put_bytes"] / len(dataset)
        place.cleanup()
    return result


def bare(folder: Path) -> dict[str, Any]:
    """Read, simplejpeg, crop, resize in two threads; no batch is made, and the parts are known."""
    import cv2
    import simplejpeg

    from loaders.transforms import RandomResizedCrop, SampleKeys

    images = [str(path) for path in sorted((folder / "files").rglob("*.jpg"))]
    crop, keys = RandomResizedCrop(224), SampleKeys(0, 0, np.arange(len(images)))
    parts = [crop.plan((HEIGHT, WIDTH), keys.rng(i, 1))[0] for i in range(len(images))]

    def some(first: int) -> None:
        for path, part in zip(images[first : first + 8], parts[first : first + 8], strict=True):
            with open(path, "rb") as file:
                data = file.read()
            cv2.resize(part.of(simplejpeg.decode_jpeg(data)), (224, 224), interpolation=cv2.INTER_LINEAR)

    rates = []
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(EPOCHS):
            began = time.perf_counter()
            list(pool.map(some, range(0, len(images), 8)))
            rates.append(len(images) / (time.perf_counter() - began))
    return {"first": rates[0], "later": rates[1:]}


def errors(folder: Path) -> dict[str, float]:
    """Mean absolute difference of the decoded, cropped and resized pixels from Pillow's, in grey levels, over the same parts."""
    from PIL import Image

    from loaders.transforms import DecodeImage, RandomResizedCrop, SampleKeys

    found: dict[str, list[float]] = defaultdict(list)
    keys = SampleKeys(0, 0, np.arange(ERROR_ROWS))
    for i, path in enumerate(sorted((folder / "files").rglob("*.jpg"))[:ERROR_ROWS]):
        data = path.read_bytes()
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        for name, antialias in (("default", True), ("fast", False)):
            crop = RandomResizedCrop(224, antialias=antialias)
            (top, left, height, width), _ = crop.plan((HEIGHT, WIDTH), keys.rng(i, 1))
            part = whole.crop((left, top, left + width, top + height))
            expected = np.asarray(part.resize((224, 224), Image.Resampling.BILINEAR), np.int16)
            found[name].append(float(np.abs(crop(DecodeImage()(data), keys.rng(i, 1)) - expected).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """See the contract of the module."""
    quick = arguments.quick
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        size = make_data(folder, ROWS_QUICK if quick else ROWS)
        error = errors(folder)
        rates: dict[str, list[float]] = defaultdict(list)
        results: dict[str, dict[str, Any]] = {}
        for _ in range(1 if quick else ROUNDS):
            for mode in MODES:
                results[mode] = in_process("bench.loader_jpeg", mode, str(folder))
                rates[mode] += results[mode]["later"]
            if not quick:
                given = [str(folder / "files"), str(BATCH), str(THREADS), str(EPOCHS - 1)]
                rates["imagefolder"] += harness.run_peer("imagefolder", given)["samples_per_s"]
    return list(_figures(size, error, {name: max(found) for name, found in rates.items()}, results))


def _figures(
    size: float, error: dict[str, float], rates: dict[str, float], results: dict[str, dict[str, Any]]
) -> Iterator[Figure]:
    peer = rates.get("imagefolder")

    def beside(name: str, mode: str, bound: str) -> Figure:
        if peer is None:
            return Figure(name, rates[mode], "samples/s")
        return Figure(name, rates[mode], "samples/s", bound, "ImageFolder, 2 workers", peer)

    yield Figure("jpeg_bytes", size, "bytes")
    yield beside("jpeg_default", "default", ">= 1.3")
    yield Figure("jpeg_default_error", error["default"], "grey levels", "<= 0.1")
    yield beside("jpeg_fast", "fast", ">= 2")
    yield Figure("jpeg_fast_error", error["fast"], "grey levels")
    yield Figure("jpeg_fast_pixels", rates["pixels"], "samples/s", ">= 0.9", "bare, two threads", rates["bare"])
    yield beside("jpeg_decoded", "decoded", ">= 4")
    yield Figure("jpeg_decoded_first", results["decoded"]["first"], "samples/s")
    yield Figure("jpeg_decoded_bytes", results["decoded"]["bytes_per_image"], "bytes/image")
    yield Figure("jpeg_peak_mib", results["default"]["peak_mib"], "MiB")


if __name__ == "__main__":
    mode, place = sys.argv[1], Path(sys.argv[2])
    result = bare(place) if mode == "bare" else epochs(mode, place, *sys.argv[3:])
    result["peak_mib"] = harness.peak_mib()
    print(json.dumps(result), flush=True)
    os._exit(0)
