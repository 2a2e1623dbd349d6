"""A ResNet on JPEGs: collect -> store -> train -> evaluate -> predict. `python -m trainers.examples.pictures --help`

The pictures are tiles of the two photographs that come with scikit-learn: which of them is a tile from? Those held out lie in a part
of the photograph that training never sees. Images are stored as the files they are; decoding, crops and mirroring are done by the
loader, a new one in every epoch, and normalising by the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainers.examples.common import configuration, step, store_in, told, train

if TYPE_CHECKING:
    from leptonstore.store import Store

DATASET, RUN = "photographs", "photographs-resnet"


@click.command()
@click.option("--workdir", type=Path, default=Path("lepton-pictures"), show_default=True, help="Everything goes here.")
@click.option("--tiles", type=int, default=400, show_default=True, help="Of each photograph, for training.")
@click.option("--epochs", type=int, help="Times through the pictures (default: as pictures.toml says).")
@click.option("--workers", type=int, help="Threads that decode ahead.")
def main(workdir: Path, tiles: int, epochs: int | None, workers: int | None) -> None:
    """Train a ResNet on JPEGs, tiles of two photographs."""
    with store_in(workdir) as store:
        result = run(store, workdir, tiles, epochs, workers)
    click.echo(f"accuracy {result['accuracy']:.4f} on {result['rows']:,} tiles held out; see {result['report']}")


def run(
    store: Store, workdir: Path, tiles: int = 400, epochs: int | None = None, workers: int | None = None
) -> dict[str, Any]:
    """The chain. Returns the evaluation (trainers.run.run_evaluate)."""
    from leptonstore.dataset import write_dataset
    from leptonstore.dataset.importers import open_source
    from trainers.examples.jpegs import photograph_tiles
    from trainers.run import run_evaluate, run_predict_dataset

    folder = workdir / "pictures"
    step("collect", lambda: photograph_tiles(folder, tiles), lambda count: f"{count:,} JPEGs in {folder}")
    step(
        "store",
        lambda: write_dataset(store, DATASET, open_source(str(folder)), "tiles of two photographs"),
        lambda ds: f"{len(ds):,} rows as {ds.name} {ds.commit[:12]}",
    )
    values = configuration("pictures", {"epochs": epochs, "data.workers": workers})
    step("train", lambda: train(store, DATASET, RUN, values), told)
    model = f"checkpoint/{RUN}"
    found = step(
        "evaluate",
        lambda: run_evaluate(store, model, DATASET, report=workdir / "report.html"),
        lambda got: f"accuracy {got['accuracy']:.4f}, loss {got['loss']:.4f}",
    )
    step(
        "predict",
        lambda: run_predict_dataset(store, model, DATASET),
        lambda made: f"{made['rows']:,} rows as {made['dataset']} {made['commit'][:12]}",
    )
    return found


if __name__ == "__main__":
    main()
