"""lepton merge"""

from __future__ import annotations

import json

import click

from leptonstore.cli.runtime import emit, json_option, open_store, progress, store_option
from leptonstore.cli.shown import as_json as value_json
from leptonstore.cli.shown import print_conflicts
from leptonstore.dataset.integrate import Integrated, merge
from leptonstore.dataset.merge import Side
from leptonstore.dataset.refs import resolve_ref
from leptonstore.errors import BadInput, MergeConflict


@click.command("merge")
@click.argument("name")
@click.option("--into", metavar="NAME[@BRANCH]", help="The branch that it goes into (default: main of NAME).")
@click.option("--ours", is_flag=True, help="Where both changed the same, keep what the branch has.")
@click.option("--theirs", is_flag=True, help="Where both changed the same, take what NAME has.")
@click.option("--keep-both", is_flag=True, help="Keep rows that both added in one place, the branch's first.")
@click.option("--whole-rows", is_flag=True, help="A row that both changed is a conflict, in whatever columns.")
@click.option(
    "--base", metavar="VERSION", help="Compare both with this version, not with the one that they parted from."
)
@click.option("--no-ff", is_flag=True, help="Make a commit also where the branch would only have to move.")
@click.option("-m", "--message", default="", help="What the merge is; default: merge of NAME.")
@click.option("--author", default="", help="Who it was (default: the user that runs this).")
@store_option
@json_option
def command(
    name: str,
    into: str | None,
    ours: bool,
    theirs: bool,
    keep_both: bool,
    whole_rows: bool,
    base: str | None,
    no_ff: bool,
    message: str,
    author: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Bring what happened on version NAME@REF into a branch: rows by their key, of a changed row column by column.

    Rows that both sides changed in different ways are printed with what the base, the branch (ours) and NAME (theirs) have there; then
    nothing is written. Exit codes: 0 done, 2 usage or unrelated histories, 3 no such version, 5 conflicts or another writer was faster.

    \b
    Example:
      lepton merge birds@cleanup --into birds
      lepton merge birds@cleanup --into birds@release --theirs
    """
    side = chosen_side(ours, theirs)
    with open_store(store) as opened:
        dataset = resolve_ref(opened, "dataset", name)[0]
        try:
            with progress(f"merge {name}", None) as report:
                done = merge(
                    opened, name, into or dataset, message, side, whole_rows, keep_both, base, not no_ff, author, report
                )
        except MergeConflict as error:
            print_conflict(error, as_json)
            raise
        emit({**done.to_json(), "new_bytes": opened.new_bytes}, as_json, told(done))


def chosen_side(ours: bool, theirs: bool) -> Side | None:
    """Raises BadInput for both."""
    if ours and theirs:
        raise BadInput("--ours and --theirs exclude each other")
    return "ours" if ours else "theirs" if theirs else None


def print_conflict(error: MergeConflict, as_json: bool) -> None:
    """The rows in conflict, on stdout."""
    if as_json:
        for one in error.conflicts:
            click.echo(json.dumps(value_json(vars(one)), ensure_ascii=False))
        click.echo(json.dumps({"conflicts": error.count, "listed": len(error.conflicts), "error": str(error)}))
        return
    print_conflicts(error.conflicts)
    if error.count > len(error.conflicts):
        click.echo(f"… and {error.count - len(error.conflicts):,} rows more")


def told(done: Integrated) -> str:
    """One line about a branch that moved."""
    if done.how == "nothing to do":
        return f"{done.branch} is {done.commit[:12]} already: nothing to do"
    line = f"{done.branch} is {done.commit[:12]}: {done.how}"
    if done.how in ("merged", "reverted"):
        line += f", {done.added:,} rows added, {done.removed:,} removed, {done.changed:,} changed"
    return line + (f", {done.resolved:,} conflicts resolved" if done.resolved else "")
