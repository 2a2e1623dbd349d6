"""lepton revert"""

from __future__ import annotations

import click

from leptonstore.cli.merge import chosen_side, print_conflict, told
from leptonstore.cli.runtime import emit, json_option, open_store, progress, store_option
from leptonstore.dataset.integrate import revert
from leptonstore.errors import MergeConflict


@click.command("revert")
@click.argument("name")
@click.option(
    "--into", metavar="NAME[@BRANCH]", help="The branch (default: the one that NAME goes back from, else main)."
)
@click.option("--ours", is_flag=True, help="Where a later version changed the same, keep that.")
@click.option("--theirs", is_flag=True, help="Where a later version changed the same, undo that too.")
@click.option("-m", "--message", default="", help="Default: revert of the version.")
@click.option("--author", default="", help="Who it was (default: the user that runs this).")
@store_option
@json_option
def command(
    name: str, into: str | None, ours: bool, theirs: bool, message: str, author: str, store: str | None, as_json: bool
) -> None:
    """Undo what version NAME@REF changed, as a new version; what came later stays.

    Of a merge, what it brought into its first parent is undone. Exit codes: 0 done, 2 usage, 3 no such version, or what was before it is
    forgotten, 5 a later version changed the same rows (they are printed; nothing is written).

    \b
    Example:
      lepton revert birds@main~1
      lepton revert birds@3f9a12 --into birds@cleanup
    """
    side = chosen_side(ours, theirs)
    with open_store(store) as opened:
        try:
            with progress(f"revert {name}", None) as report:
                done = revert(opened, name, into, message, side, author, report)
        except MergeConflict as error:
            print_conflict(error, as_json)
            raise
        emit({**done.to_json(), "new_bytes": opened.new_bytes}, as_json, told(done))
