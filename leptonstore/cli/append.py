"""lepton append, lepton upsert, lepton update: rows from a file"""

from __future__ import annotations

from typing import Any

import click

from leptonstore.cli.edits import edit_options, format_option, rows_of, run_edit
from leptonstore.dataset import edit


@click.command("append")
@click.argument("name")
@click.argument("src")
@format_option
@edit_options
def append(name: str, src: str, source_format: str | None, **options: Any) -> None:
    """Add the rows of SRC to NAME[@BRANCH], at the end, or in a keyed table where their keys belong.

    Columns are found by name; a column that SRC lacks is null. Interrupted, the dataset is as it was. When another writer is faster, the
    rows go after its rows. Exit codes: 0 done, 2 rows that do not fit, a key that is there or a broken rule, 3 no such name.

    \b
    Example:
      lepton append birds more.csv -m "spring counts"
    """
    _edit(edit.append, name, src, source_format, options)


@click.command("upsert")
@click.argument("name")
@click.argument("src")
@format_option
@edit_options
def upsert(name: str, src: str, source_format: str | None, **options: Any) -> None:
    """Add the rows of SRC to keyed table NAME[@BRANCH]; where a key is there already, its row is replaced.

    Exit codes: 0 done, 2 rows that do not fit, no keyed table or a broken rule, 3 no such name.

    \b
    Example:
      lepton upsert birds corrected.parquet
    """
    _edit(edit.upsert, name, src, source_format, options)


@click.command("update")
@click.argument("name")
@click.argument("src")
@format_option
@edit_options
def update(name: str, src: str, source_format: str | None, **options: Any) -> None:
    """Set columns in keyed table NAME[@BRANCH]: SRC has the key and the columns that change, for rows that exist.

    Exit codes: 0 done, 2 rows that do not fit, a key that is not there or a broken rule, 3 no such name.

    \b
    Example:
      lepton update birds labels.csv
    """
    _edit(edit.update, name, src, source_format, options)


def _edit(how: Any, name: str, src: str, source_format: str | None, options: dict[str, Any]) -> None:
    source = rows_of(src, source_format)
    run_edit(name, lambda head, by, report: how(head, source, **by, progress=report), **options)
