"""Fine-tuning with a frozen backbone, and what its checkpoints cost. `python -m trainers.examples.finetune --help`

    1. a ResNet learns the handwritten digits 0 to 5, as JPEGs
    2. its backbone is taken over and frozen, and a new head learns 6 to 9 from it

The frozen weights are the same bytes in every checkpoint of the second run, and in those of the first: the store has them once. What
each checkpoint adds is the head, its optimizer state, and a manifest; the program prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leptonstore.cli.runtime import human_bytes
from trainers.examples.common import configuration, step, store_in, told, train

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset
    from leptonstore.store import Store

FIRST, SECOND = "digits-0-5", "digits-6-9"


@click.command()
@click.option("--workdir", type=Path, default=Path("lepton-finetune"), show_default=True, help="Everything goes here.")
@click.option("--epochs", type=int, help="Of the fine-tuning (default: as finetune.toml says).")
@click.option("--backbone-epochs", type=int, default=6, show_default=True, help="Of the training before it.")
def main(workdir: Path, epochs: int | None, backbone_epochs: int) -> None:
    """Train a ResNet on digits 0-5, then a new head on its frozen backbone for 6-9."""
    with store_in(workdir) as store:
        result = run(store, workdir, epochs, backbone_epochs)
    click.echo(
        f"accuracy {result['accuracy']:.4f} on digits 6 to 9; a checkpoint has {human_bytes(result['checkpoint_bytes'])}, "
        f"and each of {result['checkpoints']} added {human_bytes(result['added_bytes'])}"
    )


def run(store: Store, workdir: Path, epochs: int | None = None, backbone_epochs: int = 6) -> dict[str, Any]:
    """The chain. Returns the evaluation with "checkpoint_bytes" (of one, whole), "added_bytes" (by one, on average) and "checkpoints"."""
    from trainers.run import run_evaluate

    step("store", lambda: stored(store, workdir / FIRST, FIRST, range(6)), _told_rows)
    step("store", lambda: stored(store, workdir / SECOND, SECOND, range(6, 10)), _told_rows)
    # The backbone's own training is the same file without what makes it a fine-tuning.
    first = configuration("finetune", {"epochs": backbone_epochs, "optimizer.lr": 3e-3})
    first["model"] = {key: value for key, value in first["model"].items() if key not in ("init", "freeze")}
    step("backbone", lambda: train(store, FIRST, FIRST, first), told)
    before = store.new_bytes
    # One checkpoint after every epoch is kept, so that what they cost can be counted.
    second = configuration("finetune", {"epochs": epochs, "checkpoint.keep_last": 1_000})
    result = step("fine-tune", lambda: train(store, SECOND, SECOND, second), told)
    added = store.new_bytes - before
    found = step(
        "evaluate",
        lambda: run_evaluate(store, f"checkpoint/{SECOND}", SECOND, report=workdir / "report.html"),
        lambda got: f"accuracy {got['accuracy']:.4f}, loss {got['loss']:.4f}",
    )
    count = len(result["history"])
    return {**found, "checkpoint_bytes": whole_bytes(store, SECOND), "added_bytes": added / count, "checkpoints": count}


def stored(store: Store, folder: Path, name: str, digits: range) -> Dataset:
    """Digits as JPEGs in a folder, and the folder as a dataset."""
    from leptonstore.dataset import write_dataset
    from leptonstore.dataset.importers import open_source
    from trainers.examples.jpegs import digit_pictures

    digit_pictures(folder, digits)
    return write_dataset(store, name, open_source(str(folder)), f"digits {digits[0]} to {digits[-1]}")


def whole_bytes(store: Store, run: str) -> int:
    """Bytes of the tensors of the newest checkpoint of a run: what one would take that shares nothing."""
    from trainers import checkpoint as checkpoints

    saved = checkpoints.load(store, run)
    return sum(saved.tensor(path).nbytes for path in saved.manifest["tensors"])


def _told_rows(ds: Dataset) -> str:
    return f"{len(ds):,} JPEGs as {ds.name} {ds.commit[:12]}"


if __name__ == "__main__":
    main()
