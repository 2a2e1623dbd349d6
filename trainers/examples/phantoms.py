"""CT-like volumes computed by a formula, as files on a disk, and those files as a dataset of slabs.

    FOLDER/<patient>/<study>.json       modality, spacing_mm [z, y, x], orientation
    FOLDER/<patient>/<study>.npy        int16 [slices, rows, columns], Hounsfield units
    FOLDER/<patient>/<study>.organ.npy  uint8, 1 where the liver is

A row of the dataset is a slab of at most SLAB slices of a volume, with what is known of the volume: what is read at a time is a row, so
that a patch costs one slab and not a scan. Columns: patient, study, slab (the key), first_slice, modality, orientation, spacing_mm, shape
(of the slab), voxels, organ, organ_voxels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset, Source
from leptonstore.dataset.schema import array_field
from leptonstore.errors import SourceError

Volume = NDArray[np.int16]
SLAB = 16  # slices of a row
AIR, SOFT, LUNG, BONE, LIVER = -1000, 40, -800, 600, 75  # Hounsfield units
NOISE = 25  # Hounsfield units, one standard deviation
# (value, centre, half axes) in mm, z y x from the middle of the body: later ones lie over earlier ones.
ELLIPSOIDS = (
    (SOFT, (0, 0, 0), (400, 110, 150)),
    (LUNG, (70, -10, -65), (70, 70, 45)),
    (LUNG, (70, -10, 65), (70, 70, 45)),
    (BONE, (0, 80, 0), (400, 18, 18)),
    (LIVER, (-35, -15, -60), (45, 60, 60)),
)
SCHEMA = pa.schema(
    [
        pa.field("patient", pa.string(), nullable=False),
        pa.field("study", pa.string(), nullable=False),
        pa.field("slab", pa.int32(), nullable=False),
        pa.field("first_slice", pa.int32(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("orientation", pa.string(), nullable=False),
        pa.field("spacing_mm", pa.list_(pa.float32(), 3), nullable=False),
        pa.field("shape", pa.list_(pa.int32(), 3), nullable=False),
        array_field("voxels", pa.int16()),
        array_field("organ", pa.uint8()),
        pa.field("organ_voxels", pa.int64(), nullable=False),
    ]
)


def phantom(seed: int) -> tuple[Volume, NDArray[np.uint8], dict[str, Any]]:
    """(voxels, organ, sidecar): a body of its own size, scanned with a shape and spacing of its own. The same seed, the same bits."""
    rng = np.random.default_rng(seed)
    spacing = np.array([rng.uniform(4, 8), *[rng.uniform(4, 6)] * 2]).round(2)
    shape = np.ceil(np.array([rng.uniform(150, 240), 260, 340]) / spacing).astype(int)
    size = rng.uniform(0.85, 1.1)
    middle = rng.normal(0, 4, 3)
    axes = [(np.arange(edge) - (edge - 1) / 2) * step for edge, step in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    values = np.full(tuple(shape), float(AIR))
    organ = np.zeros(tuple(shape), np.uint8)
    for value, centre, halves in ELLIPSOIDS:
        (cz, cy, cx), (hz, hy, hx) = (
            (size * np.array(centre) + middle),
            size * np.array(halves) * rng.normal(1, 0.05, 3),
        )
        inside = ((z - cz) / hz) ** 2 + ((y - cy) / hy) ** 2 + ((x - cx) / hx) ** 2 <= 1
        values[inside] = value
        organ[inside] = value == LIVER
    voxels = np.rint(values + rng.normal(0, NOISE, tuple(shape))).clip(-1024, 3071).astype(np.int16)
    orientation = "LPS"
    if seed % 3 == 0:  # another scanner: rows and columns run the other way
        voxels, organ, orientation = voxels[:, ::-1, ::-1], organ[:, ::-1, ::-1], "RAS"
    sidecar = {"modality": "CT", "spacing_mm": spacing.tolist(), "orientation": orientation}
    return np.ascontiguousarray(voxels), np.ascontiguousarray(organ), sidecar


def write_phantoms(folder: Path, patients: int) -> int:
    """One or two studies of each patient as files. Returns the number of volumes."""
    count = 0
    for patient in range(patients):
        below = folder / f"P{patient:03}"
        below.mkdir(parents=True, exist_ok=True)
        for study in range(1 + patient % 2):
            voxels, organ, sidecar = phantom(2 * patient + study)
            np.save(below / f"study-{study}.npy", voxels)
            np.save(below / f"study-{study}.organ.npy", organ)
            (below / f"study-{study}.json").write_text(json.dumps(sidecar), "utf-8")
            count += 1
    return count


def volumes(folder: Path) -> Source:
    """The files below `folder` as slabs. Reads one volume at a time. Raises SourceError."""
    sidecars = sorted(folder.glob("*/*.json"))
    if not sidecars:
        raise SourceError(f"{folder} has no volume (PATIENT/STUDY.json beside .npy files)", str(folder))

    def batches() -> Iterator[pa.RecordBatch]:
        for sidecar in sidecars:
            yield pa.RecordBatch.from_pylist(list(_slabs(sidecar)), schema=SCHEMA)

    lineage = {"format": "volumes", "files": 3 * len(sidecars)}
    return Source(SCHEMA, ("patient", "study", "slab"), batches, None, lineage, keyed=True)


def _slabs(sidecar: Path) -> Iterator[dict[str, Any]]:
    told = json.loads(sidecar.read_text("utf-8"))
    # Slices are consecutive in memory, so that a slab of the mapped file is read without the rest.
    voxels, organ = (np.load(sidecar.with_suffix(end), mmap_mode="r") for end in (".npy", ".organ.npy"))
    if voxels.dtype != np.int16 or organ.dtype != np.uint8 or voxels.shape != organ.shape or voxels.ndim != 3:
        raise SourceError(f"{sidecar} does not stand beside int16 and uint8 arrays of one shape", str(sidecar))
    first = 0
    for slab, depth in enumerate(map(len, np.array_split(np.arange(len(voxels)), -(-len(voxels) // SLAB)))):
        part, label = (np.ascontiguousarray(array[first : first + depth]) for array in (voxels, organ))
        yield {
            "patient": sidecar.parent.name,
            "study": sidecar.stem,
            "slab": slab,
            "first_slice": first,
            **told,
            "shape": part.shape,
            "voxels": part.astype("<i2", copy=False).tobytes(),
            "organ": label.tobytes(),
            "organ_voxels": int(label.sum()),
        }
        first += depth


def read_volume(ds: Dataset, patient: str, study: str) -> Volume:
    """A whole scan: the slabs of one study, put together."""
    found = ds.to_arrow(["slab", "shape", "voxels"], filter=f"patient = '{patient}' and study = '{study}'").sort_by(
        "slab"
    )
    parts = zip(found["voxels"].to_pylist(), found["shape"].to_pylist(), strict=True)
    return np.concatenate([np.frombuffer(data, "<i2").reshape(shape) for data, shape in parts])
