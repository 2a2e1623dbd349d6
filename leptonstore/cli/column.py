"""lepton column add | drop | rename | rewrite | cast"""

from __future__ import annotations

from typing import Any

import click
import pyarrow as pa

from leptonstore.cli.edits import edit_options, format_option, rows_of, run_edit, type_of, value_of
from leptonstore.dataset import columns as edits
from leptonstore.dataset.feed import Constant, load_function
from leptonstore.dataset.schema import CODEC, NAMES, SEMANTIC, SEMANTICS
from leptonstore.errors import BadInput
from leptonstore.format.framed import canonical_json


@click.group("column")
def command() -> None:
    """Add, drop, rename, rewrite or cast columns of a dataset.

    Each makes a new version in which only that column is written. All take --store and --json.

    \b
    Example:
      lepton column add birds width --function mypackage.sizes:width --columns image
      lepton column rename birds label species
    """


def _values(source: str | None, source_format: str | None, function: str | None, value: str | None) -> Any:
    given = [one for one in (source, function, value) if one is not None]
    if len(given) != 1:
        raise BadInput("say where the values come from: --from FILE, --function MODULE:NAME or --value VALUE")
    if source is not None:
        return rows_of(source, source_format)
    return load_function(function) if function is not None else Constant(value_of(value or ""))


def _value_options(command: Any) -> Any:
    for option in (
        click.option("--from", "source", metavar="SRC", help="A file with one column, a row for each row."),
        format_option,
        click.option("--function", metavar="MODULE:NAME", help="Called with a RecordBatch, returns its values."),
        click.option("--columns", metavar="A,B", help="Columns that the function is given (default: all)."),
        click.option("--value", metavar="VALUE", help="The same value for every row."),
    ):
        command = option(command)
    return command


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [one.strip() for one in text.split(",")]


@command.command("add")
@click.argument("name")
@click.argument("column")
@_value_options
@click.option("--type", "type_text", metavar="TYPE", help="int32, float64, string, … (default: that of the values).")
@edit_options
def add(
    name: str,
    column: str,
    source: str | None,
    source_format: str | None,
    function: str | None,
    columns: str | None,
    value: str | None,
    type_text: str | None,
    **options: Any,
) -> None:
    """Add COLUMN to NAME[@BRANCH], from a file with a value for each row, a function, or one value.

    \b
    Example:
      lepton column add birds label --from labels.parquet
    """
    values = _values(source, source_format, function, value)
    field = column if type_text is None else pa.field(column, type_of(type_text))
    run_edit(
        name,
        lambda head, by, report: edits.add_column(head, field, values, _listed(columns), **by, progress=report),
        **options,
    )


@command.command("rewrite")
@click.argument("name")
@click.argument("column")
@_value_options
@edit_options
def rewrite(
    name: str,
    column: str,
    source: str | None,
    source_format: str | None,
    function: str | None,
    columns: str | None,
    value: str | None,
    **options: Any,
) -> None:
    """Give COLUMN of NAME[@BRANCH] new values.

    \b
    Example:
      lepton column rewrite birds score --function mypackage.model:score --columns image
    """
    values = _values(source, source_format, function, value)
    run_edit(
        name,
        lambda head, by, report: edits.rewrite_column(head, column, values, _listed(columns), **by, progress=report),
        **options,
    )


@command.command("drop")
@click.argument("name")
@click.argument("columns", nargs=-1, required=True)
@edit_options
def drop(name: str, columns: tuple[str, ...], **options: Any) -> None:
    """Take COLUMNS out of NAME[@BRANCH]; older versions keep them.

    \b
    Example:
      lepton column drop birds scratch notes
    """
    run_edit(name, lambda head, by, report: edits.drop_columns(head, columns, **by), **options)


@command.command("rename")
@click.argument("name")
@click.argument("old")
@click.argument("new")
@edit_options
def rename(name: str, old: str, new: str, **options: Any) -> None:
    """Give column OLD of NAME[@BRANCH] the name NEW.

    \b
    Example:
      lepton column rename birds label species
    """
    run_edit(name, lambda head, by, report: edits.rename_columns(head, {old: new}, **by), **options)


@command.command("cast")
@click.argument("name")
@click.argument("column")
@click.option("--type", "type_text", metavar="TYPE", help="int32, float64, string, date32, timestamp[us] …")
@click.option("--semantic", type=click.Choice([*SEMANTICS, "none"]), help="What it means.")
@click.option("--codec", metavar="NAME", help="Of encoded images: jpeg, png …")
@click.option("--classes", metavar="A,B", help="Names of the classes of a class label, in the order of their numbers.")
@click.option("--nullable/--not-nullable", default=None, help="Whether it may have nulls.")
@edit_options
def cast(
    name: str,
    column: str,
    type_text: str | None,
    semantic: str | None,
    codec: str | None,
    classes: str | None,
    nullable: bool | None,
    **options: Any,
) -> None:
    """Change the type of COLUMN of NAME[@BRANCH], or what it means. Every value must fit the new type.

    \b
    Example:
      lepton column cast birds label --type uint8 --semantic class_label --classes finch,wren
    """
    metadata: dict[str, str | None] = {}
    if semantic is not None:
        metadata[SEMANTIC.decode()] = None if semantic == "none" else semantic
    if codec is not None:
        metadata[CODEC.decode()] = codec
    if classes is not None:
        metadata[NAMES.decode()] = canonical_json(_listed(classes)).decode()
    data_type = None if type_text is None else type_of(type_text)
    run_edit(
        name,
        lambda head, by, report: edits.cast_column(head, column, data_type, metadata, nullable, **by, progress=report),
        **options,
    )
