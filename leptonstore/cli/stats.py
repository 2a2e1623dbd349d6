"""lepton stats"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.dataset import Dataset


@click.command("stats")
@click.argument("name")
@store_option
@json_option
def command(name: str, store: str | None, as_json: bool) -> None:
    """Show the size, columns and deduplication of dataset NAME[@REF].

    \b
    Example:
      lepton stats mnist
    """
    with open_store(store) as opened:
        dataset = Dataset.open(opened, name)
        stats = dataset.stats()

        def text() -> None:
            click.echo(f"{dataset.name}@{dataset.ref}  {dataset.commit}")
            click.echo(f"rows          {stats.rows:,} in {stats.row_groups:,} row groups")
            click.echo(f"logical       {human_bytes(stats.logical_bytes)}")
            click.echo(f"stored        {human_bytes(stats.stored_bytes)}  ({stats.stored_ratio:.1%} of logical)")
            for column, values in stats.columns.items():
                sizes = f"{human_bytes(values['logical_bytes']):>10} -> {human_bytes(values['stored_bytes']):>10}"
                click.echo(f"  {column:<16} {sizes}  {values['chunks']:>7,} chunks  {values['type']}")

        emit({"dataset": dataset.name, "commit": dataset.commit, **stats.to_json()}, as_json, text)
