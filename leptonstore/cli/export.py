"""lepton export"""

from __future__ import annotations

import contextlib
from dataclasses import asdict

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.dataset import Dataset
from leptonstore.dataset.exporters import export_dataset
from leptonstore.errors import NotPermitted


@click.command("export")
@click.argument("name")
@click.argument("dest")
@store_option
@click.option(
    "--format", "to_format", type=click.Choice(["parquet", "csv", "folder", "files"]), help="Default: by DEST."
)
@click.option("--overwrite", is_flag=True, help="Replace what DEST holds.")
@json_option
def command(name: str, dest: str, store: str | None, to_format: str | None, overwrite: bool, as_json: bool) -> None:
    """Write dataset NAME[@REF] to DEST.

    \b
    Example:
      lepton export mnist mnist.parquet
      lepton export birds photos/ --format folder
    """
    with open_store(store) as opened, contextlib.ExitStack() as held:
        dataset = Dataset.open(opened, name)
        with contextlib.suppress(NotPermitted):  # whoever may only read the store exports without a lease
            held.enter_context(opened.lease(dataset.commit))
        with progress(f"export {dataset.name}", len(dataset), advance=True) as report:
            done = export_dataset(dataset, dest, to_format, progress=report, overwrite=overwrite)
        value = {**asdict(done), "path": str(done.path), "dataset": dataset.name, "commit": dataset.commit}
        emit(value, as_json, f"{done.rows:,} rows, {done.files:,} files, {human_bytes(done.bytes)} in {done.path}")
