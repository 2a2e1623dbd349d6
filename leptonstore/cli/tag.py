"""lepton tag"""

from __future__ import annotations

import click

from leptonstore.cli.branch import kind_option, refs
from leptonstore.cli.runtime import json_option, store_option


@click.command("tag")
@click.argument("name", required=False)
@click.option("--from", "start", metavar="REF", help="What it names: REF of NAME, or NAME@REF (default: main).")
@click.option("-d", "--delete", is_flag=True, help="Remove the tag.")
@kind_option
@store_option
@json_option
def command(name: str | None, start: str | None, delete: bool, kind: str, store: str | None, as_json: bool) -> None:
    """List tags, give a version the name NAME@TAG, or take it away. A tag never moves, and keeps its version from gc.

    NAME alone lists its tags. Exit codes: 0 done, 2 usage or the name is taken, 3 no such version, 5 another writer was faster.

    \b
    Example:
      lepton tag birds@v1
      lepton tag birds@paper --from main~2
      lepton tag -d birds@v1
    """
    refs(name, start, delete, True, kind, store, as_json, tag=True)
