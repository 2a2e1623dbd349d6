"""lepton sql"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.cli.table import table_lines
from leptonstore.errors import BadInput, SchemaError

_SHOWN_ROWS = 50


@click.command("sql")
@click.argument("arguments", nargs=-1, required=True, metavar="[NAME[@REF]]... SQL")
@store_option
@click.option(
    "--limit", type=click.IntRange(1), help=f"Print so many rows (default: {_SHOWN_ROWS}; all with --json or --csv)."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--parquet", "output", type=click.Path(dir_okay=False), help="Write the result to this Parquet file.")
@json_option
def command(
    arguments: tuple[str, ...], store: str | None, limit: int | None, as_csv: bool, output: str | None, as_json: bool
) -> None:
    """Query datasets with SQL (DuckDB). A table is a dataset's NAME, or "NAME@REF" in double quotes.

    Only the columns and row groups that the query needs are read. The query can read this store and nothing else.

    \b
    Example:
      lepton sql "select label, count(*) from mnist group by label"
      lepton sql mnist@v2 "select avg(size) from mnist where split = 0" --json
      lepton sql 'select * from "d@v1" except select * from "d@v2"' --parquet gone.parquet
    """
    from leptonstore.dataset.sql import open_query

    *names, statement = arguments
    if as_csv + as_json + (output is not None) > 1:
        raise BadInput("choose one of --json, --csv and --parquet")
    with open_store(store) as opened, open_query(opened, statement, names) as result:
        if output is not None:
            rows = _write_parquet(result, Path(output), limit)
            size = human_bytes(Path(output).stat().st_size)
            click.echo(f"{rows:,} rows, {size} in {output}")
        elif as_csv:
            _print_csv(result, limit)
        else:
            _print_rows(result, limit, as_json)


def _print_rows(result: Any, limit: int | None, as_json: bool) -> None:
    most = limit if limit is not None or as_json else _SHOWN_ROWS
    names = result.schema.names
    values = (row for batch in result for row in zip(*(column.to_pylist() for column in batch.columns), strict=True))
    rows = list(islice(values, most))
    more = most is not None and next(values, None) is not None
    shown = {"columns": names, "rows": rows, "more": more}

    def text() -> None:
        if names == ["explain_key", "explain_value"]:  # a drawing of several lines
            click.echo("\n".join(str(row[1]) for row in rows))
            return
        for line in table_lines(result.schema, rows):
            click.echo(line)
        click.echo("… more rows (--limit, --csv and --parquet give them)" if more else f"{len(rows):,} rows")

    emit(shown, as_json, text)


def _cut(result: Any, limit: int | None) -> Any:
    left = limit
    for batch in result:
        if left is not None:
            batch = batch.slice(0, left)
            left -= batch.num_rows
        if batch.num_rows:
            yield batch
        if left == 0:
            return


def _print_csv(result: Any, limit: int | None) -> None:
    import pyarrow as pa
    from pyarrow import csv

    try:
        with csv.CSVWriter(sys.stdout.buffer, result.schema) as writer:
            for batch in _cut(result, limit):
                writer.write_batch(batch)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise SchemaError(f"the result does not fit CSV ({error}); select other columns, or use --parquet") from None


def _write_parquet(result: Any, path: Path, limit: int | None) -> int:
    from pyarrow import parquet

    from leptonstore.dataset.confined import replacing, writing

    rows = 0
    with replacing(path) as file, parquet.ParquetWriter(file, result.schema, compression="zstd") as writer:
        for batch in _cut(result, limit):
            with writing(path):
                writer.write_batch(batch)
            rows += batch.num_rows
    return rows
