"""A byte-level transformer on text: collect -> store -> train -> write some text -> evaluate. `python -m trainers.examples.text --help`

The corpus is the source of Python's standard library. Every tenth file is held out, so that the perplexity is that of files
which the model has never seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainers.examples.common import configuration, step, store_in, told, train

if TYPE_CHECKING:
    from leptonstore.store import Store

DATASET, RUN = "stdlib", "stdlib-text"


@click.command()
@click.option("--workdir", type=Path, default=Path("lepton-text"), show_default=True, help="Store and page go here.")
@click.option("--bytes", "bytes_max", type=int, default=1_000_000, show_default=True, help="Of the corpus, about.")
@click.option("--epochs", type=int, help="Times through the text (default: as text.toml says).")
@click.option("--layers", type=int, help="Of the transformer.")
@click.option("--prompt", default="def ", show_default=True, help="What the model goes on from.")
@click.option("--write", type=int, default=400, show_default=True, help="Bytes that the model writes.")
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0: always the likeliest byte.")
def main(workdir: Path, prompt: str, write: int, temperature: float, **options: Any) -> None:
    """Train a small transformer on the source of Python's standard library, and let it write some."""
    with store_in(workdir) as store:
        result = run(store, workdir / "report.html", prompt, write, temperature, **options)
    click.echo(result["text"])


def run(
    store: Store,
    page: Path,
    prompt: str = "def ",
    write: int = 400,
    temperature: float = 0.7,
    bytes_max: int = 1_000_000,
    epochs: int | None = None,
    layers: int | None = None,
) -> dict[str, Any]:
    """The chain. Returns the evaluation (trainers.run.run_evaluate) with the text that was written."""
    from leptonstore.dataset import write_dataset
    from trainers.examples.corpus import library_source
    from trainers.run import run_evaluate

    source = step("collect", lambda: library_source(bytes_max), lambda found: f"{found.rows:,} files")
    step(
        "store",
        lambda: write_dataset(store, DATASET, source, "the standard library"),
        lambda ds: f"{ds.name} {ds.commit[:12]}, {ds.stats().logical_bytes:,} bytes as {ds.stats().stored_bytes:,}",
    )
    values = configuration("text", {"epochs": epochs, "model.params.layers": layers})
    step("train", lambda: train(store, DATASET, RUN, values), told)
    text = step("write", lambda: continued(store, prompt, write, temperature), lambda made: f"{len(made):,} characters")
    found = step(
        "evaluate",
        lambda: run_evaluate(store, f"checkpoint/{RUN}", DATASET, report=page),
        lambda got: f"perplexity {got['perplexity']:.3f} per byte, {got['bits_per_byte']:.3f} bits; {got['report']}",
    )
    return {**found, "text": text}


def continued(store: Store, prompt: str, write: int, temperature: float = 0.7, seed: int = 0) -> str:
    """What the model of the newest checkpoint makes of `prompt`."""
    import torch

    from trainers import checkpoint as checkpoints
    from trainers.models import generate
    from trainers.tasks import LanguageModelling

    saved = checkpoints.load(store, RUN)
    task = saved.task
    assert isinstance(task, LanguageModelling)
    start = torch.tensor(list(prompt.encode() or b"\n"), dtype=torch.int64)
    made = generate(checkpoints.build_stored_model(saved), start, write, task.length, temperature, seed)
    return bytes(made.tolist()).decode("utf-8", "replace")


if __name__ == "__main__":
    main()
