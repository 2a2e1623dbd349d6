"""The tiered run of `python -m bench.tiers --only tiered`: a store whose home is small and whose rest lies on a real S3 server.

    fill     1 GB of images (random bytes, which shrink as little as pixels of photographs do) with ids and labels
    demote   down to the home's watermark of 200 MB, by what `lepton tier apply` does
    train    an epoch of a small model, by loaders.DataLoader over the dataset as it lies; the server is killed in mid-epoch
    resume   the server comes back; another process's worth of objects (store, dataset, loader) goes on by the loader's state
    promote  what was read is hot: it comes home, up to a watermark of 400 MB; then the first watermark holds again
    check    every byte of every copy; the server is restarted once more, and the store reads

Contract: the home stays within its watermark; the failure is a TierUnavailable that names the tier; the first batch after it is the very
next one; every row is seen exactly once, with the pixels and the label that were written; check is clean. Rates are printed without a
bound: server, client and training share the cores. The client waits 2 s for a server that is down, not OBJECT_RETRY_S.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.harness import Figure
from leptonstore import limits
from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import tensor_field
from leptonstore.dataset.source import Source
from leptonstore.errors import TierUnavailable
from leptonstore.store import Store, check_store
from leptonstore.store.moves import MoveReport, apply_moves, plan_for
from leptonstore.store.placement import HOME, Placement, TierSetting
from leptonstore.store.reads import FILE, halve_reads, load_reads
from leptonstore.store.tier_mark import claim_tier
from leptonstore.testing import seaweed
from leptonstore.tiers.object import ObjectTier

SHAPE, CLASSES, BATCH = (32, 32, 3), 10, 512
ROW_BYTES = 32 * 32 * 3
# A tier keeps the latest 64 MiB that it read, and reads 32 MiB ahead: of less than that an outage would be too late.
BYTES, BYTES_QUICK = 1_000_000_000, 200_000_000
WATERMARK, WATERMARK_QUICK = 200_000_000, 40_000_000
PACK_BYTES_QUICK = 4 * limits.MIB
KILL_AT = 0.5  # of the epoch


def images_of(first: int, rows: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of `rows` rows from `first` on, which is a multiple of BATCH: random, and the same every time."""
    return np.random.default_rng(first // BATCH).integers(0, 256, (rows, *SHAPE), np.uint8)


def labels_of(images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A label that every pixel has a say in."""
    return images.reshape(len(images), -1).sum(axis=1, dtype=np.int64) % CLASSES


def bytes_fetched(store: Store) -> int:
    """What the second tier has been read since the store was opened."""
    tier = store.tier.tiers[1]
    assert isinstance(tier, ObjectTier)
    return tier.counters.to_json().get("bytes_read", 0)


class Run:
    """One run in `place`, against `server`."""

    def __init__(self, place: Path, server: seaweed.Server, rows: int, watermark: int) -> None:
        self.place, self.server, self.rows, self.watermark = place, server, rows, watermark
        self.url = f"s3://{seaweed.make_bucket(server)}/cold"
        self.seen = np.zeros(rows, np.int64)
        self.figures: list[Figure] = []
        self.killed = 0.0

    def tell(self, name: str, value: float, unit: str, bound: str = "") -> None:
        """Keep a figure."""
        self.figures.append(Figure(f"tiered_{name}", value, unit, bound))

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store, opened anew."""
        with Store.open(self.place / "store", cache_dir=self.place / "cache") as store:
            yield store

    def home_bytes(self) -> int:
        """Of all packs that lie at home."""
        return sum(path.stat().st_size for path in (self.place / "store/packs").rglob("*.pack"))

    def apply(self, store: Store, watermark: int) -> MoveReport:
        """As `lepton tier set home --watermark` and `lepton tier apply`."""
        tiers = (TierSetting(HOME, watermark=watermark), TierSetting("cold", self.url))
        store.configure(Placement(tiers).setting(), ("tiers",))
        reads = store.cache_path(FILE)
        report = apply_moves(store, plan_for(store, load_reads(reads)).moves)
        halve_reads(reads)
        return report

    def fill(self) -> None:
        """Write the dataset into the home, and claim the bucket."""
        schema = pa.schema(
            [
                pa.field("id", pa.int64(), nullable=False),
                tensor_field("image", pa.uint8(), SHAPE, "image"),
                pa.field("label", pa.int64(), nullable=False),
            ]
        )

        def batches() -> Iterator[pa.RecordBatch]:
            for first in range(0, self.rows, BATCH):
                images = images_of(first, min(BATCH, self.rows - first))
                ids = pa.array(np.arange(first, first + len(images)))
                columns = [ids, tensor_column(schema.field("image"), images), pa.array(labels_of(images))]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

        begin = time.perf_counter()
        with Store.create(self.place / "store", cache_dir=self.place / "cache") as store:
            write_dataset(store, "images", Source(schema, ("id",), batches, self.rows))
            claim_tier(self.url, store)
        self.tell("filled", self.home_bytes() / 1e6, "MB")
        self.tell("fill", time.perf_counter() - begin, "s")

    def demote(self) -> None:
        """Down to the watermark."""
        begin = time.perf_counter()
        with self.store() as store:
            report = self.apply(store, self.watermark)
            assert report.deleted == report.moved > 0 and not plan_for(store).moves
        self.tell("demoted", report.bytes_copied / 1e6, "MB")
        self.tell("demote", time.perf_counter() - begin, "s")
        self.tell("home_after_demote", self.home_bytes() / 1e6, "MB", f"<= {self.watermark / 1e6}")

    # -- training ----------------------------------------------------------------------------------------------------

    def loader(self, store: Store) -> Any:
        """Over the images as they lie: labels and ids in memory, images by page."""
        from loaders import DataLoader

        dataset = Dataset.open(store, "images")
        # The order in which rows are stored: shuffled, each batch would need nearly every page of the dataset.
        return DataLoader(dataset, BATCH, shuffle=False, num_workers=1, arena_bytes_max=32 * self.rows)

    def train(self, loader: Any, kill_at: int | None) -> TierUnavailable | None:
        """Steps until the epoch or a tier ends; the server is killed before step `kill_at`. Returns the tier's error."""
        import torch

        if not hasattr(self, "model"):
            torch.manual_seed(0)
            self.model = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, CLASSES))
            self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-2)
        try:
            for step, batch in enumerate(loader):
                if step == kill_at:
                    seaweed.stop(self.server)
                    self.killed = time.perf_counter()
                ids, images = batch["id"].numpy(), batch["image"].numpy()
                self.seen[ids] += 1
                if not np.array_equal(labels_of(images), batch["label"].numpy()):
                    raise AssertionError(f"rows {ids[0]}-{ids[-1]} have other pixels than were written")
                logits = self.model(batch["image"].permute(0, 3, 1, 2).float() / 255)
                loss = torch.nn.functional.cross_entropy(logits, batch["label"])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        except TierUnavailable as error:
            return error
        return None

    def epoch(self) -> None:
        """One epoch, through an outage of the server; torch on one thread, because the server and the reading need the cores."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._epoch()
        finally:
            torch.set_num_threads(threads)

    def _epoch(self) -> None:
        begin = time.perf_counter()
        with self.store() as store:
            loader = self.loader(store)
            steps = len(loader)
            error = self.train(loader, int(KILL_AT * steps))
            state, fetched = loader.state_dict(), bytes_fetched(store)
        failed = time.perf_counter()
        self.tell("failure_after", failed - self.killed, "s")
        named = error is not None and error.tier == self.url and self.url in str(error)
        self.tell("failure_names_the_tier", int(named), "", "== 1")
        done = int(self.seen.sum())
        assert 0 < done < self.rows and self.seen[:done].all(), "the outage came too late, or rows were skipped"
        seaweed.restart(self.server)
        self.tell("server_restart", time.perf_counter() - failed, "s")
        again = time.perf_counter()
        with self.store() as store:
            loader = self.loader(store)
            loader.load_state_dict(state)
            self.tell("resumed_at_next_batch", int(state["consumed"] == done), "", "== 1")
            assert self.train(loader, None) is None
            fetched += bytes_fetched(store)
        seconds = self.killed - begin + time.perf_counter() - again  # what came ahead of the failure is not counted
        self.tell("rows_seen_once", int((self.seen == 1).sum()), "rows", f"== {self.rows}")
        self.tell("epoch", seconds, "s")
        self.tell("epoch_fetched", fetched / 1e6, "MB")
        self.tell("epoch_rate", self.rows * ROW_BYTES / seconds / 1e6, "MB/s")

    # -- afterwards --------------------------------------------------------------------------------------------------

    def promote(self) -> None:
        """Hot packs come home while there is room, and go when there is none."""
        begin = time.perf_counter()
        with self.store() as store:
            report = self.apply(store, 2 * self.watermark)
            assert report.why["hot"] == report.moved and not report.deleted
            self.tell("promoted", report.bytes_copied / 1e6, "MB", "> 0")
            self.tell("promote", time.perf_counter() - begin, "s")
            self.tell("home_after_promote", self.home_bytes() / 1e6, "MB", f"<= {2 * self.watermark / 1e6}")
            halve_reads(store.cache_path(FILE))
            self.apply(store, self.watermark)
        self.tell("home_at_the_end", self.home_bytes() / 1e6, "MB", f"<= {self.watermark / 1e6}")

    def check(self) -> None:
        """Everything is what was written, also after another restart of the server."""
        begin = time.perf_counter()
        with self.store() as store:
            report = check_store(store, read_data=True)
        self.tell("check", time.perf_counter() - begin, "s")
        self.tell("check_problems", len(report.problems) + report.problems_more, "", "== 0")
        seaweed.stop(self.server)
        seaweed.restart(self.server)
        with self.store() as store:
            dataset = Dataset.open(store, "images")
            rows = np.linspace(0, self.rows - 1, 8).astype(np.int64)
            table = dataset.take(rows, ["image", "label"])
            pixels = table.column("image").combine_chunks().to_numpy_ndarray()
            right = np.array_equal(labels_of(pixels), table.column("label").to_numpy())
        self.tell("read_after_restart", int(right), "", "== 1")


def measure_tiered(quick: bool) -> list[Figure]:
    """See the module."""
    changed = {"OBJECT_RETRY_S": 2.0, "OBJECT_RETRIES_MAX": 2, "READS_SAVE_S": 1.0}
    if quick:
        changed["PACK_BYTES_MAX"] = PACK_BYTES_QUICK
    before = {name: getattr(limits, name) for name in changed}
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", dir=os.environ.get("LEPTON_BENCH_DIR")) as folder:
        place = Path(folder)
        (place / "weed").mkdir()
        server = seaweed.start(place / "weed")
        try:
            os.environ.update(server.environment())
            for name, value in changed.items():
                setattr(limits, name, value)
            rows = (BYTES_QUICK if quick else BYTES) // ROW_BYTES
            run = Run(place, server, rows, WATERMARK_QUICK if quick else WATERMARK)
            for step in (run.fill, run.demote, run.epoch, run.promote, run.check):
                step()
            return run.figures
        finally:
            seaweed.stop(server)
            os.environ.clear()
            os.environ.update(environment)
            for name, value in before.items():
                setattr(limits, name, value)
