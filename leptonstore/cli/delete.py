"""lepton delete"""

from __future__ import annotations

from typing import Any

import click

from leptonstore.cli.edits import edit_options, format_option, rows_of, run_edit
from leptonstore.dataset import Dataset, edit


@click.command("delete")
@click.argument("name")
@click.option("--where", metavar="CONDITION", help="Rows that this holds for, as in SQL.")
@click.option("--keys", metavar="SRC", help="Rows of a keyed table whose keys stand in this file.")
@click.option("--row", "rows", type=int, multiple=True, metavar="N", help="A row by its number; may be repeated.")
@format_option
@edit_options
def command(
    name: str, where: str | None, keys: str | None, rows: tuple[int, ...], source_format: str | None, **options: Any
) -> None:
    """Take rows out of NAME[@BRANCH]. Older versions keep them; `lepton erase` removes them for good.

    A condition has columns, values, =, <>, <, <=, >, >=, between, in, like, is null, and, or, not; a class label may be compared with the
    name of a class. Exit codes: 0 done, 2 a condition that is not understood, 3 no such name, 5 rows by number of an older version.

    \b
    Example:
      lepton delete birds --where "score < 0.2 or caption is null"
      lepton delete birds --keys withdrawn.csv
    """
    source = rows_of(keys, source_format) if keys is not None else None

    def change(head: Dataset, by: dict[str, Any], report: Any) -> Dataset:
        return edit.delete(head, where, source, rows or None, **by, progress=report)

    run_edit(name, change, **options)
