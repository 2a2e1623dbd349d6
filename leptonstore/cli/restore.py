"""lepton restore"""

from __future__ import annotations

import click

from leptonstore.cli.merge import told
from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset.integrate import restore


@click.command("restore")
@click.argument("name")
@click.option(
    "--into", metavar="NAME[@BRANCH]", help="The branch (default: the one that NAME goes back from, else main)."
)
@click.option("-m", "--message", default="", help="Default: restore of the version.")
@click.option("--author", default="", help="Who it was (default: the user that runs this).")
@store_option
@json_option
def command(name: str, into: str | None, message: str, author: str, store: str | None, as_json: bool) -> None:
    """Make a new version with the rows of the old version NAME@REF. No row is copied, and what came between stays in history.

    To write a version out as files, see `lepton export` (or `lepton checkout`, which is the same).

    \b
    Example:
      lepton restore birds@main~3
      lepton restore birds@v1 --into birds@cleanup
    """
    with open_store(store) as opened:
        done = restore(opened, name, into, message, author)
        emit(done.to_json(), as_json, told(done))
