"""Volumes of 16 bits: store -> split -> patches -> train -> Dice -> erase a patient. `python -m trainers.examples.medical --help`

The scans are computed (ellipsoids with Hounsfield units and noise), each with a shape, spacing and orientation of its own, and lie on the
disk as numpy files with a sidecar. A patient is on one side of the split. A small 3-D network learns the liver from patches, and has to be
better than the best range of Hounsfield units. At the end a patient withdraws, and is gone from every version, which is proven.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leptonstore.cli.runtime import human_bytes
from trainers.examples.common import better, options, step, store_in

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset
    from leptonstore.dataset.erase import ErasureReport
    from leptonstore.store import Store

DATASET, RUN = "ct", "ct-liver"
PATIENTS, STEPS = 16, 300


@click.command()
@options("medical")
@click.option("--patients", type=click.IntRange(min=4), default=PATIENTS, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=STEPS, show_default=True, help="Of the training.")
@click.option("--workers", type=int, default=1, show_default=True, help="Threads that cut patches ahead.")
def main(workdir: Path, place: Path | None, quick: bool, patients: int, steps: int, workers: int) -> None:
    """Find the liver in CT-like volumes with a small 3-D network, then erase a patient."""
    with store_in(workdir, place) as store:
        result = run(store, workdir, quick, patients, steps, workers)
    click.echo(f"{result['line']} on {result['scans']} scans of patients held out")


def run(
    store: Store,
    workdir: Path,
    quick: bool = False,
    patients: int = PATIENTS,
    steps: int = STEPS,
    workers: int = 1,
) -> dict[str, Any]:
    """The chain. Returns "dice" and "baseline" (means over the scans held out), "scans", "line", "ratio" (plain bytes of voxels per byte
    that is stored), "slab_bytes" and "scan_bytes" (what reading one slab read, and what its scan has), "erased" and "report"."""
    from leptonstore.dataset import Dataset, write_dataset
    from leptonstore.dataset.erase import erase
    from trainers.examples.phantoms import volumes, write_phantoms
    from trainers.examples.segmentation import best_range, by_network, dice, fit

    if quick:
        patients, steps = min(patients, 10), min(steps, 60)
    folder = workdir / "scans"
    count = step("collect", lambda: write_phantoms(folder, patients), lambda made: f"{made} scans in {folder}")
    ds = step("store", lambda: write_dataset(store, DATASET, volumes(folder), f"{count} scans"), _told_store)
    voxels = ds.stats().columns["voxels"]
    ratio = voxels["logical_bytes"] / voxels["stored_bytes"]
    step(
        "compare",
        lambda: compare(ds, folder),
        lambda bits: f"{human_bytes(bits)} of voxels are those of the files, bit for bit",
    )
    slab_bytes, scan_bytes = step("one slab", lambda: read_slab(store), _told_slab)
    ready = step("split", lambda: split(store), _told_split)
    train, held_out = ready.split("train"), ready.split("val")
    low, high = step("baseline", lambda: best_range(train), lambda pair: f"{pair[0]} to {pair[1]} HU")
    network, _ = step("train", lambda: fit(store, train, RUN, steps, workers=workers), lambda got: f"loss {got[1]:.3f}")
    found = step("evaluate", lambda: dice(held_out, by_network(network)), lambda got: f"{len(got)} scans")
    ranged = dice(held_out, lambda voxels: (voxels >= low) & (voxels <= high))
    mean, baseline = (sum(one.values()) / len(one) for one in (found, ranged))
    line = better("Dice", mean, baseline, "the best range of Hounsfield units")
    erased = train.take([0], ["patient"])["patient"][0].as_py()
    report = step(
        "erase", lambda: erase(store, DATASET, where=f"patient = '{erased}'"), lambda got: _told_erasure(erased, got)
    )
    if not report.absent or Dataset.open(store, f"{DATASET}@ready").filter(f"patient = '{erased}'"):
        raise click.ClickException(f"{erased} was not erased: {report.found}")
    return {
        "dice": mean,
        "baseline": baseline,
        "scans": len(found),
        "line": line,
        "ratio": ratio,
        "slab_bytes": slab_bytes,
        "scan_bytes": scan_bytes,
        "erased": erased,
        "report": report,
    }


def split(store: Store) -> Dataset:
    """ct -> ct@ready: a patient is on one side, with all scans, those that come later too."""
    from leptonstore.process.pipeline import Pipeline
    from leptonstore.process.registry import operation_named as operation

    sides = operation("rows.split", {"by": ["patient"], "fractions": [0.75, 0.25]})
    return Pipeline(DATASET, [sides], into=f"{DATASET}@ready").run(store).dataset


def compare(ds: Dataset, folder: Path) -> int:
    """Bytes of voxels that were compared with the files. Raises ClickException at the first difference."""
    import numpy as np

    from trainers.examples.phantoms import read_volume

    total = 0
    for file in sorted(folder.glob("*/*.json")):
        voxels = read_volume(ds, file.parent.name, file.stem)
        if not np.array_equal(voxels, np.load(file.with_suffix(".npy"))):
            raise click.ClickException(f"{file} came back changed")
        total += voxels.nbytes
    return total


def read_slab(store: Store) -> tuple[int, int]:
    """(bytes that reading the voxels of one slab read from the store, bytes of its whole scan in plain)."""
    import numpy as np

    from leptonstore.dataset import Dataset

    ds = Dataset.open(store, DATASET)
    known = ds.to_arrow(["patient", "study", "shape"], filter="slab = 0")  # where things are, which is read once
    first = Dataset.open(store, DATASET).filter("slab = 0")
    first.take([0], ["shape"])
    before = sum(store.bytes_read.values())
    first.take([0], ["voxels"])
    read = sum(store.bytes_read.values()) - before
    patient, study = known["patient"][0].as_py(), known["study"][0].as_py()
    shapes = ds.to_arrow(["shape"], filter=f"patient = '{patient}' and study = '{study}'")["shape"].to_pylist()
    return read, 2 * sum(int(np.prod(shape)) for shape in shapes)


def _told_store(ds: Dataset) -> str:
    voxels = ds.stats().columns["voxels"]
    sizes = f"{human_bytes(voxels['logical_bytes'])} of voxels in {human_bytes(voxels['stored_bytes'])}"
    return f"{len(ds):,} slabs as {ds.name} {ds.commit[:12]}, {sizes}"


def _told_slab(pair: tuple[int, int]) -> str:
    return f"{human_bytes(pair[0])} were read; its scan has {human_bytes(pair[1])}"


def _told_split(ds: Dataset) -> str:
    sides = {name: set(ds.split(name).to_arrow(["patient"])["patient"].to_pylist()) for name in ds.splits()}
    both = set.intersection(*sides.values())
    return f"{', '.join(f'{len(some)} patients {name}' for name, some in sides.items())}; on both sides: {len(both)}"


def _told_erasure(patient: str, report: ErasureReport) -> str:
    searched = report.searched.records if report.searched else 0
    proof = "and found in none" if report.absent else "BUT FOUND"
    return f"{patient} is gone from {len(report.replaced)} versions; {searched:,} decoded records were searched {proof}"


if __name__ == "__main__":
    main()
