"""A ResNet on JPEGs and PNGs: collect -> clean -> split -> train -> evaluate -> predict. `python -m trainers.examples.images --help`

The pictures are tiles of the two photographs that come with scikit-learn: which of them is a tile from? No two tiles overlap, but some are
there twice, compressed again, and a file of each is cut off: cleaning finds them (but of plain sky, in which there is nothing to compare),
before the split could put a picture on one side and its copy on the other. Images are stored as the files they are; decoding, crops and
mirroring are done by the loader, anew in every epoch, and normalising by the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainers.examples.common import better, configuration, options, step, store_in, told, train

if TYPE_CHECKING:
    from leptonstore.process.pipeline import Result
    from leptonstore.store import Store

DATASET, RUN = "photographs", "photographs-resnet"


@click.command()
@options("images")
@click.option("--data", type=Path, metavar="DIR", help="Pictures of yours: a folder for each class.")
@click.option("--epochs", type=int, help="Times through the pictures (default: as images.toml says).")
@click.option("--workers", type=int, help="Threads that decode ahead.")
def main(
    workdir: Path, place: Path | None, quick: bool, data: Path | None, epochs: int | None, workers: int | None
) -> None:
    """Train a ResNet on JPEGs and PNGs of any sizes, tiles of two photographs."""
    with store_in(workdir, place) as store:
        result = run(store, workdir, quick, data, epochs, workers)
    click.echo(f"{result['line']} on {result['rows']:,} pictures held out; see {result['report']}")


def run(
    store: Store,
    workdir: Path,
    quick: bool = False,
    data: Path | None = None,
    epochs: int | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """The chain. Returns the evaluation (trainers.run.run_evaluate) with "line" and "baseline"."""
    from leptonstore.dataset import Dataset, write_dataset
    from leptonstore.dataset.importers import open_source
    from leptonstore.process.report import write_report
    from leptonstore.process.report_dataset import dataset_report
    from trainers.examples.jpegs import photograph_tiles
    from trainers.run import run_evaluate, run_predict_dataset

    folder = data or workdir / "pictures"
    if data is None:
        every = 3 if quick else 1
        step("collect", lambda: photograph_tiles(folder, every), lambda count: f"{count:,} files in {folder}")
    ds = step(
        "store",
        lambda: write_dataset(store, DATASET, open_source(str(folder)), "tiles of two photographs", branch="raw"),
        lambda ds: f"{len(ds):,} rows as {ds.name}@{ds.ref} {ds.commit[:12]}",
    )
    step("clean", lambda: clean(store), _told_cleaning)
    ready = Dataset.open(store, f"{DATASET}@ready")
    step("page", lambda: write_report(workdir / "data.html", dataset_report(ready, ds)), str)
    values = configuration("images", {"epochs": epochs or (4 if quick else None), "data.workers": workers})
    step("train", lambda: train(store, f"{DATASET}@ready", RUN, values), told)
    model = f"checkpoint/{RUN}"
    found = step(
        "evaluate",
        lambda: run_evaluate(store, model, f"{DATASET}@ready", report=workdir / "report.html"),
        lambda got: f"accuracy {got['accuracy']:.4f}, loss {got['loss']:.4f}",
    )
    step(
        "predict",
        lambda: run_predict_dataset(store, model, f"{DATASET}@ready"),
        lambda made: f"{made['rows']:,} rows as {made['dataset']} {made['commit'][:12]}",
    )
    baseline = max(one["rows"] for one in found["per_class"]) / found["rows"]
    line = better("accuracy", found["accuracy"], baseline, "always the most frequent class")
    return {**found, "line": line, "baseline": baseline}


def clean(store: Store) -> Result:
    """photographs@raw -> photographs@ready: what is damaged or there twice is left out, then rows are split by their identity, the path: a
    picture stays on its side, whatever is added later."""
    from leptonstore.process.pipeline import Pipeline
    from leptonstore.process.registry import operation_named as operation

    return Pipeline(
        f"{DATASET}@raw",
        [
            operation("check.undecodable", {"action": "drop"}),
            operation("check.duplicates", {"action": "drop"}),
            operation("check.near_duplicate_images", {"action": "drop"}),
            operation("rows.split", {"fractions": [0.8, 0.2]}),
        ],
        into=f"{DATASET}@ready",
    ).run(store)


def _told_cleaning(result: Result) -> str:
    gone = ", ".join(f"{count} {name.removeprefix('check.')}" for name, count in result.dropped().items())
    sides = [f"{len(result.dataset.split(name)):,} {name}" for name in result.dataset.splits()]
    return f"left out: {gone or 'none'}; {', '.join(sides)}"


if __name__ == "__main__":
    main()
