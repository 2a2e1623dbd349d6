"""lepton log"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset import Dataset
from leptonstore.dataset.refs import ancestry


@click.command("log")
@click.argument("name")
@store_option
@json_option
def command(name: str, store: str | None, as_json: bool) -> None:
    """Show the versions of dataset NAME[@REF], newest first.

    \b
    Example:
      lepton log mnist
    """
    with open_store(store) as opened:
        head = Dataset.open(opened, name)
        versions = []
        for commit in ancestry(opened, head.commit):
            found = Dataset(opened, head.name, head.ref, commit).commit_object
            versions.append(
                {
                    "commit": commit,
                    "rows": found.rows,
                    "message": found.message,
                    "parents": [parent.hex() for parent in found.parents],
                    "lineage": found.lineage,
                }
            )

        def text() -> None:
            for version in versions:
                click.echo(f"{str(version['commit'])[:12]}  {version['rows']:>12,} rows  {version['message']}")

        emit({"dataset": head.name, "versions": versions}, as_json, text)
