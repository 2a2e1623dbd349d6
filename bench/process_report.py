"""Workload report: pages about datasets, opened in a browser.

demo         what `lepton demo` writes of scikit-learn's digits
photographs  3,000 JPEGs of bench/loader_jpeg.py with planted faults in two versions: 80 exact and 80 near duplicates, 20 truncated files,
             20 of one colour; checks run as a pipeline, then `lepton report`: first as it comes, then with every sketch known
browser      both in headless Chromium at 390 and 1280 pixels, light and dark: requests other than for the file, messages of the console,
             pages wider than the screen (-1: there is no Chromium)

Contract: no request, no message, nothing wider than the screen, each file <= 5 MB (issue 8, "It holds when", line 6).
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import harness, loader_jpeg
from bench.harness import Figure
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import class_label_field, image_field, path_field
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.registry import OPERATIONS, operation_named
from leptonstore.store import Store

ROWS, ROWS_QUICK = 3_000, 200
COPIES, FAULTS = 80, 20  # of 3,000; of fewer rows as many fewer
BYTES_MAX = 5_000_000
NAMES = ("beach", "forest", "city", "desert", "night", "river", "snow", "field", "rock", "sky")
CHECKS = ("undecodable", "constant", "duplicates", "near_duplicate_images")


def encoded(pixels: np.ndarray[Any, Any], quality: int) -> bytes:
    """A JPEG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def near(seed: int) -> bytes:
    """Another picture of the same: moved by a pixel, with noise, at another quality."""
    rng = np.random.default_rng(seed)
    pixels = np.roll(loader_jpeg.picture(seed), (1, 1), (0, 1)).astype(np.int16)
    return encoded(np.clip(pixels + rng.integers(-3, 4, pixels.shape), 0, 255).astype(np.uint8), 80)


def photographs(rows: int) -> list[bytes]:
    """JPEGs with planted faults, in an order of chance."""
    copies, faults = COPIES * rows // ROWS, max(1, FAULTS * rows // ROWS)
    plain = rows - 2 * copies - 2 * faults
    with ThreadPoolExecutor(loader_jpeg.THREADS) as pool:
        files = list(pool.map(loader_jpeg.jpeg, range(plain)))
        files += files[:copies]
        files += list(pool.map(near, range(copies, 2 * copies)))
    files += [files[at][: 2_000 + 50 * at] for at in range(faults)]
    files += [encoded(np.full((375, 500, 3), at * 12 % 256, np.uint8), 90) for at in range(faults)]
    order = np.random.default_rng(0).permutation(rows)
    return [files[at] for at in order]


def store_photographs(store: Store, rows: int) -> None:
    """Two versions of them, the second with a tenth more rows, and the findings about it."""
    files = photographs(rows)
    schema = pa.schema([path_field("path"), image_field("image", "jpeg"), class_label_field("label", list(NAMES))])
    columns = [
        pa.array([f"pictures/{at:05}.jpg" for at in range(rows)]),
        pa.array(files, pa.large_binary()),
        pa.array(np.arange(rows) % len(NAMES), pa.uint8()),
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    for part in (table.slice(0, rows * 9 // 10), table):
        batches = part.to_batches()
        write_dataset(store, "pictures", Source(schema, ("path",), lambda b=batches: iter(b), len(part)))  # type: ignore[misc]
    known = [f"check.{name}" for name in CHECKS if f"check.{name}" in OPERATIONS]
    # Into a branch of its own: the version with the faults is the one that is looked at.
    Pipeline("pictures", [operation_named(name, {}) for name in known], into="pictures@checked").run(store)


def reported(store: Store, path: Path) -> float:
    """Seconds of a report."""
    from leptonstore.process.report import write_report
    from leptonstore.process.report_dataset import dataset_report

    began = time.perf_counter()
    write_report(path, dataset_report(Dataset.open(store, "pictures@checked")))
    return time.perf_counter() - began


def opened(paths: list[Path]) -> dict[str, float]:
    """What a browser has to say of the pages, and how long the slower one takes to be there."""
    found = {"requests": -1.0, "messages": -1.0, "wider": -1.0, "load_s": -1.0}
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return found
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    said: list[str] = []
    found |= {"wider": 0.0}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path in paths:
            for scheme in ("light", "dark"):
                for width in (390, 1280):
                    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
                    page.on("request", lambda one: asked.append(one.url))
                    page.on("console", lambda one: said.append(one.text))
                    page.on("pageerror", lambda one: said.append(str(one)))
                    began = time.perf_counter()
                    page.goto(path.as_uri())
                    page.evaluate("Promise.all([...document.images].map(one => one.decode()))")
                    found["load_s"] = max(found["load_s"], time.perf_counter() - began)
                    found["wider"] += page.evaluate("document.documentElement.scrollWidth") > width
                    page.close()
        browser.close()
    found["requests"] = sum(not one.startswith("data:") for one in asked) - 4 * len(
        paths
    )  # each view asks for its file
    found["messages"] = len(said)
    return found


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """See the contract of the module."""
    rows = ROWS_QUICK if arguments.quick else ROWS
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        command = [sys.executable, "-c", "from leptonstore.cli import main; main()", "demo", "--json", "--epochs", "2"]
        done = subprocess.run([*command, "--workdir", made + "/demo"], check=True, capture_output=True, text=True)
        demo = Path(json.loads(done.stdout.strip().split("\n")[-1])["report"])
        page = folder / "photographs.html"
        with Store.create(folder / "store") as store:
            store_photographs(store, rows)
            first = reported(store, page)
            again = reported(store, page)
        return list(_figures(demo, page, first, again, opened([demo, page])))


def _figures(demo: Path, page: Path, first: float, again: float, found: dict[str, float]) -> Iterator[Figure]:
    yield Figure("report_demo_bytes", demo.stat().st_size, "bytes", f"<= {BYTES_MAX}")
    yield Figure("report_photographs_bytes", page.stat().st_size, "bytes", f"<= {BYTES_MAX}")
    yield Figure("report_photographs_first", first, "s")
    yield Figure("report_photographs_again", again, "s")
    for name in ("requests", "messages", "wider"):
        yield Figure(f"report_{name}", found[name], "", "<= 0" if found[name] >= 0 else "")
    yield Figure("report_load", found["load_s"], "s")


if __name__ == "__main__":
    harness.main("process_report", harness.parser("process_report", __doc__.split("\n")[0]).parse_args(), measure)
