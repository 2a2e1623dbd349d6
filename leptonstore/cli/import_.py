"""lepton import"""

from __future__ import annotations

from typing import Any

import click
import pyarrow as pa

from leptonstore.cli.edits import type_of
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.importers import FORMATS, open_source
from leptonstore.dataset.importers.reading import name_of
from leptonstore.dataset.places import place_of
from leptonstore.dataset.refs import split_spec
from leptonstore.errors import BadInput
from leptonstore.store import Store
from leptonstore.store.log import RefRecord

_LISTED = "\n".join(f"      {name:<12} {entry.description}" for name, entry in FORMATS.items())


def _types(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, pa.DataType]:
    """COLUMN=TYPE, several times."""
    found = {}
    for value in values:
        column, _, name = value.rpartition("=")
        if not column:
            raise BadInput(f"--type {value}: give COLUMN=TYPE, such as id=int32, day=date32 or seen=timestamp[us]")
        found[column] = type_of(name)
    return found


@click.command(
    "import",
    help=f"""Put SRC into the store as a new version of dataset NAME (or NAME@branch).

    SRC is a path, or a URL (s3://, gs://, az://, https://, memory://, and what else fsspec knows). Importing the same data
    again adds nothing. Interrupted, it leaves the dataset as it was; run it again: what was stored is found.

    With --reference values that would be chunks of their own are not copied: the store keeps where they stand, and their digests. SRC
    must then stay as it is, on this machine or in a bucket; every read is checked. `lepton materialize` copies them later.

    With --key the table is keyed: sorted by these columns, of which no two rows may have the same values; then `lepton upsert`
    works.

    \b
    Formats:
{_LISTED}

    \b
    Example:
      lepton import mnist/ mnist
      lepton import photos/ birds --format image-folder
      lepton import digits digits
      lepton import corpus/ corpus --format files
      lepton import 's3://bucket/train-{{000000..000099}}.tar' web --extensions jpg,cls
      lepton import events.jsonl events --key id --type day=date32
      lepton import s3://bucket/photos photos --format image-folder --reference
    """,
)
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
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="COLUMN=TYPE",
    callback=_types,
    help="Of a column of csv or jsonl, not inferred.",
)
@click.option(
    "--delimiter",
    metavar="CHARACTER",
    help="Between the values of a csv (default: a comma; of a .tsv, and written \\t: a tab).",
)
@click.option("--extensions", metavar="A,B", help="The files of each sample that are read (webdataset; default: all).")
@click.option("--column", metavar="NAME", help="Of the array in a .npy file (default: values).")
@click.option("--paranoid", is_flag=True, help="Read every file, also those that look unchanged (format files).")
@click.option(
    "--reference",
    is_flag=True,
    help="Do not copy: large values stay in SRC, which must stay as it is (image-folder, webdataset, mds, files).",
)
@click.option("-m", "--message", default="", help="What this version is; default: import of SRC.")
@click.option("--author", default="", help="Who made it (default: the user).")
@json_option
def command(
    src: str,
    name: str,
    store: str | None,
    source_format: str | None,
    key: tuple[str, ...],
    types: dict[str, pa.DataType],
    delimiter: str | None,
    extensions: str | None,
    column: str | None,
    identity: tuple[str, ...],
    paranoid: bool,
    reference: bool,
    author: str,
    message: str,
    as_json: bool,
) -> None:
    """Put data into the store."""
    dataset, branch = split_spec(name)
    if key and identity:
        raise BadInput(
            "give --key (each key is one row, rows are sorted by it) or --identity (rows keep their order), not both"
        )
    given = {
        "key": key,
        "identity": identity,
        "types": types,
        "delimiter": delimiter,
        "extensions": extensions.split(",") if extensions else None,
        "column": column,
        "paranoid": paranoid,
        "reference": reference,
    }
    options: dict[str, Any] = {option: value for option, value in given.items() if value}
    source = open_source(src, source_format, **options)
    with open_store(store) as opened:
        before = opened.state.refs.get(f"dataset/{dataset}/{branch}")
        with progress(f"import {dataset}", source.rows) as report:
            label = src if src == "digits" else name_of(place_of(src))
            made = write_dataset(
                opened, dataset, source, message or f"import of {label}", branch, progress=report, author=author
            )
        for note in [*source.notes, *_key_lost(opened, dataset, branch, before, made)]:
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


def _key_lost(store: Store, name: str, branch: str, before: RefRecord | None, made: Dataset) -> list[str]:
    """What to say when a table with a key was replaced by one without."""
    if before is None or made.commit_object.keyed:
        return []
    old = Dataset(store, name, branch, before.commit).commit_object
    if not old.keyed:
        return []
    keys = " ".join(f"--key {column}" for column in old.identity)
    return [f"{name} had a key and has none now, so `lepton upsert` refuses it: import it with {keys} to keep it"]
