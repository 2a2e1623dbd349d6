"""lepton head"""

from __future__ import annotations

import click
import pyarrow as pa

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.cli.table import table_lines
from leptonstore.dataset import Dataset


@click.command("head")
@click.argument("name")
@click.option("-n", "--rows", type=click.IntRange(1, 10_000), default=10, show_default=True, help="So many rows.")
@click.option("--column", "columns", multiple=True, help="Only this column; may be given several times.")
@store_option
@json_option
def command(name: str, rows: int, columns: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Print the first rows of dataset NAME[@REF].

    \b
    Example:
      lepton head mnist
      lepton head birds@v2 -n 3 --column label --column path
    """
    with open_store(store) as opened:
        dataset = Dataset.open(opened, name)
        schema = pa.schema(dataset.fields(columns or None))
        first = dataset.head(rows, schema.names)

        def text() -> None:
            for line in table_lines(schema, [list(row.values()) for row in first]):
                click.echo(line)
            if len(first) < len(dataset):
                click.echo(f"… {len(dataset) - len(first):,} more rows")

        value = {"dataset": dataset.name, "commit": dataset.commit, "rows": first, "total": len(dataset)}
        emit(value, as_json, text)
