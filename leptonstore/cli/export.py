"""lepton export"""

from __future__ import annotations

import contextlib

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.dataset import Dataset
from leptonstore.dataset.exporters import FORMATS, export_dataset
from leptonstore.errors import NotPermitted

_LISTED = "\n".join(f"      {name:<12} {what}" for name, what in FORMATS.items())


@click.command(
    "export",
    help=f"""Write dataset NAME[@REF] to DEST, a path or a URL (s3://, memory://, ...).

    \b
    Formats:
{_LISTED}

    A file appears under its name when it is whole. Interrupted, an export to shards (webdataset, mds, huggingface) goes on
    where it was when the command is run again; the others begin again.

    \b
    Example:
      lepton export mnist mnist.parquet
      lepton export birds photos/ --format folder
      lepton export birds s3://bucket/birds --format webdataset
      lepton export corpus corpus-mds/ --format mds --compression zstd
    """,
)
@click.argument("name")
@click.argument("dest")
@store_option
@click.option("--format", "to_format", type=click.Choice(list(FORMATS)), help="Default: by DEST, and what NAME holds.")
@click.option("--compression", type=click.Choice(["zstd"]), help="Of the shards of mds (default: none).")
@click.option("--overwrite", is_flag=True, help="Replace what DEST holds.")
@json_option
def command(
    name: str,
    dest: str,
    store: str | None,
    to_format: str | None,
    compression: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a version out."""
    options = {"compression": compression} if compression else {}
    with open_store(store) as opened, contextlib.ExitStack() as held:
        dataset = Dataset.open(opened, name)
        with contextlib.suppress(NotPermitted):  # whoever may only read the store exports without a lease
            held.enter_context(opened.lease(dataset.commit))
        with progress(f"export {dataset.name}", len(dataset), advance=True) as report:
            done = export_dataset(dataset, dest, to_format, progress=report, overwrite=overwrite, **options)
        value = {
            "path": str(done.path),
            "rows": done.rows,
            "files": done.files,
            "bytes": done.bytes,
            "dataset": dataset.name,
            "commit": dataset.commit,
        }
        emit(value, as_json, f"{done.rows:,} rows, {done.files:,} files, {human_bytes(done.bytes)} in {done.path}")
