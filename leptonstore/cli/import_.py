"""lepton import"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.dataset import write_dataset
from leptonstore.dataset.importers import FORMATS, open_source
from leptonstore.dataset.refs import split_spec
from leptonstore.errors import BadInput


@click.command("import")
@click.argument("src")
@click.argument("name")
@store_option
@click.option("--format", "source_format", type=click.Choice(sorted(FORMATS)), help="What SRC is (default: found out).")
@click.option(
    "--key", multiple=True, metavar="COLUMN", help="Column that names a row: makes a keyed table. May be repeated."
)
@click.option(
    "--identity", multiple=True, metavar="COLUMN", help="Column that tells rows apart, in a table without a key."
)
@click.option("--paranoid", is_flag=True, help="Read every file, also those that look unchanged (format files).")
@click.option("-m", "--message", default="", help="What this version is; default: import of SRC.")
@click.option("--author", default="", help="Who made it (default: the user).")
@json_option
def command(
    src: str,
    name: str,
    store: str | None,
    source_format: str | None,
    key: tuple[str, ...],
    identity: tuple[str, ...],
    paranoid: bool,
    author: str,
    message: str,
    as_json: bool,
) -> None:
    """Put SRC into the store as a new version of dataset NAME (or NAME@branch).

    With --key the table is keyed: sorted by these columns, of which no two rows may have the same values; then `lepton upsert` works.
    Importing the same data again adds nothing. Interrupted, it leaves the dataset as it was; run it again.

    \b
    Example:
      lepton import mnist/ mnist
      lepton import photos/ birds --format image-folder
      lepton import digits digits
      lepton import corpus/ corpus --format files
    """
    dataset, branch = split_spec(name)
    if key and identity:
        raise BadInput(
            "give --key (each key is one row, rows are sorted by it) or --identity (rows keep their order), not both"
        )
    options: dict[str, Any] = {"key": key} if key else {"identity": identity} if identity else {}
    if paranoid:
        options["paranoid"] = True
    source = open_source(src, source_format, **options)
    with open_store(store) as opened:
        before = opened.state.refs.get(f"dataset/{dataset}/{branch}")
        with progress(f"import {dataset}", source.rows) as report:
            label = src if src == "digits" else Path(src).absolute().name
            made = write_dataset(
                opened, dataset, source, message or f"import of {label}", branch, progress=report, author=author
            )
        for note in source.notes:
            click.echo(f"lepton: warning: {note}", err=True)
        changed = before is None or before.commit != made.commit
        value = {
            "dataset": dataset,
            "branch": branch,
            "commit": made.commit,
            "rows": len(made),
            "logical_bytes": made.commit_object.plain_bytes,
            "new_bytes": opened.new_bytes,
            "changed": changed,
        }
        said = f"{dataset}@{branch} is {made.commit[:12]}: {len(made):,} rows, {human_bytes(opened.new_bytes)} new"
        emit(value, as_json, said if changed else f"{said} (nothing changed)")
