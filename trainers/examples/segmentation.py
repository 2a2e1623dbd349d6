"""Finding an organ in volumes: a small 3-D network on patches, its loss, its loop, and how well it does on whole slabs.

A loop of one's own, as this project's tasks know of no segmentation: it feeds on a DataLoader, and `ObjectCheckpointer` keeps model,
optimizer, loader and generators together, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from leptonstore.dataset import Dataset
from leptonstore.store import Store
from loaders import Bundle, DataLoader
from loaders.collate import stack, struct
from loaders.orders import Weighted
from loaders.transforms import DecodeArrays, RandomPatch, Window
from trainers.checkpoint import ObjectCheckpointer

PATCH = (8, 32, 32)
BATCH = 8
LEVEL, WIDTH = 50, 200  # between fat and contrast: soft tissue
AIR = -1000
SAVE_EVERY = 50  # steps
FIELDS = ("voxels", "organ", "shape", "orientation")
CHAIN_HEAD = (DecodeArrays({"voxels": "int16", "organ": "uint8"}),)


def upright(value: dict[str, Any]) -> dict[str, Any]:
    """Rows and columns as LPS has them, whatever the scanner wrote."""
    if value.pop("orientation") == "RAS":
        return {name: np.ascontiguousarray(array[:, ::-1, ::-1]) for name, array in value.items()}
    return value


class Network(nn.Module):
    """float [b, 1, z, y, x] -> logits of the same shape, edges of at least 2.

    Works at half the resolution, where noise is less and a voxel sees 18 others in each direction; a logit is that of a block of two, made
    smooth between blocks.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool3d(2, ceil_mode=True),
            nn.Conv3d(1, width, 3, padding=1),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.Conv3d(width, width, 3, padding=2, dilation=2),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.Conv3d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.layers(x), x.shape[2:], mode="trilinear")


def loss_of(logits: Tensor, organ: Tensor) -> Tensor:
    """Cross-entropy and soft Dice in equal parts: the second counts an organ of few voxels as much as one of many."""
    shares = torch.sigmoid(logits)
    overlap = 2 * (shares * organ).sum() + 1
    return functional.binary_cross_entropy_with_logits(logits, organ) + 1 - overlap / (shares.sum() + organ.sum() + 1)


def fit(
    store: Store, rows: Dataset, run: str, steps: int, seed: int = 0, workers: int = 0, max_steps: int | None = None
) -> tuple[Network, float]:
    """(the network after `steps` steps on random patches of `rows`, the last loss). Goes on from the newest checkpoint of the run.

    max_steps: save and return once so many of them are done. Slabs with some of the organ are drawn four times as often as others.
    """
    torch.manual_seed(seed)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    there = rows.to_arrow(["organ_voxels"])["organ_voxels"].to_numpy() > 0
    loader = DataLoader(
        Bundle(rows, scan=FIELDS),
        BATCH,
        columns=["scan"],
        order=Weighted(np.where(there, 4.0, 1.0), samples=BATCH * SAVE_EVERY),
        seed=seed,
        num_workers=workers,
        transforms={
            "scan": [*CHAIN_HEAD, upright, RandomPatch(PATCH, {"voxels": AIR}), Window(LEVEL, WIDTH, of="voxels")]
        },
        collate={"scan": struct(voxels=stack(), organ=stack())},
    )
    objects = {"model": network, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    config = {"steps": steps, "seed": seed, "patch": list(PATCH), "data": {"inputs": "voxels", "labels": "organ"}}
    with ObjectCheckpointer(store, run, config=config) as checkpointer:
        saved = checkpointer.restore(objects)
        step, loss = (saved.step, float("nan")) if saved else (0, float("nan"))
        stop = min(steps, max_steps or steps)
        while step < stop:
            for batch in loader:
                scan = batch["scan"]
                found = loss_of(network(scan["voxels"][:, None]), scan["organ"][:, None].float())
                optimizer.zero_grad()
                found.backward()
                optimizer.step()
                schedule.step()
                step, loss = step + 1, found.item()
                if step % SAVE_EVERY == 0 or step == stop:
                    checkpointer.save(step, objects, metrics={"loss": loss})
                if step == stop:
                    break
    return network, loss


def dice(rows: Dataset, predict: Callable[[NDArray[np.int16]], NDArray[np.bool_]]) -> dict[str, float]:
    """patient/study -> 2 |A ∩ B| / (|A| + |B|) over the voxels of the whole scan. predict: int16 [z, y, x] -> bool of the same shape."""
    sums: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(2, np.int64))
    decode = CHAIN_HEAD[0]
    for _, batch in rows.iter_batches(["patient", "study", *FIELDS]):
        for row in batch.to_pylist():
            name = f"{row.pop('patient')}/{row.pop('study')}"
            scan = upright(decode(row))
            guess, organ = predict(scan["voxels"]), scan["organ"] > 0
            sums[name] += 2 * np.count_nonzero(guess & organ), np.count_nonzero(guess) + np.count_nonzero(organ)
    return {name: float(both / total) if total else 1.0 for name, (both, total) in sums.items()}


def by_network(network: Network) -> Callable[[NDArray[np.int16]], NDArray[np.bool_]]:
    """For `dice`."""
    window = Window(LEVEL, WIDTH)

    @torch.no_grad()
    def predict(voxels: NDArray[np.int16]) -> NDArray[np.bool_]:
        logits = network.eval()(torch.from_numpy(window(voxels))[None, None])
        return np.asarray(logits[0, 0].numpy() > 0)

    return predict


def best_range(rows: Dataset) -> tuple[int, int]:
    """The range of Hounsfield units, ends included, whose voxels overlap most with the organ, over all voxels of `rows` together."""
    low, high = -200, 300  # where an organ of soft tissue can be
    every, inside = np.zeros(high - low, np.int64), np.zeros(high - low, np.int64)
    total = 0
    for _, batch in rows.iter_batches(["voxels", "organ"]):
        for voxels, organ in zip(batch["voxels"].to_pylist(), batch["organ"].to_pylist(), strict=True):
            values = np.frombuffer(voxels, "<i2").astype(np.int64)
            there = np.frombuffer(organ, np.uint8) > 0
            total += int(there.sum())
            for counts, some in ((every, values), (inside, values[there])):
                counts += np.bincount(some[(some >= low) & (some < high)] - low, minlength=high - low)
    # Dice of [from, to] from cumulative counts.
    all_, hits = np.concatenate([[0], every.cumsum()]), np.concatenate([[0], inside.cumsum()])
    both = 2 * (hits[None, 1:] - hits[:-1, None])
    found = np.triu(both / (total + all_[None, 1:] - all_[:-1, None]).clip(1))
    start, stop = np.unravel_index(found.argmax(), found.shape)
    return int(start) + low, int(stop) + low
