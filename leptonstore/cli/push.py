"""lepton push"""

from __future__ import annotations

import click

from leptonstore.cli.exchange import exchange_options, open_remote, print_exchange, require_names, transfer_progress
from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset.exchange import push, refs_of
from leptonstore.store.remotes import DEFAULT


@click.command("push")
@click.argument("names", nargs=-1, metavar="[NAME[@BRANCH]]...")
@click.option("--to", "remote", default=DEFAULT, metavar="REMOTE|URL", help="Where to (default: the remote origin).")
@click.option("--force", is_flag=True, help="Replace the remote's head, though it would be left behind.")
@click.option(
    "--expect", metavar="COMMIT", default="", help="With --force: only if the remote's head begins with this."
)
@exchange_options
@store_option
@json_option
def command(
    names: tuple[str, ...],
    remote: str,
    force: bool,
    expect: str,
    kind: str,
    whole: bool,
    depth: int | None,
    dry_run: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Bring NAME[@BRANCH] (default: main) to another store, with its history. Only what that lacks travels.

    Branches there move forward only. All that are named move, or none. Interrupted, it may be run again and goes on: what arrived
    stays, until garbage collection there. Exit codes: 0 done, 3 no such name or store, 5 the branch has diverged or was moved
    meanwhile, 6 no room there, 9 not permitted, 11 the remote does not answer.

    \b
    Example:
      lepton remote add origin s3://bucket/birds
      lepton push birds --dry-run
      lepton push birds
    """
    require_names(names, whole, "push")
    with open_store(store) as opened:
        _, other = open_remote(opened, remote)
        with other, transfer_progress("push") as progress:
            refs = refs_of(opened, names, kind, whole)
            done = push(opened, other, refs, force, expect, depth, dry_run, progress)
        emit({"remote": other.url, **done.to_json()}, as_json, lambda: print_exchange(done))
